"""A prompt and a completion become a number."""
