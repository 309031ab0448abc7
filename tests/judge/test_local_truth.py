"""A local judge from model folder to ledger: it knows the answer, leans to a slot, and both orders put that right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tests.judge.made import Pair, ledger_with
from tiebreak.judge.pairwise import PairwiseJudge, make
from tiebreak.judge.run import judge_pairs
from tiebreak.judge.verdict import soft_label
from tiebreak.models.load import Loaded, build_causal, save_model, train_tokenizer
from tiebreak.records import Prompt, Response

WORDS = ["the", "cat", "left", "home", "and", "came", "back", "then", "sat", "down", "on", "its", "mat"]
RUBRIC = "[question]\n{{prompt}}\n\n1 - {{first}}\n\n2 - {{second}}\n\n[verdict]\nPick.\n"
LEAN = 12.0
"""Log-odds of a slot bias that drowns what the model knows."""
PHI = {
    "model_type": "phi",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
"""An architecture whose vocabulary head has a bias, where a slot bias can be planted."""


def answer(draw: random.Random, mark: str) -> str:
    """A few words with ``mark`` somewhere among them."""
    words = draw.choices(WORDS, k=draw.randint(2, 5))
    words.insert(draw.randrange(len(words) + 1), mark)
    return " ".join(words)


def asked(first: str, second: str) -> str:
    return f"user: Tell me.\n\n1 - {first}\n\n2 - {second}\n\nPick.\n\nassistant:"


def drawn(draw: random.Random) -> tuple[str, int]:
    """What the model is asked about two answers, and which slot holds the better one."""
    pair = [answer(draw, "gold"), answer(draw, "lead")]
    better = draw.randrange(2)
    return asked(*(pair if better == 0 else pair[::-1])), better


def digit(tokenizer: PreTrainedTokenizerBase, number: int) -> int:
    (token,) = tokenizer.encode(f" {number}", add_special_tokens=False)
    return int(token)


def taught(steps: int = 120, batch: int = 32) -> Loaded:
    """A tiny model that says 1 or 2: the slot whose answer holds ``gold``."""
    draw = random.Random(0)
    tokenizer = train_tokenizer([f"{drawn(draw)[0]} {n}" for n in (1, 2) for _ in range(100)], vocabulary=400)
    model = build_causal(PHI, tokenizer, seed=0).model
    digits = torch.tensor([digit(tokenizer, 1), digit(tokenizer, 2)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(steps):
        texts, better = zip(*(drawn(draw) for _ in range(batch)), strict=True)
        rows = tokenizer(list(texts), padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
        places = (rows["attention_mask"].cumsum(1) - 1).clamp_min(0)
        logits = model(**{**rows, "token_type_ids": None}, position_ids=places, logits_to_keep=1).logits[:, -1]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, digits[list(better)]).backward()
        optimizer.step()
    return Loaded(model.eval(), tokenizer)


@pytest.fixture(scope="module")
def leaning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, that leans to the first slot, and one with the rubric beside it."""
    where, made = tmp_path_factory.mktemp("judge"), taught()
    model, tokenizer = made.model, made.tokenizer
    with torch.no_grad():
        model.lm_head.bias[digit(tokenizer, 1)] += LEAN
    save_model(model, tokenizer, where / "leaning")
    (where / "pick.txt").write_text(RUBRIC, encoding="utf-8")
    return where


def judge_at(where: Path, **knobs: object) -> PairwiseJudge:
    return make(
        model=str(where / "leaning"),
        rubric=str(where / "pick.txt"),
        rationale=False,
        **knobs,  # type: ignore[arg-type]
    )


def questions(count: int = 40) -> list[Pair]:
    """Pairs of which the first response is the better one."""
    draw, made = random.Random(7), []
    for i in range(count):
        prompt = Prompt(text="Tell me.", source=str(i))
        texts = answer(draw, "gold"), answer(draw, "lead")
        made.append(
            (prompt, *(Response(prompt_id=prompt.id, text=text, draw=2 * i + n) for n, text in enumerate(texts)))
        )
    return made


def test_both_orders_find_the_truth_where_one_order_finds_the_first_slot(leaning: Path, tmp_path: Path) -> None:
    made = questions()
    with ledger_with(tmp_path / "l.db", made) as ledger:
        judged = judge_pairs(ledger, judge_at(leaning, verdict_tokens=1), made)
        found = ledger.judgments(judged.judgment_ids)
    assert judged.counts["asked"] == 2 * len(made)
    assert judged.counts["invalid"] == 0
    assert judged.price is None
    assert judged.tokens_out == 2 * len(made)
    assert {judgment.winner for judgment in found} == {0}
    for i, (_, better, worse) in enumerate(made):
        for how in ("probability", "logit"):
            label = soft_label(found[2 * i : 2 * i + 2], better.id, worse.id, how=how)  # type: ignore[arg-type]
            assert label is not None
            assert label.p > 0.5
            assert label.orders == 2


def test_more_tokens_or_another_batch_change_no_verdict(leaning: Path, tmp_path: Path) -> None:
    made = questions(8)
    with ledger_with(tmp_path / "l.db", made) as ledger:
        runs = [
            ledger.judgments(judge_pairs(ledger, judge_at(leaning, **knobs), made, concurrency=n).judgment_ids)
            for n, knobs in ((32, {}), (1, {"verdict_tokens": 1}), (7, {"batch": 3}))
        ]
    assert len(runs[0]) == 16
    for first, *others in zip(*runs, strict=True):
        assert all(other.verdict == first.verdict == "slot" for other in others)
        assert all(other.probability == pytest.approx(first.probability, abs=1e-5) for other in others)
        assert first.by.startswith("model:leaning@")


def test_a_pair_too_long_for_the_model_is_invalid_and_says_why(leaning: Path, tmp_path: Path) -> None:
    prompt = Prompt(text="Tell me.")
    long = [Response(prompt_id=prompt.id, text=f"gold {word} " * 60) for word in ("cat", "mat")]
    made = [*questions(2), (prompt, *long)]
    with ledger_with(tmp_path / "l.db", made) as ledger:
        judged = judge_pairs(ledger, judge_at(leaning), made)
        found = ledger.judgments(judged.judgment_ids)
    assert [judgment.verdict for judgment in found] == ["slot"] * 4 + ["invalid"] * 2
    assert all("window" in str(judgment.fields["why"]) for judgment in found[4:])
