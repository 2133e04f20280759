"""Checkpoints: families as data, reading and writing shards, the block loop."""
