"""The stages as ZenML steps, one file each, in the order of the pipeline.

A step takes its own section of the configuration and its inputs, calls one core function, and
logs what happened. It computes nothing itself.
"""
