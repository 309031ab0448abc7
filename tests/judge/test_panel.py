import asyncio
import math
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import pytest

from tests.judge.made import ask, pair
from tests.judge.server import Script, Server
from tiebreak.data import world
from tiebreak.judge.panel import PreparingPanel, is_panel, make
from tiebreak.judge.rule import make as rule
from tiebreak.judge.table import Prepares, Question
from tiebreak.records import InputError, Judgment, Prompt, Response
from tiebreak.stats.jury import against_truth, condorcet

PROMPT = Prompt(text="?")
A, B = (Response(prompt_id=PROMPT.id, text=text) for text in "ab")
QUESTION = Question(PROMPT, (A, B))


def gap_of_one(n, seed=0):
    """``n`` pairs of the world in which one answer is better by exactly 1: the other leaves out the question.

    So a noisy rule errs at one rate on all of them, and judges of different seeds err independently.
    """
    made = []
    for entry in world.read(n=2 * n, seed=seed):
        prompt, whole = entry.prompt, entry.prompt.reference
        partial = whole[: whole.index(".") + 1]
        if world.quality(prompt, whole) - world.quality(prompt, partial) == 1 and len(made) < n:
            answers = [Response(prompt_id=prompt.id, text=text) for text in (whole, partial)]
            made.append((prompt, *answers[:: 1 if len(made) % 2 else -1]))
    assert len(made) == n
    return made


def better(pair):
    """Which of the two answers is the better one."""
    prompt, a, b = pair
    return int(world.quality(prompt, b.text) > world.quality(prompt, a.text))


def noise_for(accuracy):
    """The noise with which the rule is right so often where one answer is better by 1."""
    return 1 / NormalDist().inv_cdf(accuracy)


@dataclass
class Says:
    """A juror with a planted answer; ``trace`` notes when it is asked and when it has answered."""

    by: str
    rubric: str
    said: dict
    trace: list
    instant: bool = True
    error: str = ""

    async def ask(self, question):
        self.trace.append("asked")
        await asyncio.sleep(0)
        self.trace.append("done")
        if self.error:
            raise InputError(self.error)
        slots = tuple(slot.id for slot in question.slots)
        said = {"attempt": question.attempt, **self.said}
        return Judgment(prompt_id=question.prompt.id, slots=slots, by=self.by, rubric=self.rubric, **said)

    async def close(self):
        self.trace.append("closed")


@dataclass
class Looks(Says):
    prepared: list = field(default_factory=list)

    def prepare(self, questions, progress):
        self.prepared.extend(questions)
        progress(len(questions), len(questions), {"seen": 1.0})


def says(name="rule:a", said=None, rubric="r", trace=None, instant=True, looks=False, error=""):
    """The juror ``name``; a number is P(first) and its verdict, a word the name of another verdict."""
    if isinstance(said, float):
        said = {"verdict": "slot", "winner": int(said < 0.5), "probability": said}
    elif isinstance(said, str):
        said = {"verdict": said}
    elif isinstance(said, int):
        said = {"verdict": "slot", "winner": said}
    return (Looks if looks else Says)(name, rubric, said, [] if trace is None else trace, instant, error)


def panel(*said, **knobs):
    """A panel of jurors with these answers, called rule:0, rule:1 and so on; a mapping gives knobs besides."""
    given = [one if isinstance(one, dict) and "said" in one else {"said": one} for one in said]
    jurors = [{"by": "tests.judge.test_panel:says", "name": f"rule:{i}", **one} for i, one in enumerate(given)]
    return make(jurors, **knobs)


def heard(judge, question=QUESTION):
    return asyncio.run(judge.hear(question))


def p_of(*said, **knobs):
    verdict = heard(panel(*said, **knobs))[0]
    return verdict.verdict, verdict.winner, verdict.probability


