"""Batch files there and back: the same judgments as from calls, and nothing asked or paid twice."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests.judge.made import judge_at, ledger_with, pairs
from tests.judge.server import Script, Server, completion
from tiebreak.endpoint.batch import read_results, write_batch, write_requests
from tiebreak.endpoint.cache import Replies
from tiebreak.judge.panel import make as make_panel
from tiebreak.judge.rule import make as make_rule
from tiebreak.judge.run import judge_pairs
from tiebreak.judge.table import Question
from tiebreak.records import InputError
from tiebreak.store import Ledger

WHO = "model:scripted@host"


def requests_in(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("requests-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def answer(request: dict[str, Any], script: Script) -> dict[str, Any]:
    body = completion(request["body"], json.dumps(request["body"]).encode(), script)
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": request["custom_id"], "response": response, "error": None}


def provider(folder: Path, script: Script, *, errors: Collection[int] = (), torn: Collection[int] = ()) -> None:
    """Answer each file of requests that has no results: some with an error, some in a torn line."""
    for file in sorted(folder.glob("requests-*.jsonl")):
        results = folder / f"batch_{file.stem}_output.jsonl"
        if results.exists():
            continue
        lines = []
        for i, line in enumerate(file.read_text().splitlines()):
            answered = answer(json.loads(line), script)
            if i in errors:
                answered |= {"response": None, "error": {"code": "batch_expired", "message": "ran out of time"}}
            lines.append(json.dumps(answered)[: 40 if i in torn else None])
        lines.append(json.dumps(answered | {"custom_id": "0" * 32}))
        results.write_text("\n".join(reversed(lines)) + "\n")


def questions(made: Any) -> list[Question]:
    return [Question(prompt, slots) for prompt, a, b in made for slots in ((a, b), (b, a))]


def said(ledger: Ledger) -> list[tuple[Any, ...]]:
    """What was judged, by id: all of it but time, latency and the moment."""
    return [(j.id, j.verdict, j.probability, j.raw, j.rationale, j.tokens_in, j.price) for j in ledger.judgments()]


@pytest.fixture
def replies(tmp_path: Path) -> Any:
    with Ledger(tmp_path / "ledger.db") as ledger:
        yield Replies(ledger)


@pytest.mark.parametrize("rationale", [False, True], ids=["one call", "rationale first"])
def test_a_batch_gives_the_judgments_of_calls_and_pays_once(tmp_path: Path, rationale: bool) -> None:
    made, folder, script = pairs(6), tmp_path / "batch", Script()
    with Server(script) as server, ledger_with(tmp_path / "live.db", made) as live:
        judge_pairs(live, judge_at(server, rationale=rationale), made)
        called = len(server.log)
        with ledger_with(tmp_path / "batch.db", made) as ledger:
            judge = judge_at(server, rationale=rationale)
            judge.client.cache = Replies(ledger)
            first = write_batch(judge, questions(made), folder)
            assert (first.requests, first.known, first.waiting, first.done) == (12, 0, 0, False)
            provider(folder, script, errors=[3], torn=[5])
            second = write_batch(judge, questions(made), folder)
            assert second.results == (10, 0, 2, 1, {"a line cannot be read": 1, "ran out of time": 1}, {})
            # The torn one may have been answered, so it is waited for; the one in error is written again.
            assert (second.requests, second.waiting) == (11 if rationale else 1, 1)
            (folder / "batch_requests-1_output.jsonl").unlink()
            provider(folder, script, errors=[3])
            while not (last := write_batch(judge, questions(made), folder)).done:
                provider(folder, script)
            assert last.known == 12
            assert (last.results.failed, last.results.reasons) == (0, {}), "what failed once was answered since"
            assert judge.client.cache.paid(judge.client.identity).calls == called
            judge_pairs(ledger, judge, made)
            assert said(ledger) == said(live)
        assert len(server.log) == called, "the batch called nobody"
    keys = [request["custom_id"] for request in requests_in(folder)]
    assert len(keys) == len(set(keys)) + (2 if rationale else 1), "what was in error is written again, nothing else"


def test_what_a_batch_leaves_is_asked_by_an_ordinary_run(tmp_path: Path) -> None:
    made, folder, script = pairs(4), tmp_path / "batch", Script()
    with Server(script) as server, ledger_with(tmp_path / "ledger.db", made) as ledger:
        judge = judge_at(server)
        judge.client.cache = Replies(ledger)
        write_batch(judge, questions(made), folder)
        provider(folder, script, errors=[0, 1, 2])
        write_batch(judge, questions(made), folder)
        judged = judge_pairs(ledger, judge, made)
        assert len(server.log) == 3
        assert judged.counts["asked"] == 8
        assert judged.counts["invalid"] == 0


def test_a_round_without_results_writes_nothing_new(tmp_path: Path) -> None:
    made, folder = pairs(5), tmp_path / "batch"
    with Server() as server, ledger_with(tmp_path / "ledger.db", made) as ledger:
        judge = judge_at(server)
        judge.client.cache = Replies(ledger)
        assert write_batch(judge, questions(made[:3]), folder).requests == 6
        again = write_batch(judge, questions(made), folder)
        assert (again.requests, again.waiting) == (4, 6)
        assert [file.name for file in again.files] == ["requests-2.jsonl"]
        assert write_batch(judge, questions(made), folder).files == ()
        assert judge.client.cache.paid(judge.client.identity).calls == 0
        assert not server.log


def test_several_draws_are_all_written_in_one_round(tmp_path: Path) -> None:
    made, folder = pairs(1), tmp_path / "batch"
    with Server() as server, ledger_with(tmp_path / "ledger.db", made) as ledger:
        judge = judge_at(server, rationale=True, samples=4, temperature=0.7)
        judge.client.cache = Replies(ledger)
        assert write_batch(judge, questions(made), folder).requests == 8
        bodies = [json.dumps(request["body"]) for request in requests_in(folder)]
        assert len(set(bodies)) == 2, "equal requests, told apart by their keys"


def test_a_panel_has_a_folder_for_each_model(tmp_path: Path) -> None:
    made, folder, script = pairs(3), tmp_path / "batch", Script()
    with Server(script) as server, ledger_with(tmp_path / "ledger.db", made) as ledger:
        at = {"by": "pairwise", "endpoint": server.url, "key_env": None}
        jurors = [
            {**at, "model": "org/one"},
            {**at, "model": "two", "rationale": False},
            {"by": "rule", "rule": "longer"},
        ]
        panel = make_panel(jurors)
        for client in panel.clients:
            client.cache = Replies(ledger)
        first = write_batch(panel, questions(made), folder)
        assert {str(file.relative_to(folder)) for file in first.files} == {
            "org-one@127.0.0.1/requests-1.jsonl",
            "two@127.0.0.1/requests-1.jsonl",
        }
        assert (first.requests, first.known) == (12, 0)
        while not (last := write_batch(panel, questions(made), folder)).done:
            for place in folder.iterdir():
                provider(place, script)
        assert (last.known, last.results.unknown) == (6, 3), "two rounds for the one, one for the other"
        judged = judge_pairs(ledger, panel, made)
        assert judged.counts["asked"] == 6
        assert [client.cache.paid(client.identity).calls for client in panel.clients] == [12, 6]
        assert not server.log


def test_what_a_provider_does_not_take_is_left_out_of_the_next_file(tmp_path: Path) -> None:
    made, folder = pairs(1), tmp_path / "batch"
    told = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    with Server() as server, ledger_with(tmp_path / "ledger.db", made) as ledger:
        judge = judge_at(server, price_in=2.0, price_out=8.0)
        judge.client.cache = Replies(ledger)
        write_batch(judge, questions(made), folder)
        first = requests_in(folder)
        lines = [
            {"custom_id": r["custom_id"], "response": {"status_code": 400, "body": {"error": {"message": told}}}}
            for r in first
        ]
        (folder / "errors.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        second = write_batch(judge, questions(made), folder)
        assert (second.results.failed, second.results.refused) == (2, {"max_tokens": told.rstrip(".")})
        again = requests_in(folder)[2:]
        for old, new in zip(first, again, strict=True):
            assert new["custom_id"] == old["custom_id"], "the answer is kept as that of the same request"
            assert new["body"] == {
                **{name: value for name, value in old["body"].items() if name != "max_tokens"},
                "max_completion_tokens": old["body"]["max_tokens"],
            }
        answers = [answer(request, Script()) for request in first]
        (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
        assert write_batch(judge, questions(made), folder).done
        paid = judge.client.cache.paid(judge.client.identity)
        assert paid.usd == pytest.approx((2.0 * paid.tokens_in + 8.0 * paid.tokens_out) / 1e6 / 2), "half the price"


def test_a_request_is_what_a_call_would_send(tmp_path: Path) -> None:
    made = pairs(1)
    with Server() as server, ledger_with(tmp_path / "ledger.db", made) as ledger:
        judge = judge_at(server)
        judge.client.cache = Replies(ledger)
        write_batch(judge, questions(made), tmp_path / "batch", url="/chat/completions")
        judge_pairs(ledger, judge, made, concurrency=1)
        written = requests_in(tmp_path / "batch")
        assert [request["body"] for request in written] == [json.loads(body) for body, _ in server.log]
        assert {(request["method"], request["url"]) for request in written} == {("POST", "/chat/completions")}
        assert write_batch(judge, questions(made), tmp_path / "batch").done


def test_files_are_split_by_requests_and_by_bytes(tmp_path: Path) -> None:
    made = [(f"{i:032x}", {"messages": "x" * 100}) for i in range(10)]
    files = write_requests(tmp_path / "some" / "round.jsonl", iter(made), most=4)
    assert [len(file.read_text().splitlines()) for file in files] == [4, 4, 2]
    assert [file.name for file in files] == ["round-1.jsonl", "round-2.jsonl", "round-3.jsonl"]
    line = len(files[0].read_text().splitlines()[0]) + 1
    more = write_requests(tmp_path / "some" / "round.jsonl", made, most_bytes=2 * line + 1)
    assert [file.stat().st_size for file in more] == [2 * line] * 5
    assert more[0].name == "round-4.jsonl"
    alone = write_requests(tmp_path / "alone.jsonl", made[:2], most_bytes=1)
    assert len(alone) == 2, "a request that is too large for any file has one of its own"
    assert write_requests(tmp_path / "none.jsonl", []) == ()


def test_a_writer_that_stops_halfway_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> Any:
        yield "0" * 32, {}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_requests(tmp_path / "requests.jsonl", broken())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written into"):
        write_requests(tmp_path / "file" / "requests.jsonl", [("0" * 32, {})])
    with pytest.raises(InputError, match="most is 0; expected 1 or more"):
        write_requests(tmp_path / "requests.jsonl", [], most=0)


OK = {"choices": [{"message": {"content": "1"}}], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}


def line(i: int, **parts: Any) -> str:
    return json.dumps({"custom_id": f"{i:032x}", **parts})


def test_reading_counts_what_is_good_and_why_the_rest_is_not(tmp_path: Path, replies: Replies) -> None:
    lines = [
        "\ufeff" + line(1, response={"status_code": 200, "body": OK}, error=None),
        line(2, response={"body": OK}),
        line(3, response={"status_code": 429, "body": {"error": {"message": "too  many"}}}),
        line(4, response={"status_code": 500}),
        line(5, response=None, error={"code": "batch_expired", "message": "late"}),
        line(6, response={"status_code": 200, "body": {"choices": []}}),
        line(7),
        "",
        "<html>",
        "[1]",
        json.dumps({"custom_id": "request-1", "response": {"body": OK}}),
        json.dumps({"response": {"body": OK}}),
    ]
    (tmp_path / "out.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    found = read_results(tmp_path / "out.jsonl", replies, WHO)
    assert found[:4] == (2, 0, 8, 2)
    assert found.reasons == {
        "a line cannot be read": 3,
        "too many": 1,
        "answered 500": 1,
        "late": 1,
        "the answer is no chat completion": 1,
        "there is no answer": 1,
    }
    assert replies.get(f"{1:032x}")[:6] == ("1", None, 7, 1, 0.0, "")
    assert replies.paid(WHO)[:1] == (2,)
    assert read_results(tmp_path / "out.jsonl", replies, WHO)[:4] == (0, 2, 8, 2)
    asked = [f"{1:032x}"]
    assert read_results(tmp_path / "out.jsonl", replies, WHO, asked=asked)[:4] == (0, 1, 3, 8)


def test_a_file_that_is_not_there_is_told(tmp_path: Path, replies: Replies) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl cannot be read: No such file"):
        read_results(tmp_path / "none.jsonl", replies, WHO)


def test_only_a_judge_on_a_server_with_a_ledger_can_batch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="asks no model on a server"):
        write_batch(make_rule(rule="longer"), [], tmp_path)
    with Server() as server, pytest.raises(InputError, match="no ledger to keep replies in"):
        write_batch(judge_at(server), [], tmp_path)
