"""Sections of a recipe in order; one whose inputs and knobs are unchanged is skipped."""

from tiebreak.run.plan import plan
from tiebreak.run.run import Display, Ran, run

__all__ = ["Display", "Ran", "plan", "run"]
