"""SlimGPT's choice: groups removed in batches, by errors that hold for each of them alone.

error_j   sum over outputs of W_j^2 / d_j, with d the diagonal of H^-1 of what is still there; of an
          attention group, d are the squares of the diagonal of its block's Cholesky factor, and the
          errors of its columns are added up
batch     one attention group, or query head; of FFN channels half of those to go, less 512, halved
          again every time, but at least 64 and at most 1,024 ("dynamic group size")

After a batch the weights that stay are corrected (least squares, undamped), and H^-1 is taken
anew. Source: arXiv 2412.18110, its batch sizes as in a port of its code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bipline.compression.compensation.closed_forms import factor
from bipline.compression.compensation.triangles import Triangles, mirrored

LEAST, MOST, REACH = 64, 1024, 512


def kept_in_batches(
    weight: Tensor, second: Triangles, width: int, *of_runs: int
) -> tuple[int, ...]:
    """The groups of ``width`` neighbouring columns that stay of W ``[d, n]``; ascending.

    So many go ``of_runs``, equal runs of neighbours: of all groups where there is one, and one by
    one where there are several. ``second`` is H; the room beside it stays as it is.
    """
    there = torch.arange(weight.shape[1] // width, device=weight.device)
    going, left = sum(of_runs), torch.tensor(of_runs, device=weight.device)
    run = len(there) // len(left)
    batch = (going - REACH) // 2
    while going:
        errors = _errors(weight, second, width, there)
        errors[left[there // run] == 0] = torch.inf
        alone = width > 1 or len(left) > 1
        size = 1 if alone else min(going, max(batch, LEAST), MOST)
        gone = errors.argsort(stable=True)[:size]
        left -= torch.bincount(there[gone] // run, minlength=len(left))
        stays = torch.ones_like(there, dtype=torch.bool)
        stays[gone] = False
        there, going, batch = there[stays], going - size, (batch - REACH) // 2
    return tuple(there.tolist())


def _errors(weight: Tensor, second: Triangles, width: int, there: Tensor) -> Tensor:
    """What each of the groups that are there is worth, ``[groups]``."""
    columns = (there[:, None] * width + torch.arange(width, device=there.device)).flatten()
    gone = torch.ones(weight.shape[1], dtype=torch.bool, device=there.device)
    gone[columns] = False
    part = second.part(columns)
    part.factor(0.0)
    part.invert()
    inverse = mirrored(part.lower)
    running = weight[:, columns].to(inverse)
    if bool(gone.any()):
        others = gone.nonzero()[:, 0]
        running = (
            running + weight[:, others].to(inverse) @ second.rows(others)[:, columns] @ inverse
        )
    squares = running.square().sum(0).view(-1, width)
    return (squares / _diagonals(inverse, width)).sum(1)


def _diagonals(inverse: Tensor, width: int) -> Tensor:
    """d, ``[groups, width]``."""
    groups = len(inverse) // width
    blocks = inverse.view(groups, width, groups, width).diagonal(dim1=0, dim2=2).movedim(2, 0)
    return torch.stack([factor(block).diagonal().square() for block in blocks])
