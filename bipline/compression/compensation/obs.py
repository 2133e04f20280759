"""Structured OBS: which groups to remove, one after the other, when the rest makes up for each.

Removing group g (one FFN channel, or the columns of an attention group together) and correcting
all others in the best way costs E_g = 1/2 tr([(H^-1)_gg]^-1 W_g^T D W_g), after which
W -= W_g K and H^-1 -= (H^-1)_:g K with K = [(H^-1)_gg]^-1 (H^-1)_g: (OSSCAR, arXiv 2403.12983;
SlimGPT, arXiv 2412.18110). D = diag(w^2) weighs the output rows by what they do at the block's
output; it changes the choice and not the corrected weights, because rows are independent.

Only E is needed on the way, so W^T D W is kept in place of W. Updates wait until some are
together and are then applied as one matrix product; until then every row that is read has them
subtracted. That is exact, and it turns thousands of passes over H^-1 into dozens. Of H^-1 and of
W^T D W only the lower triangles are kept up to date: H^-1 lies in the room beside H.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bipline.compression.compensation.closed_forms import factor
from bipline.compression.compensation.triangles import (
    TILE_COLUMNS,
    Triangles,
    lower_rows,
    lower_subtract,
)

# Removed columns whose updates wait to be applied together: more of them make every row dearer to
# read, fewer make for more passes over the triangles.
PENDING_COLUMNS = 128


class Elimination:
    """Removes groups of ``width`` neighbouring columns; ``costs`` are E_g of those still there.

    ``inverse`` = (H + lambda I)^-1, float64, and ``gram`` = W^T D W, float32 or float64, are
    ``[n, n]`` with only the lower triangle read and written; both are used up.
    """

    def __init__(self, inverse: Tensor, gram: Tensor, width: int) -> None:
        self._inverse, self._gram, self._width = inverse, gram, width
        groups = len(inverse) // width
        self._there = torch.ones(groups, dtype=torch.bool, device=inverse.device)
        self._inverse_blocks = _diagonal_blocks(inverse, width)
        self._gram_blocks = _diagonal_blocks(gram, width).to(inverse)
        room = max(PENDING_COLUMNS, width)
        self._held = 0
        # Rows of what waits: H^-1 -= U^T U, gram -= K^T A + A^T K.
        self._u, self._k, self._a = (inverse.new_empty(room, len(inverse)) for _ in range(3))

    def costs(self) -> Tensor:
        """E_g for every group, ``[groups]``; infinite for those that are gone."""
        if self._width == 1:
            traces = self._gram_blocks[:, 0, 0] / self._inverse_blocks[:, 0, 0]
        else:
            lower = torch.linalg.cholesky_ex(self._inverse_blocks)[0]
            solved = torch.cholesky_solve(self._gram_blocks, lower)
            traces = solved.diagonal(dim1=1, dim2=2).sum(1)
        return (traces / 2).masked_fill(~self._there, torch.inf)

    def remove(self, group: int) -> Tensor:
        """Remove a group. Returns K ``[width, n]``: the running weights are W -= W_g K."""
        if self._held + self._width > len(self._u):
            self._apply()
        columns = slice(group * self._width, (group + 1) * self._width)
        u, k, a, held = self._u, self._k, self._a, slice(0, self._held)
        there = self._there.repeat_interleave(self._width)
        rows = lower_rows(self._inverse, columns) - u[held, columns].T @ u[held]
        lower = factor(rows[:, columns])
        new_u = torch.linalg.solve_triangular(lower, rows * there, upper=False)
        new_k = torch.linalg.solve_triangular(lower.T, new_u, upper=True)
        rows = lower_rows(self._gram, columns).to(a)
        rows -= k[held, columns].T @ a[held] + a[held, columns].T @ k[held]
        new_a = rows * there - rows[:, columns] @ new_k / 2
        place = slice(self._held, self._held + self._width)
        u[place], k[place], a[place] = new_u, new_k, new_a
        self._held += self._width
        self._update_blocks(new_u, new_k, new_a)
        self._close(group)
        return new_k

    def _update_blocks(self, u: Tensor, k: Tensor, a: Tensor) -> None:
        def by_group(rows: Tensor) -> Tensor:
            return rows.unflatten(1, (-1, self._width)).movedim(1, 0)

        u, k, a = by_group(u), by_group(k), by_group(a)
        if self._width == 1:
            self._inverse_blocks -= u * u
            self._gram_blocks -= 2 * k * a
            return
        cross = k.mT @ a
        self._inverse_blocks -= u.mT @ u
        self._gram_blocks -= cross + cross.mT

    def _close(self, group: int) -> None:
        self._there[group] = False
        self._gram_blocks[group] = 0
        self._inverse_blocks[group] = torch.eye(self._width).to(self._inverse)

    def _apply(self) -> None:
        u, k, a = (rows[: self._held] for rows in (self._u, self._k, self._a))
        lower_subtract(self._inverse, u, u)
        pair = torch.cat([k, a]).to(self._gram), torch.cat([a, k]).to(self._gram)
        lower_subtract(self._gram, *pair)
        self._held = 0


def remove_greedily(elimination: Elimination, *going: int) -> list[int]:
    """Remove the cheapest group again and again; of equal ones the first. In that order.

    So many are ``going``; or so many of each of the equal runs of neighbours that all groups are.
    """
    return [group for group, _ in removals(elimination, *going)]


def removals(elimination: Elimination, *going: int) -> Iterator[tuple[int, float]]:
    """The same, each removed as it is given, with its cost E_g."""
    left = list(going)
    for _ in range(sum(going)):
        costs = elimination.costs()
        runs = costs.view(len(left), -1)
        runs[torch.tensor(left) == 0] = torch.inf
        group = int(costs.argmin())
        elimination.remove(group)
        left[group // runs.shape[1]] -= 1
        yield group, float(costs[group])


def elimination_of(
    weight: Tensor, second: Triangles, ridge: float, width: int, importance: Tensor | None = None
) -> Elimination:
    """The start: W ``[d, n]``, H ``[n, n]``, lambda = ridge * mean(diag H), diag D ``[d]``.

    H stays; the inverse is made in the room beside it. W^T D W is in the dtype of W.
    """
    second.factor(ridge * float(second.diagonal.mean()))
    second.invert()
    return Elimination(second.lower, _gram(weight, importance), width)


def obs_bytes(columns: int, outputs: int, product_bytes: int) -> int:
    """Bytes of a selection among n columns beside H: W^T D W, weighed weights, waiting updates."""
    waiting = 5 * 8 * PENDING_COLUMNS * columns
    return product_bytes * columns * (columns + outputs) + waiting


def _gram(weight: Tensor, importance: Tensor | None) -> Tensor:
    """The lower triangle of W^T D W; what is above is not set."""
    weighed = weight if importance is None else weight * importance[:, None].to(weight)
    size = weight.shape[1]
    gram = weight.new_empty(size, size)
    for start in range(0, size, TILE_COLUMNS):
        rows = slice(start, start + TILE_COLUMNS)
        gram[rows, : rows.stop] = weighed[:, rows].T @ weight[:, : rows.stop]
    return gram


def _diagonal_blocks(lower: Tensor, width: int) -> Tensor:
    """The blocks on the diagonal: ``[n, n] -> [n / width, width, width]``."""
    groups = len(lower) // width
    blocks = lower.unflatten(0, (groups, width)).unflatten(2, (groups, width))
    blocks = blocks.diagonal(dim1=0, dim2=2).movedim(2, 0).tril()
    return blocks + blocks.tril(-1).mT
