"""Batch files: a provider, or a model run without a server, answers a file of requests at its leisure, often cheaper.

Nothing is asked here. A judge is asked as usual, but what it would send is written into files; the results that come
back become replies in the ledger under the very keys of those requests. So an ordinary run finds every answer and pays
for nothing, and asks what a batch left unanswered.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

from tiebreak.endpoint.cache import Replies
from tiebreak.endpoint.client import Endpoint, clients_of, finish
from tiebreak.endpoint.cost import Price
from tiebreak.endpoint.results import Reading, Results, lines, merged, read_results
from tiebreak.endpoint.shapes import Reply
from tiebreak.records import InputError, Progress, quiet

__all__ = ["Results", "Written", "read_results", "write_batch", "write_requests"]

MOST = 50_000
MOST_BYTES = 190_000_000
"""Requests and bytes of one file, as most providers take them."""

URL = "/v1/chat/completions"
NAME = "requests.jsonl"
"""Files of requests are called requests-1.jsonl and so on; every other .jsonl in a folder holds results."""

_ODD = re.compile(r"[^A-Za-z0-9._@-]+")

SHARE = 0.5
"""What most providers charge for a call in a batch, as a share of the ordinary price."""


class Written(NamedTuple):
    """What a round of a batch left to be asked.

    ``files`` hold ``requests`` that no earlier file has, or whose result there was an error. ``waiting`` requests are
    in an earlier file that has no result yet. ``known`` questions have all their answers. ``results`` is what the
    folder's results held.
    """

    files: tuple[Path, ...]
    requests: int
    known: int
    waiting: int
    results: Results

    @property
    def done(self) -> bool:
        """Whether nothing is left, so that a run will not call."""
        return not self.requests and not self.waiting


class Asked(Protocol):
    """What is needed of a judge."""

    async def ask(self, question: Any, /) -> object:
        """Answer a question."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class NotSent(BaseException):
    """Ends a question whose request was noted down. No Exception: a judge must not take it for a failed call."""


class Collecting(Replies):
    """A cache that gives what is known, and hands on every other request and ends its question instead of a call.

    Whoever sends requests looks into the cache first, so this is where they can be had whole, with their keys.
    """

    def __init__(self, known: Replies, take: Callable[[str, Mapping[str, Any]], None]) -> None:
        super().__init__(known.ledger, turn=known.turn)
        self._take = take
        self._body: tuple[str, Mapping[str, Any]] = "", {}

    def key_of(self, identity: str, path: str, body: Mapping[str, Any], attempt: int) -> str:
        """Return the key of a request and remember the request, for ``get`` comes next."""
        key = super().key_of(identity, path, body, attempt)
        self._body = key, body
        return key

    def get(self, key: str) -> Reply | None:
        """Return the reply that is known.

        Raises:
            NotSent: there is none, and the request has been handed on.
        """
        reply = super().get(key)
        if reply is None:
            last, body = self._body
            if last != key:
                raise RuntimeError("a cache is asked for a key that it did not make of the request right before")
            self._take(key, body)
            raise NotSent
        return reply


class _Files:
    """Files of requests that are opened one after the other and have their names only when they are whole."""

    def __init__(self, path: Path, url: str, most: int, most_bytes: int) -> None:
        self.path, self.url, self.most, self.most_bytes = path, url, most, most_bytes
        self._part = path.with_name(path.name + ".part")
        self.written: list[Path] = []
        self.requests = 0
        self._open: TextIO | None = None
        self._here = self._bytes = 0

    def add(self, key: str, body: Mapping[str, Any]) -> None:
        """Write one request, into the next file where this one is full."""
        request = {"custom_id": key, "method": "POST", "url": self.url, "body": body}
        line = json.dumps(request, separators=(",", ":")) + "\n"
        if self._open and (self._here >= self.most or self._bytes + len(line) > self.most_bytes):
            self.end()
        if self._open is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open = self._part.open("w", encoding="ascii")
            self._here = self._bytes = 0
        self._open.write(line)
        self.requests += 1
        self._here += 1
        self._bytes += len(line)

    def end(self) -> None:
        """Close the file and give it the next free number."""
        if self._open is not None:
            self._open.close()
            self._open = None
            whole = self._part.with_name(f"{self.path.stem}-{self._number()}{self.path.suffix}")
            self._part.rename(whole)
            self.written.append(whole)

    def drop(self) -> None:
        """Remove what is half written."""
        if self._open is not None:
            with suppress(OSError):  # a full disk complains once more
                self._open.close()
            self._part.unlink(missing_ok=True)

    def _number(self) -> int:
        pattern = _numbered(self.path)
        taken = [pattern.fullmatch(file.name) for file in self.path.parent.iterdir()]
        return 1 + max((int(found[1]) for found in taken if found), default=0)


def _numbered(path: Path) -> re.Pattern[str]:
    return re.compile(re.escape(path.stem) + r"-(\d+)" + re.escape(path.suffix))


