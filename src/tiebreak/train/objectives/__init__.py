"""Preference losses as switches and rows."""
