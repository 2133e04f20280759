"""A symmetric matrix in one triangle of an array, and work on it in the other triangle.

With f = 14336 channels a square in float64 is 1.6 GB, so there may not be one for the moments, one
for the regularised moments, one for their factor and one for their inverse. Here all of them share
an array ``[n, n + 1]``: right of the array's diagonal lies the matrix H, which stays; on and left
of it its Cholesky factor or its inverse is made in place, tile by tile. A factorisation that fails
begins again from H, with more on the diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Columns that are worked on together: below that products are slow, above it more is computed
# that symmetry makes needless.
TILE_COLUMNS = 512
# The same for a product with itself that is added to a triangle: less of it lies above the diagonal
# (of 1,536 columns a quarter less time than with 1,024, by MKL and by oneDNN).
STRIP_COLUMNS = 256
# What is added to a diagonal that a Cholesky factorisation failed on, as a share of its mean.
FIRST_JITTER = 1e-12
DOUBLE = 8


class Triangles:
    """A symmetric H ``[n, n]``, float64, and room for a triangle that is made of it.

    ``upper``: H on and above the diagonal of this view ``[n, n]``; what is below is not H's.
    ``lower``: the room, on and below the diagonal of this view.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._array = torch.zeros(size, size + 1, dtype=torch.float64, device=device)
        self.upper, self.lower = self._array[:, 1:], self._array[:, :-1]

    @classmethod
    def of(cls, matrix: Tensor) -> Triangles:
        """A symmetric matrix ``[n, n]``, copied."""
        result = cls(len(matrix), matrix.device)
        result.upper.copy_(matrix)
        return result

    def __len__(self) -> int:
        return len(self._array)

    @property
    def diagonal(self) -> Tensor:
        """H's diagonal, ``[n]``."""
        return self.upper.diagonal()

    def add_product(self, rows: Tensor) -> None:
        """H += rows^T rows for rows ``[tokens, n]`` of any dtype; the room is written over."""
        for own, _, below in _tiles(len(self), STRIP_COLUMNS):
            from_here = slice(own.start, below.stop)
            self.upper[own, from_here] += rows[:, own].T @ rows[:, from_here]

    def add_outer(self, vector: Tensor, factor: float) -> None:
        """H += factor * vector vector^T; the room is written over."""
        for own, _, below in _tiles(len(self), TILE_COLUMNS):
            from_here = slice(own.start, below.stop)
            self.upper[own, from_here].addmm_(
                vector[own, None], vector[None, from_here], alpha=factor
            )

    def divide(self, divisor: Tensor) -> None:
        """H /= divisor, a scalar."""
        self._array.div_(divisor)

    def is_finite(self) -> bool:
        """Whether no entry of H is NaN or infinite."""
        return all(
            bool(
                self.upper[own, own].triu().isfinite().all()
                and self.upper[own, below].isfinite().all()
            )
            for own, _, below in _tiles(len(self), TILE_COLUMNS)
        )

    def rows(self, places: Tensor) -> Tensor:
        """Rows of H by their places ``[rows]``: ``[rows, n]``, a copy."""
        right = torch.arange(len(self), device=places.device) >= places[:, None]
        return torch.where(right, self.upper[places], self.upper[:, places].T)

    def part(self, places: Tensor) -> Triangles:
        """The rows and columns of H at ascending places, as a matrix of its own."""
        result = Triangles(len(places), self._array.device)
        for own, _, below in _tiles(len(places), TILE_COLUMNS):
            from_here = slice(own.start, below.stop)
            result.upper[own, from_here] = self.upper[places[own]][:, places[from_here]]
        return result

    def dense(self) -> Tensor:
        """H as an ordinary matrix, ``[n, n]``: a copy, for small ones."""
        return mirrored(self.upper.T)

    def factor(self, lift: float) -> None:
        """Make the Cholesky factor of H + lift * I in the room, with the least jitter it needs."""
        jitter = 0.0
        while not self._factored(lift + jitter):
            jitter = 10 * jitter or FIRST_JITTER * (float(self.diagonal.mean()) + lift or 1.0)

    def solve_(self, sides: Tensor) -> None:
        """sides ``[rows, n]`` := sides (L L^T)^-1 in place, in their dtype; L is the factor."""
        tiles = list(_tiles(len(self), TILE_COLUMNS))
        for own, before, _ in tiles:
            block, corner = sides[:, own], self.lower[own, own].tril().to(sides)
            block.addmm_(sides[:, before], self.lower[own, before].T.to(sides), alpha=-1)
            block.copy_(torch.linalg.solve_triangular(corner.T, block, upper=True, left=False))
        for own, _, below in reversed(tiles):
            block, corner = sides[:, own], self.lower[own, own].tril().to(sides)
            block.addmm_(sides[:, below], self.lower[below, own].to(sides), alpha=-1)
            block.copy_(torch.linalg.solve_triangular(corner, block, upper=False, left=False))

    def invert(self) -> None:
        """Make of the factor in the room the inverse of what it is the factor of."""
        self._invert_factor()
        lower = self.lower
        for own, before, below in _tiles(len(self), TILE_COLUMNS):
            corner, column = lower[own, own].tril(), lower[below, own].T
            left = corner.T @ lower[own, before]
            left.addmm_(column, lower[below, before])
            put_lower(lower[own, own], corner.T @ corner + column @ column.T)
            lower[own, before] = left

    def _factored(self, lift: float) -> bool:
        lower = self.lower
        for own, before, below in _tiles(len(self), TILE_COLUMNS):
            done = lower[own, before]
            square = mirrored(self.upper[own, own].T) - done @ done.T
            square.diagonal().add_(lift)
            corner, failed = torch.linalg.cholesky_ex(square)
            if bool(failed):
                return False
            put_lower(lower[own, own], corner)
            rest = self.upper[own, below].T - lower[below, before] @ done.T
            lower[below, own] = torch.linalg.solve_triangular(
                corner.T, rest, upper=True, left=False
            )
        return True

    def _invert_factor(self) -> None:
        """L := L^-1. A row of tiles needs those above it, inverted, and what is left of itself."""
        lower = self.lower
        for own, before, _ in _tiles(len(self), TILE_COLUMNS):
            corner = lower[own, own].tril()
            for place, _, _ in _tiles(before.stop, TILE_COLUMNS):
                between = slice(place.stop, before.stop)
                product = lower[own, place] @ lower[place, place].tril()
                product.addmm_(lower[own, between], lower[between, place])
                lower[own, place] = product
            unit = torch.eye(len(corner), dtype=corner.dtype, device=corner.device)
            inverse = torch.linalg.solve_triangular(corner, unit, upper=False)
            put_lower(lower[own, own], inverse)
            lower[own, before] = -inverse @ lower[own, before]


