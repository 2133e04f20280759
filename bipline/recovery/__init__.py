"""Training of what was pruned, kept only where it helps."""
