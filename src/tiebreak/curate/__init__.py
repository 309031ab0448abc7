"""Judgments become training rows; every step reports what it dropped and why."""