def triangles_bytes(size: int) -> int:
    """Bytes of :class:`Triangles` of n columns."""
    return DOUBLE * size * (size + 1)


def put_lower(place: Tensor, values: Tensor) -> None:
    """Write the lower triangle of a square tile and leave what is above as it is."""
    place.copy_(values.tril() + place.triu(1))


def mirrored(lower: Tensor) -> Tensor:
    """The symmetric matrix whose lower triangle this is: a copy."""
    return lower.tril() + lower.tril(-1).T


def lower_rows(lower: Tensor, own: slice) -> Tensor:
    """Neighbouring rows of the symmetric matrix whose lower triangle this is: ``[rows, n]``."""
    corner = mirrored(lower[own, own])
    return torch.cat([lower[own, : own.start], corner, lower[own.stop :, own].T], 1)


def lower_subtract(lower: Tensor, left: Tensor, right: Tensor) -> None:
    """Lower triangle -= that of left^T right; both ``[waiting, n]``."""
    for own, before, _ in _tiles(len(lower), STRIP_COLUMNS):
        lower[own, before].addmm_(left[:, own].T, right[:, before], alpha=-1)
        put_lower(lower[own, own], lower[own, own] - left[:, own].T @ right[:, own])


def _tiles(size: int, columns: int) -> Iterator[tuple[slice, slice, slice]]:
    """A tile's columns, those before it and those behind it, from the first tile on."""
    for start in range(0, size, columns):
        stop = min(size, start + columns)
        yield slice(start, stop), slice(0, start), slice(stop, size)