def write_requests(
    path: str | Path,
    requests: Iterable[tuple[str, Mapping[str, Any]]],
    *,
    url: str = URL,
    most: int = MOST,
    most_bytes: int = MOST_BYTES,
) -> tuple[Path, ...]:
    """Write requests by key into batch files NAME-1.jsonl, NAME-2.jsonl and so on; files that are there stay.

    Args:
        path: folder and NAME.jsonl.
        requests: keys, which become ``custom_id``, and bodies; taken one by one.
        url: what a line names as the place to ask.
        most: requests in one file.
        most_bytes: bytes in one file, whatever a single request has.

    Raises:
        InputError: the files cannot be written.
    """
    with _files(Path(path), url, most, most_bytes) as files:
        for key, body in requests:
            files.add(key, body)
    return tuple(files.written)


@contextmanager
def _files(path: Path, url: str, most: int, most_bytes: int) -> Iterator[_Files]:
    for name, value in (("most", most), ("most_bytes", most_bytes)):
        if value < 1:
            raise InputError(f"batch: {name} is {value}; expected 1 or more.")
    files = _Files(path, url, most, most_bytes)
    try:
        yield files
        files.end()
    except OSError as error:
        files.drop()
        raise InputError(f"Batch files cannot be written into {path.parent}: {error.strerror or error}.") from error
    except BaseException:
        files.drop()
        raise


def write_batch(
    judge: Asked,
    questions: Sequence[Any],
    folder: str | Path,
    *,
    url: str = URL,
    most: int = MOST,
    most_bytes: int = MOST_BYTES,
    share: float = SHARE,
    progress: Progress = quiet,
) -> Written:
    """Do one round of a batch: keep the results that lie in ``folder``, then write what is still to be asked there.

    A judge whose second call needs the reply to the first takes two rounds, and so on. A request is written once,
    and once more for every error it got. No call is made.

    Args:
        judge: any judge that asks a model on a server, or several; its ``client``, or ``clients``, have a cache.
        questions: what an ordinary run would ask it.
        folder: of requests-1.jsonl and so on, with a folder inside for each model where there are several. Results are
            put beside their requests, under any other name that ends in .jsonl.
        url: what a line names as the place to ask.
        most: requests in one file.
        most_bytes: bytes in one file.
        share: what a call in a batch costs, of the judge's price.
        progress: is told of questions done.

    Raises:
        InputError: the judge asks no server, a file cannot be read or written, or the ledger refuses.
    """
    clients = clients_of(judge)
    if not clients:
        raise InputError(
            "batch: this judge asks no model on a server, so there are no requests; leave batch_files out."
        )
    with ExitStack() as stack:
        rounds: dict[str, _Round] = {}
        for client in clients:
            if client.identity not in rounds:
                place = Path(folder)
                if len({client.identity for client in clients}) > 1:
                    place /= _ODD.sub("-", client.identity)
                begun = _Round(place, client, share)
                begun.files = stack.enter_context(_files(place / NAME, url, most, most_bytes))
                rounds[client.identity] = begun
            stack.enter_context(_collecting(client, rounds[client.identity].take))
        each = list(rounds.values())

        def tell(done: int) -> None:
            progress(done, len(questions), {"requests": sum(len(one.seen) for one in each)})

        known = finish(_ask_all(judge, questions, tell))
    return Written(
        files=tuple(file for one in each for file in one.files.written),
        requests=sum(one.files.requests for one in each),
        known=known,
        waiting=sum(one.waiting for one in each),
        results=merged([one.reading.results() for one in each]),
    )


class _Round:
    """The requests of one model: which files they stand in, what came back, and what is to be written now."""

    files: _Files

    def __init__(self, folder: Path, client: Endpoint, share: float) -> None:
        found, ours = sorted(folder.glob("*.jsonl")) if folder.is_dir() else [], _numbered(Path(NAME))
        requests = [path for path in found if ours.fullmatch(path.name)]
        self._times = Counter(str(line.get("custom_id")) for path in requests for line in lines(path) if line)
        price = None if client.price is None else Price(client.price.per_in * share, client.price.per_out * share)
        asked = set(self._times) if self._times else None
        self.reading = Reading(_cache(client), client.identity, asked, price)
        self.reading.take([path for path in found if path not in requests])
        self.seen: set[str] = set()
        self.waiting = 0

    def take(self, key: str, body: Mapping[str, Any]) -> None:
        """Write a request, unless it stands in a file that has no result yet."""
        if key in self.seen:
            return
        self.seen.add(key)
        if self._times[key] > self.reading.failed[key]:
            self.waiting += 1
        else:
            self.files.add(key, self.reading.manners.fit(body))


def _cache(client: Endpoint) -> Replies:
    if not isinstance(client.cache, Replies):
        raise InputError("batch: the judge has no ledger to keep replies in; open one and run again.")
    return client.cache


@contextmanager
def _collecting(client: Endpoint, take: Callable[[str, Mapping[str, Any]], None]) -> Iterator[None]:
    cache = _cache(client)
    client.cache = Collecting(cache, take)
    try:
        yield
    finally:
        client.cache = cache


async def _ask_all(judge: Asked, questions: Sequence[Any], tell: Callable[[int], None]) -> int:
    """Ask one after the other, for nobody waits; return how many questions have all their answers."""
    known = 0
    try:
        for number, question in enumerate(questions, 1):
            with suppress(NotSent):
                await judge.ask(question)
                known += 1
            await asyncio.sleep(0)  # nothing else here gives Ctrl-C a chance
            if number % 1000 == 0 or number == len(questions):
                tell(number)
    finally:
        await judge.close()
    return known
