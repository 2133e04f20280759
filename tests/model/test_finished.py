"""A model that bipline finished is held to its manifest by whoever opens it for work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bipline.base.errors import BiplineError, InvalidInput
from bipline.face import api
from bipline.model.finished import hold_to_manifest
from bipline.storage.directory import atomic_directory, copy_listed
from bipline.storage.folder import LocalFolder
from bipline.storage.manifest import MANIFEST_NAME, read_manifest
from tests.tiny import tiny_model

TEXT = "It rained. Nobody minded, for it had been a dry year.\n" * 40


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model, and a text beside it."""
    folder = tmp_path_factory.mktemp("finished")
    tiny_model(folder / "dense", "llama-gqa")
    (folder / "text.txt").write_text(TEXT)
    api.prune(
        folder / "dense", folder / "pruned", ratio=0.2, criterion="magnitude",
        compensation="none", state=folder / "state",
    )  # fmt: skip
    return folder / "pruned"


@pytest.fixture
def model(pruned: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pruned, tmp_path / "model"))


def flip(name: str, place: int = -1) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        content = bytearray((model / name).read_bytes())
        content[place] ^= 1
        (model / name).write_bytes(content)

    return damage


def edit_config(model: Path) -> None:
    value = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**value, "rms_norm_eps": 0.5}))


def spoil_manifest(text: str) -> Callable[[Path], None]:
    return lambda model: (model / MANIFEST_NAME).write_text(text) and None


def add(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).write_text("{}") and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def rename_in_manifest(model: Path) -> None:
    path = model / MANIFEST_NAME
    path.write_text(path.read_text().replace("tokenizer.json", "tokenizer.jsom"))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "weights": flip("model.safetensors"),
    "config": edit_config,
    "tokenizer": flip("tokenizer.json"),
    "plan": flip("pruning_plan.json"),
    "generation settings": add("generation_config.json"),
    "a second tokenizer": add("vocab.json"),
    "a template": add("chat_template.jinja"),
    "a licence": add("LICENSE"),
    "no tokenizer settings": remove("tokenizer_config.json"),
    "no plan": remove("pruning_plan.json"),
    "an empty manifest": spoil_manifest(""),
    "another manifest": spoil_manifest("{}"),
    "a manifest of html": spoil_manifest("<html>"),
    "another name": rename_in_manifest,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found_by_every_command(
    damage: Callable[[Path], None], model: Path, pruned: Path, tmp_path: Path
) -> None:
    damage(model)
    text, state = pruned.parent / "text.txt", tmp_path / "state"
    doors: dict[str, Callable[[], object]] = {
        "evaluate": lambda: api.evaluate(model, texts={"t": text}, seqlen=16, state=state),
        "baseline": lambda: api.evaluate(
            pruned, baseline=model, texts={"t": text}, seqlen=16, state=state
        ),
        "prune": lambda: api.prune(
            model, tmp_path / "out", ratio=0.2, criterion="magnitude", state=state
        ),
        "compare": lambda: api.compare(
            [str(model)], tmp_path / "compared", texts={"t": text}, calibration=[text],
            criteria=["magnitude"], ratios=[0.2], state=state, evaluation_seqlen=16,
            samples=4, seqlen=16,
        ),
    }  # fmt: skip
    for name, door in doors.items():
        with pytest.raises(BiplineError) as caught:
            door()
        assert "\n" not in str(caught.value), name
        assert str(model) in str(caught.value), name
    assert not (tmp_path / "out").exists()


def test_a_whole_one_is_measured_and_pruned_again(model: Path, tmp_path: Path) -> None:
    (model / "notes.txt").write_text("mine")
    (model / "figures").mkdir()
    hold_to_manifest(LocalFolder(model))
    api.prune(model, tmp_path / "out", ratio=0.2, criterion="magnitude", state=tmp_path / "state")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', "# a manifest", '{"files": 3}'])
def test_another_projects_manifest_is_no_business_of_ours(
    text: str, pruned: Path, tmp_path: Path
) -> None:
    dense = Path(shutil.copytree(pruned.parent / "dense", tmp_path / "dense"))
    (dense / MANIFEST_NAME).write_text(text)
    hold_to_manifest(LocalFolder(dense))


def test_the_model_in_a_package_is_held_to_the_packages_manifest(
    pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    with atomic_directory(package, "package") as writer:
        for name, entry in read_manifest(pruned).files.items():
            copy_listed(pruned / name, writer, f"hf/{name}", entry)
        (writer.path / "README.md").write_text("a card")
    hold_to_manifest(LocalFolder(package / "hf"))
    (package / "README.md").write_text("not part of the model")
    hold_to_manifest(LocalFolder(package / "hf"))
    flip("model.safetensors")(package / "hf")
    monkeypatch.chdir(package / "hf")
    for place in (package / "hf", Path(), Path("../hf")):
        with pytest.raises(BiplineError, match=r"model\.safetensors does not match"):
            hold_to_manifest(LocalFolder(place))
    (package / MANIFEST_NAME).write_text('{"kind": "package", "files": {}}')
    with pytest.raises(InvalidInput, match="does not follow"):
        hold_to_manifest(LocalFolder(package / "hf"))
