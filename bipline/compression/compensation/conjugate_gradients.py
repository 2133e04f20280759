"""Conjugate gradients: a least-squares problem whose matrix is only ever applied, never formed.

Hestenes and Stiefel 1952 with a preconditioner; few steps from zero are a regularisation of their
own, for they go along what the data says most about first.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Operator = Callable[[Tensor], Tensor]
# An error of an x on data that the problem was not made of.
Error = Callable[[Tensor], float]


def conjugate_gradients(
    right: Tensor,
    apply: Operator,
    precondition: Operator,
    steps: int,
    error: Error | None = None,
) -> Tensor:
    """``steps`` steps from zero towards x with ``apply(x) = right``, like ``right``.

    ``apply`` and ``precondition`` are symmetric and positive definite. Stops where it has arrived,
    and before a step that does not lower ``error``.
    """
    x, residual = right.new_zeros(right.shape), right.clone()
    least = error(x) if error and steps else 0.0
    direction = precondition(residual).clone()
    square = _dot(residual, direction)
    for _ in range(steps):
        image = apply(direction)
        along = _dot(direction, image)
        if not (square > 0 and along > 0):
            break
        x.add_(direction, alpha=square / along)
        if error:
            before, least = least, error(x)
            if not least < before:
                x.sub_(direction, alpha=square / along)
                break
        residual.sub_(image, alpha=square / along)
        del image  # each of these is as large as the rows
        conditioned = precondition(residual)
        before, square = square, _dot(residual, conditioned)
        direction.mul_(square / before).add_(conditioned)
        del conditioned
    return x


def _dot(left: Tensor, right: Tensor) -> float:
    return float((left * right).sum(dtype=left.dtype))
