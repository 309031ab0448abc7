"""A wrong address is one sentence with a cure, and no sentence shows a password."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from tiebreak.records import InputError
from tiebreak.store import Ledger

SECRET = "s3cr3t-never-shown"


def test_a_missing_ledger_is_not_made_by_reading(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no ledger at .*ledger\.db; import or run something first"):
        Ledger(tmp_path / "ledger.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be used: unable to open database file"):
        Ledger(tmp_path)


def test_some_other_file_is_no_ledger_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but somebody's notes\n" * 50)
    with pytest.raises(InputError, match="file is not a database"):
        Ledger(path)
    assert path.read_text().startswith("not a database")


@pytest.mark.parametrize(
    "address",
    [
        f"mysql://ann:{SECRET}@host/db",
        f"http://ann:{SECRET}@host/db",
        f"postgresql://ann:{SECRET}@host:port/db",
        f"nonsense://ann:{SECRET}@",
        "://",
    ],
)
def test_an_address_of_something_else_is_a_sentence(address: str) -> None:
    with pytest.raises(InputError) as refused:
        Ledger(address)
    assert SECRET not in str(refused.value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    "address",
    ["postgresql://ann:{secret}@127.0.0.1:{port}/db", "postgresql://127.0.0.1:{port}/db?user=ann&password={secret}"],
    ids=["before the host", "in the query"],
)
def test_a_password_is_not_shown_when_nobody_answers(address: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(InputError, match="cannot be used") as refused:
        Ledger(address.format(secret=SECRET, port=free_port()))
    assert SECRET not in str(refused.value)
    assert "ann" in str(refused.value)


def test_a_password_is_not_in_the_name_of_an_open_ledger(postgres_url: str) -> None:
    password = sa.make_url(postgres_url).password
    with Ledger(postgres_url) as ledger:
        assert ledger.name.startswith("postgresql")
        assert "***" in ledger.name
        assert not password or str(password) not in ledger.name


def test_the_short_name_of_postgresql_works_too(postgres_url: str) -> None:
    with Ledger(postgres_url.replace("postgresql+psycopg://", "postgres://")) as ledger:
        assert ledger.counts()["judgments"] == 0


def test_postgresql_without_its_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r"needs psycopg: pip install 'tiebreak\[postgres\]'"):
        Ledger("postgresql://127.0.0.1:1/db")
