import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.judge.made import judge_at, ledger_with, pair, pairs
from tests.judge.server import Script, Server, is_garbage
from tiebreak.judge.rule import make as rule
from tiebreak.judge.run import judge_pairs
from tiebreak.judge.verdict import soft_label
from tiebreak.records import InputError, Judgment, Prompt, Response
from tiebreak.store import Ledger

SHARP = {"rule": "longer", "sharpness": math.inf}


def wins_per_slot(judgments):
    return Counter(judgment.winner for judgment in judgments)


def test_both_orders_are_asked_and_ids_go_by_pair_then_order(tmp_path):
    made = pairs(6)
    with ledger_with(tmp_path / "l.db", made) as ledger:
        judged = judge_pairs(ledger, rule(**SHARP), made, attempts=2)
        found = ledger.judgments(judged.judgment_ids)
    assert [(j.slots, j.attempt) for j in found] == [
        (slots, attempt) for _, a, b in made for slots in ((a.id, b.id), (b.id, a.id)) for attempt in (0, 1)
    ]
    assert judged.counts == {"asked": 24, "known": 0, "invalid": 0, "ties": 0, "identical": 0, "empty": 0}


def test_what_is_known_is_not_asked_again(tmp_path):
    made = pairs(10)
    with ledger_with(tmp_path / "l.db", made) as ledger, Server() as server:
        judge = judge_at(server)
        first = judge_pairs(ledger, judge, made[:4])
        both = judge_pairs(ledger, judge, made)
        assert both.judgment_ids[:8] == first.judgment_ids
        assert (both.counts["known"], both.counts["asked"]) == (8, 12)
        assert len(server.log) == 20
        other = judge_pairs(ledger, judge_at(server, temperature=0.1), made)
        assert other.counts["asked"] == 20


def test_one_order_is_a_coin_of_the_pair_or_as_given(tmp_path):
    made = pairs(400)
    with ledger_with(tmp_path / "l.db", made) as ledger:
        coin = judge_pairs(ledger, rule(**SHARP), made, orders="random")
        turned = judge_pairs(ledger, rule(**SHARP), [(p, b, a) for p, a, b in made], orders="random")
        other = judge_pairs(ledger, rule(**SHARP), made, orders="random", seed=1)
        given = judge_pairs(ledger, rule(**SHARP), made, orders="given")
        shown = {j.id: j.slots for j in ledger.judgments()}
    assert coin.judgment_ids == turned.judgment_ids
    assert coin.judgment_ids != other.judgment_ids
    first = sum(shown[i][0] == a.id for i, (_, a, _) in zip(coin.judgment_ids, made, strict=True))
    assert abs(first / 400 - 0.5) < 3.29 * 0.5 / math.sqrt(400)
    assert all(shown[i] == (a.id, b.id) for i, (_, a, b) in zip(given.judgment_ids, made, strict=True))


def test_a15_identical_and_empty_pairs_are_never_asked_and_counted(tmp_path):
    made = [pair(0, " same", "same "), pair(2, "", "text"), pair(4, " \n", ""), pair(6)]
    with ledger_with(tmp_path / "l.db", made) as ledger:
        judged = judge_pairs(ledger, rule(**SHARP), made)
    assert judged.counts == {"asked": 2, "known": 0, "invalid": 0, "ties": 0, "identical": 1, "empty": 2}
    assert len(judged.judgment_ids) == 2


def test_a_pair_named_twice_is_asked_once(tmp_path):
    prompt, a, b = pair()
    with ledger_with(tmp_path / "l.db", [pair()]) as ledger:
        judged = judge_pairs(ledger, rule(**SHARP), [(prompt, a, b), (prompt, b, a), (prompt, a, b)])
    assert len(judged.judgment_ids) == judged.counts["asked"] == 2