@pytest.mark.parametrize(
    ("said", "knobs", "expected"),
    [
        ((0.9, 0.6, 0.3), {}, ("slot", 0, pytest.approx(0.6))),
        ((0.9, 0.6, 0.3), {"weights": [1, 1, 4]}, ("slot", 1, pytest.approx(2.7 / 6))),
        ((0.99, 0.4, 0.4), {}, ("slot", 0, pytest.approx(1.79 / 3))),
        ((0.99, 0.4, 0.4), {"count": "vote"}, ("slot", 1, pytest.approx(1 / 3))),
        ((0.7, 1), {}, ("slot", 1, 0.35)),  # no probability: a vote
        ((0, 1), {}, ("tie", None, 0.5)),
        ((0.1, 0.9), {"weights": [0.1, 0.1]}, ("tie", None, 0.5)),
        ((0.7, 0.3, "tie"), {"weights": [0.1, 0.1, 0.7]}, ("tie", None, 0.5)),
        (("tie", 0.8), {}, ("slot", 0, 0.65)),
        ((0.8, "invalid", "skip", "both_bad"), {}, ("slot", 0, 0.8)),
        (("both_bad", "invalid"), {}, ("both_bad", None, None)),
        (("skip", "invalid"), {}, ("invalid", None, None)),
    ],
)
def test_the_verdict_is_the_weighted_mean_of_those_who_prefer_something(said, knobs, expected):
    assert p_of(*said, **knobs) == expected


def test_a_panel_keeps_what_each_juror_said_and_who_stayed_out():
    verdict, own = heard(panel(0.8, "invalid", "skip", weights=[2, 1, 1]))
    assert verdict.fields["jurors"][0] == {
        "by": "rule:0",
        "rubric": "r",
        "verdict": "slot",
        "winner": 0,
        "probability": 0.8,
        "weight": 2.0,
    }
    assert verdict.fields["out"] == {"invalid": 1, "skip": 1}
    assert [j.by for j in own] == ["rule:0", "rule:1", "rule:2"]
    assert [j.verdict for j in own] == ["slot", "invalid", "skip"]
    nobody = heard(panel("invalid", "skip"))[0]
    assert nobody.fields["why"] == "no juror prefers anything: 1 invalid, 1 skip"
    assert asyncio.run(panel(0.8, 0.7).ask(QUESTION)) == heard(panel(0.8, 0.7))[0]


def test_what_the_other_order_says_is_what_this_one_says():
    jurors = [{"by": "rule", "rule": "longer", "noise": 3.0, "seed": seed, "sharpness": 0.2} for seed in range(3)]
    judge = make(jurors, weights=[0.1, 0.3, 0.7])
    for prompt, a, b in gap_of_one(50):
        forth, back = (heard(judge, Question(prompt, slots))[0] for slots in ((a, b), (b, a)))
        assert forth.probability == pytest.approx(1 - back.probability, abs=1e-12)
        assert forth.slots[forth.winner] == back.slots[back.winner]


def test_a_panel_of_copies_says_what_one_of_them_says():
    one = rule(rule="longer", noise=5.0, seed=3, sharpness=math.inf)
    copies = make([{"by": "rule", "rule": "longer", "noise": 5.0, "seed": 3, "sharpness": s} for s in (math.inf, 1e12)])
    for prompt, a, b in gap_of_one(60):
        alone = asyncio.run(one.ask(Question(prompt, (a, b))))
        together = heard(copies, Question(prompt, (a, b)))[0]
        assert (together.winner, together.probability) == (alone.winner, alone.probability)


def test_cost_adds_up_and_the_slowest_juror_is_the_wait():
    dear = {"verdict": "slot", "winner": 0, "price": 0.25, "tokens_in": 100, "tokens_out": 7, "latency": 2.0}
    verdict = heard(panel({"said": dear}, {"said": dear | {"price": 0.5, "latency": 0.5}}, 0.9))[0]
    assert (verdict.price, verdict.tokens_in, verdict.tokens_out, verdict.latency) == (0.75, 200, 14, 2.0)
    free = heard(panel(0.9, 0.8))[0]
    assert (free.price, free.tokens_in, free.latency) == (None, None, None)


