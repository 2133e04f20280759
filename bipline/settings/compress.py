"""Settings of a compress run: those of the line, and of what becomes of the smaller model."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from bipline.base.addresses import without_secrets
from bipline.settings.base import Settings
from bipline.settings.engine import EngineSettings
from bipline.settings.gguf import GgufSettings
from bipline.settings.line import LineSettings
from bipline.settings.onnx import OnnxSettings
from bipline.settings.protocol import Protocol
from bipline.settings.published import PublishedRow
from bipline.settings.recipes import LoraRecipe, Recipe
from bipline.settings.signing import SignSettings
from bipline.settings.stack import StackSettings
from bipline.storage.names import is_plain_name

# What a new version is called that no gate has passed.
CANDIDATE = "candidate"
FormatName = Literal["hf", "gguf", "onnx"]
# The settings of each format that a model is written in anew.
ENGINE_SETTINGS: dict[str, type[EngineSettings]] = {"gguf": GgufSettings, "onnx": OnnxSettings}
FIGURE_NAME = re.compile(r"(?=\S)[\w .:/-]{1,100}(?<=\S)")


class RecoverSettings(Settings):
    """Optional training after pruning."""

    enabled: bool = Field(default=False, description="train, merge, and keep it if it helps")
    text: str = Field(default="recovery", description="name of the training text")
    held_out: str = Field(
        default="recovery-judge", description="name of the text that judges it, reported nowhere"
    )
    recipe: Recipe = Field(
        default=LoraRecipe(), description="how it is trained; its kind is lora where none is named"
    )


class EvaluateSettings(Settings):
    """What is measured on dense, pruned and recovered model alike."""

    texts: tuple[str, ...] = Field(default=("held-out",), description="texts for perplexity")
    tasks: tuple[str, ...] = Field(default=(), description="zero-shot tasks")
    protocol: Protocol = Field(
        default=Protocol(), description="how they are measured, or the name of a ready protocol"
    )
    # Left out where it is 1, as it was before it could be set: older packages keep their bytes.
    parts: int = Field(
        default=1,
        ge=1,
        exclude_if=lambda parts: parts == 1,
        description="parallel steps that share the texts, and the batches of the tasks, of each "
        "model; the record is the same",
    )


class ExportSettings(Settings):
    """Which formats the package holds."""

    formats: tuple[FormatName, ...] = Field(
        default=("hf",),
        description="hf: transformers, in every package; gguf: llama.cpp; onnx: ONNX Runtime",
    )
    gguf: GgufSettings = Field(
        default=GgufSettings(), description="how the gguf is stored and measured"
    )
    onnx: OnnxSettings = Field(
        default=OnnxSettings(), description="how the onnx is written and measured"
    )
    # Dumped nowhere: whose key signs a package changes nothing that it holds or tells.
    sign: SignSettings = Field(
        default=SignSettings(), exclude=True, description="who signs it, in the run that makes it"
    )

    @model_validator(mode="after")
    def _each_once(self) -> ExportSettings:
        if "hf" not in self.formats:
            raise ValueError("export.formats: add hf, which a registered version is loaded from")
        if len(set(self.formats)) < len(self.formats):
            raise ValueError(f"export.formats: {', '.join(self.formats)}: one stands twice")
        return self


def _without_login(value: str | None, info: ValidationInfo) -> str | None:
    if value is not None and (shown := without_secrets(value)) != value:
        raise ValueError(
            f"promote.{info.field_name} {shown}: a configuration is kept and shown, so no user or "
            "password may stand in it; give them by MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or PGPASSWORD"
        )
    return value


Address = Annotated[str | None, AfterValidator(_without_login)]


def _without_user(value: str) -> str:
    if without_secrets(value) != value or "@" in value:
        raise ValueError(
            f"promote.also {without_secrets(value)}: a configuration is kept and shown, so no user "
            "or password may stand in it; give them by AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or HF_TOKEN"
        )
    return value


Place = Annotated[str, AfterValidator(_without_user)]


class PromoteSettings(Settings):
    """Where the package is registered."""

    name: str = Field(default="bipline", description="name of the registered model in MLflow")
    alias: str = Field(
        default=CANDIDATE,
        description="alias the new version gets; every other than candidate needs a gate",
    )
    gate: str | None = Field(
        default=None,
        description="what decides whether it does: strict, lenient, or a YAML file; null: nothing "
        "may move an alias that is served",
    )
    tracking_uri: Address = Field(
        default=None,
        description="MLflow server that the run is told to; null: the stack's experiment tracker",
    )
    registry_uri: Address = Field(
        default=None,
        description="MLflow server that holds the registered model; null: MLFLOW_REGISTRY_URI, or "
        "where the run is told to",
    )
    also: tuple[Place, ...] = Field(
        default=(),
        description="registries that get the package too, each with a gate's verdict of its own: "
        "s3://bucket/prefix, sagemaker://bucket/prefix, hf:OWNER",
    )


def _of_the_hub(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    if not all(isinstance(name, str) for name in value):
        raise ValueError(f"tasks {value!r}: give names, or name: source")
    return dict.fromkeys(value, "hf:")


TASKS = (
    "name: .jsonl file of zero-shot rows, lm-eval's data set on disk, or hf:; a list of lm-eval's "
    "names is hf: for each"
)
Tasks = Annotated[dict[str, str], BeforeValidator(_of_the_hub)]


class CompressSettings(StackSettings, LineSettings):
    """One compress run: a model, its texts and tasks, and a section per stage."""

    models: tuple[str, ...] = Field(
        default=(),
        description="in place of model: several, each with a run and a registered name of its own; "
        "{name} in promote.name and state stands for the model's",
    )
    tasks: Tasks = Field(default={}, description=TASKS)
    recover: RecoverSettings = RecoverSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    export: ExportSettings = ExportSettings()
    promote: PromoteSettings = PromoteSettings()
    published: tuple[PublishedRow, ...] = Field(
        default=(), description="figures of others, which the report shows beside this run's"
    )

    @model_validator(mode="after")
    def _names_exist(self) -> CompressSettings:
        wanted = [*self.calibrate.texts, *self.evaluate.texts]
        if self.recover.enabled:
            wanted += [self.recover.text, self.recover.held_out]
        all_known("text", wanted, self.texts)
        all_known("task", self.evaluate.tasks, self.tasks)
        if self.models:
            raise ValueError("models: one run is of one model; `bipline compress` makes them all")
        return self


def all_known(kind: str, wanted: list[str] | tuple[str, ...], known: dict[str, str]) -> None:
    """Raise ValueError for a name that is used and not listed, or that no tracker takes."""
    for name in wanted:
        if not (FIGURE_NAME.fullmatch(name) and is_plain_name(name)):
            raise ValueError(
                f"{kind} {name!a:.60}: MLflow takes no figure of this name; "
                "write up to 100 letters, digits, blanks and - _ . :"
            )
        if name not in known:
            names = ", ".join(known) or "none"
            raise ValueError(f"{kind} {name!r} is used but not listed under {kind}s ({names})")
