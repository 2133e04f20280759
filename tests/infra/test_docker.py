"""The Dockerfile: not root, nothing that floats, no secret, the same versions as everywhere."""

from __future__ import annotations

import re
from fnmatch import fnmatch

from tests.layers import ROOT

FOLDER = ROOT / "infra" / "docker"
PIN = re.compile(r"^([\w.-]+)==(\S+)$", re.MULTILINE)


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(kind, rest) for kind, _, rest in (line.partition(" ") for line in lines) if kind]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(i for i, (kind, _) in enumerate(found) if kind == "FROM")
    return found[start:]


def test_the_base_is_an_argument_of_both_stages() -> None:
    found = instructions()
    assert found[0] == ("ARG", "BASE=docker.io/library/python:3.11-slim-bookworm")
    assert [rest.split()[0] for kind, rest in found if kind == "FROM"] == ["${BASE}", "${BASE}"]


def test_it_runs_as_a_user_by_number_that_is_not_root() -> None:
    users = [rest for kind, rest in last_stage() if kind == "USER"]
    assert users == ["10001:10001"]
    kinds = [kind for kind, _ in last_stage()]
    assert {"RUN", "COPY"} & set(kinds) and not {"RUN", "COPY"} & set(kinds[kinds.index("USER") :])
    manifests = [path.read_text() for path in (ROOT / "infra" / "k8s").glob("*.yaml")]
    asked = {user for text in manifests for user in re.findall(r"runAsUser: (\d+)", text)}
    assert asked == {"10001"}


def test_what_it_writes_is_mounted() -> None:
    environment = " ".join(rest for kind, rest in last_stage() if kind == "ENV")
    assert "HOME=/tmp " in environment and "PYTHONDONTWRITEBYTECODE=1" in environment
    assert ("WORKDIR", "/work") in last_stage()


def test_every_version_is_that_of_the_constraints() -> None:
    """CPU and CUDA differ in the index of torch alone; our own wheel brings nothing else."""
    runs = [part for kind, rest in last_stage() if kind == "RUN" for part in rest.split("&&")]
    torch, needs, own = (run for run in runs if "pip install" in run)
    assert all("--constraint /mnt/constraints.txt" in run for run in (torch, needs))
    assert "--no-deps --no-index" in own
    assert [("TORCH_INDEX" in run) for run in (torch, needs, own)] == [True, False, False]
    assert runs[-1].split() == ["/opt/bipline/bin/pip", "check"]
    pins = dict(PIN.findall((ROOT / "constraints.txt").read_text()))
    pins |= dict(PIN.findall((ROOT / "infra/kubeflow/requirements.txt").read_text()))
    wanted = PIN.findall((FOLDER / "requirements.txt").read_text())
    assert len(wanted) == 4 and all(pins[name] == version for name, version in wanted)


def test_the_layers_of_libraries_are_made_of_no_code_of_ours() -> None:
    """A release then pushes the last layer alone."""
    libraries = [rest for kind, rest in last_stage() if kind == "RUN" and "trim.sh" in rest]
    mounted = {each for rest in libraries for each in re.findall(r"source=(\S+?),", rest)}
    assert mounted == {
        "constraints.txt", "infra/docker/trim.sh", "infra/docker/requirements.txt", "/wheels/needs",
    }  # fmt: skip
    assert not [rest for kind, rest in last_stage() if kind == "COPY"]
    first = [rest for kind, rest in instructions() if kind == "COPY"]
    made = [rest for kind, rest in instructions() if "pip wheel" in rest]
    assert first == ["pyproject.toml ./", ". ."] and "/wheels/needs" in made[0]


def test_nothing_floats_and_nothing_is_secret() -> None:
    for kind, rest in instructions():
        assert kind not in ("ADD", "VOLUME", "EXPOSE") and "latest" not in rest
        assert not re.search(r"\b(curl|wget|sudo|apt-get|chmod 777)\b", rest)
        if kind in ("ARG", "ENV"):
            assert not re.search(r"KEY|TOKEN|SECRET|PASSWORD", rest, re.IGNORECASE)


def test_the_build_gets_what_the_wheel_is_made_of_and_nothing_else() -> None:
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    given = {line[1:] for line in lines if line.startswith("!")}
    assert lines[1] == "*" and all((ROOT / name).exists() for name in given)
    assert {"bipline", "steps", "pipelines", "materializers", "infra", "assets", "configs"} < given
    assert not given & {".git", "tests", "docs", "benchmarks", ".bipline", ".venv"}
    kept_out = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
    for name in (".terraform", "terraform.tfstate", "terraform.tfvars", "__pycache__"):
        assert any(fnmatch(name, pattern) for pattern in kept_out)
