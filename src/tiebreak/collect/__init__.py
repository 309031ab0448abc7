"""People judge: which comparison comes next for whom, and the faces that ask."""
