"""What several rooms share: a ledger on each database, and the folder of published data sets."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tiebreak.store import Ledger

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # models here are tiny, and on a busy machine two threads wait for each other


@pytest.fixture
def repository() -> Path:
    """The folder that holds pyproject.toml."""
    return ROOT


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A ledger address on the PostgreSQL server, in a schema of its own that goes away afterwards."""
    server = os.environ.get("TIEBREAK_TEST_POSTGRES")
    if not server:
        reason = os.environ.get("TIEBREAK_NO_POSTGRES", "TIEBREAK_TEST_POSTGRES names no server")
        pytest.skip(f"no PostgreSQL: {reason}")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'tiebreak[postgres]'")
    url = sa.make_url(server).set(drivername="postgresql+psycopg")
    schema = f"t{uuid.uuid4().hex[:16]}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
    yield url.update_query_dict({"options": f"-csearch_path={schema}"}).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(sa.text(f"DROP SCHEMA {schema} CASCADE"))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty ledger that does not exist yet, on each database in turn."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """An empty ledger, on each database in turn."""
    with Ledger(ledger_url) as opened:
        yield opened


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published data sets that lies beside the repository where somebody put it there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the published data sets are not beside the repository (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def shared_path(shared_data: Path) -> Callable[[str], Path]:
    """Name one path under the published data sets; the test is skipped where it is missing."""

    def find(name: str) -> Path:
        path = shared_data / name
        if not path.exists():
            pytest.skip(f"{name} is not among the published data sets in ../shared/data")
        return path

    return find
