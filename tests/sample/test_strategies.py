"""Responses chosen by a reward: all are kept in the ledger, the best go on, and nothing is scored twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from tests.models.tiny import causal
from tiebreak.models.load import save_model
from tiebreak.recipe import build_recipe
from tiebreak.records import InputError, Prompt, Response
from tiebreak.rewards.combine import Rewards, Term
from tiebreak.rewards.table import Answered
from tiebreak.run import run
from tiebreak.run.run import Ran
from tiebreak.sample import draw as room
from tiebreak.sample.choose import best_of_n_kl, rejection
from tiebreak.sample.draw import Chosen, choose
from tiebreak.store import Ledger

PROMPTS = [Prompt(text=f"Number {number}?") for number in range(7)]
N = 5


def responses() -> list[Response]:
    """Five to each prompt, whose text is what they are worth."""
    return [
        Response(prompt_id=prompt.id, text=str((7 * i + 3 * j) % 11), draw=j, finish="stop", tokens=3)
        for i, prompt in enumerate(PROMPTS)
        for j in range(N)
    ]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger(":memory:") as opened:
        opened.add_prompts(PROMPTS)
        opened.add_responses(responses())
        yield opened


def worth(answered: Sequence[Answered]) -> list[list[float | None]]:
    return [[None if text == "x" else float(text) for text in one.texts] for one in answered]


def rewards(score: Callable[..., Any] = worth) -> Rewards:
    return Rewards([Term(name="worth", label="worth", score=score)])


def chosen(ledger: Ledger, path: Path, *, score: Callable[..., Any] = worth, **more: Any) -> Chosen:
    ids = [response.id for response in responses()]
    return choose(ledger, ids, rewards(score), path=path / "rewards.jsonl", **{"strategy": "best_of_n", **more})


def values(ledger: Ledger, done: Chosen) -> list[float]:
    return [float(response.text) for response in ledger.responses(done.response_ids)]


def test_the_best_of_each_prompt_goes_on_and_the_numbers_say_what_that_did(ledger: Ledger, tmp_path: Path) -> None:
    done = chosen(ledger, tmp_path)
    every = [[float(r.text) for r in responses() if r.prompt_id == prompt.id] for prompt in PROMPTS]
    assert values(ledger, done) == [max(some) for some in every]
    assert done.numbers == {
        "mean reward": pytest.approx(fmean(score for some in every for score in some)),
        "mean reward of the kept": pytest.approx(fmean(map(max, every))),
        "nats from the model at most": best_of_n_kl(N),
    }
    assert list(done.best_of) == ["1", "2", "4", "5"]
    assert done.best_of["1"] == pytest.approx(done.numbers["mean reward"])
    assert done.best_of["5"] == pytest.approx(done.numbers["mean reward of the kept"])
    assert ledger.counts()["responses"] == N * len(PROMPTS)


def test_every_response_has_its_reward_on_disk(ledger: Ledger, tmp_path: Path) -> None:
    done = chosen(ledger, tmp_path, keep=2)
    lines = [json.loads(line) for line in (tmp_path / "rewards.jsonl").read_text().splitlines()]
    assert [line["prompt_id"] for line in lines] == [prompt.id for prompt in PROMPTS]
    assert [line["response_ids"][place] for line in lines for place in line["kept"]] == done.response_ids
    for line in lines:
        texts = [float(response.text) for response in ledger.responses(line["response_ids"])]
        assert line["rewards"] == texts == line["terms"]["worth"]
        assert sorted(line["rewards"])[-2:] == sorted(line["rewards"][place] for place in line["kept"])
        assert line["kept"] == sorted(line["kept"]), "the order says nothing about the rewards"
    assert "nats from the model at most" not in done.numbers, "the formula is of one kept response"


def test_rejection_keeps_what_it_accepts(ledger: Ledger, tmp_path: Path) -> None:
    done = chosen(ledger, tmp_path, strategy="rejection", beta=2.0, seed=4)
    expected = []
    for prompt in PROMPTS:
        some = [float(r.text) for r in responses() if r.prompt_id == prompt.id]
        expected += [some[place] for place in rejection(some, 2.0, seed=4, name=prompt.id)]
    assert values(ledger, done) == expected
    assert done.numbers["share accepted"] == len(expected) / (N * len(PROMPTS))
    assert len(values(ledger, chosen(ledger, tmp_path, strategy="rejection", keep=3))) == 3 * len(PROMPTS)
    usual = chosen(ledger, tmp_path, strategy="rejection")
    assert usual == chosen(ledger, tmp_path, strategy="rejection", beta=0.5)


def test_a_response_without_a_reward_is_counted_and_never_kept(ledger: Ledger, tmp_path: Path) -> None:
    def picky(answered: Sequence[Answered]) -> list[list[float | None]]:
        hard = PROMPTS[0].id
        return [
            [None if one.prompt.id == hard or value == 10.0 else value for value in row]
            for one, row in zip(answered, worth(answered), strict=True)
        ]

    done = chosen(ledger, tmp_path, score=picky)
    lost = N + sum(r.text == "10" and r.prompt_id != PROMPTS[0].id for r in responses())
    assert done.unscored == lost > N
    assert done.faults == {"reward worth: it gave None": lost}
    assert len(done.response_ids) == len(PROMPTS) - 1
    assert 10.0 not in values(ledger, done)


def test_a_killed_scoring_pays_for_nothing_twice(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = chosen(ledger, tmp_path / "calm")
    monkeypatch.setattr(room, "COMMIT", 2)
    asked: list[str] = []

    def counted(answered: Sequence[Answered]) -> list[list[float | None]]:
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.extend(one.prompt.id for one in answered)
        return worth(answered)

    with pytest.raises(KeyboardInterrupt):
        chosen(ledger, tmp_path, score=counted)
    with (tmp_path / "rewards.jsonl").open("a") as file:
        file.write('{"prompt_id": "cut sh')
    asked.append("a kill")
    done = chosen(ledger, tmp_path, score=counted)
    assert [name for name in asked if name != "a kill"] == [prompt.id for prompt in PROMPTS]
    assert done == calm
    assert (tmp_path / "rewards.jsonl").read_text() == (tmp_path / "calm" / "rewards.jsonl").read_text()


def test_a_reward_sees_how_responses_ended_and_how_long_they_are(ledger: Ledger, tmp_path: Path) -> None:
    seen: list[Answered] = []

    def look(answered: Sequence[Answered]) -> list[list[float | None]]:
        seen.extend(answered)
        return worth(answered)

    chosen(ledger, tmp_path, score=look)
    assert [one.prompt for one in seen] == PROMPTS
    assert {(one.finishes, one.lengths) for one in seen} == {(("stop",) * N, (4,) * N)}


def recipe(folder: Path, sample: dict[str, Any], **more: Any) -> Any:
    world = {"format": "world", "n": 12, "split": {"train": None}}
    sizes = {"prompts": "train", "max_new_tokens": 6, "window": 120}
    raw = {"project": str(folder / "run"), "import": world, "sample": {"model": str(folder / "sft"), **sizes, **sample}}
    return build_recipe({**raw, **more}, where="")


def ran(folder: Path, sample: dict[str, Any], **more: Any) -> Ran:
    return run(recipe(folder, sample, **more))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sample")
    loaded = causal("llama")
    save_model(loaded.model, loaded.tokenizer, made / "sft")
    return made


def test_the_sample_section_hands_on_what_it_keeps(folder: Path) -> None:
    ends = {"length": {"unit": "characters", "most": 1}}
    everything = ran(folder, {"n": 6}).manifests["sample"]["counts"]
    done = ran(
        folder, {"n": 6, "strategy": "best_of_n", "keep": 2, "reward": ends}, judge={"by": "rule", "rule": "longer"}
    )
    counts = done.manifests["sample"]["counts"]
    assert (everything["responses"], counts["responses"], counts["drawn"]) == (72, 24, 72)
    assert counts["known"] == 72, "the draws are those of before"
    assert counts["mean reward of the kept"] > counts["mean reward"]
    assert set(done.manifests["sample"]["outputs"]["mean reward of the best of"]) == {"1", "2", "4", "6"}
    assert done.manifests["judge"]["counts"]["pairs"] == 12, "one pair of two kept answers a prompt"
    with Ledger(folder / "run" / "ledger.db") as ledger:
        key = done.manifests["sample"]["key"]
        kept, drawn = (ledger.responses(ledger.get_set(f"{key}/{kind}")) for kind in ("responses", "drawn"))
        assert ledger.counts()["responses"] == 72 + 12
    for prompt_id in {response.prompt_id for response in drawn}:
        lengths = sorted(len(response.text) for response in drawn if response.prompt_id == prompt_id)
        assert sorted(len(response.text) for response in kept if response.prompt_id == prompt_id) == lengths[:2]


def test_one_kept_answer_leaves_the_judge_without_pairs(folder: Path) -> None:
    with pytest.raises(InputError, match="no two responses"):
        ran(folder, {"n": 6, "strategy": "best_of_n", "reward": "ends"}, judge={"by": "rule", "rule": "longer"})


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({"strategy": "best_of_n"}, "expected a reward"),
        ({"reward": "ends"}, "none with all"),
        ({"keep": 1}, "keep has no effect"),
        ({"strategy": "best_of_n", "reward": "ends", "beta": 1.0}, "beta has no effect"),
        ({"strategy": "best_of_n", "reward": "ends", "keep": 3}, "keep is 3 of 2"),
        ({"strategy": "rejection", "reward": "ends", "beta": 0}, "more than 0"),
        ({"strategy": "best", "reward": "ends"}, "best_of_n"),
        ({"strategy": "best_of_n", "reward": {"ends": {"normalise": "whiten"}}}, "normalise: group"),
        ({"strategy": "best_of_n", "reward": [{"ends": {"weight": {"from": 0, "to": 1}}}]}, "a number as weight"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(sample: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        recipe(tmp_path, sample)


def test_a_reward_from_the_same_recipe_is_made_first(tmp_path: Path) -> None:
    from tiebreak.run import plan

    stages = {"rm": {"method": "bradley_terry", "model": "hub/base"}}
    made = recipe(tmp_path, {"strategy": "best_of_n", "reward": "rm"}, train=stages, curate=["soft_label"])
    order = [stage.name for stage in plan(made)]
    assert order.index("train.rm") < order.index("sample")
    with pytest.raises(InputError, match="wait for each other"):
        plan(
            recipe(
                tmp_path,
                {"strategy": "best_of_n", "reward": "rm"},
                train=stages,
                curate=["soft_label"],
                judge={"by": "rule"},
            )
        )
