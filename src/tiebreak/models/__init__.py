"""Language models as the loops see them: loading, forest batches, log-probabilities, heads, generation."""

from tiebreak.models.heap import ask_for_large_pages

ask_for_large_pages()
