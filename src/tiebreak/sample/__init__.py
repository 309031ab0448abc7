"""Prompts become responses."""
