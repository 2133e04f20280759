"""The stages as ZenML steps, in the order of the pipeline.

A step says what passes, typed, and calls one function of :mod:`bipline.stages`. It computes
nothing itself, and never asks where the bytes of a handle lie.
"""
