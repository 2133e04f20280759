"""Terraform as a test runs it: in a copy of the stack, with the provider of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infra.stacks.server import answers, wait
from tests.layers import ROOT
from tests.servers import running
from tests.storage.server import free_port

SOURCE = ROOT / "infra" / "terraform"
# A folder laid out as Terraform's provider mirrors are.
PLUGINS = Path(os.environ.get("BIPLINE_TERRAFORM_PLUGINS", "/opt/tf-plugins"))
# S3 by path, as a stand-in has no names of its own; the state beside the copy.
OVERRIDE = """
terraform {
  backend "local" {}
}
provider "aws" {
  s3_use_path_style       = true
  skip_metadata_api_check = true
}
"""


def needed() -> None:
    """Skip without Terraform and its provider; a machine of CI has them, so there it fails."""
    missing = [] if shutil.which("terraform") else ["terraform is not installed"]
    if not list(PLUGINS.glob("*/hashicorp/aws/*")):
        missing.append(f"{PLUGINS}: no AWS provider; BIPLINE_TERRAFORM_PLUGINS names its mirror")
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("; ".join(missing))


@dataclass
class Terraform:
    """Terraform in a folder of its own."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """What a command said. Its exit code is one of ``codes``."""
        outer = {n: v for n, v in os.environ.items() if not n.startswith(("TF_", "AWS_"))}
        done = subprocess.run(
            ["terraform", *arguments], cwd=self.folder, text=True, check=False, timeout=280,
            env={**outer, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", **self.environment},
            capture_output=True,
        )  # fmt: skip
        assert done.returncode in codes, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def shown(self, *arguments: str) -> Any:
        """A plan, or the state, as JSON."""
        return json.loads(self.run("show", "-json", *arguments))


def copied(folder: Path, *options: str, override: str = "") -> Terraform:
    """The stack in a new folder, initialised by the shipped lock file, which stays as it is."""
    needed()
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns(".terraform", "*.tfstate*"))
    (folder / "stand_in_override.tf").write_text(override)
    terraform = Terraform(folder)
    terraform.run("init", f"-plugin-dir={PLUGINS}", "-lockfile=readonly", "-input=false", *options)
    return terraform


@contextmanager
def stand_in(log: Path) -> Iterator[dict[str, str]]:
    """An AWS on this machine; gives the variables that lead to it."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "tests.aws_stand_in", "-H", "127.0.0.1", "-p", port]
    given = {**os.environ, "MOTO_IAM_LOAD_MANAGED_POLICIES": "true"}
    with running(command, log, cwd=ROOT, env=given):
        wait("moto", lambda: answers(f"{address}/moto-api/data.json"))
        yield {
            "AWS_ENDPOINT_URL": address, "NO_PROXY": "127.0.0.1",
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        }  # fmt: skip
