"""Allocation rules: how the budget is spread over blocks, heads and channels. One file each."""