def test_a5_a_first_slot_judge_is_measured_without_any_stop(tmp_path):
    made = pairs(50)
    with ledger_with(tmp_path / "l.db", made) as ledger, Server(Script(slot_bias=1.0)) as server:
        judged = judge_pairs(ledger, judge_at(server), made)
        found = ledger.judgments(judged.judgment_ids)
    assert wins_per_slot(found) == {0: 100}
    for (_, a, b), forth, back in zip(made, found[::2], found[1::2], strict=True):
        label = soft_label([forth, back], a.id, b.id)
        assert (label.p, label.conflict) == (pytest.approx(0.5), True)


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_planted_slot_bias_of_a_server_is_recovered_in_its_interval(tmp_path, logprobs):
    bias, made = 0.3, pairs(500)
    script = Script(slot_bias=bias, logprobs=logprobs, prefer=lambda first, second: 0.5 + 0.4 * (first > second))
    with ledger_with(tmp_path / "l.db", made) as ledger, Server(script) as server:
        judged = judge_pairs(ledger, judge_at(server), made, concurrency=64)
        found = ledger.judgments(judged.judgment_ids)
    content = sum(0.5 + 0.4 * (texts[0] > texts[1]) for texts in shown_texts(found, made)) / len(found)
    expected = 2 * ((1 - bias) * content + bias) - 1
    if logprobs:
        mean = sum(2 * judgment.probability - 1 for judgment in found) / len(found)
        assert mean == pytest.approx(expected)
        return
    wins = wins_per_slot(found)
    mean = (wins[0] - wins[1]) / len(found)
    assert abs(mean - expected) < 1.96 * math.sqrt((1 - mean**2) / len(found))


def shown_texts(found, made):
    text = {response.id: response.text.strip() for _, *both in made for response in both}
    return [[text[slot] for slot in judgment.slots] for judgment in found]


def test_a14_garbage_for_some_calls_is_exactly_those_invalid(tmp_path):
    made = pairs(300)
    script = Script(garbage=0.05)
    with ledger_with(tmp_path / "l.db", made) as ledger, Server(script) as server:
        judged = judge_pairs(ledger, judge_at(server, reask=0), made)
        found = ledger.judgments(judged.judgment_ids)
        planted = sum(is_garbage(body, script) for body, _ in server.log)
    assert 10 < planted == judged.counts["invalid"] == sum(j.raw == "I cannot say" for j in found)
    assert all(
        (j.verdict == "invalid") == (j.raw == "I cannot say") and (j.winner is None) == (j.verdict == "invalid")
        for j in found
    )


def test_unreadable_verdicts_are_asked_again_when_wanted_and_revised(tmp_path):
    made = pairs(100)
    with ledger_with(tmp_path / "l.db", made) as ledger:
        with Server(Script(garbage=0.2)) as server:
            before = judge_pairs(ledger, judge_at(server), made)
            kept = judge_pairs(ledger, judge_at(server), made)
        assert kept.counts["asked"] == 0
        with Server() as server:
            after = judge_pairs(ledger, judge_at(server), made, again=["invalid"])
            assert len(server.log) == after.counts["asked"] == before.counts["invalid"] > 0
            last = judge_pairs(ledger, judge_at(server), made, again=["invalid"])
        assert after.counts["invalid"] == last.counts["asked"] == 0
        assert last.judgment_ids == after.judgment_ids
        revised = [j.revises for j in ledger.judgments(after.judgment_ids) if j.revises]
        assert {j.verdict for j in ledger.judgments(revised)} == {"invalid"}


def test_faults_of_the_server_lose_nothing_and_bend_no_verdict(tmp_path):
    made = pairs(150)
    with ledger_with(tmp_path / "l.db", made) as ledger:
        with Server(Script(faults=0.02)) as server:
            shaky = judge_at(server, retries=2)
            judged = judge_pairs(ledger, shaky, made)
            assert {status for _, status in server.log} == {200, 500}
        wanted = [
            int(second > first)
            for first, second in (
                (len(t[0]), len(t[1])) for t in shown_texts(ledger.judgments(judged.judgment_ids), made)
            )
        ]
        assert [j.winner for j in ledger.judgments(judged.judgment_ids)] == wanted


