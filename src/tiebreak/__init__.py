"""Preference learning end to end: from the first vote to a win rate that can be defended."""
