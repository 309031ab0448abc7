"""Prices by name, and budgets that hold however many calls are in flight."""

from __future__ import annotations

import asyncio
import random
from datetime import date
from typing import Any

import pytest

from tests.endpoint.made import ask, client
from tests.judge.server import Script, Server
from tiebreak.endpoint import Budget, BudgetReached, Paid, together
from tiebreak.endpoint.cost import Price, price_of, table
from tiebreak.records import InputError


def test_every_price_has_a_date_and_a_page() -> None:
    assert len({(row.host, row.model) for row in table()}) == len(table()) > 5
    for row in table():
        assert date.fromisoformat(row.price.seen) > date(2025, 1, 1)
        assert row.page.startswith("https://")
        assert 0 < row.price.per_in < row.price.per_out


@pytest.mark.parametrize(
    ("model", "same_as"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-sonnet-4-5-latest", "claude-sonnet-4-5"),
    ],
)
def test_a_snapshot_costs_what_its_model_costs(model: str, same_as: str) -> None:
    assert price_of(model) == price_of(same_as) is not None


@pytest.mark.parametrize("model", ["gpt-4o-audio", "gpt-5-pro", "gpt-4", "mistral", ""])
def test_another_model_has_no_price(model: str) -> None:
    assert price_of(model) is None


def test_a_price_is_that_of_its_provider() -> None:
    assert price_of("gpt-4o", "api.openai.com") == price_of("gpt-4o")
    assert price_of("gpt-4o", "localhost") is None


def test_the_price_of_tokens() -> None:
    price = Price(2.0, 8.0)
    assert price.of(1_000_000, 500_000) == 6.0
    assert price.of(None, 500_000) == 4.0
    assert price.of(None, None) is None


def test_a_reply_has_its_price_where_one_is_known() -> None:
    with Server() as server:
        (priced,) = ask(client(server.url, price_in=2.0, price_out=8.0))
        (free,) = ask(client(server.url, price_in=0.0))
        (unknown,) = ask(client(server.url))
    assert priced.price == (2.0 * priced.tokens_in + 8.0 * priced.tokens_out) / 1e6 > 0
    assert free.price == 0.0
    assert unknown.price is None


def drawn(seed: int, cap: float, calls: int, most: float) -> tuple[float, int, int]:
    """What many calls at once spend under a cap; each costs at most ``most`` and says so."""
    rng = random.Random(seed)
    budget = Budget(usd=cap)

    async def call() -> None:
        bill = await budget.hold(most)
        for _ in range(rng.randrange(5)):
            await asyncio.sleep(0)
        bill.cost(rng.uniform(0, most))
        bill.settle()

    async def all_of_them() -> list[BaseException | None]:
        return await asyncio.gather(*(call() for _ in range(calls)), return_exceptions=True)

    refused = [error for error in asyncio.run(all_of_them()) if error]
    assert all(isinstance(error, BudgetReached) for error in refused)
    return budget.spent_usd, budget.spent_calls, len(refused)


@pytest.mark.parametrize("seed", range(20))
def test_a_cap_is_never_passed_and_used_up_to_one_call(seed: int) -> None:
    spent, made, refused = drawn(seed, cap=10.0, calls=256, most=0.5)
    assert 9.5 < spent <= 10.0
    assert made + refused == 256


def test_a_cap_with_room_for_all_refuses_none() -> None:
    assert drawn(0, cap=1000.0, calls=256, most=0.5)[1:] == (256, 0)


def test_a_call_that_was_turned_away_frees_what_it_held() -> None:
    async def calls() -> Budget:
        budget = Budget(usd=1.0)
        first = await budget.hold(1.0)
        second = asyncio.ensure_future(budget.hold(1.0))
        await asyncio.sleep(0)
        assert not second.done()
        first.known(paid=False)
        first.settle()
        (await second).settle()
        return budget

    budget = asyncio.run(calls())
    assert (budget.spent_usd, budget.spent_calls) == (1.0, 1)


