"""What the jurors of a panel say reaches the ledger."""

from tests.judge.made import ledger_with, pairs
from tests.judge.server import Script, Server
from tests.judge.test_panel import gap_of_one, world_jury
from tiebreak.audit.run import audit
from tiebreak.judge.panel import is_panel, make
from tiebreak.judge.run import judge_pairs


def test_jurors_reach_the_ledger_beside_the_panel_and_nothing_is_written_twice(tmp_path):
    made = gap_of_one(150)
    panel = world_jury(range(3))
    with ledger_with(tmp_path / "l.db", made) as ledger:
        judged = judge_pairs(ledger, panel, made)
        found, own = ledger.judgments(judged.judgment_ids), ledger.judgments(judged.juror_ids)
        assert {j.by for j in found} == {panel.by}
        assert (judged.counts["asked"], len(own)) == (300, 900)
        told = {(j.slots, j.by, j.rubric): (j.winner, j.probability) for j in own}
        for verdict in found:
            for entry in verdict.fields["jurors"]:
                said = told[verdict.slots, entry["by"], entry["rubric"]]
                assert said == (entry["winner"], entry["probability"])
        before = ledger.counts()
        assert judge_pairs(ledger, panel, made).juror_ids == judged.juror_ids
        judge_pairs(ledger, panel.jurors[0], made)
        assert ledger.counts() == before  # a juror that judges alone is known already
        wider = judge_pairs(ledger, world_jury(range(4)), made)
        assert ledger.counts()["judgments"] == before["judgments"] + 600
        assert not [j for j in ledger.judgments() if j.revises]
        findings = audit(ledger, [*wider.judgment_ids, *wider.juror_ids], checks=["jury"])
    assert next(f for f in findings if f.check == "jury.size").subject.startswith("4 judges")


def test_a_panel_that_is_asked_again_revises_its_own_verdict_and_no_jurors(tmp_path):
    made = pairs(6)
    with ledger_with(tmp_path / "l.db", made) as ledger, Server(Script(garbage=0.5)) as server:
        model = {"by": "pairwise", "endpoint": server.url, "model": "one", "key_env": None, "rationale": False}
        panel = make([model, {"by": "rule", "rule": "longer"}])
        judge_pairs(ledger, panel, made)
        assert ledger.counts()["judgments"] == 36
        judge_pairs(ledger, panel, made, again=["slot"])
        assert ledger.counts()["judgments"] == 48
        revising = [j for j in ledger.judgments() if j.revises]
    assert len(revising) == 12
    assert all(is_panel(j.by) for j in revising)
