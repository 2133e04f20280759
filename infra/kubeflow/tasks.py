"""Steps of a ZenML snapshot as tasks of a KFP pipeline: dependencies, resources, place, secrets.

The one number of retries is ZenML's, and KFP carries it out; KFP's cache is off, as ZenML's and
the Store decide what is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bipline.base.extras import require
from infra.pods import SCRATCH, SHARED_MEMORY, WRITABLE

if TYPE_CHECKING:
    from zenml.config.step_configurations import Step

    from infra.kubeflow.config import KubeflowSettings

RUN_ID = "KFP_RUN_ID"
SECRET_NAME = re.compile(r"TOKEN|API_KEY|PASSWORD|SECRET|CREDENTIAL", re.IGNORECASE)


def compile_tasks(
    name: str,
    steps: Mapping[str, Step],
    settings_of: Callable[[Step], KubeflowSettings],
    image_of: Callable[[str], str],
    arguments_of: Callable[[str], tuple[list[str], list[str]]],
    environments: Mapping[str, Mapping[str, str]],
    out: Path,
) -> None:
    """Write the pipeline that KFP takes to ``out``.

    ``steps`` are in an order in which each follows those it needs; ``arguments_of`` gives command
    and arguments of a step. Variables whose name is a secret's are left out, as they would lie
    open in the file: ``secret_env`` names where the cluster keeps them.
    """
    dsl = require("kfp.dsl", "kubeflow")
    compiler = require("kfp.compiler", "kubeflow")

    def tasks() -> None:
        made: dict[str, Any] = {}
        for step_name, step in steps.items():
            component = _component(dsl, step_name, image_of(step_name), *arguments_of(step_name))
            task = component().set_display_name(step_name).set_caching_options(False)
            task.set_env_variable(RUN_ID, dsl.PIPELINE_JOB_ID_PLACEHOLDER)
            settings = settings_of(step)
            _set_environment(task, environments[step_name], settings)
            _set_resources(task, step, settings)
            _set_place(task, settings)
            if retry := step.config.retry:
                task.set_retry(
                    num_retries=retry.max_retries,
                    backoff_duration=f"{retry.delay}s",
                    backoff_factor=float(retry.backoff or 1),
                )
            task.after(*(made[upstream] for upstream in step.spec.upstream_steps))
            made[step_name] = task

    tasks.__annotations__.clear()  # kfp reads them as types of artifacts
    pipeline = dsl.pipeline(name=name, display_name=name)(tasks)
    compiler.Compiler().compile(pipeline, package_path=str(out), pipeline_name=name)


def _component(dsl: Any, name: str, image: str, command: list[str], arguments: list[str]) -> Any:
    def container() -> Any:
        return dsl.ContainerSpec(image=image, command=command, args=arguments)

    container.__name__ = name
    container.__annotations__["return"] = dsl.ContainerSpec
    return dsl.container_component(container)


def _set_environment(task: Any, environment: Mapping[str, str], settings: KubeflowSettings) -> None:
    kubernetes = require("kfp.kubernetes", "kubeflow")
    secret = {name for keys in settings.secret_env.values() for name in keys.values()}
    for name, value in sorted(environment.items()):
        if name not in secret and not SECRET_NAME.search(name):
            task.set_env_variable(name, value)
    for name, keys in settings.secret_env.items():
        kubernetes.use_secret_as_env(task, secret_name=name, secret_key_to_env=keys)
    if settings.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, settings.image_pull_secrets)


def _set_resources(task: Any, step: Step, settings: KubeflowSettings) -> None:
    """What is asked for is the limit too: a pod that needs more would be killed at any time."""
    wanted = step.config.resource_settings
    if wanted.cpu_count:
        cpus = f"{wanted.cpu_count:g}"
        task.set_cpu_request(cpus).set_cpu_limit(cpus)
    if wanted.memory:
        # ZenML writes 24GiB where Kubernetes writes 24Gi.
        memory = wanted.memory.removesuffix("B")
        task.set_memory_request(memory).set_memory_limit(memory)
    if wanted.gpu_count:
        task.set_accelerator_type(settings.gpu_resource).set_accelerator_limit(wanted.gpu_count)


def _set_place(task: Any, settings: KubeflowSettings) -> None:
    """On which nodes the pod may run, for how long, and what it has beside its image."""
    kubernetes = require("kfp.kubernetes", "kubeflow")
    for label, value in settings.node_selectors.items():
        kubernetes.add_node_selector(task, label_key=label, label_value=value)
    for toleration in settings.tolerations:
        kubernetes.add_toleration(task, **toleration)
    if settings.shared_memory:
        kubernetes.empty_dir_mount(
            task, volume_name="shared-memory", mount_path=SHARED_MEMORY,
            medium="Memory", size_limit=settings.shared_memory,
        )  # fmt: skip
    if settings.disk:
        kubernetes.add_ephemeral_volume(
            task, volume_name="scratch", mount_path=SCRATCH, access_modes=["ReadWriteOnce"],
            size=settings.disk, storage_class_name=settings.storage_class,
        )  # fmt: skip
        for name, value in WRITABLE.items():
            task.set_env_variable(name, value)
    if settings.step_timeout:
        kubernetes.set_timeout(task, settings.step_timeout)
