"""A format counts only after it was loaded again and gave what its source gives.

The package is opened the way its users will open it, by plain transformers; a per-layer model,
which brings code, by the same code as it is installed with us. Its sizes are held against the
source's manifest, its tensors and logits against the source checkpoint run by the block loop, its
token ids against the dense model's tokenizer, and cached decoding against decoding without a
cache.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch

from bipline.base.errors import InvalidInput, Refused
from bipline.base.machine import free_memory
from bipline.base.progress import note
from bipline.delivery.beside_weights import compare_templates
from bipline.model.block_loop import BlockLoop
from bipline.model.built import longest_window, saved_tensors
from bipline.model.checkpoint import Checkpoint
from bipline.model.families import tensor_shapes
from bipline.model.loading import check_generation, load_model
from bipline.model.memory import SHARE_OF_AVAILABLE, gigabytes
from bipline.model.module_weights import stored_weights
from bipline.model.nested import load_whole
from bipline.model.opening import open_checkpoint, read_config
from bipline.model.per_layer.shipping import code_files
from bipline.model.shapes import ModelShape
from bipline.model.token_ids import token_ids
from bipline.model.tokenizer import load_tokenizer
from bipline.storage.folder import open_folder
from bipline.storage.manifest import Manifest, read_manifest

# Relative to the largest logit: float32 rounding of the same products in another order.
LOGIT_TOLERANCE = 1e-5
PAGE_TOKENS = 256
PROMPT_TOKENS = 32
DECODED_TOKENS = 8
# What tokenizers stumble over: digits, apostrophes, runs of spaces, accents, other scripts,
# symbols beyond 16 bits, tabs and empty lines.
PAGE = """The miller's daughter counted 12,345 sacks at 06:30; "Only 3.5% are wet," she said.

    def weigh(sacks):  # indented, with    four spaces inside
\treturn sum(s.weight for s in sacks) / max(len(sacks), 1)

