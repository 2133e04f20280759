"""Formats that a model is exported to: one folder each, behind the interface in ``interface``."""
