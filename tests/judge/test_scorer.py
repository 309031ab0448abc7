"""A reward model as a judge: scores alone decide, in batches, and both orders say the same to the last bit."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.judge.made import Pair, ask, ledger_with, pair, pairs
from tests.models.tiny import causal
from tests.rewards.made import asked
from tiebreak.judge import run as judge_run
from tiebreak.judge.run import judge_pairs
from tiebreak.judge.scorer import first_probability, make
from tiebreak.judge.table import Prepares, Question
from tiebreak.models.forms import SCALAR, Form
from tiebreak.models.load import Loaded, save_model, to_reward
from tiebreak.models.maker import maker_of
from tiebreak.models.score import score, score_each
from tiebreak.recipe import build_recipe
from tiebreak.records import InputError, Judgment, Progress, Response, content_id
from tiebreak.rewards.judged import make_against

FORMS = [Form(kind="skew", tau=0.1), Form(kind="pairwise"), Form(kind="gap")]
COMPARING = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)


def reward_model(seed: int = 1, form: Form = SCALAR) -> Loaded:
    loaded = causal("llama")
    labels = {"skew": 4, "attributes": 2}.get(form.kind, 1)
    model = to_reward(loaded.model, loaded.tokenizer, seed=seed, labels=labels, form=form)
    return Loaded(model, loaded.tokenizer, form)


def saved(loaded: Loaded, folder: Path) -> str:
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_model(loaded.model, loaded.tokenizer, folder, form=loaded.form)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(reward_model(), tmp_path_factory.mktemp("models") / "scorer")


def many(count: int = 12) -> list[Pair]:
    return [pair(i, f" The cat left home {i} times.", f" A cat {'sat ' * (i % 5)}.") for i in range(count)]


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_the_probability_is_the_sigmoid_of_the_difference(folder: str, temperature: float, tmp_path: Path) -> None:
    loaded, made = reward_model(), many()
    judge = make(model=folder, temperature=temperature)
    with ledger_with(tmp_path / "l.db", made) as ledger:
        found = ledger.judgments(judge_pairs(ledger, judge, made, orders="given").judgment_ids)
    for (prompt, a, b), judgment in zip(made, found, strict=True):
        first, second = score_each(loaded, [(prompt, a), (prompt, b)])
        assert first is not None
        assert second is not None
        assert judgment.probability == pytest.approx(1 / (1 + math.exp((second - first) / temperature)), abs=1e-5)
        assert judgment.winner == int(first < second)
        assert judgment.fields["scores"] == pytest.approx([first, second], abs=1e-5)
    assert {judgment.winner for judgment in found} == {0, 1}


def test_both_orders_agree_exactly(folder: str, tmp_path: Path) -> None:
    made = many()
    with ledger_with(tmp_path / "l.db", made) as ledger:
        judged = judge_pairs(ledger, make(model=folder), made, attempts=2)
        found = ledger.judgments(judged.judgment_ids)
    assert judged.counts == {"asked": 48, "known": 0, "invalid": 0, "ties": 0, "identical": 0, "empty": 0}
    for i, (_, a, b) in enumerate(made):
        for side in (a, b):
            assert len({judgment.p_better(side.id) for judgment in found[4 * i : 4 * i + 4]}) == 1


@given(st.floats(allow_nan=False))
def test_what_one_order_says_the_other_says_to_the_last_bit(gap: float) -> None:
    p, q = first_probability(gap), first_probability(-gap)
    assert (p, q) == (1 - q, 1 - p)
    assert p == pytest.approx(1 / (1 + math.exp(-gap)) if gap > -700 else 0.0, abs=1e-15)
    assert (p == 0.5) or (p > 0.5) == (gap > 0)


def test_equal_scores_are_a_tie(tmp_path: Path) -> None:
    loaded = reward_model()
    torch.nn.init.zeros_(loaded.model.score.weight)
    judgment = ask(make(model=saved(loaded, tmp_path / "flat")), pair())
    assert (judgment.verdict, judgment.winner, judgment.probability) == ("tie", None, 0.5)


def test_an_answer_too_long_is_invalid_with_its_reason_and_the_rest_is_judged(folder: str, tmp_path: Path) -> None:
    made = [pair(0, " word" * 200), pair(2)]
    with ledger_with(tmp_path / "l.db", made) as ledger:
        judged = judge_pairs(ledger, make(model=folder, window=90), made)
        there, back, *rest = ledger.judgments(judged.judgment_ids)
    assert judged.counts["invalid"] == 2
    assert there.raw == "the first answer is too long for a window of 90 tokens"
    assert back.raw == "the second answer is too long for a window of 90 tokens"
    for judgment in (there, back):
        assert (judgment.verdict, judgment.winner, judgment.probability) == ("invalid", None, None)
    assert [judgment.verdict for judgment in rest] == ["slot", "slot"]


def test_the_window_ends_where_the_model_does_and_an_empty_answer_says_so(folder: str) -> None:
    prompt = pair()[0]
    cut = Response(prompt_id=prompt.id, text="", finish="length")
    long = Response(prompt_id=prompt.id, text=" word" * 200)
    judgment = ask(make(model=folder), (prompt, cut, long))
    assert judgment.verdict == "invalid"
    assert judgment.raw == (
        "the first answer is empty and unfinished; the second answer is too long for a window of 128 tokens"
    )


def test_scores_that_are_no_numbers_stop_the_run(tmp_path: Path) -> None:
    loaded = reward_model()
    torch.nn.init.constant_(loaded.model.score.weight, math.nan)
    with pytest.raises(InputError, match="gave nan for response"):
        ask(make(model=saved(loaded, tmp_path / "broken")), pair())


def test_after_preparing_an_answer_is_looked_up(tmp_path: Path) -> None:
    where = Path(saved(reward_model(), tmp_path / "gone"))
    judge, made = make(model=str(where)), many(6)
    unprepared = [ask(make(model=str(where)), one) for one in made]
    judge.prepare([Question(prompt, (a, b)) for prompt, a, b in made])
    assert judge.by == f"model:{maker_of('gone', where)}"
    shutil.rmtree(where)
    del judge._loaded
    for one, alone in zip(made, unprepared, strict=True):
        assert ask(judge, one).probability == pytest.approx(alone.probability, abs=1e-5)


def test_portions_change_nothing_and_progress_is_of_questions(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, seen = many(), []
    with ledger_with(tmp_path / "one.db", made) as ledger:
        whole = ledger.judgments(judge_pairs(ledger, make(model=folder), made).judgment_ids)
    monkeypatch.setattr(judge_run, "PORTION", 5)
    with ledger_with(tmp_path / "many.db", made) as ledger:
        judged = judge_pairs(ledger, make(model=folder), made, progress=lambda *now: seen.append(now))
        found = ledger.judgments(judged.judgment_ids)
    assert [judgment.slots for judgment in found] == [judgment.slots for judgment in whole]
    assert [j.probability for j in found] == pytest.approx([j.probability for j in whole], abs=1e-5)
    for there, back in zip(found[::2], found[1::2], strict=True):
        assert there.probability == 1 - back.probability
    places = [done for done, _, _ in seen]
    assert places == sorted(places)
    assert {total for _, total, _ in seen} == {24}
    scored = [shown["answers scored"] for _, _, shown in seen if "answers scored" in shown]
    assert scored == sorted(scored)
    assert scored[-1] == 24


def test_what_is_known_loads_no_model(folder: str, tmp_path: Path) -> None:
    made = many(4)
    with ledger_with(tmp_path / "l.db", made) as ledger:
        first = judge_pairs(ledger, make(model=folder), made)
        again = make(model=folder, batch=1)
        second = judge_pairs(ledger, again, made)
    assert second.judgment_ids == first.judgment_ids
    assert second.counts["asked"] == 0
    assert "_loaded" not in vars(again)


def test_all_that_steers_is_in_the_rubric_and_the_weights_are_in_the_name(folder: str, tmp_path: Path) -> None:
    changed: list[dict[str, Any]] = [{}, {"temperature": 2.0}, {"window": 512}, {"cut": "end"}]
    assert len({make(model=folder, **knobs).rubric for knobs in changed}) == len(changed)
    assert make(model=folder, batch=4).rubric == make(model=folder).rubric
    assert make(model=folder).by == f"model:{maker_of('scorer', folder)}"
    stage = saved(reward_model(), tmp_path / "train" / "reward" / "model")
    assert make(model=stage).by == f"model:{maker_of('reward', folder)}"
    other = saved(reward_model(seed=2), tmp_path / "train" / "reward" / "model")
    assert make(model=other).by != f"model:{maker_of('reward', folder)}"


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"model": ""}, "'reward' needs model"),
        ({"temperature": 0.0}, r"temperature is 0\.0; expected a number above 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"window": 0}, "window is 0; expected 1 or more"),
        ({"batch": 0}, "batch is 0; expected 1 or more"),
        ({"cut": "middle"}, "cut is 'middle'; expected 'start' or 'end'"),
        ({"revision": "main"}, "is a folder, which has none; leave it out"),
        ({"model": "./nowhere"}, "nowhere is not a model"),
    ],
)
def test_a_wrong_knob_is_refused_with_the_cure(folder: str, knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make(**{"model": folder, **knobs})


@COMPARING
def test_a_model_that_compares_says_the_same_in_both_orders_to_the_last_bit(form: Form, tmp_path: Path) -> None:
    made, loaded = many(6), reward_model(form=form)
    with ledger_with(tmp_path / "l.db", made) as ledger:
        judged = judge_pairs(ledger, make(model=saved(loaded, tmp_path / "model"), temperature=0.5), made)
        found = ledger.judgments(judged.judgment_ids)
    for (prompt, a, b), there, back in zip(made, found[::2], found[1::2], strict=True):
        ((first, second),) = score(loaded, [(prompt, [a, b])])
        assert there.probability == 1 - back.probability
        assert there.fields["scores"] == back.fields["scores"][::-1] == pytest.approx([first, second], abs=1e-4)
        p = there.p_better(a.id)
        assert p == pytest.approx(1 / (1 + math.exp((second - first) / 0.5)), abs=1e-4)
        assert p not in (0.5, None)


@COMPARING
def test_a_pair_that_was_compared_is_looked_up_in_either_order(form: Form, tmp_path: Path) -> None:
    folder = saved(reward_model(form=form), tmp_path / "model")
    judge, made = make(model=folder), many(3)
    judge.prepare([Question(prompt, (a, b)) for prompt, a, b in made])
    assert judge.by
    shutil.rmtree(folder)
    del judge._loaded
    for prompt, a, b in made:
        assert ask(judge, (prompt, b, a)).probability == 1 - (ask(judge, (prompt, a, b)).probability or 0)


def test_a_pair_that_cannot_be_compared_is_invalid_with_the_reason(tmp_path: Path) -> None:
    judge = make(model=saved(reward_model(form=FORMS[1]), tmp_path / "model"))
    judgment = ask(judge, pair(0, " word" * 200))
    assert (judgment.verdict, judgment.probability, judgment.fields) == ("invalid", None, {})
    assert judgment.raw == "the answers are too long for a window of 128 tokens"


def test_comparisons_that_are_no_numbers_stop_the_run(tmp_path: Path) -> None:
    loaded = reward_model(form=FORMS[0])
    torch.nn.init.constant_(loaded.model.score.weight, math.nan)
    with pytest.raises(InputError, match=r"gave nan for response .* and .*; it cannot judge"):
        ask(make(model=saved(loaded, tmp_path / "broken")), pair())


def test_what_the_outputs_mean_is_in_the_rubric(folder: str, tmp_path: Path) -> None:
    likes = Form(kind="attributes", names=("good", "long"), weights=(1.0, -0.5))
    hates = Form(kind="attributes", names=("good", "long"), weights=(1.0, 0.5))
    rubrics = {make(model=folder).rubric}
    for number, form in enumerate((likes, hates, *FORMS)):
        rubrics.add(make(model=saved(reward_model(form=form), tmp_path / str(number))).rubric)
    assert len(rubrics) == 6
    one = pair(2)
    turned = [ask(make(model=str(tmp_path / name)), one).fields["scores"] for name in ("0", "1")]
    assert turned[0] != turned[1]


def test_a_policy_is_no_judge(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no reward head .* train one"):
        make(model=saved(causal("llama"), tmp_path / "policy"))


def test_a_recipe_names_it_and_its_knobs_are_checked() -> None:
    recipe = build_recipe({"judge": {"by": "reward", "model": "./reward", "temperature": 2}}, where="")
    assert recipe.judge is not None
    with pytest.raises(InputError, match="Did you mean 'temperature'"):
        build_recipe({"judge": {"by": "reward", "model": "./reward", "temprature": 2}}, where="")


def test_it_is_a_reward_against_the_known_answer(folder: str) -> None:
    texts = (" A cat left.", " The cat left home and is missed.")
    answered = asked(*texts, text=str(pair()[0].text), reference="A cat left.")
    known, other = make_against(by="reward", model=folder)([answered])[0]
    assert known == 0.5
    assert isinstance(other, float)
    assert 0 < other < 1


class Looks:
    """A user's judge that looks at all its questions first; what it was shown is its answer."""

    by = "rule:looks"
    rubric = content_id("rubric", "looks")
    instant = True

    def __init__(self) -> None:
        self.seen: list[Question] = []

    def prepare(self, questions: Sequence[Question], progress: Progress) -> None:
        self.seen += questions

    async def ask(self, question: Question) -> Judgment:
        return Judgment(
            prompt_id=question.prompt.id,
            slots=tuple(slot.id for slot in question.slots),
            verdict="slot",
            winner=0,
            by=self.by,
            rubric=self.rubric,
            fields={"place": self.seen.index(question)},
        )

    async def close(self) -> None:
        """Nothing is open."""


def test_any_judge_that_prepares_sees_the_questions_that_will_be_asked_and_no_others(tmp_path: Path) -> None:
    made, judge = pairs(5), Looks()
    assert isinstance(judge, Prepares)
    with ledger_with(tmp_path / "l.db", made) as ledger:
        judge_pairs(ledger, judge, made[:2])
        judge_pairs(ledger, judge, made)
        places = [judgment.fields["place"] for judgment in ledger.judgments()]
    assert sorted(places) == list(range(10)) == list(range(len(judge.seen)))


def test_the_room_of_judges_stays_light() -> None:
    code = "import sys, tiebreak.judge.scorer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
