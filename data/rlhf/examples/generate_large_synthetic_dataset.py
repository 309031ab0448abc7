"""Writes the synthetic set: pairs whose rejected answer has exactly the flaw that its quality label names.

The texts are in ``material``, the numbers of parametric questions come from ``draws``. A hundred rows of seed 0 are the
shipped file; any other number or seed goes into a file of its own beside it.

    python data/rlhf/examples/generate_large_synthetic_dataset.py [--n 100] [--seed 0] [--output FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

try:
    import typer
    from draws import DRAWS

    from tiebreak.data import sets, synthetic
    from tiebreak.records import InputError
except ModuleNotFoundError as error:
    sys.exit(f"This needs {error.name}; install the project first: pip install -e {Path(__file__).parents[3]}")

HERE = Path(__file__).resolve().parent
MATERIAL = HERE / "material"
DATASETS = HERE.parent / "datasets"
SHIPPED_N, SHIPPED_SEED = 100, 0


def file_of(n: int, seed: int) -> Path:
    """Return where a set goes if nothing else is said: only what makes the shipped file may replace it."""
    shipped = DATASETS / sets.SETS["synthetic"]
    if (n, seed) == (SHIPPED_N, SHIPPED_SEED):
        return shipped
    return shipped.with_name(f"synthetic_preferences_{n}_seed{seed}.json")


def generate(
    n: Annotated[int, typer.Option("--n", help="The number of rows.")] = SHIPPED_N,
    seed: Annotated[int, typer.Option(help="Another seed gives another set.")] = SHIPPED_SEED,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where the set goes.")] = None,
) -> None:
    """Write a synthetic set and say what it holds."""
    path = output or file_of(n, seed)
    try:
        rows = synthetic.generate(synthetic.load(MATERIAL, DRAWS), DRAWS, n=n, seed=seed)
        sets.write(path, rows)
    except (InputError, OSError) as error:
        sys.exit(str(error))
    typer.echo(f"{n} rows in {path}")
    for label, count in synthetic.counts(rows).items():
        typer.echo(f"  {label:24}{count:8}")
    value, low, high, _ = sets.length_baseline(rows)
    interval = f"95 % interval {low:.1%} to {high:.1%}, n = {n}, ties count half"
    typer.echo(f"The longer answer is the chosen one in {value:.1%} of the rows ({interval}).")


if __name__ == "__main__":
    typer.run(generate)
