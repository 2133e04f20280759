"""The configurations of the paper's table are readable, and ask for what the table is of."""

from __future__ import annotations

from pathlib import Path

import pytest

from bipline.base.bundled import bundled
from bipline.settings.compress import CompressSettings
from bipline.settings.loading import load

FILES = sorted(bundled("configs/reproduce").glob("*.yaml"))
PAGE = bundled("configs/reproduce/README.md").read_text(encoding="utf-8")


def test_every_model_and_ratio_is_there() -> None:
    assert {path.stem for path in FILES} == {
        f"llm-bip-{model}-{share}"
        for model in ("llama-7b", "vicuna-7b", "llama-13b")
        for share in (20, 50)
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("recover", [False, True])
def test_a_configuration_follows_the_protocol(path: Path, recover: bool) -> None:
    sets = (f"recover.enabled={str(recover).lower()}", "model=somewhere")
    settings = load(CompressSettings, path, sets)
    assert settings.model == "somewhere" and settings.recover.enabled == recover
    assert settings.score.criterion == "llm-bip"
    assert f"{settings.allocate.ratio:.0%}".rstrip("%") == path.stem.rpartition("-")[2]
    assert settings.allocate.ratio_of == "total"
    assert settings.evaluate.protocol.seqlen == 128
    assert len(settings.evaluate.tasks) == 7
    assert settings.recover.recipe.rank == 8


def test_no_published_figure_stands_beside_our_method() -> None:
    [line] = [line for line in PAGE.splitlines() if "LLM-BIP |" in line]
    assert not any(character.isdigit() for character in line.partition("LLM-BIP")[2])
