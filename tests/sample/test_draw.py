"""Responses from a local model: drawn once, kept with what made them, and never drawn again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models.tiny import causal
from tiebreak.models.load import Loaded, save_model
from tiebreak.models.maker import maker_of
from tiebreak.records import InputError, Prompt
from tiebreak.sample import draw as room
from tiebreak.sample.draw import Sampled, draw
from tiebreak.store import Ledger

PROMPTS = [Prompt(text=f"POST: My cat number {i} left home.\n\nTL;DR:") for i in range(9)]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger(":memory:") as opened:
        opened.add_prompts(PROMPTS)
        yield opened


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return causal("llama")


def sample(ledger: Ledger, loaded: Loaded, prompts: list[Prompt] = PROMPTS, **more: Any) -> Sampled:
    return draw(ledger, loaded, prompts, **{"maker": "tiny@1", "max_new_tokens": 8, "window": 100, **more})


def texts(ledger: Ledger, drawn: Sampled) -> list[str]:
    return [response.text for response in ledger.responses(drawn.response_ids)]


def test_responses_stand_in_the_order_of_prompts_and_draws(ledger: Ledger, loaded: Loaded) -> None:
    drawn = sample(ledger, loaded)
    made = ledger.responses(drawn.response_ids)
    assert [(r.prompt_id, r.draw) for r in made] == [(p.id, i) for p in PROMPTS for i in range(2)]
    assert (drawn.new, drawn.known) == (18, 0)
    assert all(r.settings["temperature"] == 1.0 and r.maker == "tiny@1" for r in made)
    assert drawn.stopped == sum(r.finish == "stop" for r in made) / 18
    assert drawn.tokens == pytest.approx(sum(r.tokens or 0 for r in made) / 18)
    assert {r.finish for r in made} <= {"stop", "length"}


def test_a_killed_run_redraws_nothing_that_was_kept(
    ledger: Ledger, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger(":memory:") as other:
        other.add_prompts(PROMPTS)
        calm = sample(other, loaded)
    monkeypatch.setattr(room, "COMMIT", 2)

    def killed(done: int, total: int, shown: object) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(ledger, loaded, progress=killed)
    kept = ledger.counts()["responses"]
    assert 0 < kept < 18
    seen: list[tuple[int, int]] = []
    drawn = sample(ledger, loaded, progress=lambda done, total, shown: seen.append((done, total)))
    assert (drawn.new, drawn.known) == (18 - kept, kept)
    assert seen[0] == (kept // 2, 9)
    assert seen[-1] == (9, 9)
    assert drawn.response_ids == calm.response_ids
    again = sample(ledger, loaded)
    assert (again.new, again.known, again.response_ids) == (0, 18, drawn.response_ids)


def test_more_draws_keep_the_first_ones(ledger: Ledger, loaded: Loaded) -> None:
    two = sample(ledger, loaded)
    three = sample(ledger, loaded, n=3)
    assert (three.new, three.known) == (9, 18)
    assert [i for n, i in enumerate(three.response_ids) if n % 3 < 2] == two.response_ids
    assert ledger.counts()["responses"] == 27


def test_two_equal_samples_stay_two_rows(ledger: Ledger, loaded: Loaded) -> None:
    drawn = sample(ledger, loaded, temperature=0.0)
    said = texts(ledger, drawn)
    assert said[::2] == said[1::2]
    assert len(set(drawn.response_ids)) == 18


def test_a_prompt_named_twice_is_answered_once(ledger: Ledger, loaded: Loaded) -> None:
    drawn = sample(ledger, loaded, [PROMPTS[0], PROMPTS[0]])
    assert drawn.response_ids[:2] == drawn.response_ids[2:]
    assert ledger.counts()["responses"] == 2


def test_settings_and_seed_tell_samples_apart(ledger: Ledger, loaded: Loaded) -> None:
    base = texts(ledger, sample(ledger, loaded))
    assert texts(ledger, sample(ledger, loaded, seed=1)) != base
    cold = texts(ledger, sample(ledger, loaded, temperature=1e-4))
    assert cold[::2] == texts(ledger, sample(ledger, loaded, temperature=0.0))[::2]
    assert ledger.counts()["responses"] == 18 * 4


def test_cut_prompts_are_counted_and_a_window_without_room_is_refused(ledger: Ledger, loaded: Loaded) -> None:
    long = Prompt(text="POST: " + "word " * 60 + "\n\nTL;DR:")
    ledger.add_prompts([long])
    assert sample(ledger, loaded, [long, *PROMPTS], n=1, window=60).cut >= 1
    with pytest.raises(InputError, match="leaves no prompt"):
        sample(ledger, loaded, window=8)
    with pytest.raises(InputError, match="128 positions"):
        sample(ledger, loaded, [Prompt(text="word " * 300)], window=200)


def test_the_maker_carries_a_hash_of_the_weights(tmp_path: Path) -> None:
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        made = causal("llama", seed=seed)
        save_model(made.model, made.tokenizer, tmp_path / name)
    makers = [maker_of("sft", tmp_path / name) for name in "abc"]
    assert makers[0] == makers[1] != makers[2]
    assert makers[0].startswith("sft@")
    tokenizer = tmp_path / "b" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("TL", "TM"))
    assert maker_of("sft", tmp_path / "b") != makers[0]


def test_hub_models_of_one_name_and_two_owners_are_two_makers() -> None:
    assert maker_of("tiny", "ann/tiny-not-there") == "ann/tiny-not-there@hub"
    assert maker_of("tiny", "bob/tiny-not-there") == "bob/tiny-not-there@hub"
