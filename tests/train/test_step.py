"""What a step leaves behind: models as they were found, nothing half done, and mistakes told in a sentence."""

from __future__ import annotations

import math
import random
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.models.tiny import causal, ids, tokenizer
from tests.train.made import METHODS, start
from tests.train.test_learner import Caught, another, batch, made, taken
from tiebreak.models.adapters import Adapter, adapt
from tiebreak.models.attention import NAME
from tiebreak.models.encode import encode_tree
from tiebreak.models.forest import Tree
from tiebreak.models.load import to_reward
from tiebreak.records import InputError, Prompt, Response
from tiebreak.train.learner import Learner
from tiebreak.train.pace import Pace
from tiebreak.train.rows import Example, check_rows
from tiebreak.train.update import Compute


def found_in(model: PreTrainedModel) -> dict[str, Any]:
    """All that a training may borrow of a model and has to give back."""
    return {
        "attention": model.config._attn_implementation,
        "training": {name: module.training for name, module in model.named_modules()},
        "forward": {name: vars(module).get("forward") for name, module in model.named_modules()},
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in model.named_modules()
        },
        "trained": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "gradients": {name for name, parameter in model.named_parameters() if parameter.grad is not None},
        "checkpointing": {
            name: getattr(module, "gradient_checkpointing", None) for name, module in model.named_modules()
        },
    }


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("compute", [Compute(), Compute(precision="bfloat16", tokens=30)])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_models_are_given_back_as_they_were_found(kind: str, compute: Compute, fails: bool) -> None:
    model, reference = start("dpo", kind).eval(), another(kind).eval().requires_grad_(False)
    before = found_in(model), found_in(reference)
    learner = made("dpo", compute, model=model, reference=reference)
    with pytest.raises(KeyError) if fails else nullcontext(), learner.ready():
        assert model.config._attn_implementation == NAME
        assert model.training
        assert not reference.training
        learner.step(batch("dpo"), 0, 1)
        if fails:
            raise KeyError
    assert (found_in(model), found_in(reference)) == before


def test_an_adapted_model_is_given_back_as_it_was_found() -> None:
    model = adapt(start("dpo", "gpt2"), Adapter(rank=4, alpha=8.0), seed=0).eval()
    before = found_in(model)
    learner = made("dpo", model=model)
    with learner.ready():
        learner.step(batch("dpo"), 0, 1)
    assert found_in(model) == before


def all_of(learner: Learner) -> list[Tensor]:
    """The weights and all that the optimizer holds."""
    state = learner.optimizer.state_dict()["state"]
    moments = [torch.as_tensor(value) for number in sorted(state) for value in state[number].values()]
    return [tensor.detach().clone() for tensor in (*learner.model.parameters(), *moments)]


@pytest.mark.parametrize("broken", ["loss", "gradient"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "bfloat16_weights"])
@pytest.mark.parametrize("tokens", [None, 1])
def test_a_step_that_fails_leaves_weights_and_moments_as_they_were(
    broken: str, precision: str, tokens: int | None
) -> None:
    rows = batch("sft")
    compute = Compute(precision=precision, tokens=tokens)
    learner, calm = made("sft", compute), made("sft", compute)
    with learner.ready(), calm.ready():
        for number in range(2):
            learner.step(rows, number, 9)
            calm.step(rows, number, 9)
        before = all_of(learner)
        if broken == "loss":
            module = learner.model.get_input_embeddings()
            hook = module.register_forward_hook(lambda module, given, out: out * math.nan)
        else:
            hook = next(learner.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
        with pytest.raises(InputError, match=f"The {broken}.* at step 3 is .*lower the learning rate") as said:
            learner.step(rows, 2, 9)
        hook.remove()
        assert "\n" not in str(said.value)
        after = all_of(learner)
        assert len(before) == len(after)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        learner.step(rows, 2, 9)
        calm.step(rows, 2, 9)
        assert all(torch.equal(a, b) for a, b in zip(all_of(learner), all_of(calm), strict=True)), "nothing stuck"


def test_broken_weights_are_one_sentence() -> None:
    for where in ("lm_head.weight", "model.embed_tokens.weight"):
        model = start("sft")
        with torch.no_grad():
            model.get_parameter(where)[3] = math.nan
        with pytest.raises(InputError) as said:  # noqa: PT012
            learner = made("sft", model=model)
            with learner.ready():
                learner.step(batch("sft"), 0, 1)
        assert "nan" in str(said.value).lower()
        assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"p": math.nan}, "Row 2 has p = nan"),
        ({"p": -0.1}, "Row 2 has p = -0.1"),
        ({"weight": math.nan}, "Row 2 has weight nan"),
        ({"weight": math.inf}, "Row 2 has weight inf"),
        ({"weight": -1.0}, "Row 2 has weight -1.0"),
    ],
)
def test_broken_numbers_of_a_row_are_one_sentence(change: dict[str, float], said: str) -> None:
    rows = batch("dpo")
    rows[2] = rows[2]._replace(**change)
    with pytest.raises(InputError, match=said) as refused:
        check_rows(rows, start("dpo"), kind="pairs")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_row_that_just_fits_the_models_window_is_taken_and_a_longer_one_refused(kind: str) -> None:
    window, draw = 128, random.Random(0)
    fits = Example(Tree(ids(draw, 100), (ids(draw, window - 100), ids(draw, 3))))
    long = Example(Tree(ids(draw, 100), (ids(draw, 3), ids(draw, window - 99))))
    learner = made("dpo", kind=kind)
    check_rows([fits], learner.model, kind="pairs")
    with learner.ready():
        assert math.isfinite(learner.step([fits], 0, 1).numbers["loss"])
    with pytest.raises(InputError, match="Row 1 has 129 tokens and the model 128 positions; lower window"):
        check_rows([fits, long], learner.model, kind="pairs")


