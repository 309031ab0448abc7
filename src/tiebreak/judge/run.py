"""Ask a judge about pairs and write what it says into the ledger; whatever is known already is not asked again.

The calls run in an event loop on a thread of their own, in a sliding window without barriers; the calling thread
writes. So it works in a script and in a notebook alike, and a write never holds up a call.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from tiebreak.endpoint.batch import Written, write_batch
from tiebreak.judge.garbage import seldom
from tiebreak.judge.paying import paying
from tiebreak.judge.table import Hears, Judge, Prepares, Question
from tiebreak.records import VERDICTS, InputError, Judgment, Progress, Prompt, Response, content_id, quiet
from tiebreak.store import Ledger

GROUP = 200
"""Judgments that are written together at most while calls go on."""

PATIENCE = 0.25
"""Seconds a finished judgment waits for others before it is written."""

PORTION = 4096
"""Questions that a judge prepares together at most, so what it prepared is what a kill costs."""

Orders = Literal["both", "random", "given"]
_Key = tuple[str, str, int]
_Said = tuple[Judgment, Sequence[Judgment]]
"""A judgment, and those of the jurors behind it where there are any."""


class Judged(NamedTuple):
    """What one run of a judge gave.

    ``judgment_ids`` go by pair, then order, then attempt, known ones included. ``counts`` has ``asked`` and ``known``
    questions, ``invalid`` and ``ties`` among the judgments, and the pairs never asked because their texts are
    ``identical`` or one is ``empty``. Price (US dollars, None where the judge has none) and tokens are what this run
    spent, known judgments cost nothing. ``juror_ids`` are the judgments of a panel's jurors on the same questions.
    ``notes`` are sentences about what a server does not take.
    """

    judgment_ids: tuple[str, ...]
    counts: Mapping[str, int]
    price: float | None
    tokens_in: int
    tokens_out: int
    seconds: float
    juror_ids: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _Known(NamedTuple):
    """A judgment that stands, and how many it and those it revises are."""

    id: str
    verdict: str
    times: int = 1


def judge_pairs(
    ledger: Ledger,
    judge: Judge,
    pairs: Sequence[tuple[Prompt, Response, Response]],
    *,
    orders: Orders = "both",
    attempts: int = 1,
    concurrency: int = 32,
    seed: int = 0,
    again: Collection[str] = (),
    usd: float | None = None,
    calls: int | None = None,
    progress: Progress = quiet,
) -> Judged:
    """Have ``judge`` answer every pair in the chosen orders and record it; return ids, counts and cost.

    ``orders`` is ``both``, ``given`` (the pair's own) or ``random`` (a coin from ``seed``, judge and pair). ``again``
    names verdicts that are not taken for an answer, such as ``invalid``: those questions are asked once more and the
    answer revises the old one. ``usd`` and ``calls`` cap what is paid, over all runs on this ledger. When a call fails,
    no further one starts, those in flight finish, all that finished is written, then the error is raised; running again
    goes on from there. The pairs must be in the ledger.
    """
    started = time.monotonic()
    _check(orders, attempts, concurrency, again)
    questions, identical, empty = _questions(pairs, orders, attempts, seed, judge.by)
    answered, known, todo = _open(ledger, judge, questions, again)
    spent, jurors = _Spent(len(questions) - len(todo)), _Jurors(ledger, judge)

    def write(batch: list[_Said]) -> None:
        own = [_revising(judgment, answered) for judgment, _ in batch]
        ledger.add_judgments([*jurors.behind(batch), *own])
        for judgment in own:
            known[_key(judgment)] = _Known(judgment.id, judgment.verdict)
        spent.count(own)
        progress(spent.done, len(questions), spent.shown(time.monotonic() - started))

    with seldom(), paying(judge, ledger, usd=usd, calls=calls, turn=_turn(todo, answered)) as purse:
        for part in _portions(judge, todo):
            if isinstance(judge, Prepares):
                judge.prepare(part, lambda done, total, shown: progress(spent.done, len(questions), shown))
            _ask_all(judge, part, 1 if judge.instant else concurrency, write)
        paid = purse.spent()
    verdicts = [known[_key(question)] for question in questions]
    return Judged(
        judgment_ids=tuple(found.id for found in verdicts),
        counts={
            "asked": len(todo),
            "known": len(questions) - len(todo),
            "invalid": sum(found.verdict == "invalid" for found in verdicts),
            "ties": sum(found.verdict == "tie" for found in verdicts),
            "identical": identical,
            "empty": empty,
        },
        price=(paid.usd if paid.calls else None) if purse.clients else spent.price,
        tokens_in=paid.tokens_in if purse.clients else spent.tokens_in,
        tokens_out=paid.tokens_out if purse.clients else spent.tokens_out,
        seconds=time.monotonic() - started,
        juror_ids=jurors.ids(questions),
        notes=tuple(purse.notes()),
    )


def batch_pairs(
    ledger: Ledger,
    judge: Judge,
    pairs: Sequence[tuple[Prompt, Response, Response]],
    folder: Path,
    *,
    orders: Orders = "both",
    attempts: int = 1,
    seed: int = 0,
    again: Collection[str] = (),
    progress: Progress = quiet,
) -> Written:
    """Read the results that lie in a batch's ``folder``, and write what is left to ask into its files; call nobody.

    Arguments are those of :func:`judge_pairs`, which finds every answer once nothing is left, see ``Written.done``.
    """
    _check(orders, attempts, 1, again)
    questions, _, _ = _questions(pairs, orders, attempts, seed, judge.by)
    answered, _, todo = _open(ledger, judge, questions, again)
    with paying(judge, ledger, turn=_turn(todo, answered)):
        return write_batch(judge, todo, folder, progress=progress)


def _open(
    ledger: Ledger, judge: Judge, questions: Sequence[Question], again: Collection[str]
) -> tuple[dict[_Key, _Known], dict[_Key, _Known], list[Question]]:
    """Return what is answered, what of it counts, and the questions to ask, whose texts the ledger holds."""
    answered = _known(ledger, judge) if questions else {}
    known = {key: old for key, old in answered.items() if old.verdict not in again}
    todo = [question for question in questions if _key(question) not in known]
    _must_hold(ledger, todo)
    return answered, known, todo


def _turn(todo: Sequence[Question], answered: Mapping[_Key, _Known]) -> int:
    """Return how often these questions were asked before: what was answered then is no answer now."""
    return max((answered[key].times for question in todo if (key := _key(question)) in answered), default=0)


class _Jurors:
    """The jurors of a panel, where the judge is one, and what the ledger knows of each."""

    def __init__(self, ledger: Ledger, judge: Judge) -> None:
        jurors = judge.jurors if isinstance(judge, Hears) else ()
        self._known = {(juror.by, juror.rubric): _known(ledger, juror) for juror in jurors}

    def behind(self, batch: Sequence[_Said]) -> list[Judgment]:
        """Return the jurors' judgments behind a batch; one that says something else than before revises it."""
        found = []
        for judgment in (judgment for _, own in batch for judgment in own):
            known = self._known.setdefault((judgment.by, judgment.rubric), {})
            old = known.get(_key(judgment))
            said = judgment if old is None or old.id == judgment.id else replace(judgment, revises=old.id, id="")
            known[_key(said)] = _Known(said.id, said.verdict)
            found.append(said)
        return found

    def ids(self, questions: Sequence[Question]) -> tuple[str, ...]:
        """Return what the jurors said about these questions, juror by juror."""
        keys = [_key(question) for question in questions]
        return tuple(known[key].id for known in self._known.values() for key in keys if key in known)


class _Spent:
    """The running sums of one run."""

    def __init__(self, known: int) -> None:
        self.known = known
        self.done = known
        self.invalid = 0
        self.price: float | None = None
        self.tokens_in = 0
        self.tokens_out = 0

    def count(self, batch: Sequence[Judgment]) -> None:
        """Add a batch of judgments."""
        for judgment in batch:
            self.done += 1
            self.invalid += judgment.verdict == "invalid"
            self.tokens_in += judgment.tokens_in or 0
            self.tokens_out += judgment.tokens_out or 0
            if judgment.price is not None:
                self.price = (self.price or 0.0) + judgment.price

    def shown(self, seconds: float) -> dict[str, float]:
        """The numbers worth a glance while it runs."""
        shown = {"per second": (self.done - self.known) / max(seconds, 1e-9), "invalid": float(self.invalid)}
        return shown if self.price is None else {**shown, "price": self.price}


def _check(orders: str, attempts: int, concurrency: int, again: Collection[str]) -> None:
    if orders not in ("both", "random", "given"):
        raise InputError(f"judge: orders is {orders!r}; expected 'both', 'random' or 'given'.")
    for name, value in (("attempts", attempts), ("concurrency", concurrency)):
        if value < 1:
            raise InputError(f"judge: {name} is {value}; expected 1 or more.")
    if isinstance(again, str) or any(verdict not in VERDICTS for verdict in again):
        raise InputError(f"judge: again is {again!r}; expected a list of verdicts out of {', '.join(VERDICTS)}.")


def _questions(
    pairs: Sequence[tuple[Prompt, Response, Response]], orders: Orders, attempts: int, seed: int, by: str
) -> tuple[list[Question], int, int]:
    """Return each question once, by pair, order and attempt, and how many pairs are identical or empty."""
    questions: dict[_Key, Question] = {}
    identical = empty = 0
    for prompt, a, b in pairs:
        if a.prompt_id != prompt.id or b.prompt_id != prompt.id:
            raise InputError(
                f"judge: a pair puts responses {a.id} and {b.id} under prompt {prompt.id}, but they answer "
                f"{a.prompt_id} and {b.prompt_id}; pair responses to one prompt."
            )
        texts = a.text.strip(), b.text.strip()
        if not all(texts):
            empty += 1
        elif texts[0] == texts[1]:
            identical += 1
        else:
            for slots in _orders(a, b, orders, seed, by):
                for attempt in range(attempts):
                    question = Question(prompt, slots, attempt)
                    questions.setdefault(_key(question), question)
    return list(questions.values()), identical, empty


def _orders(a: Response, b: Response, orders: Orders, seed: int, by: str) -> tuple[tuple[Response, Response], ...]:
    if orders == "both":
        return (a, b), (b, a)
    if orders == "given":
        return ((a, b),)
    low, high = (a, b) if a.id < b.id else (b, a)
    coin = int(content_id("order", seed, by, low.prompt_id, low.id, high.id), 16) & 1
    return ((low, high),) if coin else ((high, low),)


def _key(asked: Question | Judgment) -> _Key:
    if isinstance(asked, Judgment):
        return asked.slots[0], asked.slots[1], asked.attempt
    return asked.slots[0].id, asked.slots[1].id, asked.attempt


def _known(ledger: Ledger, judge: Judge) -> dict[_Key, _Known]:
    """Return this judge's latest judgment of every question: the one that no other revises."""
    found = {
        judgment.id: (_key(judgment), judgment.verdict, judgment.revises)
        for judgment in ledger.judgments_by(judge.by, judge.rubric)
        if len(judgment.slots) == 2
    }
    revised = {revises for _, _, revises in found.values()}

    def times(name: str) -> int:
        count, older = 1, found[name][2]
        while older in found:
            count, older = count + 1, found[older][2]
        return count

    return {key: _Known(name, said, times(name)) for name, (key, said, _) in found.items() if name not in revised}


def _must_hold(ledger: Ledger, questions: Sequence[Question]) -> None:
    """Refuse before anything is paid for when a prompt or response is not in the ledger."""
    ledger.prompts(list({question.prompt.id: None for question in questions}))
    ledger.responses(list({slot.id: None for question in questions for slot in question.slots}))


def _portions(judge: Judge, questions: Sequence[Question]) -> Iterator[Sequence[Question]]:
    """Cut the questions of a judge that prepares into portions; any other judge gets them in one."""
    size = PORTION if isinstance(judge, Prepares) else max(1, len(questions))
    return (questions[start : start + size] for start in range(0, len(questions), size))


def _revising(judgment: Judgment, answered: Mapping[_Key, _Known]) -> Judgment:
    old = answered.get(_key(judgment))
    return judgment if old is None else replace(judgment, revises=old.id, id="")


def _ask_all(
    judge: Judge, questions: Sequence[Question], concurrency: int, write: Callable[[list[_Said]], None]
) -> None:
    """Ask every question on a thread with an event loop and hand the answers to ``write`` in this one.

    Full groups are written at once, others after a moment. An answer leaves the shared list only when it is written,
    so Ctrl-C, wherever it strikes, cancels the calls in flight and loses nothing that had finished.
    """
    if not questions:
        return
    finished: list[_Said] = []
    errors: list[BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []
    wake, stopped, ended = threading.Event(), threading.Event(), threading.Event()

    def answer(said: _Said) -> None:
        finished.append(said)
        if len(finished) >= GROUP:
            wake.set()

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        if not stopped.is_set():
            await _window(judge, questions, concurrency, answer, stopped)

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # handed over, to be raised in the calling thread
            errors.append(error)
        ended.set()
        wake.set()

    thread = threading.Thread(target=work, name="judge", daemon=True)
    thread.start()
    try:
        while not ended.is_set():
            wake.wait(PATIENCE)
            wake.clear()
            _write_out(finished, write)
    finally:
        stopped.set()
        for loop, task in running:
            with suppress(RuntimeError):  # the loop has closed already
                loop.call_soon_threadsafe(task.cancel)
        thread.join()
        _write_out(finished, write)
    if errors:
        raise errors[0]


async def _window(
    judge: Judge,
    questions: Sequence[Question],
    concurrency: int,
    answer: Callable[[_Said], None],
    stopped: threading.Event,
) -> None:
    """Keep ``concurrency`` calls in flight: a finished one makes room for the next, whatever its order or pair.

    A judge that computes never gives way to the loop, so no cancelling reaches it; ``stopped`` does.
    """
    waiting = iter(questions)
    errors: list[Exception] = []

    async def work() -> None:
        for question in waiting:
            if errors or stopped.is_set():
                return
            try:
                answer(await judge.hear(question) if isinstance(judge, Hears) else (await judge.ask(question), ()))
            except Exception as error:
                errors.append(error)

    try:
        await asyncio.gather(*(work() for _ in range(min(concurrency, len(questions)))))
    finally:
        await judge.close()
    if errors:
        raise errors[0]


def _write_out(finished: list[_Said], write: Callable[[list[_Said]], None]) -> None:
    """Write and remove what is in the list; a ledger that refuses is not tried again with the rest."""
    while batch := finished[: 10 * GROUP]:
        try:
            write(batch)
        except Exception:
            finished.clear()
            raise
        del finished[: len(batch)]
