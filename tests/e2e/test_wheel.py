"""The wheel, installed away from the checkout: the core alone, and with every extra.

An interpreter of the core alone is this one in which every library is hidden that the wheel does
not ask for without an extra: what cannot be imported there cannot be imported by a user.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distribution,
    packages_distributions,
)
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]
SOURCES = ("bipline", "steps", "pipelines", "materializers", "assets", "configs")
PLAIN = ("pyproject.toml", "README.md", "LICENSE")
Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]

# Run by the interpreter before anything else: the names in HIDDEN are found nowhere.
HIDING = """
import os, sys
from importlib.machinery import PathFinder

HIDDEN = set(os.environ["HIDDEN"].split())

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.split(".")[0] not in HIDDEN:
            return super().find_spec(fullname, path, target)

sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
"""
# What is loaded beside bipline and the standard library.
FOREIGN = (
    "import sys; before = set(sys.modules); {statement}; "
    "print(*{{name.split('.')[0] for name in set(sys.modules) - before}} "
    "- set(sys.stdlib_module_names) - {{'bipline'}})"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built wheel's files, from a copy that holds no earlier build."""
    copy = tmp_path_factory.mktemp("copy")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    for name in PLAIN:
        shutil.copy(ROOT / name, copy)
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--no-cache-dir", "--target", target, copy], check=True
    )
    shutil.rmtree(copy)
    return target


def needed(requirements: list[str] | None) -> set[str]:
    """Distributions that these bring without an extra, and what those bring in turn."""
    found: set[str] = set()
    for text in requirements or ():
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found |= {name, *needed(distribution(name).requires)}
        except PackageNotFoundError:
            continue
    return found


@pytest.fixture(scope="module")
def hidden(installed: Path) -> set[str]:
    """Top-level modules of this environment that the wheel's core does not bring."""
    (metadata,) = installed.glob("bipline-*.dist-info")
    core = needed(Distribution.at(metadata).requires)
    assert "torch" in core
    brought = packages_distributions().items()
    outside = {
        module for module, owners in brought if not core & {canonicalize_name(o) for o in owners}
    }
    assert {"zenml", "mlflow", "lm_eval", "peft", "boto3", "datasets"} <= outside
    return outside - {"bipline", "steps", "pipelines", "materializers"}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and two texts, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("elsewhere")
    tiny_model(folder / "model", "llama-gqa")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 60, "utf-8")
    (folder / "other.txt").write_text("pack my box with five dozen jugs " * 60, "utf-8")
    return folder