def test_ratings_are_averaged_where_the_jurors_share_a_rubric():
    base = {"verdict": "slot", "winner": 0}
    first = base | {"ratings": {"help": [5, 1], "truth": [None, 2]}}
    second = base | {"ratings": {"help": [2, 4], "truth": [3, None]}}
    weighed = heard(panel({"said": first}, {"said": second}, 0.5001, weights=[2, 1, 1]))[0]
    assert weighed.ratings == {"help": [4.0, 2.0], "truth": [3.0, 2.0]}
    assert heard(panel({"said": first}, {"said": second, "rubric": "other scale"}))[0].ratings == {}


def test_every_juror_is_asked_before_the_first_has_answered():
    trace = []
    heard(panel(*({"said": 0.6, "trace": trace, "instant": False} for _ in range(3))))
    assert trace == ["asked"] * 3 + ["done"] * 3


def test_where_a_juror_fails_the_others_finish_and_its_error_is_raised():
    trace = []
    judge = panel({"said": 0.6, "trace": trace, "error": "no credit left"}, {"said": 0.6, "trace": trace})
    with pytest.raises(InputError, match="no credit left"):
        heard(judge)
    assert trace == ["asked", "asked", "done", "done"]
    asyncio.run(judge.close())
    assert trace[4:] == ["closed", "closed"]


def test_it_is_instant_if_all_are_and_prepares_with_those_that_do():
    assert panel(0.6, 0.7).instant
    assert not panel(0.6, {"said": 0.7, "instant": False}).instant
    plain, looking = panel(0.6, 0.7), panel(0.6, {"said": 0.7, "looks": True}, {"said": 0.8, "looks": True})
    assert not isinstance(plain, Prepares)
    assert isinstance(looking, PreparingPanel)
    assert isinstance(looking, Prepares)
    shown = []
    looking.prepare([QUESTION], lambda done, total, numbers: shown.append((done, total, numbers)))
    assert [judge.prepared for judge in looking.jurors[1:]] == [[QUESTION], [QUESTION]]
    assert shown == [(1, 1, {"seen": 1.0})] * 2


def test_the_name_says_who_and_the_rubric_how():
    base = [{"by": "rule", "rule": "longer", "seed": seed} for seed in (0, 1)]
    one = make(base)
    assert is_panel(one.by)
    assert one.by.startswith("rule:panel(2)@")
    assert not is_panel("model:panel@1")
    turned = make(base[::-1], weights=[2, 2])
    assert (turned.by, turned.rubric) == (one.by, one.rubric)
    assert heard(turned)[0].id == heard(one)[0].id
    other = make([base[0], {"by": "rule", "rule": "shorter"}])
    assert other.by != one.by
    changed = [
        make(base, weights=[1, 2]),
        make(base, weights=[2, 1]),
        make(base, count="vote"),
        make([base[0], {**base[1], "noise": 1.0}]),
    ]
    assert {judge.by for judge in changed} == {one.by}
    assert len({judge.rubric for judge in (*changed, one)}) == 5
    assert panel(0.5, {"said": 0.6, "name": "model:m@1"}).by.startswith("model:panel(2)@")


RULE = {"by": "rule", "rule": "longer"}


@pytest.mark.parametrize(
    ("jurors", "knobs", "said"),
    [
        ([], {}, "two jurors or more"),
        ([RULE], {}, "two jurors or more"),
        (RULE, {}, "two jurors or more"),
        ([RULE, "rule"], {}, "juror 2 of the panel is 'rule'"),
        ([RULE, {"rule": "longer"}], {}, "juror 2 of the panel"),
        ([RULE, {"by": "rul"}], {}, "^Juror 2 of the panel: There is no judge called 'rul'.*'rule'"),
        ([RULE, {"by": "rule", "rule": "longer", "nois": 1}], {}, "^Juror 2 .*no knob 'nois'.*'noise'"),
        ([RULE, {"by": "rule"}], {}, "^Juror 2 .*needs a rule"),
        ([RULE, {"by": "panel", "jurors": [RULE, RULE]}], {}, "juror 2 of the panel is a panel itself"),
        ([RULE, {"by": "tiebreak.judge.panel:make", "jurors": [RULE, {**RULE, "seed": 1}]}], {}, "is a panel itself"),
        ([RULE, {**RULE, "seed": 1}], {"weights": [1]}, "a number above 0 for each"),
        ([RULE, {**RULE, "seed": 1}], {"weights": [1, 0]}, "a number above 0 for each"),
        ([RULE, {**RULE, "seed": 1}], {"weights": [1, math.inf]}, "a number above 0 for each"),
        ([RULE, {**RULE, "seed": 1}], {"weights": [1, "2"]}, "a number above 0 for each"),
        ([RULE, {**RULE, "seed": 1}], {"count": "votes"}, "expected 'probability' or 'vote'"),
    ],
)
def test_a_wrong_panel_is_refused_with_the_cure(jurors, knobs, said):
    with pytest.raises(InputError, match=said):
        make(jurors, **knobs)


