import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tiebreak.audit.findings import at_least, at_most, finding, percent, severity, within
from tiebreak.audit.position import orders
from tiebreak.audit.run import audit, measure
from tiebreak.audit.table import CHECKS, view
from tiebreak.records import InputError, Judgment, Prompt, Response
from tiebreak.stats.intervals import Estimate, wilson
from tiebreak.store import Ledger

JUDGE = "model:judge@1"


def world(n, *, words=(5, 5)):
    """n prompts with two answers each: "good" from maker m, "poor" from maker k, of so many words."""
    prompts = [Prompt(text=f"question {i}") for i in range(n)]
    answers = [
        tuple(
            Response(prompt_id=p.id, text=f"{name} {i} " + "word " * (w - 2), maker=maker)
            for name, maker, w in (("good", "m", words[0]), ("poor", "k", words[1]))
        )
        for i, p in enumerate(prompts)
    ]
    return prompts, answers


def judged(pair, score, **said):
    """A judgment of ``pair`` as shown: the first slot's ``score``, or the name of another verdict."""
    kind = {1: ("slot", 0), 0: ("slot", 1), 0.5: ("tie", None)}.get(score, (score, None))
    return Judgment(
        prompt_id=pair[0].prompt_id,
        slots=tuple(r.id for r in pair),
        verdict=kind[0],
        winner=kind[1],
        **{"by": JUDGE, **said},
    )


def both(answers, judge, **said):
    """Every pair in both orders; ``judge(pair as shown, index)`` gives the first slot's score."""
    return [judged(p, judge(p, i), **said) for i, pair in enumerate(answers) for p in (pair, pair[::-1])]


def content(pair, _):
    return float(pair[0].maker == "m")


def look(judgments, answers, *checks, **knobs):
    found = measure(view(judgments, [r for pair in answers for r in pair]), checks=checks, knobs=knobs)
    return {(f.check, f.subject): f for f in found}


@pytest.mark.parametrize(
    ("score", "consistency", "bias", "first"), [(1, 0, 1, 1), (0, 0, -1, 0), (0.5, 1, 0, 0.5), (content, 1, 0, 0.5)]
)
def test_planted_judges_have_the_position_they_were_given(score, consistency, bias, first):
    _, answers = world(30)
    found = look(both(answers, score if callable(score) else lambda *_: score), answers, "position")
    measured = [found[f"position.{name}", JUDGE] for name in ("consistency", "bias", "first")]
    assert [f.value for f in measured] == [consistency, bias, first]
    assert [f.n for f in measured] == [30, 30, 30]
    assert measured[0].verdict == ("fine" if consistency else "problem")
    assert measured[1].verdict == ("problem" if bias else "fine")


def test_a_planted_slot_bias_is_inside_its_interval_and_is_reported():
    _, answers = world(2000)
    rng = np.random.default_rng(0)
    stuck = rng.random(2000) < 0.3
    found = look(both(answers, lambda p, i: 1 if stuck[i] else content(p, i)), answers, "position")
    bias = found["position.bias", JUDGE]
    assert bias.low < 0.3 < bias.high
    assert bias.verdict == "problem"
    assert "leans to the first slot" in bias.sentence
    assert len(found["position.consistency", JUDGE].examples) == 5


def test_the_four_rates_come_out_of_records_without_a_stop():
    """One row of each kind and an unreadable one; the seed's script halts at the first slot-1 row."""
    _, answers = world(5)
    said = [(1, 0), (1, 1), (0, 0), (0.5, 1), ("invalid", 1)]
    judgments = [
        judged(p[::step], row[k]) for p, row in zip(answers, said, strict=True) for k, step in enumerate((1, -1))
    ]
    found = look(judgments, answers, "position")["position.orders", JUDGE]
    assert (found.value, found.n) == (0.2, 5)
    assert "first slot both times for 20.0 %, the second for 20.0 %, and 40.0 % are open" in found.sentence


def test_rows_are_joined_by_what_was_judged_not_by_their_place():
    _, answers = world(40)
    judgments = both(answers, content)
    shuffled = [judgments[i] for i in np.random.default_rng(1).permutation(len(judgments))]
    here, there = (look(rows, answers, "position", "verdicts", "length") for rows in (judgments, shuffled))
    assert {k: (f.value, f.low) for k, f in here.items()} == {k: (f.value, f.low) for k, f in there.items()}


