"""The teacher's side of training: the top K of each position, and what may stand beyond the top."""