Zoë paid €20 (¥3 200) for the naïve façade — twice! Isn't that what they'd agreed?
Übermut tut selten gut. Съешь ещё этих мягких булок. 今日は良い天気です。 مرحبا بالعالم 🙂👍🏽
E = mc², 1/2 ≠ ½, x₁ ≤ 10⁻³... [see: https://example.org/a_b?c=d&e=%20]  END
"""


@torch.no_grad()
def verify_hf(package_hf: Path, source: Path, dense: Path) -> None:
    """Load the hf format by transformers and compare it with the model it was made from.

    One that memory does not hold whole is compared block by block instead, and that is said.
    ``source`` is the model directory with its manifest, ``dense`` the model whose tokenizer the
    package must have. Raises Refused, in one line, at the first difference.
    """
    _check_code(package_hf)
    manifest = read_manifest(source)
    checkpoint = open_checkpoint(source)
    needed = checkpoint.parameters * torch.float32.itemsize
    if needed > (free := int(free_memory() * SHARE_OF_AVAILABLE)):
        window = _window(_compared_token_ids(package_hf, dense), checkpoint)
        _compare_in_pieces(package_hf, checkpoint, manifest, window)
        _check_settings(package_hf)
        note(
            f"hf: not loaded whole, which takes {gigabytes(needed)}, free are {gigabytes(free)}; "
            "sizes, tensor digests, token ids and logits block by block agree"
        )
        return
    model = _loaded(package_hf)
    _compare_tensors(model, checkpoint, manifest)
    window = _window(_compared_token_ids(package_hf, dense), checkpoint)
    _compare_logits(checkpoint, window, model(window).logits)
    if checkpoint.nesting:
        _compare_around(package_hf, checkpoint, window)
    _compare_greedy(model, window)
    _check_settings(package_hf)
    note("hf: reloaded by transformers; sizes, tensors, logits, token ids and decoding agree")


def _check_code(package_hf: Path) -> None:
    """Refuse code that is not ours, and a per-layer model without the code it is loaded by."""
    try:
        own = code_files(read_config(package_hf))
    except InvalidInput as error:
        raise Refused(f"hf: {error}") from error
    for name in own:
        if not (package_hf / name).is_file():
            raise Refused(f"hf: {name} is missing, without which nobody can load the package")


def _check_settings(package_hf: Path) -> None:
    try:
        check_generation(open_folder(package_hf))
    except InvalidInput as error:
        raise Refused(f"hf: {error}") from error


def _loaded(package_hf: Path) -> Any:
    try:
        return load_model(package_hf, torch.float32)
    except Exception as error:
        # transformers raises whatever its parts raise; to the package all of it means the same.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refused(f"hf: transformers does not load the package: {reason}") from error


def _declared_shapes(checkpoint: Checkpoint, manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape by the sizes that the source's manifest declares."""
    try:
        fields = ModelShape.model_fields.items()
        told = [n for n, field in fields if field.is_required() or n in manifest.info]
        sizes = {name: manifest.info[name] for name in told}
    except KeyError as error:
        raise Refused(f"{checkpoint.directory}: its manifest does not declare {error}") from None
    shape = ModelShape.model_validate(sizes)
    if len(shape.per_layer) != len(checkpoint.shape.per_layer):
        raise Refused(f"{checkpoint.directory}: its manifest does not declare every block's widths")
    return tensor_shapes(checkpoint.family, checkpoint.config, shape)


def _compare_around(package_hf: Path, checkpoint: Checkpoint, window: torch.Tensor) -> None:
    """The model that the decoder lies in, as users load it: its tensors, and its logits on text."""
    try:
        packaged = open_checkpoint(package_hf)
        logits = load_whole(packaged, torch.float32)(window).logits
    except InvalidInput as error:
        raise Refused(f"hf: {error}") from error
    if packaged.tensor_digest != checkpoint.tensor_digest:
        raise Refused("hf: does not hold the values of the model it was made from")
    _compare_logits(checkpoint, window, logits)


def _compare_in_pieces(
    package_hf: Path, checkpoint: Checkpoint, manifest: Manifest, window: torch.Tensor
) -> None:
    """What :func:`verify_hf` compares, with a block in memory at a time."""
    try:
        packaged = open_checkpoint(package_hf)
    except InvalidInput as error:
        raise Refused(f"hf: {error}") from error
    shapes = {name: packaged.tensor_header(name)[1] for name in packaged.places}
    _compare_shapes(shapes, checkpoint, manifest)
    logits = BlockLoop(packaged).logits(window)
    if packaged.tensor_digest != checkpoint.tensor_digest:
        raise Refused("hf: does not hold the values of the model it was made from")
    _compare_logits(checkpoint, window, logits)


def _compare_tensors(model: Any, checkpoint: Checkpoint, manifest: Manifest) -> None:
    held, places = saved_tensors(model), checkpoint.places
    loaded = stored_weights(places, held)
    shapes = {name: tuple(each.shape) for name, each in loaded.items()}
    _compare_shapes(shapes, checkpoint, manifest)
    for name, parameter in loaded.items():
        if not torch.equal(parameter, checkpoint.tensor(name).to(parameter.dtype)):
            raise Refused(f"hf: {name} does not hold the values of the model it was made from")


def _compare_shapes(
    shapes: dict[str, tuple[int, ...]], checkpoint: Checkpoint, manifest: Manifest
) -> None:
    """The package's tensors by name against what the source's manifest declares."""
    declared = _declared_shapes(checkpoint, manifest)
    if odd := sorted(set(shapes) ^ set(declared)):
        raise Refused(f"hf: tensor {odd[0]} is in the package or in the manifest, not in both")
    for name, shape in declared.items():
        if shapes[name] != shape:
            raise Refused(f"hf: {name} has shape {shapes[name]}, the manifest declares {shape}")
    around = {name: checkpoint.tensor_header(name)[1] for name in checkpoint.beside}
    parameters = sum(prod(shape) for shape in [*shapes.values(), *around.values()])
    if parameters != manifest.info.get("parameters"):
        raise Refused(
            f"hf: the package has {parameters} parameters, "
            f"the manifest declares {manifest.info.get('parameters')}"
        )


def _compared_token_ids(package_hf: Path, dense: Path) -> list[int]:
    """The page in token ids, the same from the package's tokenizer and the dense model's."""
    source = load_tokenizer(dense)
    try:
        packaged = load_tokenizer(package_hf)
    except InvalidInput as error:
        raise Refused(f"hf: {error}") from error
    compare_templates(source, packaged)
    # A page cannot hold every token, so the vocabularies are compared as well.
    if packaged.get_vocab() != source.get_vocab():
        raise Refused("hf: the package's tokenizer has another vocabulary than the dense model's")
    expected, actual = (
        next(token_ids(each, [PAGE], special_tokens=True)) for each in (source, packaged)
    )
    if (place := first_difference(actual, expected)) is not None:
        raise Refused(
            "hf: the package's tokenizer gives other ids than the dense model's, "
            f"from token {place} of a test page"
        )
    return expected


def first_difference(one: list[int], other: list[int]) -> int | None:
    """The first place where two lists of token ids differ; None where they are the same."""
    if one == other:
        return None
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _window(token_ids: list[int], checkpoint: Checkpoint) -> torch.Tensor:
    """As much of the page, ``[1, tokens]``, as the model attends to at once."""
    limits = (checkpoint.config.get(n) for n in ("max_position_embeddings", "sliding_window"))
    longest = min([PAGE_TOKENS, *(int(limit) for limit in limits if limit)])
    if not token_ids:
        raise Refused("hf: the tokenizer gives no tokens for a page of text")
    if max(token_ids) >= checkpoint.shape.vocab_size:
        raise Refused(
            f"hf: the tokenizer gives id {max(token_ids)}, above the model's vocabulary of "
            f"{checkpoint.shape.vocab_size}"
        )
    return torch.tensor([token_ids[:longest]])


def _compare_logits(checkpoint: Checkpoint, window: torch.Tensor, actual: torch.Tensor) -> None:
    expected = BlockLoop(checkpoint).logits(window)
    difference = float((actual - expected).abs().max() / expected.abs().max())
    # Written so that a NaN refuses too.
    if not difference <= LOGIT_TOLERANCE:
        raise Refused(
            f"hf: the logits differ from the source's by {difference:.1e} of the largest "
            f"(at most {LOGIT_TOLERANCE:.0e})"
        )


@torch.no_grad()
def _compare_greedy(model: Any, window: torch.Tensor) -> None:
    """Greedy decoding with and without the KV cache must give the same tokens."""
    room = longest_window(model.config) - DECODED_TOKENS
    prompt = window[:, : max(1, min(PROMPT_TOKENS, room))]
    cached, plain = (decoded(model, prompt, use_cache) for use_cache in (True, False))
    if len(cached) != len(plain) or len(plain) != prompt.shape[1] + DECODED_TOKENS:
        raise Refused(f"hf: decoding {DECODED_TOKENS} tokens gave another number of them")
    for place, (first, second) in enumerate(zip(cached, plain, strict=True)):
        if first == second:
            continue
        if _tied(model, plain[:place], first, second):
            return  # Two tokens equally likely: either continuation is right from here on.
        raise Refused(f"hf: decoding with the KV cache gives other tokens from {place} on")


def decoded(
    model: Any, prompt: torch.Tensor, use_cache: bool, tokens: int = DECODED_TOKENS
) -> list[int]:
    """A prompt ``[1, tokens]`` and what greedily follows, in token ids, by these settings alone.

    Without an end of text every run is equally long.
    """
    from transformers import GenerationConfig

    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=use_cache,
        max_new_tokens=tokens,
        pad_token_id=0,
    )
    # What a call leaves open is filled from here, be it of the file or of the model's class.
    model.generation_config = GenerationConfig()
    mask = torch.ones_like(prompt)
    found = model.generate(prompt, attention_mask=mask, generation_config=settings)
    return [int(token) for token in found[0]]


def _tied(model: Any, prefix: list[int], first: int, second: int) -> bool:
    """Whether two next tokens differ by no more than rounding."""
    logits = model(torch.tensor([prefix])).logits[0, -1]
    gap = (logits[first] - logits[second]).abs()
    return bool(gap <= LOGIT_TOLERANCE * logits.abs().max())
