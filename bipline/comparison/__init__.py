"""Comparison: many ways to prune, each measured under one protocol beside the dense model.

:mod:`.grid` spans what is tried, :mod:`.rows` turns a combination into figures by the line of
stages, :mod:`.selection` picks among them. These serve ``bipline compare`` and the sweep pipeline
alike. For the command :mod:`.inputs` reads what is compared, :mod:`.pool` divides the work among
processes, and :mod:`.engine` puts all in order.
"""