def test_orders_that_are_not_known_are_left_out_and_counted():
    _, answers = world(10)
    unknown = [judged(p, 1, order_known=False, attempt=1) for p in answers[:4]]
    found = look(both(answers, content) + unknown, answers, "position")
    assert found["position.consistency", JUDGE].n == 10
    assert found["position.unknown", "all"].value == pytest.approx(4 / 24)
    assert ("position.single", JUDGE) not in found


def test_a_retry_takes_the_place_of_an_unreadable_reply():
    _, answers = world(3)
    judgments = [j for pair in answers for j in (judged(pair, "invalid"), judged(pair, 1, attempt=1))]
    judgments += [judged(pair[::-1], 0) for pair in answers]
    found = look(judgments, answers, "position", "verdicts")
    assert found["position.consistency", JUDGE].value == 1
    assert found["verdicts.invalid", JUDGE].value == pytest.approx(1 / 3)


def test_single_orders_are_tested_against_one_half_only_when_the_order_was_drawn():
    _, answers = world(60)
    rng = np.random.default_rng(2)
    drawn = [judged(pair[:: rng.choice([1, -1])], 1) for pair in answers]
    fixed = [judged(pair, 1) for pair in answers]
    assert look(drawn, answers, "position")["position.single", JUDGE].verdict == "problem"
    found = look(fixed, answers, "position")["position.single", JUDGE]
    assert found.verdict == "notice"
    assert "m was always shown first" in found.sentence


def test_an_order_whose_twin_is_unreadable_counts_as_single():
    _, answers = world(4)
    judgments = [j for pair in answers for j in (judged(pair, 1), judged(pair[::-1], "invalid"))]
    matched = orders(view(judgments))
    assert (len(matched.one), len(matched.single)) == (4, 4)
    assert look(judgments, answers, "position")["position.single", JUDGE].n == 4


@pytest.mark.parametrize("one_sided", [True, False])
def test_a_two_sided_confidence_read_as_one_sided_shows(one_sided):
    """Confidence 1..9 runs from sure of the first to sure of the second; ``>= 8`` keeps one slot's winners only."""
    _, answers = world(400)
    rng = np.random.default_rng(3)
    confidence = rng.choice([1, 2, 4, 6, 8, 9], size=400)
    kept = confidence >= 8 if one_sided else np.abs(confidence - 5) >= 3
    judgments = [
        judged(pair[:: rng.choice([1, -1])], float(c < 5), by="human:ann", strength=abs(int(c) - 5) / 4)
        for pair, c, k in zip(answers, confidence, kept, strict=True)
        if k
    ]
    found = look(judgments, answers, "position", "strength")
    verdicts = [found[name, "human:ann"].verdict for name in ("position.single", "strength.first")]
    assert ("problem" in verdicts) is one_sided
    assert (found["strength.first", "human:ann"].value == 0) is one_sided


def test_verdict_shares_add_up_and_unreadable_ones_are_a_problem():
    _, answers = world(50)
    said = [1] * 20 + [0.5] * 10 + ["both_bad"] * 5 + ["skip"] * 5 + ["invalid"] * 10
    found = look([judged(p, s) for p, s in zip(answers, said, strict=True)], answers, "verdicts")
    shares = [found[f"verdicts.{name}", JUDGE].value for name in ("slot", "tie", "both_bad", "skip", "invalid")]
    assert shares == [0.4, 0.2, 0.1, 0.1, 0.2]
    assert found["verdicts.invalid", JUDGE].verdict == "problem"
    assert "says nothing readable in 20.0 %" in found["verdicts.invalid", JUDGE].sentence


def test_a_revised_judgment_gives_way_to_its_revision():
    _, answers = world(2)
    old = judged(answers[0], 1, by="human:ann")
    new = judged(answers[0], 0, by="human:ann", revises=old.id)
    seen = view([old, new, judged(answers[1], 1, by="human:ann")])
    assert (len(seen), seen.superseded) == (2, 1)
    assert seen.first.tolist() == [0.0, 1.0]


