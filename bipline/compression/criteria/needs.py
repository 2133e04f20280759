"""What a criterion needs, so that nobody has to ask for it by name.

Every criterion's file declares one of these as its ``NEEDS``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What scoring reads and how its work can be shared.

    ``windows``: it reads calibration windows. ``shareable``: these can be divided, among workers
    and among steps, because its sums add up. ``sums``: scores follow from sums that are kept.
    ``family``: who reads sums that the same pass takes, and so may find its own in them; empty
    for those who share with nobody. ``passes``: forward passes that the work is worth at least,
    a backward pass counting as two. ``backward``: memory holds what a backward pass keeps.
    """

    name: str
    description: str
    windows: bool = True
    shareable: bool = False
    sums: bool = True
    family: str = ""
    passes: int = 0
    backward: bool = False


WEIGHTS = Needs("weights", "the weights alone: no calibration text, no forward pass", windows=False)
MOMENTS = Needs(
    "moments",
    "moments of activations: one forward pass, whose sums other criteria can reuse",
    shareable=True,
    family="forward",
    passes=1,
)
TOKENS = Needs(
    "tokens",
    "work on every token during one forward pass",
    shareable=True,
    family="forward",
    passes=1,
)
GRADIENTS = Needs(
    "gradients",
    "gradients of the language model's loss: one forward and one backward pass",
    family="gradients",
    passes=3,
    backward=True,
)
# A search leaves scores alone. It keeps what a backward pass keeps.
SEARCH = Needs("search", "many passes over the whole model", sums=False, backward=True)
