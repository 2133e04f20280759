"""bipline shrinks large language models: LLM-BIP structured pruning as a pipeline.

The rooms are layers, and imports run downward only, in this order: face, comparison, stages,
delivery, recovery, quality, compression, model, settings, values, storage, base.
"""

# The build reads it as text, without importing bipline: a plain string, here and nowhere else.
__version__ = "0.1.0"

# The public Python API: imported when first used.
