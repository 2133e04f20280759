"""One block along its plan: the dense weights, what stays of them, and both matrices' versions."""

from __future__ import annotations

import torch
from torch import Tensor

from bipline.compression.compensation.candidates import Candidate, Sublayer
from bipline.compression.compensation.input_maps import READERS, mapped
from bipline.compression.compensation.kept_heads import (
    keeping,
    kept_by_run,
    kept_of,
    width_of,
)
from bipline.compression.compensation.norms_behind import HeadShares
from bipline.compression.criteria.interface import Block as CriteriaBlock
from bipline.compression.criteria.norms import RmsNorm
from bipline.compression.slicing import (
    indices_of_each,
    inside_of,
    inside_of_class,
    kept_indices,
)
from bipline.model.block_loop import Block
from bipline.model.block_reader import Weights
from bipline.model.checkpoint import TORCH_DTYPES, Checkpoint, widened
from bipline.model.experts import DOWN, OWN_DOWN, SHARED_DOWN, in_class
from bipline.model.families import block_axes, build_of
from bipline.model.halves import DOWN_PROJ, O_PROJ, SUBLAYER_OF, Halves
from bipline.model.mixture import ExpertColumns
from bipline.model.shapes import ModelShape
from bipline.values.plan import BlockPlan

# The chosen version of each matrix, by the matrix's name inside the block.
Choices = dict[str, Candidate]
# In the place of such a name: the wide matrix of an FFN of experts (see ExpertColumns).
EXPERTS = "mlp.experts"