def test_a21_a_killed_run_resumes_and_pays_for_no_written_judgment_twice(tmp_path):
    made, window = pairs(400), 8
    ledger_with(tmp_path / "l.db", made).close()
    with Server(Script(delay=0.01)) as server:
        code = "from tests.judge.test_run import killed; import sys; killed(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
        here = Path(__file__).parents[2]
        arguments = [sys.executable, "-c", code, str(tmp_path / "l.db"), server.url, str(window)]
        child = subprocess.Popen(arguments, cwd=here, env={**os.environ, "PYTHONPATH": str(here)})
        server.wait_for(450)
        child.send_signal(signal.SIGKILL)
        child.wait()
        with Ledger(tmp_path / "l.db") as ledger:
            asked = len(server.log)
            written = ledger.counts()["judgments"]
            assert 0 < written < asked < 800
            judged = judge_pairs(ledger, judge_at(server), made, concurrency=window)
            assert judged.counts["known"] == written
            assert judged.counts["asked"] == 800 - written
            repeated = [body for body, times in Counter(body for body, _ in server.log).items() if times > 1]
            assert len(repeated) <= window, "what was answered before the kill is kept, written as a judgment or not"
            assert ledger.counts()["judgments"] == 800


def killed(where, url, window):
    """What the child runs until it is killed."""
    server = type("Address", (), {"url": url})
    with Ledger(where) as ledger:
        judge_pairs(ledger, judge_at(server), pairs(400), concurrency=window)


def test_a_dead_server_is_told_and_what_was_judged_stays(tmp_path):
    made = pairs(40)
    with ledger_with(tmp_path / "l.db", made) as ledger:
        with Server() as server:
            judge = judge_at(server, retries=0)
            first = judge_pairs(ledger, judge, made[:10])
        with pytest.raises(InputError, match="cannot be reached"):
            judge_pairs(ledger, judge, made)
        assert ledger.counts()["judgments"] == 20
        assert [j.id for j in ledger.judgments(first.judgment_ids)] == list(first.judgment_ids)


class Breaks:
    """A judge that answers until it breaks."""

    by, rubric, instant = "rule:breaks", "r", False

    def __init__(self, after):
        self.left, self.closed, self.asked = after, 0, 0

    async def ask(self, question):
        self.asked += 1
        await asyncio.sleep(0)
        self.left -= 1
        if self.left == 0:
            raise ZeroDivisionError("broken")
        slots = tuple(slot.id for slot in question.slots)
        return Judgment(
            prompt_id=question.prompt.id, slots=slots, verdict="slot", winner=0, by=self.by, rubric=self.rubric
        )

    async def close(self):
        self.closed += 1


def test_an_error_is_raised_after_all_that_finished_is_written(tmp_path):
    made = pairs(100)
    with ledger_with(tmp_path / "l.db", made) as ledger:
        judge = Breaks(after=50)
        with pytest.raises(ZeroDivisionError):
            judge_pairs(ledger, judge, made, concurrency=10)
        assert judge.closed == 1
        assert judge.asked <= 60
        assert ledger.counts()["judgments"] == judge.asked - 1
        assert judge_pairs(ledger, Breaks(after=-1), made).counts["known"] == judge.asked - 1


class Interrupts(Breaks):
    """A judge during whose 21st call somebody presses Ctrl-C; its calls never end by themselves."""

    async def ask(self, question):
        if self.asked == 20:
            await asyncio.sleep(0)
            self.asked += 1
            signal.raise_signal(signal.SIGINT)
        if self.asked > 20:
            await asyncio.Event().wait()
        return await super().ask(question)