def test_a_judge_that_likes_length_is_noticed():
    _, answers = world(40, words=(4, 30))
    found = look(both(answers, lambda p, _: float(p[0].maker == "k")), answers, "length")["length.longer", JUDGE]
    assert (found.value, found.verdict) == (1.0, "notice")
    assert look(both(answers, content), answers, "length", length={"tau": 26}) == {}
    missing = look(both(answers, content), [], "length")["length.unknown", "all"]
    assert (missing.value, missing.verdict) == (1.0, "notice")


def test_annotators_agree_on_candidates_whatever_the_order_they_saw():
    _, answers = world(30)
    ann = [judged(p, content(p, i), by="human:ann") for i, p in enumerate(answers)]
    ben = [judged(p[::-1], content(p[::-1], i), by="human:ben") for i, p in enumerate(answers)]
    slot = [judged(p, 1, by="model:first@1") for p in answers] + [
        judged(p[::-1], 1, by="model:first@1") for p in answers
    ]
    found = look(ann + ben + slot, answers, "agreement")
    people = found["agreement.pairs", "human annotators"]
    assert (people.value, people.n) == (1, 30)
    assert found["agreement.pairs", "all annotators"].value == pytest.approx(1 / 3)
    assert found["agreement.alpha", "human annotators"].value == 1


def test_agreement_nobody_could_miss_is_undefined():
    _, answers = world(5)
    same = [judged(p, 0.5, by=f"human:{who}") for p in answers for who in "ab"]
    found = look(same, answers, "agreement")["agreement.alpha", "all annotators"]
    assert (found.value, found.verdict) == (None, "fine")
    assert "undefined" in found.sentence


def test_self_consistency_compares_the_same_order_only():
    _, answers = world(20)
    judgments = [judged(p, 1, attempt=k) for p in answers for k in range(3)]
    judgments += [judged(p[::-1], 1) for p in answers]
    judgments += [judged(p[::-1], 0, attempt=1) for p in answers[:10]]
    found = look(judgments, answers, "repeats")["repeats.self_consistency", JUDGE]
    assert (found.value, found.n) == (pytest.approx(20 / 30), 30)
    assert len(found.examples) == 5


def test_equal_and_empty_answers_are_problems_with_examples():
    p = Prompt(text="q")
    same = (Response(prompt_id=p.id, text="a b"), Response(prompt_id=p.id, text="a b ", draw=1))
    empty = (Response(prompt_id=p.id, text="c"), Response(prompt_id=p.id, text=" "))
    judgments = [judged(same, 1), judged(empty, 0.5)]
    found = look(judgments, [same, empty], "identical")
    assert found["identical.text", "all"].examples == (judgments[0].id,)
    assert found["identical.decided", "all"].value == 0.5
    assert found["identical.empty", "all"].examples == (judgments[1].id,)
    assert {f.verdict for f in found.values()} == {"notice"}


def test_cost_is_a_mean_with_totals_and_leaves_out_what_is_not_told():
    _, answers = world(4)
    judgments = [judged(p, 1, price=0.01, tokens_in=100 + i, latency=0.5) for i, p in enumerate(answers)]
    judgments.append(judged(answers[0], 1, by="human:ann"))
    found = look(judgments, answers, "cost")
    assert {subject for _, subject in found} == {JUDGE}
    assert found["cost.price", JUDGE].value == pytest.approx(0.01)
    assert "406 tokens in all" in found["cost.tokens_in", JUDGE].sentence


def test_one_judge_under_two_rubrics_is_two_judges():
    _, answers = world(2)
    seen = view([judged(answers[0], 1, rubric="aaaaaaaa11"), judged(answers[1], 1, rubric="")])
    assert seen.judges == (f"{JUDGE} (rubric none)", f"{JUDGE} (rubric aaaaaaaa)")


def test_lists_of_more_than_two_take_no_part_in_pair_checks():
    p = Prompt(text="q")
    three = tuple(Response(prompt_id=p.id, text=t) for t in ("x", "y", "x "))
    seen = view([judged(three, 1)], three)
    assert math.isnan(seen.first[0])
    assert seen.same_text.tolist() == [True]
    assert {f.check.partition(".")[0] for f in measure(seen)} == {"verdicts", "agreement", "identical"}


