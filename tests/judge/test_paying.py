"""A run of a judge pays for no reply twice, keeps to its budget, and reads and writes batch files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.judge.made import judge_at, ledger_with, pairs
from tests.judge.server import Script, Server
from tiebreak.endpoint import BudgetReached
from tiebreak.endpoint.client import clients_of
from tiebreak.judge.panel import make as panel
from tiebreak.judge.rule import make as rule
from tiebreak.judge.run import batch_pairs, judge_pairs
from tiebreak.records import InputError


def test_a_judge_under_another_rubric_hash_is_not_paid_again_for_equal_requests(tmp_path: Path) -> None:
    made = pairs(10)
    with ledger_with(tmp_path / "l.db", made) as ledger, Server() as server:
        first = judge_pairs(ledger, judge_at(server, price_in=1.0, price_out=1.0), made)
        other = judge_pairs(ledger, judge_at(server, price_in=1.0, price_out=1.0, reask=0), made)
    assert len(server.log) == 20
    assert first.price is not None
    assert first.price > 0
    assert set(first.judgment_ids).isdisjoint(other.judgment_ids), "another way to ask is another judge"
    assert (other.price, other.tokens_in, other.counts["asked"]) == (None, 0, 20)


def test_a_budget_of_calls_is_never_passed_keeps_what_was_answered_and_goes_on_when_raised(tmp_path: Path) -> None:
    made = pairs(40)
    with ledger_with(tmp_path / "l.db", made) as ledger, Server(Script(delay=0.005)) as server:
        with pytest.raises(BudgetReached, match="30 calls is reached; raise it and run again"):
            judge_pairs(ledger, judge_at(server), made, concurrency=16, calls=30)
        assert len(server.log) == 30
        assert ledger.counts()["judgments"] == 30
        with pytest.raises(BudgetReached):
            judge_pairs(ledger, judge_at(server), made, concurrency=16, calls=30)
        assert len(server.log) == 30, "what was paid in earlier runs counts"
        judged = judge_pairs(ledger, judge_at(server), made, concurrency=16, calls=80)
    assert len(server.log) == 80
    assert judged.counts["known"] == 30


def test_a_budget_of_dollars_is_never_passed(tmp_path: Path) -> None:
    made = pairs(40)
    with ledger_with(tmp_path / "l.db", made) as ledger, Server(Script(delay=0.002)) as server:
        judge = judge_at(server, price_in=100.0, price_out=100.0)
        with pytest.raises(BudgetReached, match=r"1 US dollars is reached"):
            judge_pairs(ledger, judge, made, concurrency=16, usd=1.0)
        spent = [judgment.price for judgment in ledger.judgments()]
    assert 0.8 < sum(price for price in spent if price is not None) <= 1.0
    assert None not in spent


@pytest.mark.parametrize("cap", [{"usd": 1.0}, {"calls": 5}])
def test_a_budget_for_a_judge_that_calls_nobody_is_refused(tmp_path: Path, cap: dict[str, Any]) -> None:
    with ledger_with(tmp_path / "l.db", []) as ledger, pytest.raises(InputError, match="this judge makes none"):
        judge_pairs(ledger, rule(rule="longer"), [], **cap)


def test_dollars_without_a_known_price_are_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    made = pairs(2)
    with ledger_with(tmp_path / "l.db", made) as ledger, Server() as server:
        with pytest.raises(InputError, match="price_in"):
            judge_pairs(ledger, judge_at(server), made, usd=1.0)
        assert server.log == []


def test_a_panel_shares_one_budget(tmp_path: Path) -> None:
    made = pairs(20)
    with ledger_with(tmp_path / "l.db", made) as ledger, Server() as server:
        juror = {"by": "pairwise", "endpoint": server.url, "rationale": False, "key_env": None}
        jury = panel(jurors=[{**juror, "model": "one"}, {**juror, "model": "two"}])
        assert {client.model for client in clients_of(jury)} == {"one", "two"}
        with pytest.raises(BudgetReached):
            judge_pairs(ledger, jury, made, concurrency=4, calls=11)
        assert len(server.log) == 11


def test_asking_again_is_asked_anew_and_not_answered_from_what_was_kept(tmp_path: Path) -> None:
    made = pairs(3)
    with ledger_with(tmp_path / "l.db", made) as ledger, Server(Script(reply="no idea")) as server:
        judged = judge_pairs(ledger, judge_at(server, reask=0), made)
        assert judged.counts["invalid"] == 6
        server.script = Script(reply="1")
        assert judge_pairs(ledger, judge_at(server, reask=0), made).counts["invalid"] == 6
        assert judge_pairs(ledger, judge_at(server, reask=0), made, again=["invalid"]).counts["invalid"] == 0
        assert len(server.log) == 12


@pytest.mark.parametrize("rationale", [False, True])
def test_batch_files_end_in_the_judgments_of_a_live_run(tmp_path: Path, rationale: bool) -> None:
    made, folder = pairs(6), tmp_path / "batch"
    with ledger_with(tmp_path / "live.db", made) as ledger, Server() as server:
        live = ledger.judgments(judge_pairs(ledger, judge_at(server, rationale=rationale), made).judgment_ids)
        with ledger_with(tmp_path / "batch.db", made) as other:
            judge = judge_at(server, rationale=rationale)
            before, rounds = len(server.log), 0
            while not (written := batch_pairs(other, judge, made, folder)).done:
                rounds += 1
                assert rounds <= 2
                answer(folder, written.files, server)
            asked = len(server.log) - before
            done = other.judgments(judge_pairs(other, judge, made).judgment_ids)
            assert len(server.log) - before == asked, "an ordinary run afterwards calls nobody"
    assert rounds == 1 + rationale
    assert [(j.slots, j.verdict, j.winner) for j in done] == [(j.slots, j.verdict, j.winner) for j in live]
    assert [j.probability for j in done] == pytest.approx([j.probability for j in live])


def answer(folder: Path, files: tuple[Path, ...], server: Server) -> None:
    """Answer every request of the files, as a provider would."""
    import urllib.request

    lines = []
    for line in (line for file in files for line in file.read_text().splitlines()):
        asked = json.loads(line)
        address = server.url.removesuffix("/v1") + asked["url"]
        request = urllib.request.Request(
            address, json.dumps(asked["body"]).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            body = json.loads(response.read())
        lines.append(json.dumps({"custom_id": asked["custom_id"], "response": {"status_code": 200, "body": body}}))
    (folder / f"results-{files[0].stem}.jsonl").write_text("\n".join(lines) + "\n")
