"""Two loops, objectives as switches."""
