"""One folder is one model: what is opened holds the tensors that plain transformers loads.

Every variant of a folder is either refused in one line, or opened with exactly the tensors that
``AutoModelForCausalLM.from_pretrained`` finds there by itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from bipline.base.errors import InvalidInput, Refused
from bipline.compression.prune import prune
from bipline.model import opening
from bipline.model.block_loop import BlockLoop
from bipline.model.loading import hold_to_checkpoint, load_model
from bipline.model.opening import INDEX_FILE, SINGLE_FILE, open_checkpoint
from bipline.quality.evaluate import Running, evaluate
from bipline.settings.protocol import Protocol
from tests.per_layer import kept, plan_of
from tests.tiny import tiny_model, token_windows

Change = Callable[[Path], object]
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("view") / "tied", "llama-gqa", dtype=torch.float32)


@pytest.fixture
def model(tied: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tied, tmp_path / "model"))


def with_head(change: Callable[[Tensor], Tensor]) -> Change:
    """An output matrix beside the embedding that it is tied to."""

    def apply(model: Path) -> None:
        tensors = load_file(model / SINGLE_FILE)
        save_file(
            {**tensors, HEAD: change(tensors[EMBEDDING].clone()).contiguous()}, model / SINGLE_FILE
        )

    return apply


def last_one_moved(embedding: Tensor) -> Tensor:
    embedding[-1, -1] += 0.001
    return embedding


def without_the_embedding(model: Path) -> None:
    tensors = load_file(model / SINGLE_FILE)
    tensors[HEAD] = tensors.pop(EMBEDDING)
    save_file(tensors, model / SINGLE_FILE)


def shifted(source: Path, target: Path) -> None:
    """The same names, other values."""
    save_file({name: held + 1 for name, held in load_file(source).items()}, target)


def beside(name: str) -> Change:
    """Other weights of the same model under another name."""

    def apply(model: Path) -> None:
        (model / name).parent.mkdir(exist_ok=True)
        shifted(model / SINGLE_FILE, model / name)

    return apply


def file(name: str, content: str) -> Change:
    return lambda model: (model / name).write_text(content)


def in_config(**changes: object) -> Change:
    def apply(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return apply


def index(model: Path, shards: dict[str, list[str]]) -> None:
    mapped = {name: shard for shard, names in shards.items() for name in names}
    (model / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": mapped}))


def sharded(keep_single: bool = False, differ: bool = False, hidden: str = "") -> Change:
    """Two shards and their index; one tensor may be hidden from the index."""

    def apply(model: Path) -> None:
        tensors = load_file(model / SINGLE_FILE)
        names = sorted(tensors)
        shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for shard, held in shards.items():
            save_file({n: tensors[n] + (1 if differ else 0) for n in held}, model / shard)
        index(model, {s: [n for n in held if n != hidden] for s, held in shards.items()})
        if not keep_single:
            (model / SINGLE_FILE).unlink()

    return apply


def index_of_the_single_file(model: Path) -> None:
    index(model, {SINGLE_FILE: sorted(load_file(model / SINGLE_FILE))})


def moved_to(name: str, **config: object) -> Change:
    def apply(model: Path) -> None:
        (model / name).parent.mkdir(exist_ok=True)
        (model / SINGLE_FILE).rename(model / name)
        in_config(**config)(model)

    return apply


def file_of_index(change: Callable[[dict[str, Any]], object]) -> Change:
    """What the index says, changed."""

    def apply(model: Path) -> None:
        held = json.loads((model / INDEX_FILE).read_text())
        change(held)
        (model / INDEX_FILE).write_text(json.dumps(held))

    return apply


def both(*changes: Change) -> Change:
    return lambda model: [change(model) for change in changes]


ADAPTER = json.dumps({"peft_type": "LORA", "r": 2, "base_model_name_or_path": "x"})
SHARD = "shard-00001-model-00001-of-00001.safetensors"
REFUSED: dict[str, tuple[Change, str]] = {
    "adapter": (file("adapter_config.json", ADAPTER), "adapter_config.json .*merge"),
    "adapter that is no JSON": (file("adapter_config.json", "{"), "adapter_config.json"),
    "adapter with its weights": (
        both(file("adapter_config.json", ADAPTER), beside("adapter_model.safetensors")),
        "adapter_config.json",
    ),
    "shards beside a single file": (sharded(keep_single=True), "lies beside model.safetensors"),
    "other shards beside it": (sharded(keep_single=True, differ=True), "lies beside"),
    "broken index beside it": (file(INDEX_FILE, "{"), "not JSON"),
    "index without a map": (file(INDEX_FILE, "{}"), "no weight_map"),
    "index that maps to numbers": (file(INDEX_FILE, '{"weight_map": {"x": 1}}'), "no weight_map"),
    "index without metadata": (
        both(sharded(), file_of_index(lambda held: held.pop("metadata"))),
        "metadata is no object",
    ),
    "index with null for metadata": (
        both(sharded(), file_of_index(lambda held: held.update(metadata=None))),
        "metadata is no object",
    ),
    "index with a list for metadata": (
        both(sharded(), file_of_index(lambda held: held.update(metadata=[]))),
        "metadata is no object",
    ),
    "index that says it twice": (
        file(INDEX_FILE, '{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}'),
        "'x' stands twice",
    ),
    "shard of a training run": (beside(SHARD), SHARD),
    "weights named in the config": (
        both(beside("other.safetensors"), in_config(transformers_weights="other.safetensors")),
        "transformers_weights 'other.safetensors'",
    ),
    "its own weights named there": (
        in_config(transformers_weights=SINGLE_FILE),
        "transformers_weights",
    ),
    "only under that name": (
        moved_to("other.safetensors", transformers_weights="other.safetensors"),
        "transformers_weights",
    ),
    "only a variant": (moved_to("model.fp16.safetensors"), "no model.safetensors"),
    "only consolidated": (moved_to("consolidated.safetensors"), "no model.safetensors"),
    "only in a subfolder": (moved_to("original/model.safetensors"), "no model.safetensors"),
    "head of another shape": (with_head(lambda e: e[:-1]), r"lm_head.weight has shape \(95, 32\)"),
    "head in integers": (with_head(lambda e: e.to(torch.int8)), "lm_head.weight is I8"),
    "head alone": (without_the_embedding, f"{EMBEDDING} is missing"),
    "quantised": (in_config(quantization_config={"quant_method": "awq"}), "quantised source"),
    "settings of single blocks": (
        in_config(per_layer_config={"0": {"intermediate_size": 8}}),
        "per_layer_config",
    ),
    "layers replaced": (in_config(fusion_config={"x": True}), "fusion_config"),
}
OPENED: dict[str, Change] = {
    "as it was saved": lambda model: None,
    "equal head": with_head(lambda e: e),
    "differing head": with_head(lambda e: e.flip(0)),
    "head that differs at the end": with_head(last_one_moved),
    "head in another dtype": with_head(lambda e: e.double()),
    "head rounded": with_head(lambda e: e.bfloat16()),
    "sharded": sharded(),
    "sharded with an output hidden from the index": sharded(hidden=NORM),
    "index of the single file": index_of_the_single_file,
    "pickle beside": file("pytorch_model.bin", "junk"),
    "pickle's index beside": file("pytorch_model.bin.index.json", "{}"),
    "consolidated beside": beside("consolidated.safetensors"),
    "variant beside": beside("model.fp16.safetensors"),
    "subfolder beside": beside("original/model.safetensors"),
    "adapter's weights alone": beside("adapter_model.safetensors"),
    "adapter in a subfolder": both(
        lambda model: (model / "run").mkdir(), file("run/adapter_config.json", ADAPTER)
    ),
    "other frameworks beside": both(file("tf_model.h5", "x"), file("flax_model.msgpack", "x")),
    "keys that are null": in_config(transformers_weights=None, quantization_config=None),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_of_two_models_is_refused(model: Path, name: str) -> None:
    change, message = REFUSED[name]
    change(model)
    with pytest.raises(InvalidInput, match=message) as caught:
        open_checkpoint(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OPENED)
def test_what_is_opened_is_what_transformers_loads(model: Path, name: str) -> None:
    OPENED[name](model)
    checkpoint = open_checkpoint(model)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    hold_to_checkpoint(plain, checkpoint)
    load_model(checkpoint, torch.float32)
    assert checkpoint.output_name == (HEAD if HEAD in checkpoint.tensors else EMBEDDING)
    windows = token_windows(windows=2, seqlen=12)
    with torch.no_grad():
        expected = plain(windows).logits
    torch.testing.assert_close(
        BlockLoop(checkpoint).logits(windows), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("untied", [True, False])
def test_a_differing_head_is_kept_untied_in_what_is_written(
    model: Path, tmp_path: Path, untied: bool
) -> None:
    with_head(last_one_moved if untied else lambda e: e)(model)
    checkpoint = open_checkpoint(model)
    whole = kept(list(range(4)), list(range(40)))
    prune(checkpoint, plan_of(checkpoint, [whole, kept([0, 2], [1, 5, 9])]), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    written = load_file(tmp_path / "out" / SINGLE_FILE)
    assert config["tie_word_embeddings"] is not untied
    assert (HEAD in written) is untied
    if untied:
        assert written[HEAD].equal(load_file(model / SINGLE_FILE)[HEAD])


def test_the_untied_head_is_told_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(opening, "note", told.append)
    with_head(last_one_moved)(model)
    for _ in range(3):
        open_checkpoint(model)
    assert [line for line in told if "tie_word_embeddings" in line] == told
    assert len(told) == 1


def test_what_transformers_alone_refuses_is_one_line(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise KeyError("metadata")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    with pytest.raises(InvalidInput, match="transformers cannot load it: KeyError") as caught:
        load_model(model, torch.float32)
    assert "\n" not in str(caught.value)


# -- whoever loads a model whole is held to the checkpoint ----------------------------------------


def flipped(built: Any) -> None:
    held = dict(built.named_parameters())[NORM]
    bits = held.data.view(torch.int32)
    bits[0] ^= 1


def zero_with_a_sign(built: Any) -> None:
    held = dict(built.named_parameters())[NORM]
    held.data[0] = -0.0


MEDDLING: dict[str, tuple[Callable[[Any], object], str]] = {
    "one bit": (flipped, f"other values of {NORM}"),
    "a sign of zero": (zero_with_a_sign, f"other values of {NORM}"),
    "a tensor less": (lambda built: delattr(built.model, "norm"), f"{NORM} is found by one"),
    "a tensor more": (
        lambda built: setattr(built.model, "extra", torch.nn.Linear(2, 2)),
        "model.extra.bias is found by one",
    ),
    "an untied head": (
        lambda built: setattr(
            built.lm_head, "weight", torch.nn.Parameter(built.lm_head.weight.detach().clone())
        ),
        f"{HEAD} is found by one",
    ),
    "another width": (
        lambda built: setattr(built.model, "norm", type(built.model.norm)(16)),
        f"other values of {NORM}",
    ),
}


@pytest.mark.parametrize("meddling", MEDDLING)
def test_a_model_that_is_not_the_checkpoints_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, meddling: str
) -> None:
    change, message = MEDDLING[meddling]
    tensors = load_file(model / SINGLE_FILE)
    tensors[NORM][0] = 0
    save_file(tensors, model / SINGLE_FILE)
    really = AutoModelForCausalLM.from_pretrained

    def meddled(*given: Any, **options: Any) -> Any:
        built, report = really(*given, **options)
        change(built)
        return built, report

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", meddled)
    with pytest.raises(Refused, match=message) as caught:
        load_model(model, torch.float32)
    assert "\n" not in str(caught.value)
    protocol = Protocol(speed=True, speed_prompt_tokens=4, speed_decoded_tokens=2)
    with pytest.raises(Refused, match=message):
        evaluate(model, protocol, {}, {}, Running())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_model_in_any_dtype_is_the_checkpoints(family_model: Path, dtype: torch.dtype) -> None:
    load_model(family_model, dtype)
