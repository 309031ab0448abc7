"""Run the checks over a ledger's judgments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiebreak.audit.table import CHECKS, View, view
from tiebreak.records import Finding, InputError
from tiebreak.registry import nearest
from tiebreak.store import Ledger


def audit(
    ledger: Ledger,
    judgment_ids: Sequence[str] | None = None,
    *,
    checks: Sequence[str] | None = None,
    knobs: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Finding]:
    """Measure the judgments named by ``judgment_ids`` (all when None) and return what was found.

    Args:
        ledger: where the judgments and their responses are.
        judgment_ids: which judgments; an unknown id is an InputError.
        checks: names from ``CHECKS`` or ``module:function``; all of the table when None.
        knobs: check name to the knobs that differ from the defaults, ``{"length": {"tau": 10}}``.
    """
    judgments = ledger.judgments(judgment_ids)
    if not judgments:
        raise InputError(f"The ledger {ledger.name} has no judgments to audit; judge or import some first.")
    if judgment_ids is None:
        responses = ledger.responses()
    else:
        responses = ledger.responses(sorted({slot for judgment in judgments for slot in judgment.slots}))
    return measure(view(judgments, responses), checks=checks, knobs=knobs)


def measure(
    seen: View, *, checks: Sequence[str] | None = None, knobs: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Finding]:
    """Run ``checks`` on a view in the order given; knobs for a check that does not run are an InputError."""
    names = [row.name for row in CHECKS] if checks is None else list(checks)
    given = knobs or {}
    rows = [CHECKS[name] for name in names]
    for name in given:
        if name not in names:
            raise InputError(
                f"audit: knobs are given for {name!r}, which is not among the checks.{nearest(name, names)}"
            )
    settled = [
        row.settle(given.get(row.name, {}), where="audit") if row.name in CHECKS else dict(given.get(row.name, {}))
        for row in rows
    ]
    found: list[Finding] = []
    for row, values in zip(rows, settled, strict=True):
        found.extend(row.load()(seen, **values))
    return found
