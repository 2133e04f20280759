"""Precision: the quickest dtype that keeps the same groups, by a second that is measured.

Two questions, in this order. Does this machine take products of the model's own sizes faster in
bfloat16? And do a few windows, scored in both dtypes, leave the same groups? The groups are the
highest scores of each block, at shares of which one is usual and one is large. Rounding moves a
channel that stands at the edge, so a few may differ: measured on SmolLM2-135M it is one in a
thousand, where another half of the same windows changes one in eighteen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from bipline.base.progress import silently
from bipline.compression.computing import Computing
from bipline.compression.criteria import options_of
from bipline.compression.criteria.interface import BlockScores
from bipline.compression.score import score_model
from bipline.compression.windows import Windows
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import torch_dtype
from bipline.model.floor import product_rate
from bipline.model.products import quick_float32
from bipline.values.precision import DtypeChoice, TriedDtype

# It scores whatever an FFN is made of, at hardly more than a forward pass.
CRITERION = "llm-bip"
WIDE: TriedDtype = "float32"
NARROW: TriedDtype = "bfloat16"
# Less than this is not worth rounding, and may be the noise of a busy machine.
QUICKER = 1.25
# Of what float32 keeps, the share that must be kept too.
SAME = 0.99
RATIOS = (0.2, 0.5)
# Of the windows, at most an eighth, so that the choice costs a small part of what it saves.
TRIED_TOKENS = 1024
TRIED_SHARE = 8
KINDS = {
    "attention_groups": "attention groups",
    "ffn_channels": "FFN channels",
    "experts": "experts",
    "expert_channels": "channels of experts",
}


@quick_float32()
def choose_dtype(checkpoint: Checkpoint, windows: Windows) -> DtypeChoice:
    """float32, or bfloat16 where it is quicker and keeps the same groups.

    Raises InvalidInput where activations are not finite or the user's limit of memory is too low,
    and EnvironmentFailure where what is free is too little.
    """
    device = windows.computing.device
    rates = {
        name: product_rate(checkpoint.shape, torch_dtype(name), device) for name in (WIDE, NARROW)
    }
    if rates[NARROW] < QUICKER * rates[WIDE]:
        return DtypeChoice(dtype=WIDE, rates=rates)
    kept = kept_shares(checkpoint, windows)
    chosen = NARROW if min(kept.values()) >= SAME else WIDE
    return DtypeChoice(dtype=chosen, rates=rates, kept=kept)


def kept_shares(checkpoint: Checkpoint, windows: Windows) -> dict[str, float]:
    """Of what float32 keeps, what bfloat16 keeps too by a few windows: by kind of group."""
    count, seqlen = windows.token_ids.shape
    few = max(1, min(TRIED_TOKENS // seqlen, count // TRIED_SHARE))
    with silently():
        wide, narrow = (_scores(checkpoint, windows, few, name) for name in (WIDE, NARROW))
    return same_shares(wide, narrow)


def _scores(
    checkpoint: Checkpoint, windows: Windows, few: int, dtype: TriedDtype
) -> Sequence[BlockScores]:
    own, token_ids = windows.computing, windows.token_ids[:few]
    computing = Computing(torch_dtype(dtype), own.device, own.micro_batch)
    fitting = computing.within(own.max_memory, checkpoint, token_ids)
    tried = replace(windows, token_ids=token_ids, computing=fitting)
    return score_model(checkpoint, tried, CRITERION, options_of(CRITERION))[1].blocks


def same_shares(
    reference: Sequence[BlockScores], others: Sequence[BlockScores]
) -> dict[str, float]:
    """By kind of group, the least share over :data:`RATIOS` of the reference's that others keep."""
    shares: dict[str, float] = {}
    for ratio in RATIOS:
        same, whole = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
        for block, other in zip(reference, others, strict=True):
            ours, theirs = block.tensors(), other.tensors()
            for kind in KINDS.keys() & ours.keys():
                first, second = (_kept(each[kind], ratio) for each in (ours, theirs))
                same[kind] += int((first & second).sum())
                whole[kind] += int(first.sum())
        for kind, name in KINDS.items():
            if whole[kind]:
                share = same[kind] / whole[kind]
                shares[name] = min(share, shares.get(name, 1.0))
    return shares


def _kept(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    """Which of the last axis stay: the highest scores, at least one; a mask like ``scores``."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    count = max(1, round((1 - ratio) * scores.shape[-1])) if scores.shape[-1] else 0
    return kept.scatter_(-1, scores.topk(count, dim=-1).indices, True)
