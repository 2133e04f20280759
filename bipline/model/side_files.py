"""Which files beside the weights belong to a model: its tokenizer, its templates, its licences.

They are hashed when a model is resolved, come down from the hub, and travel unchanged into a
smaller model and its package. A name is matched whatever its case: people write licences in all.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from bipline.model.opening import PICKLED
from bipline.storage.containment import INNER_FOLDERS

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# How images become what a model with a vision tower reads.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_PATTERNS = (
    *TOKENIZER_FILES,
    "tokenizer*",
    "*.model",
    "vocab.*",
    "chat_template*",
    *(f"{folder}/*.jinja" for folder in INNER_FOLDERS),
)
LICENCE_PATTERNS = (
    "*license*",
    "*licence*",
    "copying*",
    "copyright*",
    "*notice*",
    "*use_policy*",
    "*use-policy*",
    "third_party*",
    "third-party*",
    "thirdparty*",
)
MODEL_PATTERNS = (
    "config.json",
    "generation_config.json",
    *PROCESSOR_FILES,
    "*.safetensors",
    "*.safetensors.index.json",
)
# Consolidated shards hold the same weights again in another format; code is never taken along.
SKIPPED = ("consolidated*", "*.py", *PICKLED)


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of a model directory makes its tokenizer, or a template of its chats."""
    return _belongs(name, TOKENIZER_PATTERNS)


def is_licence(name: str) -> bool:
    """Whether a file says under which terms a model may be used."""
    return "/" not in name and _belongs(name.lower(), LICENCE_PATTERNS)


def is_side_file(name: str) -> bool:
    """Whether a file travels unchanged into whatever is made of the model."""
    settings = name in ("generation_config.json", *PROCESSOR_FILES)
    kept = settings or is_tokenizer_file(name) or is_licence(name)
    return kept and not name.endswith(".safetensors")


def is_model_file(name: str) -> bool:
    """Whether a file is part of the model: weights, config, tokenizer and licences."""
    return _belongs(name, MODEL_PATTERNS) or is_tokenizer_file(name) or is_licence(name)


def _belongs(name: str, patterns: tuple[str, ...]) -> bool:
    folder, slash, _ = name.rpartition("/")
    if slash and folder not in INNER_FOLDERS:
        return False
    return matches(name, patterns) and not matches(name, SKIPPED)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name is like one of the patterns; ``/`` is matched by itself alone."""
    return any(
        pattern.count("/") == name.count("/") and fnmatchcase(name, pattern) for pattern in patterns
    )
