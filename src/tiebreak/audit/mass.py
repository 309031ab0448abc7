"""The mass check: how much probability a judge puts on answers that were not offered."""

from __future__ import annotations

import numpy as np

from tiebreak.audit.findings import amount, at_most, finding, percent
from tiebreak.audit.table import INVALID, View
from tiebreak.records import Finding
from tiebreak.stats.intervals import clustered_mean, rate


def mass(view: View, *, max_missing: float = 0.1, max_invalid: float = 0.02) -> list[Finding]:
    """Mean probability outside the verdict tokens per judge, and the share of verdicts that are unreadable for it.

    Only judgments read from token probabilities count, intervals by prompt. A verdict is unreadable for its mass where
    no offered answer was among the returned tokens, or one that was not could still have won. Much missing mass means
    that the model would rather say something else: its probabilities rest on a small part of what it meant.
    """
    found = []
    rows = np.flatnonzero(~np.isnan(view.mass))
    for judge, at in view.by_judge(rows):
        mine = rows[at]
        missing = clustered_mean(1 - view.mass[mine], view.prompt[mine])
        said = f"{judge} puts {amount(missing, 'of its probability', digits=3)} on what is no offered answer."
        worst = mine[np.argsort(view.mass[mine], kind="stable")]
        found.append(finding("mass.missing", judge, said, missing, at_most(max_missing), examples=view.examples(worst)))
        lost = view.verdict[mine] == INVALID
        share = rate(lost, view.prompt[mine])
        said = f"{judge} leaves {percent(share)} unreadable because offered answers have too little probability."
        bound = at_most(max_invalid)
        found.append(finding("mass.invalid", judge, said, share, bound, examples=view.examples(mine[lost])))
    return found
