"""The recipe: one YAML file that names the sections of an experiment, checked before anything loads."""

from tiebreak.recipe.reading import (
    build_recipe,
    expanded,
    load_recipe,
    override,
    pace_of,
    read_yaml,
    row_knobs,
)
from tiebreak.recipe.sections import (
    Audit,
    Evaluate,
    Export,
    Import,
    Judge,
    Open,
    Recipe,
    Report,
    Sample,
    Section,
    Stage,
    WinRate,
    resolved,
)

__all__ = [
    "Audit",
    "Evaluate",
    "Export",
    "Import",
    "Judge",
    "Open",
    "Recipe",
    "Report",
    "Sample",
    "Section",
    "Stage",
    "WinRate",
    "build_recipe",
    "expanded",
    "load_recipe",
    "override",
    "pace_of",
    "read_yaml",
    "resolved",
    "row_knobs",
]
