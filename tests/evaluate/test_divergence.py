"""How far a policy is from another model, held against the models' own full distributions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tiebreak.records import InputError, Prompt

torch = pytest.importorskip("torch")

from tests.models.tiny import TEXTS, causal  # noqa: E402
from tiebreak.evaluate import divergence as measured  # noqa: E402
from tiebreak.evaluate.divergence import divergence, next_token_kl  # noqa: E402
from tiebreak.models.encode import encode_prompt  # noqa: E402
from tiebreak.models.generate import generate  # noqa: E402
from tiebreak.models.load import Loaded, build_causal, train_tokenizer  # noqa: E402

PROMPTS = [Prompt(text=f"Post {n}: the cat came back {'again ' * (n % 4)}") for n in range(40)]
WINDOW = 100


def drawn(policy: Loaded, tokens: int, temperature: float, seed: int = 0) -> list[tuple[tuple[int, ...], list[int]]]:
    """Prompt ids and answer ids, the end included, as sampling gives them."""
    end = policy.tokenizer.eos_token_id
    ids = [encode_prompt(policy.tokenizer, prompt, room=WINDOW - tokens).ids for prompt in PROMPTS]
    keys = [prompt.id for prompt in PROMPTS]
    pad = policy.tokenizer.pad_token_id
    answers = generate(
        policy.model, ids, keys, max_new_tokens=tokens, temperature=temperature, seed=seed, eos=end, pad=pad
    )
    return [(i, [*a.ids, *([end] if a.finish == "stop" else [])]) for i, (a,) in zip(ids, answers, strict=True)]


def distributions(model: Any, prompt: tuple[int, ...], answer: list[int], temperature: float) -> np.ndarray:
    """Log-probabilities at every place of the answer by a plain call of the model, (places, vocabulary)."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].double()
    return (logits / temperature).log_softmax(-1).numpy()


@pytest.mark.parametrize(("kind", "temperature"), [("llama", 1.0), ("gpt2", 0.7)])
def test_each_answer_adds_up_the_exact_kl_along_its_own_tokens(kind: str, temperature: float) -> None:
    policy, other = causal(kind, seed=1), causal(kind, seed=2)
    found = divergence(policy, other, PROMPTS, temperature=temperature, max_new_tokens=6, window=WINDOW)
    steps, ratios = [], []
    for prompt, answer in drawn(policy, 6, temperature):
        p = distributions(policy.model, prompt, answer, temperature)
        q = distributions(other.model, prompt, answer, temperature)
        steps.append(float((np.exp(p) * (p - q)).sum()))
        ratios.append(float(sum(p[place, token] - q[place, token] for place, token in enumerate(answer))))
    np.testing.assert_allclose(found.each, steps, rtol=2e-5)
    assert found.kl.value == pytest.approx(sum(steps) / 40, rel=1e-5)
    assert found.ratio.value == pytest.approx(sum(ratios) / 40, rel=1e-5)
    assert found.kl.n == found.ratio.n == 40


def test_both_estimates_aim_at_the_kl_of_all_answers_of_two_tokens() -> None:
    policy, other = causal("llama", seed=1), causal("llama", seed=2)
    prompts = PROMPTS[:4]
    exact = []
    for prompt in prompts:
        ids = encode_prompt(policy.tokenizer, prompt, room=WINDOW - 2).ids
        width, end = len(policy.tokenizer), policy.tokenizer.eos_token_id
        rows = torch.tensor([[*ids, token] for token in range(width)])
        with torch.no_grad():
            p, q = (m.model(rows).logits[:, -2:].double().log_softmax(-1).numpy() for m in (policy, other))
        first = float((np.exp(p[0, 0]) * (p[0, 0] - q[0, 0])).sum())
        then = (np.exp(p[:, 1]) * (p[:, 1] - q[:, 1])).sum(-1)
        goes_on = np.arange(width) != end
        exact.append(first + float((np.exp(p[0, 0]) * then * goes_on).sum()))
    draws = [divergence(policy, other, prompts, max_new_tokens=2, window=WINDOW, seed=seed) for seed in range(100)]
    kl, ratio = (np.array([getattr(one, name).value for one in draws]) for name in ("kl", "ratio"))
    for values in (kl, ratio):
        assert abs(values.mean() - np.mean(exact)) < 3 * values.std() / math.sqrt(len(values))
    assert kl.std() < ratio.std() / 2
    assert kl.min() >= 0


def test_a_model_is_nowhere_from_itself() -> None:
    policy = causal("llama", seed=1)
    found = divergence(policy, policy, PROMPTS, max_new_tokens=4, window=WINDOW)
    assert found.kl[:3] == found.ratio[:3] == (0.0, 0.0, 0.0)
    assert set(found.each) == {0.0}


def test_how_many_are_computed_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, other = causal("llama", seed=1), causal("llama", seed=2)
    whole = divergence(policy, other, PROMPTS, max_new_tokens=4, window=WINDOW).each
    for name, value in (("TREES", 3), ("PLACES", 1)):
        monkeypatch.setattr(measured, name, value)
        np.testing.assert_allclose(
            divergence(policy, other, PROMPTS, max_new_tokens=4, window=WINDOW).each, whole, 1e-5
        )


def test_answers_to_one_group_are_one_cluster() -> None:
    policy, other = causal("llama", seed=1), causal("llama", seed=2)
    twice = [Prompt(text=prompt.text, context=f"{n % 2}", group=prompt.text) for prompt in PROMPTS for n in range(2)]
    found = divergence(policy, other, twice, max_new_tokens=4, window=WINDOW)
    apart = [Prompt(text=p.text, context=p.context) for p in twice]
    alone = divergence(policy, other, apart, max_new_tokens=4, window=WINDOW)
    assert (found.each, found.kl.value, found.kl.n) == (alone.each, alone.kl.value, 80)
    assert found.kl.low != alone.kl.low


def test_a_token_that_cannot_come_adds_nothing() -> None:
    logps = torch.tensor([[0.0, -math.inf], [math.log(0.5), math.log(0.5)]])
    gaps = logps - torch.tensor([[0.0, -math.inf], [math.log(0.25), math.log(0.75)]])
    assert next_token_kl(logps, gaps).tolist() == pytest.approx([0.0, 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)])


def test_what_cannot_be_measured_is_refused_in_a_sentence() -> None:
    policy = causal("llama", seed=1)
    with pytest.raises(InputError, match=r"needs sampled answers; set the temperature above 0"):
        divergence(policy, policy, PROMPTS, temperature=0.0)
    words = train_tokenizer([*TEXTS * 4, "zebra " * 9], vocabulary=330)
    other = build_causal(policy.model.config.to_dict(), words, seed=0)
    with pytest.raises(InputError, match="different vocabularies"):
        divergence(policy, other, PROMPTS)
    with pytest.raises(InputError, match="raise window"):
        divergence(policy, policy, PROMPTS, max_new_tokens=64, window=64)
