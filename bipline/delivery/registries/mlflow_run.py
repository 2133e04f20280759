"""The MLflow run of a pipeline run: one, from its first stage on, whether it ends well or not.

It bears the pipeline run's name, by which ZenML's experiment tracker takes it up in the step that
registers. Everything here goes by the client and a tracking URI, and never touches which run is
active in the process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from bipline.base.addresses import without_secrets
from bipline.base.extras import require
from bipline.delivery.registries.mlflow_service import (
    BATCH,
    LONGEST_PARAM,
    LONGEST_TAG,
    WORK_LIMITS,
    batches,
    cut,
    limited,
    mlflow_library,
    translated,
)
from bipline.storage.places import is_elsewhere
from bipline.values.resolution import ResolvedModel, ResolvedTask, ResolvedText

# By this tag ZenML knows a run that is its own, and takes it up.
OF_ZENML = "zenml"
NOTE_TAG, FAILURE_TAG, TENSORS_TAG = "mlflow.note.content", "failure", "tensor_digest"
CONTEXT_TAG, EXTERNAL_TAG = "mlflow.data.context", "mlflow.model.isExternal"
LONGEST_DIGEST = 36


@dataclass(frozen=True)
class RunContent:
    """What is told of a run, and of the version that came of it.

    ``metrics`` are grouped by what stands before ``/``, ``curves`` are metrics by step, ``final``
    those of the packaged model, told with the version too; ``artifacts`` maps file names to texts.
    ``summary`` is markdown, the start of the version's description.
    """

    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    final: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    version_tags: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""


@dataclass(frozen=True)
class Tracking:
    """Where a pipeline run is told: the tracking URI, the experiment, and the run's name."""

    uri: str
    experiment: str
    name: str

    def begin(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Open the run and tell what it was asked to do. Raises as :func:`translated`."""
        with self._client() as client:
            run_id = self._run_id(client)
            for batch in batches(params, LONGEST_PARAM):
                entries = [_entity("Param")(*pair) for pair in batch.items()]
                client.log_batch(run_id, params=entries)
            _set_tags(client, run_id, tags)

    def log_inputs(
        self,
        model: ResolvedModel,
        files: Mapping[str, ResolvedText | ResolvedTask],
        contexts: Mapping[str, str],
    ) -> None:
        """The dense model and the texts and tasks as inputs, each with what it is read for."""
        with self._client() as client:
            run_id = self._run_id(client)
            experiment = client.get_run(run_id).info.experiment_id
            datasets = [_dataset(name, each, contexts[name]) for name, each in files.items()]
            dense = _entity("LoggedModelInput")(_dense_model(client, experiment, model))
            client.log_inputs(run_id, datasets=datasets, models=[dense])

    def end(self, error: BaseException) -> None:
        """Close a run that did not end well, with the reason in one line."""
        reason = cut(without_secrets(" ".join(str(error).split())) or type(error).__name__, 1000)
        stopped = isinstance(error, KeyboardInterrupt)
        with self._client() as client:
            run_id = self._run_id(client)
            _set_tags(client, run_id, {FAILURE_TAG: reason, NOTE_TAG: f"It failed: {reason}"})
            client.set_terminated(run_id, "KILLED" if stopped else "FAILED")

    def failure(self) -> str:
        """Why the run failed, as it was told; empty where it was not."""
        with self._client() as client:
            found = self._found(client)
        return str(found.data.tags.get(FAILURE_TAG, "")) if found else ""

    @contextmanager
    def _client(self) -> Iterator[Any]:
        with translated("MLflow"), limited(WORK_LIMITS):
            yield mlflow_library().MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def _run_id(self, client: Any) -> str:
        """The run of this name, opened where there is none yet."""
        if found := self._found(client):
            return str(found.info.run_id)
        experiment = client.get_experiment_by_name(self.experiment).experiment_id
        made = client.create_run(experiment, run_name=self.name, tags={OF_ZENML: "bipline"})
        return str(made.info.run_id)

    def _found(self, client: Any) -> Any | None:
        """The run of this name; None where there is none, or no such experiment."""
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None or "'" in self.name:  # which no run of ours has, and no filter takes
            return None
        named = f"tags.mlflow.runName = '{self.name}'"
        return next(
            iter(client.search_runs([experiment.experiment_id], named, max_results=1)), None
        )


@contextmanager
def run_of(mlflow: ModuleType) -> Iterator[Any]:
    """The active run, left open for whoever opened it, or a new one."""
    if active := mlflow.active_run():
        yield active
        return
    with mlflow.start_run() as run:
        yield run


def log_run(
    mlflow: ModuleType,
    run_id: str,
    params: Mapping[str, str],
    artifacts: Mapping[str, str],
    tags: Mapping[str, str],
) -> None:
    """Parameters, files and tags of a run; what is too long for MLflow is cut."""
    for batch in batches(params, LONGEST_PARAM):
        mlflow.log_params(batch, run_id=run_id)
    _set_tags(mlflow.MlflowClient(), run_id, tags)
    for file_name, text in artifacts.items():
        mlflow.log_text(text, file_name, run_id=run_id)


def log_metrics(
    client: Any, run_id: str, metrics: Mapping[str, float], model_id: str | None = None
) -> None:
    """Metrics of a run, or of a model that came of it.

    MLflow's own shorter way takes a model that it is told metrics of to be an input of the run.
    """
    _log_points(client, run_id, [(name, value, 0) for name, value in metrics.items()], model_id)


def log_curves(client: Any, run_id: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Metrics by step: pairs of a step and the value there."""
    points = [(name, value, step) for name, pairs in curves.items() for step, value in pairs]
    _log_points(client, run_id, points)


def _log_points(
    client: Any,
    run_id: str,
    points: Sequence[tuple[str, float, int]],
    model_id: str | None = None,
) -> None:
    now, metric = int(time.time() * 1000), _entity("Metric")
    of_model = {"run_id": run_id, "model_id": model_id} if model_id else {}
    entries = [metric(name, float(value), now, step, **of_model) for name, value, step in points]
    for start in range(0, len(entries), BATCH):
        client.log_batch(run_id, metrics=entries[start : start + BATCH])


def _set_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    for batch in batches(tags, LONGEST_TAG):
        client.log_batch(run_id, tags=[_entity("RunTag")(*pair) for pair in batch.items()])


def _dataset(name: str, file: ResolvedText | ResolvedTask, context: str) -> Any:
    """A file as MLflow tells of data: its digest has room for 36 characters, a tag for all."""
    counts = file.model_dump(include={"documents", "rows"})
    dataset = _entity("Dataset")(
        name=name,
        digest=file.sha256[:LONGEST_DIGEST],
        source_type="hub" if is_elsewhere(file.source) else "local",
        source=json.dumps({"uri": without_secrets(file.source)}),
        profile=json.dumps(counts),
    )
    tags = {CONTEXT_TAG: context, "sha256": file.sha256}
    entries = [_entity("InputTag")(*pair) for pair in tags.items()]
    return _entity("DatasetInput")(dataset, entries)


def _dense_model(client: Any, experiment: str, model: ResolvedModel) -> str:
    """The id of the dense model among MLflow's: its files stay where they are."""
    tensors = model.tensor_digest or str(model.layout_digest)
    query = f"tags.{TENSORS_TAG} = '{tensors}' and tags.`{EXTERNAL_TAG}` = 'true'"
    if found := client.search_logged_models([experiment], filter_string=query):
        return str(found[0].model_id)
    tags = {
        EXTERNAL_TAG: "true",
        TENSORS_TAG: tensors,
        "source": cut(without_secrets(model.source), LONGEST_TAG),
        "revision": model.revision or "none",
        "licence": cut(model.licence or "unknown", LONGEST_TAG),
    }
    made = client.create_logged_model(
        experiment, name="dense-model", tags=tags, model_type="hf-causal-lm"
    )
    client.finalize_logged_model(made.model_id, "READY")
    return str(made.model_id)


def _entity(name: str) -> Any:
    return getattr(require("mlflow.entities", "pipeline"), name)
