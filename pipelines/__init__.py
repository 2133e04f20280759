"""Pipelines over the stages, and how they are run on the local stack."""