def test_the_same_juror_twice_is_refused_before_it_is_asked():
    judge = make([RULE, {**RULE, "seed": 0}])
    with pytest.raises(InputError, match="rule:longer more than once"):
        judge.by  # noqa: B018


def test_models_at_servers_and_rules_sit_together():
    with Server(Script(prefer=lambda first, second: 0.8)) as server, Server(Script(logprobs=False)) as other:
        told = {"by": "pairwise", "rationale": False, "key_env": None}
        judge = make(
            [
                {**told, "endpoint": server.url, "model": "one", "price_in": 10.0, "price_out": 0.0},
                {**told, "endpoint": other.url, "model": "two"},
                RULE,
            ]
        )
        verdict = ask(judge, pair())
        found = {entry["by"].split("@")[0]: entry for entry in verdict.fields["jurors"]}
        requests = len(server.log), len(other.log)
    assert not judge.instant
    assert judge.by.startswith("model:panel(3)@")
    assert len(judge.clients) == 2
    assert requests == (1, 1)
    assert found["model:one"]["probability"] == pytest.approx(0.8)
    assert found["model:two"]["probability"] is None  # text alone: a vote
    votes = 0.8 + float(found["model:two"]["winner"] == 0) + found["rule:longer"]["probability"]
    assert verdict.probability == pytest.approx(votes / 3)
    assert verdict.price > 0
    assert verdict.latency > 0


def accuracy_of(judge, made):
    """How often the panel and each of its jurors prefer the better answer, and the effective size of its jury."""
    votes = []

    async def every():
        return [await judge.hear(Question(prompt, (a, b))) for prompt, a, b in made]

    truth = np.array([better(pair) == 0 for pair in made], dtype=float)
    found = asyncio.run(every())
    votes = np.array([[float(j.winner == 0) for j in (verdict, *own)] for verdict, own in found])
    return (votes == truth[:, None]).mean(axis=0), against_truth(votes[:, 1:], truth)


def world_jury(seeds, accuracy=0.75):
    """Rules that know the truth and err by the same noise; equal seeds are copies, told apart by a sharpness."""
    noise = noise_for(accuracy)
    jurors = [
        {"by": "rule", "rule": "world", "noise": noise, "seed": seed, "sharpness": 1e9 * (i + 1)}
        for i, seed in enumerate(seeds)
    ]
    return make(jurors)


def test_independent_jurors_count_as_many_and_beat_the_best_of_them():
    made = gap_of_one(2000)
    right, jury = accuracy_of(world_jury(range(5)), made)
    assert jury.size.low <= 5 <= jury.size.high
    assert right[0] > right[1:].max() + 0.05
    expected = condorcet([0.75] * 5)
    assert abs(right[0] - expected) < 3.29 * math.sqrt(expected * (1 - expected) / 2000)


def test_copied_jurors_count_as_exactly_one_and_are_no_better_than_it():
    right, jury = accuracy_of(world_jury([7, 7, 7, 7, 7]), gap_of_one(2000))
    assert jury.size[:3] == (1.0, 1.0, 1.0)
    assert set(right) == {right[0]}


def test_a_panel_with_copies_is_worth_what_was_planted():
    made = gap_of_one(2000)
    right, jury = accuracy_of(world_jury([0, 0, 0, 1, 2]), made)
    assert jury.size.low <= 5 / (1 + 4 * 0.3) <= jury.size.high
    assert right[0] == right[1:4].max()  # three copies outvote the rest