@pytest.mark.parametrize("method", METHODS)
def test_clipping_bounds_the_norm_of_the_gradient_and_keeps_its_direction(method: str) -> None:
    rows, bound = batch(method), 1e-3
    free = taken(made(method), rows)
    bounded = taken(made(method, pace=Pace(clip=bound)), rows)
    assert free.numbers["grad_norm"] == pytest.approx(float(free.gradient.norm()), rel=1e-5)
    assert bounded.numbers["grad_norm"] == pytest.approx(free.numbers["grad_norm"], rel=1e-6), "logged before clipping"
    assert float(bounded.gradient.norm()) == pytest.approx(bound, rel=1e-2)
    assert float(bounded.gradient.norm()) <= bound
    torch.testing.assert_close(bounded.gradient / bound, free.gradient / free.gradient.norm(), atol=1e-3, rtol=1e-2)


def test_the_learning_rate_of_a_step_is_that_of_the_pace() -> None:
    pace = Pace(learning_rate=0.5, warmup=0.2, decay="linear")
    learner = made("sft", pace=pace)
    caught = Caught(learner.trained)
    caught.param_groups = [{}, {}]
    learner.optimizer = caught
    with learner.ready():
        rates = [learner.step(batch("sft", 2), number, 10).numbers["learning_rate"] for number in range(10)]
        assert rates == [pace.rate(number, 10) for number in range(10)]
    assert [group["lr"] for group in caught.param_groups] == [rates[-1]] * 2
    assert rates[:2] == [0.25, 0.5]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_score_is_read_at_the_last_token_even_behind_padding_and_eos_ids(kind: str) -> None:
    """Those ids are ordinary tokens inside a completion; a search for the last of them would stop too early."""
    draw = random.Random(0)
    loaded = causal(kind)
    pad, eos = loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id
    branches = [
        (*ids(draw, 3), pad, *ids(draw, 4)),
        (*ids(draw, 2), eos, *ids(draw, 5), eos),
        (pad, pad, *ids(draw, 2), pad),
        (*ids(draw, 2), eos, pad, pad, eos),
    ]
    rows = [Example(Tree(ids(draw, n), (a, b))) for n, a, b in ((5, *branches[:2]), (9, *branches[2:]))]
    learner = made("bradley_terry", model=to_reward(loaded.model, loaded.tokenizer, seed=1), kind=kind)
    with learner.ready():
        values = learner.values(rows)
    body = getattr(learner.model, learner.model.base_model_prefix)
    alone = []
    for row in rows:
        for branch in row.tree.branches:
            given = torch.tensor([row.tree.trunk + branch])
            with torch.no_grad():
                states = body(input_ids=given, attention_mask=torch.ones_like(given)).last_hidden_state
                alone.append(learner.model.score(states[0, -1])[0])
    torch.testing.assert_close(values, torch.stack(alone), atol=1e-5, rtol=0)
    assert float(values.std()) > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_the_padding_side_of_the_tokenizer_plays_no_role(method: str) -> None:
    found = []
    for side in ("left", "right"):
        words = tokenizer()
        words.padding_side = words.truncation_side = side
        texts = ["The cat left home.", "It came back and was well, thank you."]
        sides = texts[:1] if method == "sft" else texts
        answers = [Response(prompt_id="p", text=text) for text in sides]
        tree, _ = encode_tree(words, Prompt(text="How is the cat?"), answers, window=64)
        assert tree is not None
        short, _ = encode_tree(words, Prompt(text="Cat?"), answers[::-1], window=64)
        assert short is not None
        model = causal("llama").model
        if method == "bradley_terry":
            model = to_reward(model, words, seed=1)
        found.append(taken(made(method, model=model), [Example(tree, p=0.8), Example(short, p=0.6)]))
    assert found[0].numbers == found[1].numbers
    assert torch.equal(found[0].gradient, found[1].gradient)


def test_dropout_of_the_model_is_off_while_it_learns() -> None:
    model = start("sft", "gpt2")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    learner = made("sft", model=model)
    rows = batch("sft")
    with learner.ready():
        first, second = learner.values(rows), learner.values(rows)
    assert torch.equal(first, second)


def test_compute_that_cannot_be_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"no precision 'bfloat'.*Did you mean 'bfloat16'"):
        Compute(precision="bfloat")
    with pytest.raises(InputError, match="tokens is 0"):
        Compute(tokens=0)
