"""Bad input, as a user gives it: one clear line, exit code 2, nothing half written."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from bipline.model.floor import Rates
from tests.command import Outcome, contents, run
from tests.compression.test_calibrate import prose
from tests.model.test_checkpoint import FAULTS
from tests.tiny import tiny_model

Prune = Callable[..., Outcome]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(prose(1))
    return path


@pytest.fixture
def prune(capfd: pytest.CaptureFixture[str], llama: Path, text: Path, tmp_path: Path) -> Prune:
    """``bipline prune`` on a good model with good options, some of them replaced."""

    def call(model: Path = llama, out: Path | None = None, **options: object) -> Outcome:
        given = {
            "ratio": 0.3, "criterion": "llm-bip-glu", "calibration": text, "samples": 4,
            "seqlen": 16, **options,
        }  # fmt: skip
        flags = [
            str(part)
            for name, value in given.items()
            if value is not None
            for part in (f"--{name.replace('_', '-')}", value)
        ]
        target = out or tmp_path / "out"
        return run(capfd, "prune", model, "--out", target, "--state", tmp_path / "state", *flags)

    return call


def test_good_input_is_good(prune: Prune, tmp_path: Path) -> None:
    """The tests below change one thing each of a command that works."""
    outcome = prune(json=tmp_path / "result.json")
    assert outcome.code == 0, outcome
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["parameters"]["after"] < result["parameters"]["before"]
    assert result["ratio"]["reached_blocks"] >= 0.3
    seconds = result["seconds"]
    assert seconds["stage"].keys() == {"calibrate", "score", "allocate", "prune"}
    assert seconds["total"] == pytest.approx(sum(seconds["stage"].values()), abs=1e-3)
    assert f"{result['parameters']['after']:,}" in outcome.output


def test_the_same_command_gives_the_same_bytes(prune: Prune, tmp_path: Path) -> None:
    assert prune(out=tmp_path / "one").code == prune(out=tmp_path / "two").code == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("fault", FAULTS)
def test_unusable_model(prune: Prune, llama: Path, tmp_path: Path, fault: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    FAULTS[fault][0](model)
    prune(model).assert_one_line(2)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("ratio", ["nan", "inf", "-inf", "1e999"])
def test_a_ratio_is_a_finite_number(prune: Prune, ratio: str) -> None:
    prune(ratio=ratio).assert_one_line(2, "--ratio", "finite number")


@pytest.mark.parametrize("ratio", ["0", "1", "-1", "1.5"])
def test_senseless_ratio(prune: Prune, tmp_path: Path, ratio: str) -> None:
    prune(ratio=ratio).assert_one_line(2, "ratio", "between 0 and 1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ratio_of", ["blocks", "total"])
def test_unreachable_ratio_names_the_largest(prune: Prune, tmp_path: Path, ratio_of: str) -> None:
    outcome = prune(ratio=0.98, ratio_of=ratio_of)
    outcome.assert_one_line(2, "cannot be reached", "largest that can is")
    largest = outcome.errors.strip().split(" is ")[-1]
    assert prune(ratio=largest, ratio_of=ratio_of).code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text"),
        (b"short", "shorter than one window"),
        (b"\xff\xfe", "UTF-16"),
        (b"caf\xe9", "UTF-8"),
    ],
)
def test_unusable_calibration_text(
    prune: Prune, text: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    text.write_bytes(content)
    prune(seqlen=64).assert_one_line(2, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calibration": "gone.txt"}, ["gone.txt", "no such"]),
        ({"calibration": None}, ["--calibration"]),
        ({"ratio": None}, ["--ratio"]),
        ({"ratio": "half"}, ["--ratio", "valid number"]),
        ({"criterion": "best"}, ["'best'", "llm-bip-glu"]),
        ({"dtype": "int8"}, ["int8", "float32"]),
        ({"ratio_of": "heads"}, ["--ratio-of 'heads'", "'blocks' or 'total'"]),
        ({"samples": 0}, ["samples 0"]),
        ({"samples": 10**6}, ["1000000"]),
        ({"ffn_multiple": 1000}, ["ffn_multiple 1000"]),
        ({"ffn_multiple": 0}, ["--ffn-multiple 0", "greater than or equal to 1"]),
        ({"plan": "gone.json", "ratio": None}, ["gone.json"]),
        ({"shard_size": 0}, ["--shard-size 0", "greater than or equal to 1"]),
        ({"json": "gone/result.json"}, ["gone/result.json", "folder does not exist"]),
        ({"plan_out": "gone/plan.json"}, ["gone/plan.json", "folder does not exist"]),
        ({"seqlen": 257, "samples": 1}, ["seqlen 257", "max_position_embeddings 256"]),
        ({"no_such_option": 1}, ["no-such-option"]),
        ({"device": "tpu7"}, ["device 'tpu7'", "auto, cpu, cuda"]),
        ({"micro_batch": 17}, ["--micro-batch 17", "less than or equal to 16"]),
        ({"max_memory": "much"}, ["'much'", "2.5GB"]),
        ({"max_memory": "1MB"}, ["tokenising", "MB", "--max-memory"]),
        ({"shard_size": "big"}, ["'big'", "2.5GB"]),
    ],
)
def test_unusable_option(
    prune: Prune, tmp_path: Path, options: dict[str, object], words: list[str]
) -> None:
    prune(**options).assert_one_line(2, *words)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_missing_gpu_is_no_reason_to_use_the_cpu(prune: Prune, tmp_path: Path) -> None:
    prune(device="cuda:99").assert_one_line(3, "'cuda:99' was asked for", "GPUs here")
    assert not list(tmp_path.glob("out*"))


def test_work_directory_with_other_files_is_left_alone(prune: Prune, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("keep me")
    prune(work=tmp_path / "mine").assert_one_line(2, "mine", "no work of bipline")
    assert contents(tmp_path / "mine") == {"precious": b"keep me"}
    assert not (tmp_path / "out").exists()


def test_model_that_changes_after_it_was_scored(
    prune: Prune, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stopped in pruning goes on; by then a scored block holds another value."""
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    with monkeypatch.context() as patched:
        full = OSError(errno.ENOSPC, "No space left on device")
        patched.setattr("bipline.stages.prune.core.write_pruned", Mock(side_effect=full))
        prune(model).assert_one_line(3, "no space left")
    assert (tmp_path / "out.work").is_dir()
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    outcome = prune(model)
    outcome.assert_one_line(2, "the plan is for model", "delete", "out.work", "start again")
    assert not (tmp_path / "out").exists()


