"""The Terraform stack: well written, valid, and what it makes against a provider that is mocked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cloud_policy import violations
from tests.layers import ROOT
from tests.terraform_run import SOURCE, Terraform, copied, needed

BLOCK = re.compile(r'^(variable|output) "(\w+)" \{\n((?:  .*\n|\n)*?)\}', re.MULTILINE)


def named(kind: str) -> dict[str, str]:
    """Variables or outputs of the stack, each with its block."""
    found = [BLOCK.findall(path.read_text()) for path in SOURCE.glob("*.tf")]
    return {name: text for blocks in found for what, name, text in blocks if what == kind}


def test_it_is_formatted_as_terraform_does() -> None:
    needed()
    assert Terraform(SOURCE).run("fmt", "-check", "-recursive") == ""


def test_its_own_tests_pass_without_an_account(tmp_path: Path) -> None:
    said = copied(tmp_path / "stack", "-backend=false").run("test", "-no-color")
    assert re.search(r"Success! 2 passed, 0 failed", said), said


def test_each_variable_and_output_is_described_and_in_the_page() -> None:
    page = (SOURCE / "README.md").read_text()
    for kind, count in (("variable", 15), ("output", 10)):
        found = named(kind)
        assert len(found) >= count
        for name, text in found.items():
            assert re.search(r'description = ".{10,}"', text), name
            assert f"`{name}`" in page, name


def test_the_provider_is_one_version_with_its_hash() -> None:
    [version] = re.findall(r'version = "([\d.]+)"', (SOURCE / "versions.tf").read_text())
    lock = (SOURCE / ".terraform.lock.hcl").read_text()
    assert f'version     = "{version}"' in lock and '"h1:' in lock


def test_the_stack_file_finds_every_value_among_the_outputs() -> None:
    text = (ROOT / "infra" / "stacks" / "aws-kubeflow.yaml").read_text()
    asked = {name for name in re.findall(r"\$\{([\w:]+)\}", text) if ":" not in name}
    assert asked and asked <= set(named("output"))


def test_the_stack_file_has_the_pools_of_the_cluster() -> None:
    """By name, and a GPU where the pool is tainted."""
    [default] = re.findall(r"  default = \{\n(.*?)\n  \}", named("variable")["pools"], re.DOTALL)
    made = {
        name: "gpu = true" in rest
        for name, rest in re.findall(r"^ +([\w-]+) += \{(.*)$", default, re.MULTILINE)
    }
    stack = yaml.safe_load((ROOT / "infra" / "stacks" / "aws-kubeflow.yaml").read_text())
    listed = stack["components"]["orchestrator"]["configuration"]["pools"]
    assert {each["name"]: bool(each.get("gpus")) for each in listed} == made
    for each in listed:
        assert each["node_selectors"] == {"bipline.dev/pool": each["name"]}
        assert bool(each.get("tolerations")) == made[each["name"]]


def resource(kind: str, **values: Any) -> dict[str, Any]:
    return {"address": f"{kind}.this", "type": kind, "values": values}


OPEN = '{"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject"}]}'
WILD = '{"Statement": [{"Effect": "Allow", "Action": "%s", "Resource": "%s"}]}'
TRUST = (
    '{"Statement": [{"Effect": "Allow", "Action": "sts:AssumeRoleWithWebIdentity",'
    ' "Principal": {"Federated": "x"}, "Condition": {"StringLike": {"i:sub": "a"}}}]}'
)
DATABASE = {
    "publicly_accessible": False,
    "storage_encrypted": True,
    "manage_master_user_password": True,
}
POOL: dict[str, Any] = {
    "ami_type": "AL2023_x86_64_NVIDIA",
    "scaling_config": [{"min_size": 0}],
    "taint": [],
}


BROKEN = [
    resource("aws_s3_bucket", bucket="alone"),
    resource("aws_s3_bucket_public_access_block", block_public_acls=True),
    resource("aws_s3_bucket_policy", policy=OPEN),
    resource("aws_s3_bucket_acl", acl="public-read"),
    resource("aws_iam_role_policy", policy=WILD % ("s3:*", "arn:aws:s3:::a/*")),
    resource("aws_iam_role_policy", policy=WILD % ("s3:PutObject", "*")),
    resource("aws_iam_role_policy", policy=None),
    resource("aws_iam_policy", policy=WILD % ("*", "*")),
    resource("aws_iam_role", assume_role_policy=OPEN),
    resource("aws_iam_role", assume_role_policy=TRUST),
    resource("aws_iam_role_policy_attachment", policy_arn="aws:policy/AdministratorAccess"),
    resource("aws_db_instance", **DATABASE | {"publicly_accessible": True}),
    resource("aws_db_instance", **DATABASE | {"manage_master_user_password": None}),
    resource("aws_security_group", ingress=[{"cidr_blocks": ["0.0.0.0/0"]}]),
    resource("aws_eks_node_group", **POOL),
    resource("aws_ecr_repository", image_tag_mutability="MUTABLE"),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda each: str(each["type"]))
def test_the_policy_check_finds(broken: dict[str, Any]) -> None:
    found = violations([broken])
    assert found and all(line.startswith(broken["address"]) for line in found)


def test_nothing_that_terraform_writes_lies_in_the_tree() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {".terraform/", "*.tfstate", "*.tfstate.*", "*.tfplan"} <= set(ignored)
    assert not list(Path(SOURCE).rglob("*.tfstate"))
