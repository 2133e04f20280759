"""Resolve: exact revisions, digests that follow the content alone, refusals in one line.

The hub cases run in a process of their own, because the libraries read HF_ENDPOINT when they
are imported; one such process answers all of them, over its standard input and output.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bipline.artifacts import errors
from bipline.artifacts.documents import read_documents
from bipline.artifacts.errors import EnvironmentFailure, InvalidInput
from bipline.artifacts.resolution import (
    Resolution,
    ResolvedModel,
    ResolvedText,
    read_resolution,
)
from bipline.model.resolve import resolve, resolve_model, resolve_task, resolve_text
from tests.hub_stand_in import OUT_OF_SERVICE, commit_of, hub_stand_in

CHECKOUT = Path(__file__).parents[2]
WIKITEXT = ["", " = Robert = \n", "Robert is an actor .\n", ""]
C4 = [f"page {index} says hello" for index in range(40)]
SPECIAL_FILES = {"tokenizer.json", "model.safetensors", "config.json", "chat_template.jinja"}
WORKER = """
import json, os, sys
from pathlib import Path
from bipline.artifacts.errors import BiplineError
from bipline.model import resolve
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    function, arguments = json.loads(line)
    try:
        answer = {"value": getattr(resolve, function)(*arguments[:-1], Path(arguments[-1]))}
        answer["value"] = answer["value"].model_dump()
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


def refusal(expected: type[Exception], call: Callable[..., Any], *arguments: Any) -> str:
    """The one line a call is refused with."""
    with pytest.raises(expected) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA of 64 words and two blocks with its tokenizer, as transformers saves it."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    words = {f"word{index}": index for index in range(64)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="word0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny model\n")
    return directory


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


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


# Models on disk


def test_a_moved_directory_keeps_the_digest(model: Path, tmp_path: Path) -> None:
    before = resolve(str(model), {}, {}, tmp_path)
    moved = model.rename(tmp_path / "elsewhere")
    after = resolve(str(moved), {}, {}, tmp_path)
    assert before.model.location != after.model.location
    assert before.digest == after.digest


@pytest.mark.parametrize("name", sorted(SPECIAL_FILES))
def test_one_changed_byte_behind_the_same_name_is_seen(
    name: str, model: Path, tmp_path: Path
) -> None:
    before = resolve(str(model), {}, {}, tmp_path)
    path = model / name
    data = bytearray(path.read_bytes())
    # The last byte of the weights is a weight; a space behind JSON or a template is harmless.
    data = data[:-1] + bytes([data[-1] ^ 1]) if name.endswith(".safetensors") else data + b" "
    path.write_bytes(data)
    after = resolve(str(model), {}, {}, tmp_path)
    assert before.digest != after.digest
    tokenizer = name in ("tokenizer.json", "chat_template.jinja")
    assert (before.model.tokenizer_digest != after.model.tokenizer_digest) == tokenizer
    weights = name == "model.safetensors"
    assert (before.model.tensor_digest != after.model.tensor_digest) == weights


def test_files_in_subfolders_and_caches_are_not_part_of_the_model(
    model: Path, tmp_path: Path
) -> None:
    before = resolve_model(str(model), tmp_path)
    (model / ".cache" / "huggingface").mkdir(parents=True)
    (model / ".cache" / "huggingface" / "tokenizer.json.metadata").write_text("a time")
    (model / "notes.md").write_text("a thought")
    assert resolve_model(str(model), tmp_path) == before
    assert set(before.files) >= SPECIAL_FILES


def test_links_are_followed_as_the_hub_cache_is_made_of_them(model: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in model.iterdir():
        (linked / path.name).symlink_to(path)
    files = [resolve_model(str(place), tmp_path).files for place in (model, linked)]
    assert files[0] == files[1]


def test_the_licence_file_speaks_before_the_front_matter(model: Path, tmp_path: Path) -> None:
    assert resolve_model(str(model), tmp_path).licence == "apache-2.0"
    (model / "LICENSE.txt").write_text("\n  Tiny Community License\n\nterms\n")
    assert resolve_model(str(model), tmp_path).licence == "Tiny Community License"


@pytest.mark.parametrize("readme", ["# no front matter", "---\n: [\n---\n", "---\n- a\n---\n"])
def test_no_declared_licence_is_none(readme: str, model: Path, tmp_path: Path) -> None:
    (model / "README.md").write_text(readme)
    assert resolve_model(str(model), tmp_path).licence is None


def test_a_model_without_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert "tokenizer" in refusal(InvalidInput, resolve_model, str(model), tmp_path)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    line = refusal(InvalidInput, resolve_model, str(tmp_path / "absent"), tmp_path)
    assert "absent" in line


@pytest.mark.parametrize("source", ["s3://bucket/model", "models:/name@champion"])
def test_places_not_served_yet_say_what_to_give(source: str, tmp_path: Path) -> None:
    line = refusal(InvalidInput, resolve_model, source, tmp_path)
    expected = "not served by this version; give a directory or hf:org/name@revision"
    assert line == f"{source}: {expected}"


@pytest.mark.parametrize("source", ["hf:", "hf:a/b/c", "hf:../up", "hf:acme/tiny@", "hf:a/b?x=1"])
def test_what_is_not_a_hub_model_is_refused_without_asking(source: str, tmp_path: Path) -> None:
    assert "hf:org/name@revision" in refusal(InvalidInput, resolve_model, source, tmp_path)


# Texts and tasks on disk


@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        ("a.txt", "one document\n", 1),
        ("b.txt", "one\n<|endoftext|>\ntwo\n", 2),
        ("c.jsonl", '{"text": "one"}\n{"text": " "}\n{"text": "three"}\n', 2),
    ],
)
def test_texts_on_disk_are_read_as_documents(
    name: str, content: str, documents: int, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)
    resolved = resolve_text(str(path), tmp_path)
    assert (resolved.documents, resolved.location) == (documents, str(path))


