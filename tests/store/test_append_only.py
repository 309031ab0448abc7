"""The database itself refuses to change a judgment, whoever asks it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import sqlalchemy as sa

from tiebreak.records import InputError
from tiebreak.store import Ledger, judgments


@contextmanager
def other_client(ledger: Ledger) -> Iterator[sa.Connection]:
    """A connection that does not go through the ledger's code."""
    engine = sa.create_engine(ledger.url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


CHANGES = [
    "UPDATE judgments SET winner = 1 - winner",
    "UPDATE judgments SET id = 'x' WHERE winner = 0",
    "DELETE FROM judgments",
    "DELETE FROM judgments WHERE winner = 0",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused(ledger: Ledger, world: Any, change: str) -> None:
    world.fill(ledger)
    ledger.add_judgments(world.judgments(4))
    before = ledger.judgments()
    with pytest.raises(sa.exc.DBAPIError, match="judgments are append-only"), other_client(ledger) as client:
        client.execute(sa.text(change))
    assert ledger.judgments() == before


def test_truncating_is_refused_on_postgresql(postgres_url: str, world: Any) -> None:
    with Ledger(postgres_url) as ledger:
        world.fill(ledger)
        ledger.add_judgments(world.judgments(4))
        with pytest.raises(sa.exc.DBAPIError, match="judgments are append-only"), other_client(ledger) as client:
            client.execute(sa.text("TRUNCATE judgments CASCADE"))
        assert ledger.counts()["judgments"] == 4


def test_replacing_through_an_insert_changes_nothing(ledger: Ledger, world: Any) -> None:
    world.fill(ledger)
    ledger.add_judgments(world.judgments(1))
    (before,) = ledger.judgments()
    columns = ", ".join(f'"{column.name}"' for column in judgments.columns)
    changed = columns.replace('"verdict"', "'tie'").replace('"winner"', "NULL")
    on_sqlite = ledger.url.get_backend_name() == "sqlite"
    verb, rest = (
        ("INSERT OR REPLACE", "") if on_sqlite else ("INSERT", "ON CONFLICT (id) DO UPDATE SET verdict = 'tie'")
    )
    statement = f"{verb} INTO judgments ({columns}) SELECT {changed} FROM judgments WHERE true {rest}"
    with suppress(sa.exc.DBAPIError), other_client(ledger) as client:
        client.execute(sa.text(statement))
    assert ledger.judgments() == [before]


def test_a_prompt_that_was_judged_cannot_go(ledger: Ledger, world: Any) -> None:
    world.fill(ledger)
    ledger.add_judgments(world.judgments(1))
    with pytest.raises(InputError, match="refused"), ledger.read() as connection:
        connection.execute(sa.text("DELETE FROM prompts"))
    assert ledger.prompts() == [world.prompt]