def test_memory_that_runs_out_is_no_fault_of_the_input(
    prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bipline.stages.prune.core.write_pruned", Mock(side_effect=MemoryError))
    prune().assert_one_line(3, "out of memory")


def test_a_reused_score_counts_no_forward_pass(
    prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The floor of a stage is of what it did: saved sums need the weights and no products."""
    monkeypatch.setattr("bipline.stages.result.FLOOR_FROM_SECONDS", -1.0)
    rates = Rates(read=1e6, write=1e6, compute=1e3)
    monkeypatch.setattr("bipline.stages.result.measure_rates", lambda *_: rates)
    floors = []
    for criterion in ("llm-bip-glu", "wanda-sp", "llm-bip-glu"):
        options = {"out": tmp_path / f"out-{len(floors)}", "json": tmp_path / "result.json"}
        done = prune(statistics=tmp_path / "statistics", criterion=criterion, **options)
        assert done.code == 0, done
        result = json.loads((tmp_path / "result.json").read_text())
        floors.append(result["floor_seconds_by_stage"].get("score"))
    assert floors[0] > 1
    assert floors[1] < 1, "the weights are read"
    assert floors[2] is None, "scores that lie there are read, and no stage is run"


def test_occupied_output_is_left_alone(prune: Prune, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("keep me")
    prune().assert_one_line(2, "not empty")
    assert contents(tmp_path / "out") == {"precious": b"keep me"}


def test_plan_of_another_model(prune: Prune, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert prune(out=tmp_path / "first", plan_out=plan).code == 0
    other = tiny_model(tmp_path / "other", "llama-gqa", seed=1)
    prune(other, plan=plan, ratio=None).assert_one_line(2, "the plan is for model")
    assert not (tmp_path / "out").exists()
    assert prune(plan=plan, ratio=None).code == 0
    assert contents(tmp_path / "first") == contents(tmp_path / "out")


@pytest.mark.parametrize("content", ["{}", "[]", "not json", '{"schema_version": 99}'])
def test_file_that_is_no_plan(prune: Prune, tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    prune(plan=tmp_path / "plan.json", ratio=None).assert_one_line(2, "not a pruning plan")


def test_statistics_of_another_model(prune: Prune, tmp_path: Path) -> None:
    statistics = tmp_path / "statistics"
    assert prune(out=tmp_path / "first", statistics=statistics).code == 0
    other = tiny_model(tmp_path / "other", "llama-gqa", seed=1)
    prune(other, statistics=statistics).assert_one_line(2, "the statistics are of model")
    again = prune(statistics=statistics, calibration=None, ratio=0.4)
    assert again.code == 0, "a second ratio needs no text"


def test_missing_tokenizer(prune: Prune, llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(llama, model, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    prune(model).assert_one_line(2, "no tokenizer; one of tokenizer.json")


def test_token_id_above_the_vocabulary(prune: Prune, llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:40].clone()
    save_file(tensors, model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 40}))
    prune(model).assert_one_line(2, "above the model's vocabulary of 40")


def test_weights_that_are_not_finite(prune: Prune, llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, model / "model.safetensors")
    prune(model).assert_one_line(2, "model.layers.1.mlp.up_proj.weight", "NaN or infinity")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "novel.txt"], ["NAME=FILE"]),
        (["--text", "a=gone.txt"], ["gone.txt"]),
        (["--text", "a=x.txt", "--text", "a=y.txt"], ["--text", "named 'a'"]),
        (["--speed", "--baseline", "nowhere"], ["nowhere", "no such model directory"]),
        (["--tasks", "cloze"], ["lm-eval has no task", "--task-data"]),
        (["--tasks", "piqa", "--task-data", "nowhere"], ["nowhere"]),
        (["--speed", "--bos", "maybe"], ["bos", "maybe"]),
        ([], ["nothing to measure"]),
    ],
)
def test_evaluate_options(
    capfd: pytest.CaptureFixture[str],
    llama: Path,
    tmp_path: Path,
    arguments: list[str],
    words: list[str],
) -> None:
    outcome = run(capfd, "evaluate", llama, "--state", tmp_path, *arguments)
    outcome.assert_one_line(2, *words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("allocat.ratio=0.5", ["'allocat'", "did you mean 'allocate'"]),
        ("score.criterium=x", ["'score.criterium'", "did you mean 'criterion'"]),
        ("allocate.ratio=much", ["allocate.ratio", '"much"']),
        ("calibrate.samples=0", ["calibrate.samples", "greater than or equal to 1"]),
        ("evaluate.tasks=[boolq]", ["task 'boolq'", "cloze"]),
        ("model", ["section.field=value"]),
        ("model.x=1", ["model is a value"]),
        ("allocate.ratio=0", ["ratio 0", "between 0 and 1"]),
        ("score.criterion=best", ["'best'"]),
        ("model=/nowhere", ["/nowhere", "no such"]),
        ("texts.prose=/nowhere.txt", ["/nowhere.txt"]),
        ("allocate.ratio=0.97", ["largest that can"]),
    ],
)
def test_configuration(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    words: list[str],
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    outcome = run(capfd, "compress", "configs/demo.yaml", "--dry-run", "--set", override)
    outcome.assert_one_line(2, *words)


def test_verify_says_what_it_cannot_verify(
    capfd: pytest.CaptureFixture[str], llama: Path, tmp_path: Path
) -> None:
    run(capfd, "verify", tmp_path / "gone").assert_one_line(2, "no such directory")
    run(capfd, "verify", llama).assert_one_line(2, "no manifest.json")


def test_no_command_prints_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["config"], ["store"]):
        outcome = run(capfd, *arguments)
        assert outcome.code == 2
        assert "Usage" in outcome.output + outcome.errors
        assert "error:" not in outcome.errors


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", ["not YAML"]),
        ("- a", ["not a mapping"]),
        ("texts: {}\n", ["'model' is required"]),
        ("model: x\n", ["'calibration' is used but not listed"]),
    ],
)
def test_unreadable_configuration(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, content: str, words: list[str]
) -> None:
    (tmp_path / "c.yaml").write_text(content)
    run(capfd, "compress", tmp_path / "c.yaml").assert_one_line(2, *words)
    run(capfd, "compress", tmp_path / "gone.yaml").assert_one_line(2, "no such configuration")
