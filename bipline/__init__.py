"""bipline shrinks large language models: LLM-BIP structured pruning as a pipeline.

The packages are layers; imports run downward only, in this order:
``cli``/``config``, ``delivery``, ``quality``, ``compression``, ``model``, ``artifacts``.
"""

__version__ = "0.1.0"
