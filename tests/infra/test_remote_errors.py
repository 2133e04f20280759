"""What went wrong elsewhere, told here: a step in a pod, an artifact store, a registry."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput, Refused
from pipelines.doctor import Ill, _storage_failures
from pipelines.remote import _raised


def failed(source: str | None, message: str | None, trace: str = "") -> Any:
    info = SimpleNamespace(source=source, message=message, traceback=trace)
    return SimpleNamespace(name="score", exception_info=info)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("bipline.base.errors.Refused", Refused),
        ("bipline.base.errors.InvalidInput", InvalidInput),
        ("bipline.base.errors.EnvironmentFailure", EnvironmentFailure),
        ("builtins.ValueError", RuntimeError),
        (None, RuntimeError),
    ],
)
def test_a_step_s_error_keeps_its_kind_and_so_its_exit_code(
    source: str | None, kind: type[Exception]
) -> None:
    error = _raised(failed(source, "what was wrong"))
    assert type(error) is kind and str(error) == "step score: what was wrong"


def test_an_error_without_a_message_is_its_trace_s_last_line() -> None:
    assert "KeyError: 'a'" in str(_raised(failed(None, None, "Traceback\n  x\nKeyError: 'a'\n")))
    lost = _raised(SimpleNamespace(name="score", exception_info=None))  # type: ignore[arg-type]
    assert isinstance(lost, BiplineError) and "could not say why" in str(lost)


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (PermissionError("Access Denied"), "correct key and secret"),
        (FileNotFoundError("The specified bucket does not exist"), "create the bucket team,"),
        (RuntimeError("NoCredentialsError"), "give key and secret, a role"),
        (ConnectionError("Could not connect to the endpoint"), "start the endpoint"),
    ],
)
def test_what_mends_an_artifact_store(error: Exception, mend: str) -> None:
    with pytest.raises(Ill) as ill, _storage_failures("s3://team/zenml"):
        raise error
    assert mend in ill.value.mend and str(error) in str(ill.value)
