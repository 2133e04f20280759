"""A model measured in parts: what they come to is, to the byte, what one measurement gives."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from bipline.base.errors import Refused
from bipline.quality.evaluate import Running, evaluate, measuring
from bipline.settings.protocol import Protocol
from bipline.values.partial_evaluation import PartialEvaluation
from tests.pipeline.conftest import write_text
from tests.quality.asking import written
from tests.quality.test_zero_shot_fit import GENERATED, limited


def choices(draw: random.Random, length: int) -> dict[str, Any]:
    """A row whose choices are of unlike lengths, or of one token each, which share a batch."""
    words = ["".join(draw.choices("abcdef ", k=draw.randint(1, length))) for _ in range(3)]
    return {"query": words[0] + "?", "choices": [f"x{word}y" for word in words], "gold": 1}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, Path]]:
    folder, draw = tmp_path_factory.mktemp("parts"), random.Random(0)
    texts = {name: write_text(folder / f"{name}.txt", ord(name), 60) for name in "abc"}
    tasks = {
        "long": written(folder / "long.jsonl", [choices(draw, 60) for _ in range(11)]),
        "short": written(
            folder / "short.jsonl",
            [{"query": f"{n % 5}:", "choices": ["a", "b"], "gold": 0} for n in range(8)],
        ),
    }
    return texts, tasks


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("batch", "count"), [(1, 2), (3, 2), (3, 5), (16, 3), (64, 4)])
def test_the_record_is_that_of_one_measurement(
    llama: Path,
    asked: tuple[dict[str, Path], dict[str, Path]],
    monkeypatch: pytest.MonkeyPatch,
    streamed: bool,
    batch: int,
    count: int,
) -> None:
    protocol = Protocol(seqlen=16, batch_size=batch)
    if streamed:
        limited(monkeypatch, 0)
    whole = evaluate(llama, protocol, *asked)
    parts = [measuring(llama, protocol, *asked).part(Running(), (i, count)) for i in range(count)]
    told = [PartialEvaluation.model_validate_json(part.model_dump_json()) for part in parts]
    joined = measuring(llama, protocol, *asked).record(told)
    assert joined.model_dump_json() == whole.model_dump_json()
    shares = [len(part.answers.chosen) for part in parts]
    assert sum(shares) == 3 * 11 + 2 * 8
    if batch == 1 and not streamed:
        assert min(shares) > max(shares) / 2, "each has a share"


def test_weights_that_changed_between_the_parts_are_refused(
    llama: Path, asked: tuple[dict[str, Path], dict[str, Path]]
) -> None:
    model = measuring(llama, Protocol(seqlen=16), asked[0], {})
    one = model.part(Running(), (0, 2))
    other = model.part(Running(), (1, 2)).model_copy(update={"tensor_digest": "0" * 64})
    with pytest.raises(Refused, match="its weights changed while its parts were measured"):
        model.record([one, other])


def test_unlike_machines_are_both_told(
    llama: Path, asked: tuple[dict[str, Path], dict[str, Path]]
) -> None:
    model = measuring(llama, Protocol(seqlen=16), asked[0], {})
    parts = [model.part(Running(), (index, 3)) for index in range(3)]
    elsewhere = {**parts[1].environment, "processor": "another"}
    parts[1] = parts[1].model_copy(update={"environment": elsewhere})
    told = model.record(parts).environment
    assert told["processor"] == f"{parts[0].environment['processor']}; another"
    assert told["threads"] == parts[0].environment["threads"]


@pytest.mark.slow
def test_answers_that_are_written_have_a_part_too(reference: Path, tmp_path: Path) -> None:
    tasks = {
        "gsm8k": written(tmp_path / "gsm8k.jsonl", [GENERATED]),
        "cloze": written(tmp_path / "c.jsonl", [choices(random.Random(1), 9) for _ in range(4)]),
    }
    protocol = Protocol(batch_size=2)
    whole = evaluate(reference, protocol, {}, tasks)
    parts = [measuring(reference, protocol, {}, tasks).part(Running(), (i, 2)) for i in (0, 1)]
    assert [list(part.answers.written) for part in parts] == [["gsm8k"], []]
    joined = measuring(reference, protocol, {}, tasks).record(parts)
    assert joined.model_dump_json() == whole.model_dump_json()
