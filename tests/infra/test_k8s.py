"""What runs on the cluster: held to Kubernetes' schema, to bipline's options and to Terraform."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from bipline.face.cli import application
from tests.layers import ROOT

FOLDER = ROOT / "infra" / "k8s"
TERRAFORM = ROOT / "infra" / "terraform"
MANIFESTS = ("namespaces.yaml", "storage.yaml", "mlflow.yaml", "bipline.yaml")


def manifests(*names: str) -> list[dict[str, Any]]:
    return [each for name in names for each in yaml.safe_load_all((FOLDER / name).read_text())]


def pods(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for each in found:
        spec = each.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield spec["template"]["spec"]


def version() -> str:
    text = (TERRAFORM / "variables.tf").read_text()
    [found] = re.findall(r'"kubernetes_version" \{.*?default += "([\d.]+)"', text, re.DOTALL)
    return str(found)


@pytest.mark.slow
def test_kubernetes_knows_every_field() -> None:
    import kubernetes_validate

    found = manifests(*MANIFESTS)
    assert len(found) >= 12
    for each in found:
        kubernetes_validate.validate(each, version(), strict=True)
    del found[-1]["spec"]["schedule"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found[-1], version(), strict=True)


def test_no_pod_is_root_or_writes_to_its_image() -> None:
    found = list(pods(manifests(*MANIFESTS)))
    assert len(found) == 3
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        assert pod["automountServiceAccountToken"] is False
        volumes = {each["name"] for each in pod["volumes"]}
        for container in pod["containers"] + pod.get("initContainers", []):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["image"] == "${IMAGE}" and "memory" in container["resources"]["limits"]
            assert {each["name"] for each in container["volumeMounts"]} <= volumes


def test_accounts_and_pools_are_those_of_terraform() -> None:
    asked = set(re.findall(r'account += "(.*?)"', (TERRAFORM / "access.tf").read_text()))
    found = {
        f"{each['metadata']['namespace']}:{each['metadata']['name']}"
        for each in manifests(*MANIFESTS)
        if each["kind"] == "ServiceAccount"
    }
    assert {"bipline:bipline-watch", "bipline:bipline-audit", "mlflow:mlflow"} == found
    assert found <= asked
    # The others: Kubeflow's own, and those that charts make.
    assert asked - found == {
        "${var.kubeflow_namespace}:pipeline-runner", "zenml:zenml",
        "kube-system:cluster-autoscaler",
    }  # fmt: skip
    pools = (TERRAFORM / "variables.tf").read_text()
    for pod in pods(manifests(*MANIFESTS)):
        assert f"{pod['nodeSelector']['bipline.dev/pool']} = {{" in pools


def test_the_schedules_run_what_there_is() -> None:
    from croniter import croniter

    jobs = {each["metadata"]["name"]: each for each in manifests("bipline.yaml")[2:]}
    assert set(jobs) == {"watch", "audit"}
    assert all(croniter.is_valid(each["spec"]["schedule"]) for each in jobs.values())
    [watch] = next(pods([jobs["watch"]]))["containers"]
    program, *arguments = watch["command"]
    command: Any = get_command(application(arguments))
    parsed = command.commands["watch"].make_context("watch", arguments[1:])
    assert program == "bipline" and parsed.params["once"]
    line = ["audit", "models:/acme@production", "--json", "found.json"]
    command = get_command(application(line))
    command.commands["audit"].make_context("audit", line[1:])
    assert 'bipline audit "$alias" --json "$found"' in (FOLDER / "audit.sh").read_text()


@pytest.mark.parametrize(
    ("codes", "upload", "worst"),
    [("0 0", 0, 0), ("0 1", 0, 1), ("3 1", 0, 3), ("0 0", 1, 3)],
    ids=["all well", "one differs", "one was not there", "bucket away"],
)
def test_the_worst_of_all_audits_is_told(
    tmp_path: Path, codes: str, upload: int, worst: int
) -> None:
    """With programs in bipline's and Python's place; each finding is put under its own name."""
    program(tmp_path, "bipline", f'set -- "$@" {codes}; echo {{}} > "$4"; case "$2" in '
            'models:/a@x) exit "$5";; *) exit "$6";; esac')  # fmt: skip
    program(tmp_path, "python", f'echo "$4 $5" >> {tmp_path}/put; exit {upload}')
    (tmp_path / "aliases.txt").write_text("models:/a@x\n\nmodels:/b@x\n")
    (tmp_path / "audit.sh").write_text((FOLDER / "audit.sh").read_text())
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "AUDIT_BUCKET": "kept", "TMPDIR": str(tmp_path)
    }  # fmt: skip
    done = subprocess.run(["sh", tmp_path / "audit.sh"], env=environment, check=False)
    assert done.returncode == worst
    put = (tmp_path / "put").read_text().splitlines()
    assert [line.split("/")[1] for line in put] == ["models__a@x.json", "models__b@x.json"]
    assert all(line.startswith("kept 20") for line in put)


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_every_chart_is_of_one_version_and_its_values_are_read() -> None:
    charts = yaml.safe_load((FOLDER / "helm" / "charts.yaml").read_text())
    for name, chart in charts.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", str(chart["version"]))
        assert yaml.safe_load((FOLDER / "helm" / f"{name}.yaml").read_text())
    assert {path.stem for path in (FOLDER / "helm").glob("*.yaml")} == {*charts, "charts"}
    [zenml] = re.findall(r"^zenml==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert charts["zenml"]["version"] == zenml
    scaler = yaml.safe_load((FOLDER / "helm" / "cluster-autoscaler.yaml").read_text())
    assert scaler["image"]["tag"].startswith(f"v{version()}.")
    for path in FOLDER.rglob("kustomization.yaml"):
        for address in yaml.safe_load(path.read_text())["resources"]:
            assert re.search(r"\?ref=\d+\.\d+\.\d+$", address)


def test_every_place_is_filled_by_the_page_and_every_file_says_not_run() -> None:
    page = (FOLDER / "README.md").read_text()
    for path in FOLDER.rglob("*.yaml"):
        text = path.read_text()
        assert text.startswith("# NOT RUN"), path
        for place in set(re.findall(r"\$\{(\w+)\}", text)):
            assert f"{place}=$(" in page, (path, place)
            assert re.search(rf"envsubst '[^']*\${place}\b", page), (path, place)
