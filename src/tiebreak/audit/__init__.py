"""Measure the judgments and the data; change nothing."""
