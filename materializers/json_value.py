"""Values of the pipeline (plans, records, resolutions) as JSON text.

The content hash of a value is its digest, so a stage that runs again and finds the same answer
re-runs nothing after it. A value whose stored text was changed is refused on loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

from markupsafe import Markup
from pydantic import BaseModel, ValidationError
from zenml.enums import ArtifactType, VisualizationType
from zenml.materializers.base_materializer import BaseMaterializer

from bipline.audits.page import render_registry
from bipline.base.errors import Refused
from bipline.delivery.page import Part, figure, joined, render_page, table
from bipline.delivery.pictures import widths_picture
from bipline.storage.digests import digest_json
from bipline.values.audit import AuditedVersion, RegistryAudit
from bipline.values.comparison import Comparison, Outcome, Tracked
from bipline.values.plan import PruningPlan
from bipline.values.record import EvaluationRecord
from bipline.values.recovery import RecoveryRecord
from bipline.values.resolution import Resolution
from bipline.values.speed import Speeds
from bipline.values.summary import Registration

Value = TypeVar("Value", bound=BaseModel)
Scalar = str | int | float | bool


class JsonMaterializer(BaseMaterializer, Generic[Value]):
    """Stores a pydantic value as one JSON file, in whatever store ZenML uses."""

    SKIP_REGISTRATION: ClassVar[bool] = True
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA
    FILE_NAME: ClassVar[str] = "value.json"

    def save(self, data: Value) -> None:
        """Write the value as indented JSON."""
        self._write(self.FILE_NAME, data.model_dump_json(indent=1) + "\n")

    def load(self, data_type: type[Value]) -> Value:
        """Read the value. Raises Refused when it is not what was saved."""
        uri = f"{self.uri}/{self.FILE_NAME}"
        with self.artifact_store.open(uri, "r") as file:
            text = file.read()
        try:
            value = data_type.model_validate_json(text)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise Refused(f"{uri}: is not the {data_type.__name__} it was: {problem}") from None
        expected = self.expected_content_hash
        if expected and self.compute_content_hash(value) != expected:
            raise Refused(f"{uri}: its content is not what was saved ({expected[:12]})")
        return value

    def compute_content_hash(self, data: Value) -> str:
        """The value's own digest, or the digest of its JSON."""
        own = getattr(data, "digest", None)
        return own if isinstance(own, str) else digest_json(data.model_dump(mode="json"))

    def extract_metadata(self, data: Value) -> dict[str, Any]:
        """The digest and every plain figure of the value, by dotted name."""
        return {"digest": self.compute_content_hash(data), **figures(data.model_dump(mode="json"))}

    def save_visualizations(self, data: Value) -> dict[str, VisualizationType]:
        """A table of the value's figures."""
        text = f"{table(self.extract_metadata(data).items())}\n"
        return {self._write("value.html", text): VisualizationType.HTML}

    def _write(self, name: str, text: str) -> str:
        uri = f"{self.uri}/{name}"
        with self.artifact_store.open(uri, "w") as file:
            file.write(text)
        return uri


class JsonValueMaterializer(JsonMaterializer[BaseModel]):
    """The values that pass between steps."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (
        Resolution, PruningPlan, EvaluationRecord, RecoveryRecord, Registration, Speeds,
        Outcome, Comparison, Tracked, AuditedVersion, RegistryAudit,
    )  # fmt: skip

    def save_visualizations(self, data: BaseModel) -> dict[str, VisualizationType]:
        """A table of the value's figures; of a plan a picture too, of audits their page."""
        shown = super().save_visualizations(data)
        if isinstance(data, PruningPlan):
            part = Part("plan", "What every block keeps", widths)
            page = render_page("Plan", data.digest, [part], data)
            shown[self._write("plan.html", page)] = VisualizationType.HTML
        if isinstance(data, RegistryAudit):
            shown[self._write("audit.html", render_registry(data))] = VisualizationType.HTML
        return shown


def widths(plan: PruningPlan) -> tuple[str, Markup]:
    """How the plan was made, and bars of what it keeps."""
    kept = zip(*(block.told_widths for block in plan.blocks), strict=True)
    pictures = [
        figure(f"{unit}.", "Kept in each block.", widths_picture(counts, None, unit))
        for unit, counts in zip(("attention groups", plan.ffn_kind), kept, strict=True)
    ]
    lead = f"By {plan.criterion}, allocation {plan.allocation}, compensation {plan.compensation}."
    return lead, joined(pictures, "pair")


def figures(value: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """The plain values of a nested mapping by dotted name; lists and nothings are left out."""
    found: dict[str, Scalar] = {}
    for name, part in value.items():
        if isinstance(part, Mapping):
            found |= figures(part, f"{prefix}{name}.")
        elif isinstance(part, (str, int, float, bool)):
            found[f"{prefix}{name}"] = part
    return found
