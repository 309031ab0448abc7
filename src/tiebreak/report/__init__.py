"""One HTML file that tells the whole story of a run."""
