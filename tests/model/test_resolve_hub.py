"""Resolve from the hub: exact revisions, checked downloads, refusals in one line.

The cases run in a process of their own, because the libraries read HF_ENDPOINT when they are
imported; one such process answers all of them, over its standard input and output.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from bipline.base import errors
from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.model.opening import open_checkpoint
from bipline.model.resolve import resolve_model
from bipline.storage.documents import Instruction, read_documents
from bipline.values.resolution import (
    Resolution,
    ResolvedModel,
    ResolvedText,
)
from tests.hub_stand_in import OUT_OF_SERVICE, commit_of, hub_stand_in
from tests.model.refusals import refusal

CHECKOUT = Path(__file__).parents[2]
WIKITEXT = ["", " = Robert = \n", "Robert is an actor .\n", ""]
C4 = [f"page {index} says hello" for index in range(40)]
WORKER = """
import json, os, sys
from pathlib import Path
from bipline.base.errors import BiplineError
from bipline.model import resolve
def outline(source, downloads):
    found = resolve.known_checkpoint(source)
    place = found.directory
    on_disk = sum(path.stat().st_blocks * 512 for path in place.glob("*.safetensors"))
    told = {"parameters": found.parameters, "on_disk": on_disk}
    del found
    return {**told, "left": place.exists()}
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    function, arguments = json.loads(line)
    try:
        asked = outline if function == "outline" else getattr(resolve, function)
        value = asked(*arguments[:-1], Path(arguments[-1]))
        answer = {"value": value if isinstance(value, dict) else value.model_dump()}
    except BiplineError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), file=answers, flush=True)
"""


class HubProcess:
    """Calls functions of the resolve module where HF_ENDPOINT is what the test says."""

    def __init__(self, endpoint: str, home: Path) -> None:
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
        environment |= {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(CHECKOUT)}
        environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, function: str, *arguments: Any) -> dict[str, Any]:
        """The function's value as JSON; raises what it raised."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([function, [str(a) for a in arguments]]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        return dict(answer["value"])

    def model(self, source: str, downloads: Path) -> ResolvedModel:
        """What ``resolve_model`` gives there."""
        return ResolvedModel(**self.ask("resolve_model", source, downloads))

    def text(self, source: str, downloads: Path) -> ResolvedText:
        """What ``resolve_text`` gives there."""
        return ResolvedText(**self.ask("resolve_text", source, downloads))

    def stop(self) -> None:
        """End the process and wait for it."""
        self.process.communicate(timeout=20)


