"""The ledger's tables, and the numbered migrations that bring a database up to them."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

meta = sa.MetaData()

prompts = sa.Table(
    "prompts",
    meta,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("text", sa.JSON, nullable=False),
    sa.Column("context", sa.Text, nullable=False),
    sa.Column("reference", sa.Text),
    sa.Column("fields", sa.JSON, nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("licence", sa.Text, nullable=False),
    sa.Column("group", sa.Text, nullable=False),
)

responses = sa.Table(
    "responses",
    meta,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("prompt_id", sa.Text, sa.ForeignKey("prompts.id"), nullable=False, index=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("maker", sa.Text, nullable=False),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("draw", sa.Integer, nullable=False),
    sa.Column("finish", sa.Text, nullable=False),
    sa.Column("tokens", sa.Integer),
)

judgments = sa.Table(
    "judgments",
    meta,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("prompt_id", sa.Text, sa.ForeignKey("prompts.id"), nullable=False),
    sa.Column("item", sa.Text, nullable=False, index=True),
    sa.Column("slots", sa.JSON, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("winner", sa.Integer),
    sa.Column("order_known", sa.Boolean, nullable=False),
    sa.Column("probability", sa.Float),
    sa.Column("strength", sa.Float),
    sa.Column("ratings", sa.JSON, nullable=False),
    sa.Column("rationale", sa.Text, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("rubric", sa.Text, nullable=False),
    sa.Column("raw", sa.Text, nullable=False),
    sa.Column("fields", sa.JSON, nullable=False),
    sa.Column("tokens_in", sa.Integer),
    sa.Column("tokens_out", sa.Integer),
    sa.Column("price", sa.Float),
    sa.Column("latency", sa.Float),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("revises", sa.Text),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Index("judgments_by_rubric", "by", "rubric"),
)

runs = sa.Table(
    "runs",
    meta,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("section", sa.Text, nullable=False),
    sa.Column("manifest", sa.JSON, nullable=False),
    sa.Column("finished_at", sa.Text, nullable=False),
)

members = sa.Table(
    "members",
    meta,
    sa.Column("set", sa.Text, primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("record_id", sa.Text, nullable=False),
)

replies = sa.Table(
    "replies",
    meta,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("identity", sa.Text, nullable=False),
    sa.Column("reply", sa.Text, nullable=False),
    sa.Column("tokens_in", sa.BigInteger),
    sa.Column("tokens_out", sa.BigInteger),
    sa.Column("price", sa.Float),
    sa.Column("latency", sa.Float, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    # What an identity was paid is summed up from the index, without reading one reply.
    sa.Index("replies_by_identity", "identity", "price", "tokens_in", "tokens_out"),
)
"""What servers answered and were paid for, under the hash of the whole request. The request itself is not here: its
hash is all that a look-up needs, and what of it matters stands in prompts and responses already."""

_REFUSE = "judgments are append-only: record a new judgment that revises the old one"


def _create_tables(connection: sa.Connection) -> None:
    meta.create_all(connection)


def _forbid_changes(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            connection.execute(
                sa.text(
                    f"CREATE TRIGGER IF NOT EXISTS judgments_no_{verb.lower()} BEFORE {verb} ON judgments "
                    f"BEGIN SELECT RAISE(ABORT, '{_REFUSE}'); END"
                )
            )
        connection.execute(  # INSERT OR REPLACE deletes without asking the trigger above
            sa.text(
                "CREATE TRIGGER IF NOT EXISTS judgments_no_replace BEFORE INSERT ON judgments "
                "WHEN EXISTS (SELECT 1 FROM judgments WHERE id = NEW.id) BEGIN SELECT RAISE(IGNORE); END"
            )
        )
        return
    connection.execute(
        sa.text(
            "CREATE OR REPLACE FUNCTION judgments_refuse() RETURNS trigger AS "
            f"$$ BEGIN RAISE EXCEPTION '{_REFUSE}'; END $$ LANGUAGE plpgsql"
        )
    )
    connection.execute(
        sa.text(
            "CREATE OR REPLACE TRIGGER judgments_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON judgments "
            "FOR EACH STATEMENT EXECUTE FUNCTION judgments_refuse()"
        )
    )


def _index_rubrics(connection: sa.Connection) -> None:
    """What people said is asked for by rubric alone, and they are many."""
    connection.execute(sa.text("CREATE INDEX IF NOT EXISTS judgments_under_rubric ON judgments (rubric)"))


def _keep_replies(connection: sa.Connection) -> None:
    """A ledger made today has the table from its first migration."""
    replies.create(connection, checkfirst=True)


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (
    _create_tables,
    _forbid_changes,
    _index_rubrics,
    _keep_replies,
)
"""Applied in order, each once; a database remembers how many it has seen. Append, never edit."""
