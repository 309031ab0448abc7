"""Language models as the loops see them: loading, forest batches, log-probabilities, heads, generation."""