@pytest.fixture(scope="module")
def repositories(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the stand-in serves: models and data sets like the well-known ones."""
    root = tmp_path_factory.mktemp("hub")
    _put_models(root / "models" / "acme", tiny_llama)
    _put_data_sets(root / "datasets" / "acme")
    return root


def _put_models(models: Path, tiny_llama: Path) -> None:
    tiny = Path(shutil.copytree(tiny_llama, models / "tiny"))
    (tiny / "pytorch_model.bin").write_bytes(b"a pickle")
    (tiny / "modeling.py").write_text("raise SystemExit")
    (tiny / "fp16").mkdir()
    (tiny / "fp16" / "model.safetensors").write_bytes(b"the same weights again")
    pickled = Path(shutil.copytree(tiny_llama, models / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    adapted = Path(shutil.copytree(tiny_llama, models / "adapted"))
    (adapted / "adapter_config.json").write_text("{}")
    custom = Path(shutil.copytree(tiny_llama, models / "custom"))
    config = json.loads((custom / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Custom"}
    (custom / "config.json").write_text(json.dumps(config))


def _put_data_sets(data_sets: Path) -> None:
    wikitext = data_sets / "wikitext" / "wikitext-2-raw-v1"
    wikitext.mkdir(parents=True)
    table = pyarrow.table({"text": WIKITEXT})
    pyarrow.parquet.write_table(table, wikitext / "test-00000-of-00001.parquet")
    _declare(data_sets / "wikitext", {"wikitext-2-raw-v1": ("test", "wikitext-2-raw-v1/test-*")})
    c4 = data_sets / "c4" / "en"
    c4.mkdir(parents=True)
    for number in range(2):
        rows = [json.dumps({"text": page, "url": str(number)}) for page in C4]
        packed = gzip.compress("\n".join(rows).encode())
        (c4 / f"c4-train.{number:05}-of-00002.json.gz").write_bytes(packed)
    languages = {"en": ("train", "en/c4-train.*.json.gz"), "de": ("train", "de/*.json.gz")}
    _declare(data_sets / "c4", languages)
    stories = data_sets / "stories"
    stories.mkdir()
    rows = [json.dumps({"story": f"story {index}"}) for index in range(5)]
    (stories / "train.jsonl").write_text("\n".join(rows))
    (data_sets / "alpaca").mkdir()
    table = pyarrow.table(
        {"instruction": ["Add", "Say"], "input": ["1, 2", ""], "output": ["3", "so"]}
    )
    pyarrow.parquet.write_table(table, data_sets / "alpaca" / "train.parquet")


def _declare(repository: Path, subsets: dict[str, tuple[str, str]]) -> None:
    """The front matter that tells which files belong to which subset and split."""
    lines = ["---", "configs:"]
    for name, (split, files) in subsets.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [f"  - split: {split}", f"    path: {files}"]
    (repository / "README.md").write_text("\n".join([*lines, "---", ""]))


@pytest.fixture(scope="module")
def hub(repositories: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """A process that sees the stand-in as the hub."""
    with hub_stand_in(repositories) as endpoint:
        process = HubProcess(endpoint, tmp_path_factory.mktemp("home"))
        yield process
        process.stop()


def test_a_hub_model_is_the_local_one_at_an_exact_commit(
    hub: HubProcess, repositories: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    remote = hub.model("hf:acme/tiny", tmp_path)
    local = resolve_model(str(tiny_llama), tmp_path)
    assert remote.revision == commit_of(repositories / "models" / "acme" / "tiny")
    assert remote.tensor_digest == local.tensor_digest
    assert Resolution(model=remote).digest == Resolution(model=local).digest
    assert hub.model(f"hf:acme/tiny@{remote.revision}", tmp_path).files == remote.files


def test_an_outline_is_the_model_without_its_weights(
    hub: HubProcess, tiny_llama: Path, tmp_path: Path
) -> None:
    """The checks of a dry run see every shape, and nothing stays."""
    found, local = hub.ask("outline", "hf:acme/tiny", tmp_path), open_checkpoint(tiny_llama)
    assert found["parameters"] == local.parameters
    assert 0 < found["on_disk"] < local.weight_bytes
    assert found["left"] is False and not list(tmp_path.iterdir())


def test_no_pickle_no_code_and_no_second_copy_is_downloaded(
    hub: HubProcess, tmp_path: Path
) -> None:
    directory = Path(hub.model("hf:acme/tiny@main", tmp_path).location)
    assert directory.parent == tmp_path / "models"
    shutil.rmtree(directory / ".cache")
    names = {path.relative_to(directory).as_posix() for path in directory.rglob("*")}
    assert not {name for name in names if name.endswith((".bin", ".py")) or "/" in name}


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_download_is_found_and_fetched_again(
    name: str, hub: HubProcess, tmp_path: Path
) -> None:
    before = hub.model("hf:acme/tiny", tmp_path)
    path = Path(before.location) / name
    stat = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    # As a failing disk does it: nothing but the content says so.
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert name in refusal(EnvironmentFailure, hub.model, "hf:acme/tiny", tmp_path)
    assert hub.model("hf:acme/tiny", tmp_path) == before


def test_a_branch_that_moved_is_seen(hub: HubProcess, repositories: Path, tmp_path: Path) -> None:
    repository = repositories / "models" / "acme" / "moving"
    shutil.copytree(repositories / "models" / "acme" / "tiny", repository)
    before = hub.model("hf:acme/moving", tmp_path)
    (repository / "chat_template.jinja").write_text("{{ messages[0] }}")
    after = hub.model("hf:acme/moving", tmp_path)
    assert (before.revision, before.location) != (after.revision, after.location)
    assert before.tokenizer_digest != after.tokenizer_digest
    assert Path(before.location).is_dir()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("acme/absent", "no such model"),
        ("acme/tiny@v9", "no such revision"),
        ("acme/pickled", "pytorch_model.bin"),
        ("acme/custom", "auto_map"),
        ("acme/adapted", "adapter_config.json"),
    ],
)
def test_models_that_cannot_be_used_are_refused_before_their_weights_come(
    name: str, said: str, hub: HubProcess, tmp_path: Path
) -> None:
    for function in ("resolve_model", "outline"):
        assert said in refusal(InvalidInput, hub.ask, function, f"hf:{name}", tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_wikitext_keeps_every_row(hub: HubProcess, repositories: Path, tmp_path: Path) -> None:
    source = "hf:acme/wikitext?subset=wikitext-2-raw-v1&split=test"
    text = hub.text(source, tmp_path)
    lines = Path(text.location).read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == WIKITEXT
    assert text.revision == commit_of(repositories / "datasets" / "acme" / "wikitext")
    assert read_documents(Path(text.location)) == WIKITEXT, "perplexity joins blank rows too"
    assert text.documents == sum(bool(row.strip()) for row in WIKITEXT)


def test_the_first_documents_of_a_c4_file(hub: HubProcess, tmp_path: Path) -> None:
    source = "hf:acme/c4?data_files=en/c4-train.00000-of-00002.json.gz&documents=7"
    text = hub.text(source, tmp_path)
    assert read_documents(Path(text.location)) == C4[:7]
    assert text.documents == 7


def test_fields_and_plain_json_lines(hub: HubProcess, tmp_path: Path) -> None:
    text = hub.text("hf:acme/stories?field=story", tmp_path)
    assert read_documents(Path(text.location)) == [f"story {index}" for index in range(5)]


def test_instructions_are_read_where_they_are_asked_for(hub: HubProcess, tmp_path: Path) -> None:
    text = hub.text("hf:acme/alpaca?rows=chat&documents=1", tmp_path)
    [row] = read_documents(text.location)
    assert isinstance(row, Instruction)
    assert (row.instruction, row.given, row.answer, text.documents) == ("Add", "1, 2", "3", 1)


def test_a_text_is_written_once_and_hashed_every_time(hub: HubProcess, tmp_path: Path) -> None:
    source = "hf:acme/stories?field=story&documents=3"
    first = hub.text(source, tmp_path)
    written = Path(first.location).stat().st_mtime_ns
    again = hub.text(f"hf:acme/stories@{first.revision}?documents=3&field=story", tmp_path)
    assert again.location == first.location
    assert Path(first.location).stat().st_mtime_ns == written
    name = Path(first.location).stem
    assert {path.name for path in (tmp_path / "texts").iterdir()} == {
        f"{name}.jsonl", f"{name}.sha256",
    }  # fmt: skip
    Path(first.location).write_text('{"text": "something else"}\n')
    line = refusal(Refused, hub.text, source, tmp_path)
    assert first.location in line and "delete it" in line
    Path(first.location).unlink()
    assert hub.text(source, tmp_path).sha256 == first.sha256


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", "no such data set"),
        ("c4@v9", "no such revision"),
        ("c4?documents=3", "['en', 'de']"),
        ("c4?subset=fr", "Available: ['en', 'de']"),
        ("c4?subset=en&split=test", "['train']"),
        ("c4?data_files=en/absent.json.gz", "no data file 'en/absent.json.gz'"),
        ("stories?field=tale", "its fields: story"),
        ("stories?rows=chat", "no field 'messages' or 'instruction'; its fields: story"),
        ("alpaca?rows=alpaca", "rows='alpaca' is unknown; give chat"),
        ("alpaca?rows=chat&field=output", "leave field out"),
    ],
)
def test_data_sets_that_cannot_be_used_are_refused(
    name: str, said: str, hub: HubProcess, tmp_path: Path
) -> None:
    assert said in refusal(InvalidInput, hub.text, f"hf:acme/{name}", tmp_path)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_hub_out_of_service_is_an_environment_failure(
    hub: HubProcess, repositories: Path, tmp_path: Path
) -> None:
    (repositories / OUT_OF_SERVICE).touch()
    try:
        assert "503" in refusal(EnvironmentFailure, hub.model, "hf:acme/tiny", tmp_path)
        refusal(EnvironmentFailure, hub.text, "hf:acme/stories?field=story", tmp_path)
    finally:
        (repositories / OUT_OF_SERVICE).unlink()


def test_a_hub_that_does_not_answer_is_an_environment_failure(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    process = HubProcess(f"http://127.0.0.1:{port}", tmp_path / "home")
    try:
        assert str(port) in refusal(EnvironmentFailure, process.model, "hf:acme/tiny", tmp_path)
        refusal(EnvironmentFailure, process.text, "hf:acme/stories", tmp_path)
    finally:
        process.stop()
