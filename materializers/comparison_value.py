"""The values of a sweep as JSON text, by the same rules as those of :mod:`.json_value`."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel

from bipline.values.comparison import Comparison, Outcome, Tracked
from materializers.json_value import JsonMaterializer


class ComparisonValueMaterializer(JsonMaterializer[BaseModel]):
    """Outcomes of rows, the comparison they make, and where it was told."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Outcome, Comparison, Tracked)
