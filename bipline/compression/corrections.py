"""Corrections: the tensors that compensation changed, as a directory that prune can apply.

One safetensors file for each block that was corrected. Names are those inside the block, such as
``self_attn.o_proj.weight``; shapes are those of the smaller model. The realised plan lies beside
them and names their digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bipline.base.errors import InvalidInput
from bipline.storage.digests import digest_json
from bipline.storage.manifest import Manifest, verify_directory
from bipline.values.plan import PLAN_NAME, PruningPlan, read_plan

KIND = "corrections"
BLOCK_FILES = "block-*.safetensors"


def block_name(index: int) -> str:
    """The file of one block."""
    return f"block-{index:05d}.safetensors"


def save_block(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the corrected tensors of one block: whole or not at all."""
    temporary = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    temporary.replace(path)


def load_block(path: Path) -> dict[str, Tensor]:
    """The corrected tensors of one block, by their names inside it."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}


def digest_of(manifest: Manifest) -> str:
    """The digest of the corrected tensors alone, which the realised plan names."""
    files = manifest.files.items()
    return digest_json({name: entry.sha256 for name, entry in files if name.startswith("block-")})


@dataclass(frozen=True)
class Corrections:
    """The corrected tensors below ``folder``; one block's are in memory at a time."""

    folder: Path
    digest: str

    @property
    def blocks(self) -> list[int]:
        """The blocks of the source that were corrected, ascending."""
        return sorted(int(path.stem.partition("-")[2]) for path in self.folder.glob(BLOCK_FILES))

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        """The shape of every corrected tensor of a block; empty where there is none."""
        path = self.folder / block_name(index)
        if not path.is_file():
            return {}
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def tensor(self, index: int, name: str) -> torch.Tensor:
        """One corrected tensor, in the dtype it is written in."""
        with safe_open(self.folder / block_name(index), framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor


def open_corrections(directory: Path) -> tuple[PruningPlan, Corrections]:
    """The realised plan and the tensors of a directory of corrections.

    Raises InvalidInput where it is none, or the plan is not the one of these tensors, and Refused
    where a file differs from its manifest.
    """
    manifest = verify_directory(directory)
    if manifest.kind != KIND:
        raise InvalidInput(f"{directory}: holds {manifest.kind}, not {KIND}")
    plan = read_plan(directory / PLAN_NAME)
    corrections = Corrections(directory, digest_of(manifest))
    hold_to_plan(plan, corrections)
    return plan, corrections


def hold_to_plan(plan: PruningPlan, corrections: Corrections | None) -> None:
    """Raise InvalidInput unless these are the corrections that the plan was realised with."""
    record = plan.compensated
    if record is None:
        if corrections is not None:
            raise InvalidInput("the plan was not compensated, so it has no corrections to apply")
        return
    if corrections is None:
        raise InvalidInput(
            f"the plan was realised with compensation {plan.compensation}; give the corrections "
            "it was written with (--corrections DIR), or a plan without compensation"
        )
    if corrections.digest != record.corrections:
        raise InvalidInput(
            f"the plan's corrections are {record.corrections[:12]}, "
            f"{corrections.folder} holds {corrections.digest[:12]}"
        )
