"""Models whose blocks differ in width against the dense model with the same groups silent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bipline.compression.prune import prune
from bipline.model.block_loop import BlockLoop
from bipline.model.gradients import block_gradients
from bipline.model.loading import load_model
from bipline.model.opening import open_checkpoint
from bipline.model.resolve import resolve_model
from bipline.values.plan import BlockPlan
from tests.per_layer import LAYERS, drawn_blocks, kept, masked_model, mixed_blocks, plan_of
from tests.tiny import FAMILY_CASES, tiny_model, token_windows

Load = Callable[[Path], Any]
TOKEN_IDS = token_windows(windows=2, seqlen=12)


@pytest.fixture(scope="module", params=sorted(FAMILY_CASES))
def deep_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of every family with enough blocks for one of each kind."""
    directory = tmp_path_factory.mktemp("deep") / request.param
    return tiny_model(directory, request.param, num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def pruned(deep_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It with blocks that lack attention, an FFN, or both, and others of two widths."""
    checkpoint = open_checkpoint(deep_model)
    out = tmp_path_factory.mktemp("per-layer") / deep_model.name
    prune(checkpoint, plan_of(checkpoint, mixed_blocks(checkpoint.shape)), out)
    return out


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(TOKEN_IDS).logits
    return logits


def masked_logits(deep_model: Path, blocks: list[BlockPlan]) -> torch.Tensor:
    return logits_of(masked_model(deep_model, open_checkpoint(deep_model), blocks))


def test_user_own_class_and_block_loop_give_the_masked_logits(
    load_as_users_do: Load, deep_model: Path, pruned: Path
) -> None:
    expected = masked_logits(deep_model, mixed_blocks(open_checkpoint(deep_model).shape))
    theirs, ours = load_as_users_do(pruned), load_model(pruned, torch.float64)
    assert type(theirs).__module__.startswith("transformers_modules.")
    assert type(ours).__module__.startswith("bipline.model.per_layer.")
    loop = BlockLoop(open_checkpoint(pruned), torch.float64)
    for actual in (logits_of(theirs), logits_of(ours), loop.logits(TOKEN_IDS)):
        assert (actual - expected).abs().max() < 1e-10


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_plan_gives_the_masked_logits(deep_model: Path, data: st.DataObject) -> None:
    checkpoint = open_checkpoint(deep_model)
    blocks = data.draw(drawn_blocks(checkpoint.shape))
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        prune(checkpoint, plan_of(checkpoint, blocks), out)
        smaller = open_checkpoint(out)
        widths = [block.widths for block in blocks if not block.dropped]
        assert [
            (held.num_key_value_heads, held.intermediate_size) for held in smaller.shape.per_layer
        ] == widths
        loop = BlockLoop(smaller, torch.float64)
        actual = loop.logits(TOKEN_IDS), logits_of(load_model(out, torch.float64))
    expected = masked_logits(deep_model, blocks)
    for logits in actual:
        assert (logits - expected).abs().max() < 1e-10


def test_decoding_with_the_cache_equals_decoding_without(
    load_as_users_do: Load, pruned: Path
) -> None:
    model = load_as_users_do(pruned)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    cached, plain = (
        model.generate(TOKEN_IDS, use_cache=use_cache, pad_token_id=0, **options)
        for use_cache in (True, False)
    )
    assert cached.equal(plain)


@torch.no_grad()
def logits_step_by_step(model: Any) -> torch.Tensor:
    """The windows by their first five tokens, then token by token through the KV cache alone.

    The positions are what the model makes of the cache's length; ``generate`` counts on its own.
    """
    step = model(TOKEN_IDS[:, :5], use_cache=True)
    cache, tokens = step.past_key_values, TOKEN_IDS[:, 5:].split(1, dim=1)
    steps = [model(token, past_key_values=cache, use_cache=True).logits for token in tokens]
    assert cache.get_seq_length() == TOKEN_IDS.shape[1]
    return torch.cat([step.logits, *steps], 1)


def test_cached_steps_give_the_logits_of_one_pass(load_as_users_do: Load, pruned: Path) -> None:
    model = load_as_users_do(pruned)
    assert (logits_step_by_step(model) - logits_of(model)).abs().max() < 1e-10


def test_streamed_gradients_equal_full_back_propagation(pruned: Path) -> None:
    model = load_model(pruned, torch.float64)
    logits = model(TOKEN_IDS).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKEN_IDS[:, 1:].flatten())
    loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    checkpoint = open_checkpoint(pruned)
    seen: set[str] = set()
    for part in block_gradients(BlockLoop(checkpoint, torch.float64), TOKEN_IDS):
        assert part.loss == pytest.approx(float(loss), rel=1e-12)
        for name, full in checkpoint.block_names(part.block.index).items():
            torch.testing.assert_close(part.gradients[name], expected[full], rtol=1e-9, atol=1e-13)
            seen.add(full)
    assert seen == {name for name in expected if name.startswith("model.layers.")}


def test_the_same_plan_gives_the_same_bytes(pruned: Path, deep_model: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(deep_model)
    plan = plan_of(checkpoint, mixed_blocks(checkpoint.shape))
    prune(checkpoint, plan, tmp_path / "again")
    names = sorted(path.name for path in pruned.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (pruned / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_pruned_twice_equals_pruned_once(pruned: Path, deep_model: Path, tmp_path: Path) -> None:
    """A per-layer model is pruned along a plan of its own like any other."""
    checkpoint = open_checkpoint(pruned)
    # In the dense model's blocks 0, 1, 3, 4; the third block here is the one without FFN.
    second = [kept([], [1, 5]), kept([0], [2, 3]), kept([], []), kept([0], [0, 12])]
    prune(checkpoint, plan_of(checkpoint, second), tmp_path / "twice")
    first = mixed_blocks(open_checkpoint(deep_model).shape)
    both = [
        BlockPlan(
            attention_groups=tuple(block.attention_groups[i] for i in again.attention_groups),
            ffn_channels=tuple(block.ffn_channels[i] for i in again.ffn_channels),
        )
        for block, again in zip([first[0], first[1], first[3], first[4]], second, strict=True)
    ]
    blocks = [both[0], both[1], kept([], []), both[2], both[3]]
    dense = open_checkpoint(deep_model)
    prune(dense, plan_of(dense, blocks), tmp_path / "once")
    twice, once = (resolve_model(str(tmp_path / run), tmp_path) for run in ("twice", "once"))
    # Tensors and configuration are the same; what they were pruned from is not.
    assert twice.identity == once.identity
    assert twice.files["config.json"] != once.files["config.json"]


def test_a_per_layer_model_can_become_a_plain_one(
    pruned: Path, deep_model: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(pruned)
    cut = [kept([], []), kept([0], [0, 7]), kept([], []), kept([0], [3, 5])]
    manifest = prune(checkpoint, plan_of(checkpoint, cut, "uniform"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.py"))
    assert not manifest.info["architecture"].startswith("PerLayer")
    last = mixed_blocks(open_checkpoint(deep_model).shape)[4]
    blocks = [kept([], [])] * 3 + [kept([], [])]
    blocks[1] = cut[1]
    blocks.append(kept([last.attention_groups[0]], [last.ffn_channels[3], last.ffn_channels[5]]))
    logits = logits_of(load_model(tmp_path / "out", torch.float64))
    assert (logits - masked_logits(deep_model, blocks)).abs().max() < 1e-10


def test_a_block_shows_what_it_has(pruned: Path) -> None:
    """Without attention, whole, without FFN, and whole again."""
    loop = BlockLoop(open_checkpoint(pruned), torch.float64)
    hidden = loop.embed(TOKEN_IDS)
    ffn = {"gate": 7, "up": 7, "ffn_activation": 7}
    width = loop.checkpoint.shape.head_dim * loop.checkpoint.shape.queries_per_group
    groups = loop.checkpoint.shape.num_key_value_heads
    some = max(1, groups - 1) * width
    expected = [
        ffn,
        {**dict.fromkeys(ffn, 40), "attention_output": groups * width},
        {"attention_output": some},
        {**dict.fromkeys(ffn, 13), "attention_output": width},
    ]
    for block, widths in zip(loop.blocks(), expected, strict=True):
        seen: list[dict[str, torch.Tensor]] = []
        hidden = block.run(hidden, seen.append)
        found = {name: tensor.shape[1] for name, tensor in seen[0].items()}
        always = dict.fromkeys(("hidden", "residual", "ffn_output"), 32)
        assert {**always, **found} == {**always, **widths}


SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
NO_ATTENTION = {"first": (0,), "all that see everything": (0, 1), "first and last": (0, 4)}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("dropped", NO_ATTENTION)
@pytest.mark.parametrize("case", ["qwen2-gqa", "qwen3-gqa"])
def test_blocks_keep_their_kind_of_attention_and_of_cache(
    load_as_users_do: Load, case: str, dropped: str, listed: bool, tmp_path: Path
) -> None:
    """Two blocks that see everything before three that slide, in windows longer than theirs."""
    model = tiny_model(tmp_path / "dense", case, num_hidden_layers=LAYERS, **SLIDING)
    if not listed:  # as configs were before transformers listed each block's kind
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        assert config.pop("layer_types")[1:3] == ["full_attention", "sliding_attention"]
        (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    checkpoint = open_checkpoint(model)
    blocks = [
        kept([] if index in NO_ATTENTION[dropped] else [1, 2], [index, 30]) for index in range(5)
    ]
    prune(checkpoint, plan_of(checkpoint, blocks), tmp_path / "out")
    smaller, masked = load_as_users_do(tmp_path / "out"), masked_model(model, checkpoint, blocks)
    expected = logits_of(masked)
    for logits in (logits_of(smaller), logits_step_by_step(smaller)):
        assert (logits - expected).abs().max() < 1e-10
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    for prompt in (TOKEN_IDS, TOKEN_IDS[:, :3]):  # beyond the sliding window, and within it
        tokens = masked.generate(prompt, use_cache=False, pad_token_id=0, **options)
        for use_cache in (True, False):
            found = smaller.generate(prompt, use_cache=use_cache, pad_token_id=0, **options)
            assert found.equal(tokens)


@pytest.mark.parametrize("gone", [(0,), (1, 3), (0, 1, 2, 4)])
def test_whole_blocks_go_and_a_stock_class_loads_the_rest(
    deep_model: Path, tmp_path: Path, gone: tuple[int, ...]
) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(deep_model)
    shape = checkpoint.shape
    groups, channels = list(range(shape.num_key_value_heads))[-1:], [0, 3, 17]
    blocks = [kept([], []) if i in gone else kept(groups, channels) for i in range(LAYERS)]
    manifest = prune(checkpoint, plan_of(checkpoint, blocks, "uniform"), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
    assert type(model).__module__.startswith("transformers.models.")
    assert len(model.model.layers) == LAYERS - len(gone) == manifest.info["num_hidden_layers"]
    expected = masked_logits(deep_model, blocks)
    assert (logits_of(model) - expected).abs().max() < 1e-10
    loop = BlockLoop(open_checkpoint(tmp_path / "out"), torch.float64)
    assert (loop.logits(TOKEN_IDS) - expected).abs().max() < 1e-10
