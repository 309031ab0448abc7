"""The reward model on pairs it never saw: accuracy, calibration, and against the truth where that is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tiebreak.evaluate.reward import (
    agreement_with_truth,
    attribute_accuracies,
    calibration,
    length_baseline,
    pair_accuracy,
)
from tiebreak.records import InputError, Pair, Prompt, Response
from tiebreak.run.folder import read_json, read_pairs
from tiebreak.run.job import Job
from tiebreak.run.rows import apart, tested

if TYPE_CHECKING:
    from tiebreak.models.load import Loaded

Truth = Callable[[Prompt, str], float]


def reward(job: Job, named: str, truth: Truth | None) -> dict[str, Any]:
    """Accuracy on held-out pairs beside the length-only baseline, calibration, and accuracy against the truth."""
    from tiebreak.models.load import load_reward
    from tiebreak.models.score import score

    name, where = job.model(named)
    stage = job.recipe.train.get(named)
    learned, pairs = _held_pairs(job, named)
    if not pairs:
        raise InputError(f"evaluate.reward has no held-out pair to test {named} on; raise train.{named}.held_out.")
    prompts = {p.id: p for p in job.ledger.prompts(sorted({p.prompt_id for p in (*pairs, *learned)}))}
    ids = sorted({side for pair in (*pairs, *learned) for side in (pair.chosen_id, pair.rejected_id)})
    texts = {response.id: response for response in job.ledger.responses(ids)}
    rows = [(prompts[p.prompt_id], (texts[p.chosen_id], texts[p.rejected_id])) for p in pairs]
    loaded = load_reward(where, device=job.recipe.device)
    how: dict[str, Any] = {"window": stage.window, "cut": stage.cut} if stage else {}
    scored = score(loaded, rows, **how, progress=job.progress)
    kept = [(pair, values) for pair, values in zip(pairs, scored, strict=True) if values is not None]
    margins = [chosen - rejected for _, (chosen, rejected) in kept]
    groups = _clusters([prompts[pair.prompt_id].group for pair, _ in kept])
    decided = [i for i, (pair, _) in enumerate(kept) if pair.p > 0.5]

    def words(some: Sequence[Pair], side: str) -> list[int]:
        return [len(texts[getattr(pair, side)].text.split()) for pair in some]

    firm = [kept[i][0] for i in decided]
    fit = [pair for pair in learned if pair.p > 0.5]
    found: dict[str, Any] = {
        "model": name,
        "interval_over": "pairs" if groups and isinstance(groups[0], int) else "prompts",
        "held_out": pair_accuracy([margins[i] for i in decided], [groups[i] for i in decided])._asdict(),
        "length_baseline": length_baseline(
            words(firm, "chosen_id"),
            words(firm, "rejected_id"),
            [groups[i] for i in decided],
            train=(words(fit, "chosen_id"), words(fit, "rejected_id")) if fit else None,
        )._asdict(),
        "too_long": len(pairs) - len(kept),
        "margins": [round(margin, 4) for margin in margins],
    }
    measured = calibration(margins, [pair.p for pair, _ in kept])
    found["calibration"] = {
        **{name: getattr(measured, name) for name in ("ece", "brier", "nll", "n")},
        "bins": [{"confidence": b.confidence, **b.rate._asdict()} for b in measured.bins],
    }
    if loaded.form.kind == "attributes":
        known = [row for row, values in zip(rows, scored, strict=True) if values is not None]
        found["attributes"] = _attributes(loaded, known, groups, how)
    if truth:
        gaps = [
            truth(prompts[p.prompt_id], texts[p.chosen_id].text)
            - truth(prompts[p.prompt_id], texts[p.rejected_id].text)
            for p, _ in kept
        ]
        said = [0.5 if margin == 0 else float(margin > 0) for margin in margins]
        found["truth"] = agreement_with_truth(said, gaps, groups)._asdict()
    return found


def _attributes(
    loaded: Loaded,
    rows: Sequence[tuple[Prompt, Sequence[Response]]],
    groups: list[str] | list[int],
    how: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the accuracy of each attribute by itself, of a head that has several."""
    from tiebreak.models.score import score_columns

    marks = score_columns(loaded, rows, **how)
    gaps = [[a - b for a, b in zip(*both, strict=True)] for both in marks if both is not None]
    return {name: one._asdict() for name, one in attribute_accuracies(gaps, loaded.form.names, groups).items()}


FEW = 10
"""With fewer prompt groups than this an interval over prompts says nothing, and the pairs themselves are counted."""


def _clusters(groups: list[str]) -> list[str] | list[int]:
    """Return what intervals are clustered by: prompt groups, or single pairs where there are few prompts."""
    return groups if len(set(groups)) >= FEW else list(range(len(groups)))


def _held_pairs(job: Job, named: str) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs the reward model learned from and those it never saw."""
    pairs = read_pairs(job.project / "curate" / "pairs.jsonl")
    written = read_json(job.project / "train" / named / "held_out.json") if named in job.recipe.train else None
    prompts = {p.id: p for p in job.ledger.prompts(sorted({pair.prompt_id for pair in pairs}))}
    groups = [prompts[pair.prompt_id].group for pair in pairs]
    if written is None:
        return apart(pairs, groups, tested(job), 1.0, job.recipe.seed)
    held = {p.group for p in job.ledger.prompts(sorted({row["prompt_id"] for row in written}))}
    return apart(pairs, groups, held, 0.0, job.recipe.seed)
