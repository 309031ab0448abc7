"""The few numbers of a run that everybody asks for, each with its interval and n."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiebreak.run.folder import read_json

KEPT = ("value", "low", "high", "n")


def summarise(folder: Path, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what ``summary.json`` holds: judge accuracy, position bias, reward accuracy and win rate, where measured.

    ``win_rate`` and ``reward_accuracy`` are against the truth where a rule knows it, and say so in ``against_truth``.
    """
    results = read_json(folder / "evaluate" / "results.json") if "evaluate" in manifests else None
    results = results or {}
    found: dict[str, Any] = {}
    if judge := results.get("judge"):
        found["judge_accuracy"] = _kept(judge["both_orders"])
        found["judge_accuracy_single_order"] = _kept(judge["single_order"])
        found["judge_accuracy_both_orders_verdicts"] = _kept(judge["both_orders_verdicts"])
    if bias := _bias(folder, manifests):
        found["position_bias"] = bias
    if reward := results.get("reward"):
        best = reward.get("truth") or reward["held_out"]
        found["reward_accuracy"] = _kept(best) | {"against_truth": "truth" in reward}
        found["reward_accuracy_held_out"] = _kept(reward["held_out"])
        found["length_baseline"] = _kept(reward["length_baseline"])
    for number, row in enumerate(results.get("win_rates", [])):
        shown = _kept(row.get("true") or row["rate"]) | {
            "of": row["of"],
            "against": row["against"],
            "against_truth": "true" in row,
            "length_controlled": row.get("true_length_controlled") or row["length_controlled"],
        }
        found["win_rate" if number == 0 else f"win_rate_against_{row['against']}"] = shown
    found["seconds"] = round(sum(m["seconds"] for m in manifests.values()), 1)
    prices = [m["price"] for m in manifests.values() if m["price"] is not None]
    found["price_usd"] = sum(prices) if prices else 0.0
    return found


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in KEPT}


def _bias(folder: Path, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    findings = read_json(folder / "audit" / "findings.json") if "audit" in manifests else None
    for finding in findings or []:
        if finding["check"] == "position.bias":
            planted = manifests.get("judge", {}).get("knobs", {}).get("slot_bias")
            return _kept(finding) | ({} if planted is None else {"planted": planted})
    return None
