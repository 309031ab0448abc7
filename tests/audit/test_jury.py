import asyncio
import math

import numpy as np
import pytest

from tests.judge.test_panel import better, gap_of_one, noise_for, world_jury
from tiebreak.audit.run import audit, measure
from tiebreak.audit.table import CROWD, view
from tiebreak.judge.rule import make as rule
from tiebreak.judge.run import judge_pairs
from tiebreak.judge.table import Question
from tiebreak.records import InputError, Judgment
from tiebreak.stats.jury import condorcet
from tiebreak.store import Ledger


def said(item, by, side, *, rubric="", swapped=False, prompt=None, attempt=0):
    """A vote on item ``item``: 0 for its answer a, 1 for b, 0.5 a tie, or the name of another verdict."""
    slots = (f"a{item:05}", f"b{item:05}")
    if swapped:
        slots = slots[::-1]
    kind = {0: "slot", 1: "slot", 0.5: "tie"}.get(side, side)
    winner = int(side != swapped) if kind == "slot" else None
    place = f"p{item if prompt is None else prompt}"
    return Judgment(prompt_id=place, slots=slots, verdict=kind, winner=winner, by=by, rubric=rubric, attempt=attempt)


def planted(n, judges, seed=0, people=0.0):
    """Votes of judges by name, each with (accuracy, voice); ``people`` is the share of items a person judged."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    wrong = {voice: rng.random(n) for _, voice in judges.values()}
    votes = [
        said(i, by, int(truth[i] ^ (wrong[voice][i] >= accuracy)))
        for by, (accuracy, voice) in judges.items()
        for i in range(n)
    ]
    return votes + [said(i, "human:ann", int(truth[i])) for i in range(int(people * n))]


def look(judgments, **knobs):
    found = measure(view(judgments), checks=["jury"], knobs={"jury": knobs})
    return {(f.check.removeprefix("jury."), f.subject): f for f in found}


THREE = {"model:a@1": (0.8, 0), "model:b@1": (0.8, 1), "rule:c": (0.8, 2)}
FIVE = {**THREE, "model:d@1": (0.8, 3), "model:e@1": (0.8, 4)}
COPIES = {"model:a@1": (0.8, 0), "model:b@1": (0.8, 0), "model:c@1": (0.8, 0)}


def test_people_are_the_truth_that_models_and_rules_are_held_against():
    found = look(planted(3000, THREE, people=1.0))
    size = found["size", "3 judges against people"]
    assert size.low <= 3 <= size.high
    assert (size.verdict, size.n) == ("fine", 3000)
    rho = found["correlation", "3 judges against people"]
    assert rho.low <= 0 <= rho.high
    share = found["majority", "3 judges"]
    assert share.low <= condorcet([0.8] * 3) <= share.high
    assert found["gain", "3 judges"].low > 0.04
    assert ("size", "3 judges against a latent truth") not in found


def test_copies_are_worth_one_and_that_is_a_problem():
    found = look(planted(400, COPIES, people=1.0))
    size = found["size", "3 judges against people"]
    assert (size.value, size.low, size.high, size.verdict, size.threshold) == (1, 1, 1, "problem", 1.5)
    assert found["gain", "3 judges"].value == 0
    pairs = [f for (what, _), f in found.items() if what == "pair"]
    assert [f.value for f in pairs] == [1, 1, 1]
    assert "correlate by 1.00" in pairs[0].sentence
    alone = look(planted(400, COPIES))["size", "3 judges against the majority of the others"]
    assert (alone.value, alone.verdict) == (1, "notice")


def test_without_people_both_stand_ins_are_told_and_what_they_cannot_see():
    found = look(planted(3000, FIVE))
    majority = found["size", "5 judges against the majority of the others"]
    latent = found["size", "5 judges against a latent truth"]
    assert majority.value < majority.high < 5
    assert latent.low <= 5 <= latent.high
    for finding in (majority, latent):
        assert "what all of them get wrong together cannot be seen" in finding.sentence
    assert not any(what in ("majority", "gain") for what, _ in found)
    three = look(planted(300, THREE))["size", "3 judges against a latent truth"]
    assert (three.value, three.verdict) == (None, "fine")
    assert "is undefined (n = 300 items): independent errors explain any votes of three judges." in three.sentence


def test_the_judge_that_adds_least_is_named():
    mixed = {**THREE, "model:copy@1": (0.8, 1)}
    found = look(planted(2000, mixed, people=1.0))
    (name,) = [subject for what, subject in found if what == "least"]
    assert name in ("model:b@1", "model:copy@1")
    least = found["least", name]
    assert least.high < 0
    assert "voice too many" in least.sentence
    good = look(planted(2000, THREE, people=1.0))
    (spared,) = [f for (what, _), f in good.items() if what == "least"]
    assert "adds least" in spared.sentence
    assert spared.low <= 1 <= spared.high


def test_the_matrix_has_every_two_judges_and_agrees_with_a_count():
    votes = planted(500, FIVE)
    found = look(votes)
    pairs = {subject: f for (what, subject), f in found.items() if what == "pair"}
    assert len(pairs) == 10
    side = {(j.by, j.prompt_id): j.winner for j in votes}
    same = [side["model:a@1", f"p{i}"] == side["rule:c", f"p{i}"] for i in range(500)]
    assert pairs["model:a@1 and rule:c"].value == pytest.approx(sum(same) / 500)
    many = {f"model:{i}@1": (0.8, i) for i in range(12)}
    assert sum(what == "pair" for what, _ in look(planted(100, many))) == 10


def test_the_order_shown_does_not_matter_and_both_orders_are_one_vote():
    votes = planted(200, THREE, people=1.0)
    turned = [said(int(j.prompt_id[1:]), j.by, j.winner, swapped=True) for j in votes]
    assert look(turned) == look(votes)
    both = look(votes + turned)
    assert {key: (f.value, f.n) for key, f in both.items()} == {key: (f.value, f.n) for key, f in look(votes).items()}


def test_a_truth_may_be_any_judge_or_nobody():
    votes = planted(500, {**FIVE, "rule:oracle": (1.0, 9)}, people=1.0)
    oracle = look(votes, truth="rule:oracle")
    assert ("size", "6 judges against rule:oracle") in oracle  # the person is a juror then
    nobody = look(votes, truth="none")
    assert ("size", "7 judges against the majority of the others") in nobody
    with pytest.raises(InputError, match="Did you mean 'rule:oracle'"):
        look(votes, truth="rule:oracel")
    with pytest.raises(InputError, match="no person judged"):
        look(planted(50, THREE), truth="people")


def test_few_votes_of_people_are_no_truth_unless_they_are_asked_for():
    votes = planted(400, THREE, people=0.05)
    assert ("size", "4 judges against the majority of the others") not in look(votes)
    assert ("size", "3 judges against the majority of the others") in look(votes)
    assert look(votes, truth="people", least=10)["size", "3 judges against people"].n == 20


def test_two_people_are_a_jury_too():
    votes = planted(100, {"human:ann": (0.9, 0), "human:ben": (0.9, 1)})
    found = look(votes)
    assert found["size", "2 judges against the majority of the others"].value is None
    assert found["pair", "human:ann and human:ben"].n == 100


def test_judges_that_share_little_are_left_out_and_counted():
    votes = planted(200, THREE, people=1.0) + [said(i, "model:late@1", 0) for i in range(20)]
    found = look(votes)
    assert found["size", "3 judges against people"].n == 200
    left = found["left_out", "all"]
    assert (left.value, left.n) == (0.25, 4)
    crowd = {f"model:{i}@1": (0.8, i) for i in range(CROWD + 2)}
    found = look(planted(60, crowd))
    assert found["left_out", "all"].value == pytest.approx(2 / (CROWD + 2))


def test_a_judge_that_never_errs_is_told():
    found = look(planted(300, {**THREE, "rule:oracle": (1.0, 9)}, people=1.0))
    assert "counted as uncorrelated: rule:oracle." in found["size", "4 judges against people"].sentence


def test_verdicts_that_prefer_nothing_are_no_votes():
    votes = planted(100, THREE, people=1.0)
    votes += [said(100 + i, by, kind) for i, kind in enumerate(("both_bad", "skip", "invalid")) for by in THREE]
    assert look(votes) == look(planted(100, THREE, people=1.0))


def test_one_judge_is_no_jury_and_nothing_no_finding():
    assert look(planted(50, {"model:a@1": (0.8, 0)})) == {}
    assert look(planted(50, {"model:a@1": (0.8, 0)}, people=1.0))["pair", "human:ann and model:a@1"].n == 50
    assert measure(view([]), checks=["jury"]) == []


def test_intervals_are_by_prompt():
    rng = np.random.default_rng(4)
    judges = [by for by in ("rule:a", "rule:b", "rule:c") for _ in range(600)]
    votes = [said(n % 600, by, int(rng.random() < 0.8), prompt=n % 600 // 10) for n, by in enumerate(judges)]
    votes += [said(i, "human:ann", 1, prompt=i // 10) for i in range(600)]
    size = look(votes)["size", "3 judges against people"]
    assert size.n == 600
    assert size.low < size.value < size.high


def test_every_sentence_says_its_n_and_holds_its_value():
    for judgments in (planted(200, FIVE, people=1.0), planted(200, FIVE), planted(200, COPIES)):
        for finding in look(judgments).values():
            assert f"n = {finding.n:,}" in finding.sentence
            assert finding.sentence.endswith(".")
            if finding.value is not None and finding.low is not None:
                assert finding.low <= finding.value <= finding.high
            assert all(x is None or math.isfinite(x) for x in (finding.value, finding.low, finding.high))


def ledger_of(made):
    ledger = Ledger(":memory:")
    ledger.add_prompts(prompt for prompt, _, _ in made)
    ledger.add_responses(response for _, *both in made for response in both)
    return ledger


@pytest.mark.parametrize(("seeds", "expected"), [((0, 1, 2, 3), 4.0), ((5, 5, 5, 5), 1.0), ((0, 0, 1, 2), 4 / 1.5)])
def test_rule_judges_over_a_ledger_are_worth_what_was_planted(seeds, expected):
    """Equal seeds err alike and different ones independently; each judge judges 2,000 pairs in both orders."""
    made = gap_of_one(2000)
    with ledger_of(made) as ledger:
        for i, seed in enumerate(seeds):
            judge_pairs(ledger, rule(rule="world", noise=noise_for(0.75), seed=seed, sharpness=1e9 * (i + 1)), made)
        oracle = rule(rule="world", sharpness=math.inf)
        judge_pairs(ledger, oracle, made)
        truth = f"rule:world (rubric {oracle.rubric[:8]})"
        found = audit(ledger, checks=["jury"], knobs={"jury": {"truth": truth}})
    size = next(f for f in found if f.check == "jury.size")
    assert size.low <= expected <= size.high
    assert size.n == 2000
    gain = next(f for f in found if f.check == "jury.gain")
    assert (gain.low > 0) is (expected > 1)


def test_the_jurors_of_a_panel_are_measured_and_the_panel_is_not_one_of_them():
    made = gap_of_one(300)
    panel = world_jury(range(3))

    async def heard():
        return [await panel.hear(Question(prompt, slots)) for prompt, a, b in made for slots in ((a, b), (b, a))]

    with ledger_of(made) as ledger:
        for verdict, own in asyncio.run(heard()):
            ledger.add_judgments([verdict, *own])
        ledger.add_judgments(
            Judgment(prompt_id=p.id, slots=(a.id, b.id), verdict="slot", winner=better((p, a, b)), by="human:oracle")
            for p, a, b in made
        )
        found = {f.check: f for f in audit(ledger, checks=["jury"])}
    assert found["jury.size"].subject == "3 judges against people"
    assert found["jury.size"].low <= 3 <= found["jury.size"].high
