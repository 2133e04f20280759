"""A mixture of eight experts, from a folder to a registered package, and its comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bipline.face import api
from bipline.model.opening import open_checkpoint
from bipline.model.tokenizer import load_tokenizer
from bipline.quality.perplexity import text_windows
from bipline.storage.manifest import verify_directory
from bipline.values.plan import read_plan
from pipelines.run import run_compress
from tests.command import run as command
from tests.pipeline.conftest import client_of, configuration, elsewhere
from tests.tiny import tiny_model, token_windows


def drawn(place: Path, case: str) -> Path:
    return tiny_model(place / case, case, dtype=torch.float32)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("mixture"), "mixtral")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "of", "criterion", "kept"),
    [
        ("mixtral", "whole", "auto", [6, 6]),
        ("glm4-moe", "whole", "llm-bip", [0, 5, 5]),
        ("glm4-moe", "channels", "auto", [0, 16, 16]),
    ],
    ids=["mixtral", "glm4-moe", "channels"],
)
def test_a_mixture_of_experts_becomes_a_registered_package(
    case: str, of: str, criterion: str, kept: list[int], folder: Path, tmp_path: Path
) -> None:
    """Of the second the first block has no experts; of the third channels of every expert go.

    By ``auto`` they are compensated too.
    """
    mixture, most = drawn(tmp_path, case), max(kept)
    sections = {
        "calibrate": {"samples": 24, "seqlen": 16},
        "score": {"criterion": criterion}, "allocate": {"ratio": 0.2, "of_experts": of},
        "recover": {},
        "promote": {"name": case, "alias": "production", "gate": "lenient"},
    }  # fmt: skip
    with elsewhere(folder):
        summary = run_compress(configuration(mixture, folder, **sections))
    assert summary.status == "completed"
    assert summary.registration.alias == "production"
    package = Path(summary.package.location)
    assert verify_directory(package).digest == summary.package.digest
    plan = read_plan(package / "pruning_plan.json")
    assert plan.compensation == ("least-squares" if criterion == "auto" else "none")
    units = [block.told_widths[1] if block.experts else 0 for block in plan.blocks]
    assert units == kept
    told = "experts are one matrix here" in (package / "README.md").read_text("utf-8")
    assert told == (criterion == "auto")
    name, held = ("experts", 8) if of == "whole" else ("expert_channels", 24)
    for page in ("README.md", "report.html"):
        assert f"{most} of {held}" in (package / page).read_text("utf-8"), page
    [curve] = [
        client_of(folder).get_metric_history(summary.registration.mlflow_run_id, name)
        for name in (f"blocks/{name}",)
    ]
    assert [point.value for point in curve] == [most, most]
    # As users load it: by transformers alone, with whatever way to run experts it takes.
    loaded = AutoModelForCausalLM.from_pretrained(package / "hf", dtype=torch.float32).eval()
    assert type(loaded).__name__ in ("MixtralForCausalLM", "Glm4MoeForCausalLM")
    packed = open_checkpoint(package / "hf").shape
    assert loaded.config.num_local_experts == packed.num_experts
    assert most == (packed.num_experts if of == "whole" else packed.intermediate_size)
    with torch.no_grad():
        assert bool(loaded(token_windows()).logits.isfinite().all())


@pytest.mark.slow
def test_a_comparison_tells_the_experts_of_every_row(
    mixture: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = command(
        capfd, "compare", mixture, "--out", tmp_path / "out", "--ratios", "0.2,0.6",
        "--criteria", "auto,llm-bip,magnitude", "--samples", "24", "--seqlen", "16",
        "--calibration", folder / "calibration.txt", "--text", f"held={folder / 'held-out.txt'}",
        "--json", tmp_path / "compared.json",
    )  # fmt: skip
    assert outcome.code == 0
    table = [line.split() for line in outcome.output.splitlines()]
    assert ["dense", "74,400", "8"] in [line[:3] for line in table]
    assert "refused" not in outcome.output
    compared = json.loads((tmp_path / "compared.json").read_text("utf-8"))
    methods = {
        tuple(row["combination"][part]["name"] for part in ("criterion", "compensation"))
        for row in compared["rows"]
    }
    # The first is what auto stands for.
    corrected = ("llm-bip-glu", "least-squares")
    assert methods == {corrected, ("llm-bip", "none"), ("magnitude", "none")}
    found = {
        (row["combination"]["ratio"], row["measured"]["experts"]["after"])
        for row in compared["rows"]
        if row["measured"]
    }
    assert found == {(0.2, 6), (0.6, 2)}


@pytest.mark.slow
def test_what_measures_a_mixture_measures_what_transformers_runs(
    mixture: Path, folder: Path, tmp_path: Path
) -> None:
    """Perplexity by the loop is that of transformers' own logits; speed and depth run too."""
    text = folder / "held-out.txt"
    api.prune(
        mixture, tmp_path / "out", ratio=0.4, criterion="block-influence", samples=8, seqlen=16,
        calibration=folder / "calibration.txt", state=tmp_path / "state",
    )  # fmt: skip
    shorter = open_checkpoint(tmp_path / "out")
    assert (shorter.shape.num_hidden_layers, shorter.shape.num_experts) == (1, 8)
    record = api.evaluate(
        tmp_path / "out", texts={"held": text}, seqlen=16, speed=True, state=tmp_path / "state",
        speed_prompt_tokens=8, speed_decoded_tokens=4, speed_repeats=5,
    )["model"]  # fmt: skip
    assert record.speed is not None
    tokenizer = load_tokenizer(tmp_path / "out")
    windows = text_windows(tokenizer, [text.read_text("utf-8")], 16, "none")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(windows).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten())
    assert record.perplexity["held"].value == pytest.approx(float(loss.exp()), rel=1e-4)
