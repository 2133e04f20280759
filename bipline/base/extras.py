"""Libraries that only some installations have: the extras of ``pip install 'bipline[EXTRA]'``.

``require`` stands in place of an ``import`` statement inside functions; ``check`` refuses before
any work. Both tell a missing extra in one line.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from urllib.parse import urlsplit

from bipline.base.addresses import without_secrets
from bipline.base.errors import InvalidInput


@dataclass(frozen=True)
class Extra:
    """What an extra is for, as the subject of a sentence, and the modules it brings, main first."""

    purpose: str
    modules: tuple[str, ...]


EXTRAS = {
    "pipeline": Extra(
        "a pipeline", ("zenml", "mlflow", "croniter", "cyclonedx", "in_toto_attestation")
    ),
    "eval": Extra("a zero-shot task", ("lm_eval", "accelerate")),
    "recover": Extra("recovery", ("peft", "accelerate")),
    "s3": Extra("an s3:// address", ("boto3",)),
    "gguf": Extra("the format gguf", ("gguf", "xllamacpp")),
    "onnx": Extra("the format onnx", ("onnx", "onnxscript", "onnxruntime")),
    "sign": Extra("a signature", ("model_signing", "OpenSSL")),
    "hub": Extra("an hf: address", ("datasets", "huggingface_hub")),
    "kubeflow": Extra("a Kubeflow pipeline", ("kfp", "s3fs", "kubernetes")),
}


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an extra's libraries, such as ``lm_eval.tasks``.

    Raises InvalidInput when it or another of the extra is not installed. Any other failure to
    import is raised as it is: the library is there and broken.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in {module.split(".")[0], *EXTRAS[extra].modules}:
            raise
        raise _not_installed(extra, missing, EXTRAS[extra].purpose) from None


def missing_modules(extra: str) -> list[str]:
    """The modules of an extra that are not installed; nothing is imported to know it."""
    return [module for module in EXTRAS[extra].modules if find_spec(module) is None]


def installed(extra: str) -> bool:
    """Whether every library of an extra is installed."""
    return not missing_modules(extra)


def check(extra: str, what: str | None = None) -> None:
    """Refuse before any work: raises InvalidInput when a library of the extra is not installed.

    ``what`` is what the user asked for, such as ``--tasks``, where the extra's purpose is vaguer.
    """
    if missing := missing_modules(extra):
        raise _not_installed(extra, ", ".join(missing), what or EXTRAS[extra].purpose)


def check_all(extras: Iterable[str], what: str) -> None:
    """The same for several at once: one line that names all that are missing."""
    missing = {extra: found for extra in extras if (found := missing_modules(extra))}
    if missing:
        modules = list(dict.fromkeys(each for found in missing.values() for each in found))
        raise _not_installed(",".join(missing), ", ".join(modules), what)


def _not_installed(extra: str, missing: str, what: str) -> InvalidInput:
    return InvalidInput(
        f"{what} needs {missing}, not installed here; run: pip install 'bipline[{extra}]'"
    )


def check_hub_address() -> None:
    """Raise InvalidInput where HF_ENDPOINT is no address: libraries fail on it when imported."""
    address = os.environ.get("HF_ENDPOINT")
    if address is not None and not _is_address(address):
        raise InvalidInput(
            f"HF_ENDPOINT is {without_secrets(address)!r}, not an address such as "
            "https://host:port; correct or unset it"
        )


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