@pytest.fixture
def listens_to_ctrl_c():
    """A shell's background jobs ignore SIGINT, and hand that on to what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listens_to_ctrl_c")
def test_ctrl_c_ends_the_calls_in_flight_and_keeps_what_finished(tmp_path):
    made = pairs(100)
    with ledger_with(tmp_path / "l.db", made) as ledger:
        with pytest.raises(KeyboardInterrupt):
            judge_pairs(ledger, Interrupts(after=-1), made, concurrency=1)
        assert ledger.counts()["judgments"] == 20


def test_it_works_inside_a_running_loop_as_in_a_notebook():
    made = pairs(10)

    async def cell():
        with ledger_with(":memory:", made) as ledger:
            return judge_pairs(ledger, rule(**SHARP), made).counts["asked"]

    assert asyncio.run(cell()) == 20


def test_the_window_grows_until_it_is_full_and_has_no_barrier(tmp_path):
    made = pairs(100)
    with ledger_with(tmp_path / "l.db", made) as ledger, Server(Script(delay=0.02)) as server:
        judge_pairs(ledger, judge_at(server), made, concurrency=20)
        assert server.peak == 20


def test_a17_pairs_that_do_not_belong_together_are_refused_before_anything_is_asked(tmp_path):
    prompt, a, b = pair(0)
    stranger = pair(1)
    with ledger_with(tmp_path / "l.db", [(prompt, a, b)]) as ledger, Server() as server:
        with pytest.raises(InputError, match="one prompt"):
            judge_pairs(ledger, judge_at(server), [(prompt, a, stranger[2])])
        with pytest.raises(InputError, match="has no prompt"):
            judge_pairs(ledger, judge_at(server), [stranger])
        unknown = Response(prompt_id=prompt.id, text="elsewhere")
        with pytest.raises(InputError, match="has no response"):
            judge_pairs(ledger, judge_at(server), [(prompt, a, unknown)])
        assert server.log == []


@pytest.mark.parametrize(
    "wrong", [{"orders": "all"}, {"attempts": 0}, {"concurrency": 0}, {"again": "invalid"}, {"again": ["unsure"]}]
)
def test_a_wrong_argument_is_refused(tmp_path, wrong):
    with ledger_with(tmp_path / "l.db", []) as ledger, pytest.raises(InputError, match=next(iter(wrong))):
        judge_pairs(ledger, rule(**SHARP), [], **wrong)


def test_no_pairs_are_no_work(tmp_path):
    with ledger_with(tmp_path / "l.db", []) as ledger:
        judged = judge_pairs(ledger, rule(**SHARP), [])
    assert (judged.judgment_ids, judged.price, judged.tokens_in) == ((), None, 0)


def test_price_tokens_and_progress_add_up(tmp_path):
    made, seen = pairs(20), []
    with ledger_with(tmp_path / "l.db", made) as ledger, Server() as server:
        judge = judge_at(server, price_in=0.5, price_out=1.5)
        judged = judge_pairs(ledger, judge, made, progress=lambda *shown: seen.append(shown))
        found = ledger.judgments(judged.judgment_ids)
        again = judge_pairs(ledger, judge, made)
    assert judged.price == pytest.approx(sum(j.price for j in found))
    assert judged.tokens_in == sum(j.tokens_in for j in found) > 0
    assert seen[-1][:2] == (40, 40)
    assert set(seen[-1][2]) == {"per second", "invalid", "price"}
    assert (again.price, again.tokens_in) == (None, 0)


def test_the_key_is_in_no_record(tmp_path, monkeypatch):
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("MY_KEY", key)
    made = pairs(5)
    with ledger_with(tmp_path / "l.db", made) as ledger, Server() as server:
        judge_pairs(ledger, judge_at(server, key_env="MY_KEY"), made)
        assert server.headers[0]["Authorization"] == f"Bearer {key}"
        assert key not in repr(ledger.judgments())
    for file in tmp_path.iterdir():
        assert key.encode() not in file.read_bytes()


def test_the_same_run_gives_the_same_ids_anywhere(tmp_path):
    made = pairs(50)
    ids = []
    for name in ("one.db", "two.db"):
        with ledger_with(tmp_path / name, made) as ledger, Server() as server:
            ids.append(judge_pairs(ledger, judge_at(server), made, concurrency=7).judgment_ids)
    assert ids[0] == ids[1]


def test_every_record_holds_who_with_what_and_the_raw_reply(tmp_path):
    prompt, a, b = pair()
    with ledger_with(tmp_path / "l.db", [(prompt, a, b)]) as ledger, Server() as server:
        judged = judge_pairs(ledger, judge_at(server), [(prompt, a, b)], orders="given")
        (judgment,) = ledger.judgments(judged.judgment_ids)
        assert json.loads(server.log[0][0])["model"] == "scripted"
    assert (judgment.by, judgment.slots, judgment.raw) == ("model:scripted@127.0.0.1", (a.id, b.id), "1")
    assert judgment.rubric
    assert isinstance(prompt, Prompt)