def test_every_check_says_value_n_and_interval_and_survives_no_data():
    assert measure(view([])) == []
    _, answers = world(25)
    judgments = both(answers, content, price=0.01, strength=0.9)
    for row in CHECKS:
        assert row.load().__doc__
        for found in measure(view(judgments, [r for p in answers for r in p]), checks=[row.name]):
            assert found.check.startswith(f"{row.name}.")
            assert f"n = {found.n:,}" in found.sentence
            assert found.sentence.endswith(".")
            if found.low is not None and found.value is not None:
                assert found.low <= found.value + 1e-9 <= found.high + 2e-9


def test_a_bound_is_a_problem_only_when_the_interval_is_beyond_it():
    assert severity(Estimate(0.7, 0.6, 0.75, 9), at_least(0.8)) == "problem"
    assert severity(Estimate(0.7, 0.6, 0.85, 9), at_least(0.8)) == "notice"
    assert severity(Estimate(0.1, 0.0, 0.2, 9), at_most(0.05)) == "notice"
    assert severity(Estimate(-0.3, -0.4, -0.2, 9), within(0.0, 0.1)) == "problem"
    assert severity(Estimate(math.nan, math.nan, math.nan, 0), at_least(0.8)) == "fine"
    assert percent(wilson(8, 10), "items") == "80.0 % (95 % interval 49.0 to 94.3 %, n = 10 items)"


def ledger_of(answers, prompts, judgments):
    ledger = Ledger(":memory:")
    ledger.add_prompts(prompts)
    ledger.add_responses(r for pair in answers for r in pair)
    ledger.add_judgments(judgments)
    return ledger


def test_audit_reads_a_ledger_or_a_part_of_it():
    prompts, answers = world(12)
    judgments = both(answers, content)
    with ledger_of(answers, prompts, judgments) as ledger:
        whole = audit(ledger)
        part = audit(ledger, [j.id for j in judgments[:6]], checks=["position"], knobs={"position": {"max_bias": 0.2}})
    assert {f.check.partition(".")[0] for f in whole} >= {"verdicts", "position", "identical"}
    assert part[0].n == 3
    assert [f.threshold for f in part if f.check == "position.bias"] == [0.2]


def shout(seen, *, loud=False):
    return [finding("shout.n", "all", "HEY" if loud else "hey", wilson(len(seen), len(seen)))]


def test_your_own_check_is_named_in_place(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_checks", SimpleNamespace(shout=shout))
    _, answers = world(3)
    found = measure(view(both(answers, content)), checks=["my_checks:shout"], knobs={"my_checks:shout": {"loud": True}})
    assert [(f.sentence, f.n) for f in found] == [("HEY", 6)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"checks": ["postion"]}, "Did you mean 'position'"),
        ({"knobs": {"length": {"tua": 3}}}, "Did you mean 'tau'"),
        ({"checks": ["length"], "knobs": {"cost": {}}}, "not among the checks"),
    ],
)
def test_mistakes_are_told_in_one_sentence(options, said):
    prompts, answers = world(2)
    with ledger_of(answers, prompts, both(answers, content)) as ledger, pytest.raises(InputError, match=said):
        audit(ledger, **options)


def test_an_empty_ledger_is_said_to_be_empty():
    with Ledger(":memory:") as ledger, pytest.raises(InputError, match="no judgments to audit"):
        audit(ledger)


def test_a_crowd_of_annotators_is_one_voice_and_a_few_are_several() -> None:
    from tiebreak.audit.table import CROWD, view

    def seen(people: int) -> list[str]:
        votes = [
            Judgment(prompt_id="p", slots=("a", "b"), verdict="slot", winner=i % 2, by=f"human:{i}")
            for i in range(people)
        ]
        return [name for name, _ in view(votes).by_judge()]

    assert seen(CROWD) == sorted(f"human:{i}" for i in range(CROWD))
    assert seen(CROWD + 1) == [f"the crowd of {CROWD + 1} annotators"]