def runner(folder: Path, **environment: str) -> Run:
    """Run this interpreter in a folder, with an environment of its own."""

    def run(*arguments: str, code: int = 0) -> Result:
        outcome = subprocess.run(
            [sys.executable, *arguments], cwd=folder, env={**os.environ, **environment},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert outcome.returncode == code, f"{arguments}\n{outcome.stdout}{outcome.stderr}"
        return outcome

    return run


@pytest.fixture(scope="module")
def core(
    installed: Path, hidden: set[str], elsewhere: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """An interpreter that has the wheel and what its core needs."""
    hiding = tmp_path_factory.mktemp("hiding")
    (hiding / "sitecustomize.py").write_text(HIDING, encoding="utf-8")
    path = f"{hiding}{os.pathsep}{installed}"
    return runner(elsewhere, PYTHONPATH=path, HIDDEN=" ".join(sorted(hidden)))


@pytest.fixture(scope="module")
def whole(installed: Path, elsewhere: Path) -> Run:
    """An interpreter that has the wheel and every extra."""
    return runner(elsewhere, PYTHONPATH=str(installed))


def test_the_wheel_is_what_runs_and_nothing_else_of_the_checkout(
    core: Run, installed: Path
) -> None:
    where = core("-c", "import bipline; print(bipline.__file__)").stdout.strip()
    assert Path(where).is_relative_to(installed)
    assert not {"tests", "benchmarks", "assets", "configs"} & {p.name for p in installed.iterdir()}


def test_bundled_files_are_the_checkouts(core: Run, installed: Path) -> None:
    code = "from bipline.base.bundled import bundled; print(bundled('assets').parent)"
    folder = Path(core("-c", code).stdout.strip())
    assert folder.is_relative_to(installed)
    carried = [path for path in folder.rglob("*") if path.is_file()]
    assert {"demo.yaml", "model.safetensors", "cloze.jsonl"} <= {path.name for path in carried}
    for path in carried:
        assert path.read_bytes() == (ROOT / path.relative_to(folder)).read_bytes()


def test_import_loads_no_other_library(core: Run) -> None:
    assert core("-c", FOREIGN.format(statement="import bipline")).stdout.split() == []


def test_help_loads_nothing_heavy(core: Run) -> None:
    told = core("-X", "importtime", "-m", "bipline", "--help")
    assert "prune" in told.stdout
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in told.stderr.splitlines()}
    assert "typer" in loaded
    assert not {"torch", "transformers", "numpy", "jinja2", "huggingface_hub"} & loaded


def test_version(core: Run, installed: Path) -> None:
    (metadata,) = installed.glob("bipline-*.dist-info")
    assert Distribution.at(metadata).version in core("-m", "bipline", "--version").stdout


def test_the_core_prunes_verifies_and_evaluates(core: Run) -> None:
    core(
        "-m", "bipline", "prune", "model", "--out", "small", "--ratio", "0.3", "--criterion",
        "llm-bip-glu", "--calibration", "text.txt", "--samples", "4", "--seqlen", "16",
    )  # fmt: skip
    assert "all as listed" in core("-m", "bipline", "verify", "small").stdout
    arguments = ("--text", "fox=text.txt", "--seqlen", "16", "--baseline", "model")
    # The text it was calibrated on: refused, unless the user says otherwise.
    refused = core("-m", "bipline", "evaluate", "small", *arguments, code=2)
    assert "--allow-fitted" in refused.stderr
    arguments = (*arguments, "--allow-fitted")
    assert "perplexity" in core("-m", "bipline", "evaluate", "small", *arguments).stdout


def test_the_core_compares(core: Run, elsewhere: Path) -> None:
    """A comparison writes its report by jinja2, which the core has."""
    core(
        "-m", "bipline", "compare", "model", "--out", "compared", "--ratios", "0.3",
        "--criteria", "magnitude", "--calibration", "text.txt", "--text", "jugs=other.txt",
        "--samples", "4", "--seqlen", "16",
    )  # fmt: skip
    assert list((elsewhere / "compared").rglob("*.html"))


CONFIG = """
model: model
texts: {calibration: text.txt, held-out: other.txt}
calibrate: {samples: 4, seqlen: 16}
score: {criterion: llm-bip-glu}
allocate: {ratio: 0.3}
evaluate: {protocol: {seqlen: 16}}
"""
PRUNE = ("--out", "no", "--ratio", "0.3", "--criterion", "llm-bip-glu", "--calibration")


@pytest.mark.parametrize(
    ("extra", "library", "arguments"),
    [
        ("s3", "boto3", ("prune", "s3://bucket/model", *PRUNE, "text.txt")),
        ("hub", "datasets", ("prune", "model", *PRUNE, "hf:org/texts?split=train")),
        ("eval", "lm_eval", ("evaluate", "model", "--tasks", "cloze", "--task-data", ".")),
        ("pipeline", "zenml|mlflow", ("compress", "compress.yaml")),
        # The demo needs three extras, and tells all of them at once.
        (
            "pipeline,eval,recover",
            "zenml, mlflow, croniter, cyclonedx, in_toto_attestation, lm_eval, accelerate, peft",
            ("demo",),
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_a_missing_extra_is_one_line(
    core: Run, elsewhere: Path, extra: str, library: str, arguments: tuple[str, ...]
) -> None:
    (elsewhere / "compress.yaml").write_text(CONFIG, encoding="utf-8")
    shutil.copy(ROOT / "assets" / "tasks" / "cloze.jsonl", elsewhere)
    errors = core("-m", "bipline", *arguments, code=2).stderr.splitlines()
    refusals = [line for line in errors if line.startswith("error: ")]
    assert len(refusals) == 1
    assert errors[-1] == refusals[0]
    advice = rf"needs ({library}).*; run: pip install 'bipline\[({extra})\]'"
    assert re.search(advice, refusals[0])
    assert not (elsewhere / "no").exists()


def test_every_pipeline_and_step_is_imported_from_the_wheel(whole: Run, installed: Path) -> None:
    for room in ("pipelines", "steps", "materializers"):
        there = sorted(path.stem for path in (ROOT / room).glob("*.py"))
        names = [f"{room}.{name}" for name in there if name != "__init__"]
        files = whole("-c", f"import {', '.join(names)}\nprint({room}.__file__)").stdout.split()
        assert Path(files[-1]).is_relative_to(installed)


def test_compress_runs_outside_a_checkout(whole: Run, elsewhere: Path) -> None:
    """A configuration of the user's own, with paths relative to where the command is given."""
    (elsewhere / "own.yaml").write_text(CONFIG, encoding="utf-8")
    told = whole("-m", "bipline", "compress", "own.yaml", "--local", "--json", "own.json").stdout
    assert "perplexity, held-out" in told
    assert (elsewhere / "own.json").is_file()


def test_the_demo_runs_outside_a_checkout(whole: Run, elsewhere: Path) -> None:
    """The whole path on the embedded model, made quick by its settings."""
    quick = (
        "calibrate.samples=16", "score.criterion=llm-bip-glu", "recover.recipe.steps=4",
        "evaluate.tasks=[]", "evaluate.protocol.speed=false",
    )  # fmt: skip
    sets = [word for setting in quick for word in ("--set", setting)]
    told = whole("-m", "bipline", "demo", *sets, "--json", "demo.json").stdout
    assert "perplexity, held-out" in told
    assert (elsewhere / "demo.json").is_file()
