"""What makes a registered version loadable by MLflow: an MLmodel that points into the package.

A version holds the package as it is, in ``package/`` with its manifest, and around it what MLflow
reads: ``MLmodel`` (flavors, signature, input example), requirements, and the tokenizer's small
files, which the transformers flavor looks for in a folder of its own. No weight is loaded or
copied for it. MLflow itself writes ``registered_model_meta`` beside the MLmodel on each download;
that file is nobody's claim, and the package below is untouched by it.

A model of a class of transformers has the flavors ``transformers`` and ``python_function``. A
per-layer one has ``python_function`` alone, by the class of the installed bipline: MLflow's own
transformers flavor would run the code that lies beside the weights.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bipline.base.extras import require
from bipline.model.loading import GENERATION
from bipline.model.opening import read_config
from bipline.model.shapes import is_per_layer
from bipline.model.side_files import is_tokenizer_file
from bipline.storage.digests import digest_file, digest_listing
from bipline.storage.directory import write_text
from bipline.storage.strict_json import read_json

PACKAGE = "package"
# What MLflow writes beside an MLmodel when it hands a version out.
LEFT_BY_MLFLOW = "registered_model_meta"
LOADER = "bipline.delivery.registries.mlflow_loader"
LIBRARIES = ("mlflow", "torch", "transformers", "accelerate")
EXAMPLE, SERVED_EXAMPLE = "input_example.json", "serving_input_example.json"
PROMPT, NEW_TOKENS = "Once upon a time", 64
ENVIRONMENT = {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}
REQUIREMENTS = "requirements.txt"


def write_flavors(package: Path, folder: Path, metadata: dict[str, Any], **named: str) -> None:
    """Write all that lies around a package into ``folder``; ``named`` are ids of run and model.

    ``metadata`` goes into the MLmodel. Raises InvalidInput where the package has no readable
    config.
    """
    config = read_config(package / "hf")
    _write_environment(folder, own=is_per_layer(config))
    if not is_per_layer(config):
        _copy_tokenizer(package / "hf", folder / "components" / "tokenizer")
    write_text(folder / EXAMPLE, json.dumps([PROMPT]) + "\n")
    write_text(folder / SERVED_EXAMPLE, json.dumps({"inputs": [PROMPT]}) + "\n")
    signature = _signature(_generation(package / "hf"))
    model = require("mlflow.models", "pipeline").Model(
        flavors=_flavors(config), signature=signature, metadata=metadata,
        saved_input_example_info={
            "artifact_path": EXAMPLE, "type": "json_object", "serving_input_path": SERVED_EXAMPLE
        },
        model_size_bytes=sum(path.stat().st_size for path in (package / "hf").rglob("*")), **named,
    )  # fmt: skip
    write_text(folder / "MLmodel", model.to_yaml())


def digest_around(stored: Path) -> str:
    """The digest of all that lies around the package in a stored version."""
    return digest_listing({name: digest_file(stored / name) for name in _around(stored)})


def package_in(stored: Path) -> Path:
    """The package of a stored version: versions of before MLmodel were the package itself."""
    inner = stored / PACKAGE
    return inner if inner.is_dir() else stored


def _around(stored: Path) -> Iterator[str]:
    for path in sorted(stored.rglob("*")):
        name = path.relative_to(stored).as_posix()
        if path.is_file() and not name.startswith(f"{PACKAGE}/") and name != LEFT_BY_MLFLOW:
            yield name


def _flavors(config: dict[str, Any]) -> dict[str, Any]:
    shared = {"env": ENVIRONMENT, "python_version": platform.python_version()}
    if is_per_layer(config):
        return {
            "python_function": {"loader_module": LOADER, "data": f"{PACKAGE}/hf", **shared},
        }
    where = {"model_binary": f"{PACKAGE}/hf"}
    return {
        "python_function": {"loader_module": "mlflow.transformers", **where, **shared},
        "transformers": {
            "task": "text-generation",
            "instance_type": "TextGenerationPipeline",
            "framework": "pt",
            "pipeline_model_type": config["architectures"][0],
            "source_model_name": "hf",
            "components": ["tokenizer"],
            # The Auto class alone reads every tokenizer, and asks for no code.
            "tokenizer_type": "AutoTokenizer",
            "transformers_version": version("transformers"),
            "code": None,
            **where,
        },
    }


def _signature(generation: dict[str, Any]) -> Any:
    """Texts in, texts with their continuations out; how they are drawn are parameters.

    Left out they are what the model's own settings say: greedy where those say nothing, so that
    the same request has the same answer.
    """
    types = require("mlflow.types", "pipeline")
    texts, draw = types.Schema([types.ColSpec("string")]), bool(generation.get("do_sample", False))
    params = [
        types.ParamSpec("max_new_tokens", "long", NEW_TOKENS),
        types.ParamSpec("do_sample", "boolean", draw),
        types.ParamSpec("temperature", "double", float(generation.get("temperature") or 1.0)),
    ]
    return require("mlflow.models", "pipeline").ModelSignature(
        inputs=texts, outputs=texts, params=types.ParamSchema(params)
    )


def _generation(hf: Path) -> dict[str, Any]:
    path = hf / GENERATION
    return read_json(path, "set of generation settings") if path.is_file() else {}


def _write_environment(folder: Path, own: bool) -> None:
    """The versions it was made with; ``own`` where bipline itself loads the model."""
    names = (*LIBRARIES, "bipline") if own else LIBRARIES
    pinned = [f"{name}=={version(name).partition('+')[0]}" for name in names]
    python = platform.python_version()
    write_text(folder / REQUIREMENTS, "".join(f"{line}\n" for line in pinned))
    dependencies = f"[python={python}, pip, {{pip: [-r {REQUIREMENTS}]}}]"
    write_text(
        folder / ENVIRONMENT["conda"],
        f"name: mlflow-env\nchannels: [conda-forge]\ndependencies: {dependencies}\n",
    )
    write_text(
        folder / ENVIRONMENT["virtualenv"],
        f"python: {python}\nbuild_dependencies: [pip]\ndependencies: [-r {REQUIREMENTS}]\n",
    )


def _copy_tokenizer(hf: Path, target: Path) -> None:
    """The tokenizer's files, and the config, by which it is told what class it is of."""
    for path in sorted(hf.rglob("*")):
        name = path.relative_to(hf).as_posix()
        if path.is_file() and (is_tokenizer_file(name) or name == "config.json"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
