"""Result files of a batch: good answers become replies in the ledger, the others are counted with their reasons."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tiebreak.endpoint.cache import Replies
from tiebreak.endpoint.cost import Price
from tiebreak.endpoint.shapes import Manners, Reply, read_chat, said
from tiebreak.records import InputError

PART = 2_000
"""Results that are written into the ledger together."""

TORN = "a line cannot be read"
_LEARNT = dict.fromkeys(("max_tokens", "temperature", "response_format"))
_KEY = re.compile(r"[0-9a-f]{32}")


class Results(NamedTuple):
    """What result files held.

    ``read`` answers are new to the ledger and ``known`` ones were there. ``failed`` lines cannot be read, or say why a
    request has no answer, and ``reasons`` how often each. ``unknown`` lines answer requests that nobody here wrote.
    ``refused`` names what the provider does not take, with its words; requests written from now on are without.
    """

    read: int
    known: int
    failed: int
    unknown: int
    reasons: Mapping[str, int]
    refused: Mapping[str, str]


def read_results(
    path: str | Path,
    cache: Replies,
    identity: str,
    *,
    asked: Iterable[str] | None = None,
    price: Price | None = None,
) -> Results:
    """Keep the good answers of one result file and count the others; reading it again changes nothing.

    Args:
        path: lines with ``custom_id`` and ``response`` or ``error``, as providers return them.
        cache: where answers are kept, under ``custom_id``.
        identity: of the model that answered, as the requests were made for it.
        asked: the keys that are expected; without them whatever looks like a key is.
        price: of a call in a batch.

    Raises:
        InputError: the file cannot be read, or the ledger refuses.
    """
    reading = Reading(cache, identity, None if asked is None else set(asked), price)
    reading.take([Path(path)])
    return reading.results()


class Reading:
    """Result files on their way into the ledger; ``failed`` counts the errors of each request."""

    def __init__(self, cache: Replies, identity: str, asked: set[str] | None, price: Price | None) -> None:
        self._cache, self._identity, self._asked, self._price = cache, identity, asked, price
        self.failed: Counter[str] = Counter()
        self.manners = Manners()
        self._why: dict[str, str] = {}
        self._torn = self._read = self._known = self._unknown = 0

    def take(self, paths: Sequence[Path]) -> None:
        """Keep what is good in the files, a part at a time."""
        for path in paths:
            good = self._good(path)
            while part := list(islice(good, PART)):
                added = self._cache.keep_all(part)
                self._read, self._known = self._read + added.new, self._known + added.known

    def results(self) -> Results:
        """Return what was found so far, the commonest reason first."""
        reasons = Counter({TORN: self._torn} if self._torn else {})
        # An error of one batch may have its answer from another.
        reasons.update(why for key, why in self._why.items() if self._cache.get(key) is None)
        return Results(
            self._read,
            self._known,
            reasons.total(),
            self._unknown,
            dict(reasons.most_common()),
            dict(self.manners.refused),
        )

    def _good(self, path: Path) -> Iterator[tuple[str, str, Reply]]:
        for line in lines(path):
            key = line.get("custom_id") if line else None
            if line is None:
                self._torn += 1
            elif not self._is_ours(key):
                self._unknown += 1
            elif isinstance(answer := _answer(line), str):
                self.failed[str(key)] += 1
                self._why[str(key)] = said(answer)
                self.manners.learn(answer, _LEARNT)
            else:
                price = self._price.of(answer.tokens_in, answer.tokens_out) if self._price else None
                yield str(key), self._identity, answer._replace(price=price)

    def _is_ours(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        return _KEY.fullmatch(key) is not None if self._asked is None else key in self._asked


def merged(parts: Sequence[Results]) -> Results:
    """Return what the result files of several models held together."""
    reasons: Counter[str] = Counter()
    for part in parts:
        reasons.update(part.reasons)
    return Results(
        read=sum(part.read for part in parts),
        known=sum(part.known for part in parts),
        failed=sum(part.failed for part in parts),
        unknown=sum(part.unknown for part in parts),
        reasons=dict(reasons.most_common()),
        refused={name: words for part in parts for name, words in part.refused.items()},
    )


def lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the object of each line that is not blank, None for a line without one."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    found = None
                    with suppress(ValueError):
                        found = json.loads(line.decode("utf-8-sig"))
                    yield found if isinstance(found, dict) else None
    except OSError as error:
        raise InputError(f"The batch file {path} cannot be read: {error.strerror or error}.") from error


def _answer(line: Mapping[str, Any]) -> Reply | str:
    """Return the reply in a line of results, or the JSON that says why there is none."""
    response = line.get("response")
    body = response.get("body") if isinstance(response, Mapping) else None
    if error := line.get("error"):
        return json.dumps({"error": error if isinstance(error, Mapping) else {"message": error}})
    if isinstance(response, Mapping) and response.get("status_code", 200) == 200:
        # Nobody timed it: the calls of a batch have no latency of their own.
        reply = read_chat(json.dumps(body), 0.0)
        return reply or json.dumps({"message": "the answer is no chat completion"})
    status = f"answered {response.get('status_code')}" if isinstance(response, Mapping) else "there is no answer"
    return json.dumps(body or {"message": status})
