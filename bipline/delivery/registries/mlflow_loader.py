"""How ``mlflow.pyfunc`` loads a per-layer version: by the class of the installed bipline.

The code beside the weights is never run. MLflow finds this module by its name in the MLmodel and
calls ``_load_pyfunc``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bipline.base.errors import BiplineError, Refused
from bipline.model.loading import GENERATION, load_model
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import load_tokenizer


class PerLayerTexts:
    """Continues texts with a per-layer model, as MLflow's own text generation does."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """Each text with its continuation; ``params`` are those of the signature."""
        if hasattr(model_input, "iloc"):  # a table, as MLflow hands texts over
            model_input = model_input.iloc[:, 0].tolist()
        texts = [model_input] if isinstance(model_input, str) else model_input
        return [self._continued(str(text), params or {}) for text in texts]

    def _continued(self, text: str, params: dict[str, Any]) -> str:
        tokens = self.tokenizer(text, return_tensors="pt")
        made = self.model.generate(**tokens, **params)
        return str(self.tokenizer.decode(made[0], skip_special_tokens=True))


def _load_pyfunc(path: str) -> PerLayerTexts:
    """The model in a package's ``hf``. Raises Refused, naming the gguf, where it cannot be."""
    import torch

    try:
        checkpoint = open_checkpoint(Path(path))
        model = load_model(checkpoint, getattr(torch, _dtype(checkpoint.config)))
        tokenizer = load_tokenizer(Path(path))
    except BiplineError as error:
        raise Refused(
            f"{error}; this bipline cannot load it: take the one in requirements.txt, or llama.cpp "
            "with the file that `bipline export --format gguf` makes"
        ) from None
    model.generation_config = _generation(Path(path), model)
    return PerLayerTexts(model, tokenizer)


def _generation(path: Path, model: Any) -> Any:
    """The model's own settings; a padding token, which one text needs none of, is any."""
    from transformers import GenerationConfig

    given = (path / GENERATION).is_file()
    settings = (
        GenerationConfig.from_pretrained(path)
        if given
        else GenerationConfig.from_model_config(model.config)
    )
    if settings.pad_token_id is None:
        settings.pad_token_id = 0
    return settings


def _dtype(config: Mapping[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")
