"""What a judge's calls cost: no reply is paid for twice, and a cap holds over all runs on one ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tiebreak.endpoint import Budget, Endpoint, Paid
from tiebreak.endpoint.cache import Replies
from tiebreak.endpoint.client import clients_of
from tiebreak.judge.table import Judge
from tiebreak.records import InputError
from tiebreak.store import Ledger


class Purse:
    """The connections a judge asks through, and what was paid for them since the purse was opened."""

    def __init__(self, clients: Sequence[Endpoint], replies: Replies) -> None:
        self.clients, self._replies = clients, replies
        self._before = self._paid()

    @property
    def already(self) -> Paid:
        """What was paid before."""
        return self._before

    def _paid(self) -> Paid:
        found = [self._replies.paid(identity) for identity in dict.fromkeys(c.identity for c in self.clients)]
        prices = [paid.usd for paid in found if paid.usd is not None]
        return Paid(
            calls=sum(paid.calls for paid in found),
            usd=sum(prices) if prices else None,
            tokens_in=sum(paid.tokens_in for paid in found),
            tokens_out=sum(paid.tokens_out for paid in found),
        )

    def spent(self) -> Paid:
        """Return what was paid since: calls, US dollars (None where no price is known), tokens."""
        now, then = self._paid(), self._before
        usd = None if now.usd is None else now.usd - (then.usd or 0.0)
        return Paid(now.calls - then.calls, usd, now.tokens_in - then.tokens_in, now.tokens_out - then.tokens_out)

    def notes(self) -> list[str]:
        """Return what the servers do not take, a sentence each."""
        return list(dict.fromkeys(note for client in self.clients for note in client.notes))


@contextmanager
def paying(
    judge: Judge, ledger: Ledger, *, usd: float | None = None, calls: int | None = None, turn: int = 0
) -> Iterator[Purse]:
    """Let a judge take from ``ledger`` what was answered before and keep there what it is answered.

    Args:
        judge: whoever is asked; one that calls no server has nothing to pay.
        ledger: holds the replies.
        usd: US dollars at most, over all runs on this ledger.
        calls: paid calls at most, over all runs on this ledger.
        turn: above 0 where answers of earlier turns are not wanted, see :class:`tiebreak.endpoint.cache.Replies`.

    Raises:
        InputError: a cap for a judge that calls no server, or one in US dollars where a price is not known.
    """
    clients = clients_of(judge)
    if not clients and (usd is not None or calls is not None):
        raise InputError("judge.budget caps calls to a server, and this judge makes none; leave it out.")
    replies = Replies(ledger, turn=turn)
    purse = Purse(clients, replies)
    budget = None if usd is None and calls is None else Budget(usd=usd, calls=calls, already=purse.already)
    before = [(client.cache, client.budget) for client in clients]
    try:
        for client in clients:
            client.cache, client.budget = replies, budget
        yield purse
    finally:
        for client, (cache, cap) in zip(clients, before, strict=True):
            client.cache, client.budget = cache, cap
