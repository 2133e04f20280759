"""What every typed value is: never changed once made, and without a field nobody knows."""

from __future__ import annotations

from pydantic import BaseModel


class Frozen(BaseModel, frozen=True, extra="forbid"):
    """Base of the values that files hold and stages hand on."""