class PrunedBlock:
    """The resident block and its plan; valid as long as the block is."""

    def __init__(self, checkpoint: Checkpoint, block: Block, plan: BlockPlan) -> None:
        self._checkpoint, self._plan = checkpoint, plan
        self.index = block.index
        self.dense = Halves.of(block)
        self._source = block.source_weights()
        self._changed: Weights = {}
        self._reader: tuple[str, Halves] | None = None

    @property
    def criteria_block(self) -> CriteriaBlock:
        """The dense block as criteria take it."""
        return CriteriaBlock.of(self._checkpoint, self.index, self.dense.weights)

    def norm_behind(self, name: str) -> RmsNorm:
        """The norm behind o_proj or down_proj; none where there is none."""
        return self.criteria_block.norm_behind(SUBLAYER_OF[name])

    def head_shares(self) -> HeadShares | None:
        """To be told of queries and keys, where a norm over all heads is on them."""
        if not self._checkpoint.family.all_heads_norms:
            return None
        shape, eps = self._shape, self._checkpoint.rms_norm_eps
        groups = shape.num_key_value_heads
        if self._plan.query_heads:
            return HeadShares(shape.num_attention_heads, None, eps)
        return HeadShares(groups, groups, eps)

    def with_gains(self, factors: dict[str, float]) -> Weights:
        """What is put in place, with the gains of norms over all heads times these."""
        gains = {}
        for norm, factor in factors.items():
            name = f"self_attn.{norm}"
            gain = self._source[_weight(name)].to(self.dense.weights[_weight(name)].device)
            gains[_weight(name)] = (widened(gain) * factor).to(self._dtype(name))
        return {**self._changed, **gains}

    def behind_dense_ffn(self, version: Candidate) -> Halves:
        """The block with attention sliced along a version of o_proj, and the dense FFN."""
        whole = self._plan.model_copy(update={"ffn_channels": self._all_channels})
        plan = keeping(whole, version.kept, self._shape.queries_per_group)
        there = self._sliced(plan, {**self.dense.weights, **self._changed})
        return self.dense.changed({**there, **self._tensors({O_PROJ: version})})

    @property
    def _shape(self) -> ModelShape:
        return self._checkpoint.shape.block(self.index)

    @property
    def _all_channels(self) -> tuple[int, ...]:
        """Of a dense FFN, all of them; none where there is no FFN."""
        down = self.dense.weights.get(_weight(DOWN_PROJ))
        return () if down is None else tuple(range(down.shape[1]))

    @property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """The matrices that the block has and the plan keeps some of, and the groups it keeps."""
        heads = kept_of(self._plan, self._shape.queries_per_group)
        kept = {O_PROJ: heads, DOWN_PROJ: self._plan.ffn_channels}
        there = self.dense.weights
        return {name: groups for name, groups in kept.items() if groups and _weight(name) in there}

    def sublayer(self, name: str, bias: str) -> Sublayer:
        """One of the matrices; ``bias`` is on, off, or auto for where the source has one."""
        attention, shape = name == O_PROJ, self._shape
        device = self.dense.weights[_weight(name)].device
        held = self._source.get(_bias(name))
        return Sublayer(
            name=name,
            weight=self._source[_weight(name)].to(device),
            bias=None if held is None else held.to(device),
            dtype=self._dtype(name),
            width=width_of(self._plan, shape) if attention else 1,
            kept=self.matrices[name],
            kept_by_run=kept_by_run(self._plan, shape) if attention else (),
            importance=None,
            intercept=bias == "on" or (bias == "auto" and held is not None),
        )

    @property
    def keeps_experts(self) -> bool:
        """Whether the plan keeps experts of this block."""
        return bool(self._plan.experts)

    @property
    def loses_experts(self) -> bool:
        """Whether experts of this block go, or channels of all of them."""
        kept = len(self._plan.experts) == self._shape.num_experts
        return not kept or bool(self._plan.expert_channels)

    def experts_half(self) -> Halves:
        """The FFN of the experts, and of their channels, that stay, with their weights as they are.

        The router decides among these.
        """
        there = self.dense.weights.items()
        ffn = {name: held for name, held in there if not name.startswith("self_attn.")}
        return self.dense.changed(self._sliced(self._plan, ffn))

    def experts_sublayer(self) -> Sublayer:
        """The wide matrix of what stays of all experts, all of whose columns stay."""
        device, columns = self.dense.weights[DOWN].device, self._expert_columns
        names = (DOWN, f"{DOWN}_bias", SHARED_DOWN)
        held = {name: self._source[name] for name in names if name in self._source}
        stored = OWN_DOWN.format(expert=0)
        return Sublayer(
            name=EXPERTS,
            weight=columns.wide(self._sliced(self._plan, held)).to(device),
            bias=None,
            dtype=self._stored_dtype(DOWN if columns.biased else stored),
            width=1,
            kept=tuple(range(columns.total)),
            importance=None,
            intercept=False,
        )

    @property
    def _expert_columns(self) -> ExpertColumns:
        plan, shape = self._plan, self._shape
        return ExpertColumns(
            experts=len(plan.experts),
            channels=plan.channels_per_expert or shape.intermediate_size,
            biased=build_of(self._checkpoint.family).transposed_experts,
            shared=len(plan.shared_channels) or shape.shared_channels,
        )

    def reader(self, columns: str) -> Halves:
        """The dense block with what was put in place before o_proj, or before down_proj."""
        if self._reader is None or self._reader[0] != columns:
            self._reader = None  # before the next one takes room beside it
            half = columns.partition(".")[0]
            changed = {name: held for name, held in self._changed.items() if name.startswith(half)}
            self._reader = columns, self.dense.changed({**self.dense.weights, **changed})
        return self._reader[1]

    def read(self, weights: Weights) -> Weights:
        """Put other weights in place before o_proj and down_proj, all of their rows, and no others.

        Gives those that were there.
        """
        before, self._changed = self._changed, weights
        self._reader = None
        return before

    def mapped(self, linear_map: Tensor, beta: float) -> Weights:
        """q_proj, k_proj and v_proj behind a map, in the dtype they are written in."""
        return {
            _weight(name): mapped(
                self._source[_weight(name)].to(linear_map.device),
                linear_map,
                beta,
                self._dtype(name),
            )
            for name in READERS
        }

    def with_rows(self, chosen: Choices, rows: str, change: Tensor) -> Weights:
        """What is put in place, with a change of what stays of the ``rows`` of a matrix added.

        ``change`` is ``[rows, hidden_size]``; the sum is in the dtype it is written in.
        """
        name = _weight(rows)
        checkpoint = self._checkpoint
        axis = block_axes(checkpoint.family, checkpoint.config, self.index)[name][0]
        places = kept_indices(self.plan_of(chosen), self._shape)[axis].to(change.device)
        whole = self._changed.get(name, self._source[name]).to(change, copy=True)
        whole.index_add_(0, places, change)
        return {**self._changed, name: whole.to(self._dtype(rows))}

    def plan_of(self, chosen: Choices) -> BlockPlan:
        """The plan with the groups, or query heads, and channels that the chosen versions keep."""
        plan, queries = self._plan, self._shape.queries_per_group
        if ffn := chosen.get(DOWN_PROJ):
            plan = plan.model_copy(update={"ffn_channels": ffn.kept})
        attention = chosen.get(O_PROJ)
        return keeping(plan, attention.kept, queries) if attention else plan

    def halves(self, chosen: Choices) -> Halves:
        """The block pruned along the chosen versions, with their matrices in place."""
        there = self._sliced(self.plan_of(chosen), {**self.dense.weights, **self._changed})
        return self.dense.changed({**there, **in_class(self._tensors(chosen))})

    def corrected(self, plan: BlockPlan, tensors: Weights) -> Halves:
        """The block along what was realised of the plan, with corrected tensors in place."""
        return self.dense.changed({**self._sliced(plan, self.dense.weights), **in_class(tensors)})

    def tensors(self, chosen: Choices) -> Weights:
        """The matrices and biases of versions that are not the source's own, on the CPU."""
        corrected = {
            name: version for name, version in chosen.items() if version.compensation != "none"
        }
        tensors = {**self._sliced(self.plan_of(chosen), self._changed), **self._tensors(corrected)}
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    def _sliced(self, plan: BlockPlan, weights: Weights) -> Weights:
        """What a plan keeps of some of the block's weights, by their names in it."""
        checkpoint = self._checkpoint
        absent = build_of(checkpoint.family).absent(*plan.widths, bool(self._shape.num_experts))
        kept, of_each = kept_indices(plan, self._shape), indices_of_each(plan)
        axes = block_axes(checkpoint.family, checkpoint.config, self.index)
        return {
            name: _selected(weight, axes[name], kept, of_each)
            if name in axes
            # What a class alone has: the matrices of all experts as one.
            else inside_of_class(name, weight[list(plan.experts)], plan.expert_channels)
            for name, weight in weights.items()
            if not name.startswith(absent)
        }

    def _tensors(self, chosen: Choices) -> Weights:
        """The matrices and biases of versions, by the names that they lie under on disk."""
        tensors: Weights = {}
        for name, version in chosen.items():
            if name == EXPERTS:
                tensors |= self._expert_columns.stored(version.weight)
            else:
                tensors[_weight(name)] = version.weight
            if version.bias is not None:
                tensors[_bias(name)] = version.bias
        return tensors

    def _dtype(self, name: str) -> torch.dtype:
        return self._stored_dtype(_weight(name))

    def _stored_dtype(self, name: str) -> torch.dtype:
        full = self._checkpoint.block_names(self.index)[name]
        return TORCH_DTYPES[self._checkpoint.tensors[full].dtype]


def _selected(weight: Tensor, axes: tuple[str, ...], kept: Weights, of_each: Weights) -> Tensor:
    """What is kept along a tensor's axes, and within each of the experts that stay."""
    for dimension, axis in enumerate(axes):
        if axis in kept:
            weight = weight.index_select(dimension, kept[axis].to(weight.device))
    if (inside := inside_of(axes, of_each)) is not None:
        weight = inside.of(weight, 0)
    return weight


def _weight(name: str) -> str:
    return f"{name}.weight"


def _bias(name: str) -> str:
    return f"{name}.bias"