def test_what_was_paid_before_counts() -> None:
    async def hold(budget: Budget) -> None:
        await budget.hold(1.0)

    for budget in (Budget(usd=5.0, already=Paid(3, 4.5)), Budget(calls=3, already=Paid(3, None))):
        with pytest.raises(BudgetReached, match="raise it and run again"):
            asyncio.run(hold(budget))
    asyncio.run(hold(Budget(usd=5.0, calls=4, already=Paid(3, 4.0))))


@pytest.mark.parametrize("wrong", [{"usd": 0.0}, {"usd": -1.0}, {"usd": float("nan")}, {"calls": 0}])
def test_a_cap_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Budget(**wrong)


def spend(server: Server, budget: Budget, n: int, **settings: Any) -> list[Any]:
    """Make many different calls at once under a budget; return replies and errors."""
    endpoint = client(server.url, concurrency=256, price_in=1.0, price_out=4.0, **settings)
    endpoint.budget = budget
    return ask(endpoint, n, errors=True)


def test_dollars_are_a_hard_cap_with_256_in_flight() -> None:
    with Server(Script(delay=0.005)) as server:
        one = ask(client(server.url, price_in=1.0, price_out=4.0))[0].price
        budget = Budget(usd=100 * one)
        answers = spend(server, budget, 400)
        asked = len(server.log) - 1
    replies = [answer for answer in answers if not isinstance(answer, Exception)]
    assert sum(reply.price for reply in replies) == pytest.approx(budget.spent_usd)
    assert 0.9 * 100 * one < budget.spent_usd <= 100 * one
    assert len(replies) == budget.spent_calls == asked
    assert {type(answer) for answer in answers} == {type(replies[0]), BudgetReached}


def test_calls_are_a_hard_cap_and_failures_do_not_count() -> None:
    with Server(Script(faults=0.3, delay=0.002)) as server:
        budget = Budget(calls=50)
        answers = spend(server, budget, 200)
        statuses = [status for _, status in server.log]
    assert sum(not isinstance(answer, Exception) for answer in answers) == 50 == statuses.count(200)
    assert statuses.count(500) > 5
    assert budget.spent_calls == 50


def test_an_answer_that_is_none_is_paid_all_the_same() -> None:
    with Server(Script(answer=lambda asked, tries: (200, "<html>") if tries == 1 else None)) as server:
        budget = Budget(usd=1.0)
        (reply,) = spend(server, budget, 1)
        most = (len(server.log[0][0]) * 1.0 + 5 * 4.0) / 1e6
    assert budget.spent_calls == 2
    assert budget.spent_usd == pytest.approx(reply.price + most)


def test_dollars_without_a_price_are_refused_at_the_door() -> None:
    endpoint = client("http://localhost:1/v1")
    with pytest.raises(InputError, match="price_in and price_out"):
        endpoint.budget = Budget(usd=1.0)
    endpoint.budget = Budget(calls=1)
    assert client("http://localhost:1/v1", price_in=0.0).price == Price(0.0, 0.0)


def test_calls_in_flight_finish_and_count_when_the_budget_is_reached() -> None:
    """The first that is refused ends the others; by then all that were paid for have answered."""
    with Server(Script(delay=0.01)) as server:
        endpoint = client(server.url)
        endpoint.budget = Budget(calls=30)
        replies: list[Any] = []

        async def one(i: int) -> None:
            message = [{"role": "user", "content": f"Summary 1 - aa\n\nSummary 2 - b\n\n{i}"}]
            replies.append(await endpoint.chat(message, max_tokens=5, temperature=0.0))

        async def run() -> None:
            try:
                await together(one(i) for i in range(100))
            finally:
                await endpoint.close()

        with pytest.raises(BudgetReached, match="budget of 30 calls is reached"):
            asyncio.run(run())
        assert len(replies) == len(server.log) == 30
