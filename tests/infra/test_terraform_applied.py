"""The Terraform stack applied to a stand-in of AWS, planned again, and destroyed.

Databases and rules for old versions are planned here and not made: the provider waits a minute for
each, however fast the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from bipline.settings.stack_file import load_stack
from tests.cloud_policy import resources, violations
from tests.layers import ROOT
from tests.terraform_run import OVERRIDE, Terraform, copied, stand_in

pytestmark = pytest.mark.slow
QUICKLY = ("-input=false", "-no-color", "-parallelism=30")
# The stand-in knows no add-ons and no budgets; both are planned with a mocked provider.
VARIABLES = {"TF_VAR_addons": "{}", "TF_VAR_protected": "false"}
# What a second plan would change, because the stand-in invents or forgets it: an SSH key of nodes,
# how many are replaced at once, tags of pools and of templates, the name of a template.
INVENTED = {
    ("aws_eks_node_group", "remote_access"),
    ("aws_eks_node_group", "update_config"),
    ("aws_eks_node_group", "tags"),
    ("aws_eks_node_group", "launch_template"),
    ("aws_launch_template", "tag_specifications"),
}


@dataclass
class Applied:
    """What was planned, what is there, what a second plan would change."""

    terraform: Terraform
    planned: dict[str, Any]
    state: dict[str, Any]
    again: dict[str, Any]


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Applied]:
    folder = tmp_path_factory.mktemp("applied")
    with stand_in(folder / "moto.log") as environment:
        terraform = copied(folder / "stack", override=OVERRIDE)
        terraform.environment = {**environment, **VARIABLES}
        terraform.run("plan", *QUICKLY, "-out=whole.tfplan")
        terraform.environment |= {"TF_VAR_databases": "{}", "TF_VAR_old_version_days": "0"}
        terraform.run("apply", *QUICKLY, "-auto-approve")
        terraform.run("plan", *QUICKLY, "-out=again.tfplan")
        yield Applied(
            terraform,
            terraform.shown("whole.tfplan"),
            terraform.shown(),
            terraform.shown("again.tfplan"),
        )


def test_it_is_valid(applied: Applied) -> None:
    assert "valid" in applied.terraform.run("validate", "-no-color")


def test_no_plan_is_public_or_takes_a_wildcard(applied: Applied) -> None:
    for said, kinds in ((applied.planned["planned_values"], 30), (applied.state["values"], 24)):
        found = list(resources(said["root_module"]))
        assert len({each["type"] for each in found}) >= kinds
        assert violations(found) == []


def test_a_second_plan_changes_only_what_the_stand_in_invents(applied: Applied) -> None:
    assert changed(applied.again) == INVENTED


def test_the_cluster_is_the_one_that_was_asked_for(applied: Applied) -> None:
    found = list(resources(applied.state["values"]["root_module"]))
    pools = {
        each["index"]: each["values"] for each in found if each["type"] == "aws_eks_node_group"
    }
    kinds = {name: values["capacity_type"] for name, values in pools.items()}
    assert kinds.pop("gpu-spot") == "SPOT" and set(kinds.values()) == {"ON_DEMAND"}
    assert {n: v["scaling_config"][0]["min_size"] for n, v in pools.items()} == {
        "cpu-small": 2, "cpu-large": 0, "gpu-spot": 0, "gpu-large": 0,
    }  # fmt: skip
    [lock] = [e for e in found if e["type"] == "aws_s3_bucket_object_lock_configuration"]
    assert lock["values"]["rule"][0]["default_retention"][0]["days"] == 365


def test_the_stack_file_takes_the_outputs(
    applied: Applied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``bipline stack apply`` does; what asks for MLflow's password comes from elsewhere."""
    monkeypatch.setenv("BIPLINE_MLFLOW_USERNAME", "team")
    monkeypatch.setenv("BIPLINE_MLFLOW_PASSWORD", "team")
    values = tmp_path / "outputs.json"
    values.write_text(applied.terraform.run("output", "-json"))
    assert "password" not in values.read_text()
    stack = load_stack(ROOT / "infra" / "stacks" / "aws-kubeflow.yaml", values)
    bucket = stack.configuration("artifact_store")["path"]
    assert bucket == "s3://bipline-123456789012-artifacts/zenml"
    registry = stack.configuration("container_registry")["uri"]
    assert stack.configuration("orchestrator")["image"] == f"{registry}/bipline/pipeline:0.1.0"


def test_what_is_destroyed_leaves_nothing(applied: Applied) -> None:
    """The last test of this file."""
    terraform = applied.terraform
    terraform.run("destroy", *QUICKLY, "-auto-approve", "-refresh=false")
    assert terraform.run("state", "list") == ""
    given = terraform.environment
    keys = given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"]
    session = boto3.Session(*keys, region_name="us-east-1")
    where = given["AWS_ENDPOINT_URL"]
    s3, eks, iam = (session.client(each, endpoint_url=where) for each in ("s3", "eks", "iam"))
    assert s3.list_buckets()["Buckets"] == [] and eks.list_clusters()["clusters"] == []
    roles = iam.list_roles()["Roles"]
    assert not [each for each in roles if each["RoleName"].startswith("bipline")]


def changed(plan: dict[str, Any]) -> set[tuple[str, str]]:
    """Kinds of resources that a plan would touch, with the attributes that differ."""
    differing = set()
    for each in plan["resource_changes"]:
        if each["change"]["actions"] != ["no-op"]:
            before, after = each["change"]["before"] or {}, each["change"]["after"] or {}
            unknown = {n for n, value in each["change"]["after_unknown"].items() if value is True}
            names = {n for n in {*before, *after} - unknown if before.get(n) != after.get(n)}
            differing |= {(each["type"], name) for name in names}
    return differing