@pytest.mark.parametrize("name", ["absent.txt", "table.parquet", "s3://bucket/a.txt"])
def test_texts_that_cannot_be_read_are_refused(name: str, tmp_path: Path) -> None:
    assert name.rsplit("/")[-1] in refusal(InvalidInput, resolve_text, name, tmp_path)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("spilt=test", "did you mean 'split'?"),
        ("document=3", "did you mean 'documents'?"),
        ("documents=0", "positive"),
        ("documents=ten", "positive"),
        ("split=", "no value"),
        ("data_files=../../secret.txt", "inside the repository"),
        ("data_files=http://elsewhere/a.json", "inside the repository"),
    ],
)
def test_queries_are_checked_before_anything_is_asked(
    query: str, said: str, tmp_path: Path
) -> None:
    assert said in refusal(InvalidInput, resolve_text, f"hf:acme/c4?{query}", tmp_path)


ROWS = [
    {"query": "the sky is", "choices": ["blue", "loud"], "gold": 0},
    {"options": ["Anna", "Berta"], "continuation": "was late.", "gold": 1},
]


@pytest.mark.parametrize("row", ROWS)
def test_tasks_of_both_kinds_are_counted(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text(f"{json.dumps(row)}\n\n{json.dumps(row)}")
    assert resolve_task(str(path)).rows == 2


@pytest.mark.parametrize(
    "line",
    [
        "",
        "not json",
        "[]",
        json.dumps({**ROWS[0], "gold": 2}),
        json.dumps({**ROWS[0], "gold": True}),
        json.dumps({**ROWS[0], "choices": "blue"}),
        json.dumps({"query": "the sky is", "gold": 0}),
    ],
)
def test_a_task_without_usable_rows_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text(line)
    assert "first line" in refusal(InvalidInput, resolve_task, str(path))


@pytest.mark.parametrize("source", ["absent.jsonl", "hf:acme/task", "s3://bucket/task.jsonl"])
def test_tasks_from_elsewhere_are_refused(source: str) -> None:
    assert source in refusal(InvalidInput, resolve_task, source)


def test_a_resolution_is_the_same_after_writing_and_reading(model: Path, tmp_path: Path) -> None:
    text, task = tmp_path / "a.txt", tmp_path / "task.jsonl"
    text.write_text("one document")
    task.write_text(json.dumps(ROWS[0]))
    resolution = resolve(str(model), {"a": str(text)}, {"cloze": str(task)}, tmp_path)
    path = tmp_path / "resolution.json"
    path.write_text(resolution.to_json())
    assert read_resolution(path) == resolution
    assert read_resolution(path).digest == resolution.digest
    path.write_text(resolution.to_json().replace('"schema_version": 1', '"schema_version": 2'))
    assert "schema_version" in refusal(InvalidInput, read_resolution, path)
    refusal(InvalidInput, read_resolution, tmp_path / "absent.json")


def test_a_changed_text_changes_the_digest(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    digests = set()
    for content in ("one document", "One document"):
        text.write_text(content)
        digests.add(resolve(str(model), {"a": str(text)}, {}, tmp_path).digest)
    assert len(digests) == 2


# The hub


def test_a_hub_model_is_the_local_one_at_an_exact_commit(
    hub: HubProcess, repositories: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    remote = hub.model("hf:acme/tiny", tmp_path)
    local = resolve_model(str(tiny_llama), tmp_path)
    assert remote.revision == commit_of(repositories / "models" / "acme" / "tiny")
    assert remote.tensor_digest == local.tensor_digest
    assert Resolution(model=remote).digest == Resolution(model=local).digest
    assert hub.model(f"hf:acme/tiny@{remote.revision}", tmp_path).files == remote.files


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
    ],
)
def test_models_that_cannot_be_used_are_refused_before_their_weights_come(
    name: str, said: str, hub: HubProcess, tmp_path: Path
) -> None:
    assert said in refusal(InvalidInput, hub.model, f"hf:{name}", tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_wikitext_keeps_every_row(hub: HubProcess, repositories: Path, tmp_path: Path) -> None:
    source = "hf:acme/wikitext?subset=wikitext-2-raw-v1&split=test"
    text = hub.text(source, tmp_path)
    lines = Path(text.location).read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == WIKITEXT
    assert text.revision == commit_of(repositories / "datasets" / "acme" / "wikitext")
    assert text.documents == len(read_documents(Path(text.location)))


def test_the_first_documents_of_a_c4_file(hub: HubProcess, tmp_path: Path) -> None:
    source = "hf:acme/c4?data_files=en/c4-train.00000-of-00002.json.gz&documents=7"
    text = hub.text(source, tmp_path)
    assert read_documents(Path(text.location)) == C4[:7]
    assert text.documents == 7


def test_fields_and_plain_json_lines(hub: HubProcess, tmp_path: Path) -> None:
    text = hub.text("hf:acme/stories?field=story", tmp_path)
    assert read_documents(Path(text.location)) == [f"story {index}" for index in range(5)]


def test_a_text_is_written_once_and_hashed_every_time(hub: HubProcess, tmp_path: Path) -> None:
    source = "hf:acme/stories?field=story&documents=3"
    first = hub.text(source, tmp_path)
    written = Path(first.location).stat().st_mtime_ns
    again = hub.text(f"hf:acme/stories@{first.revision}?documents=3&field=story", tmp_path)
    assert again.location == first.location
    assert Path(first.location).stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "texts").iterdir()] == [Path(first.location).name]
    Path(first.location).write_text('{"text": "something else"}\n')
    assert hub.text(source, tmp_path).sha256 != first.sha256


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
