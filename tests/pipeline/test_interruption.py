"""A signal that stops a pipeline is an interruption (exit code 130), not a fault of bipline."""

from __future__ import annotations

from zenml.exceptions import RunInterruptedException

from bipline.base.errors import InvalidInput
from pipelines.run import original


def test_what_zenml_makes_of_a_signal_is_an_interruption() -> None:
    assert isinstance(original(RunInterruptedException("stopped")), KeyboardInterrupt)
    outer = RuntimeError("step failed")
    outer.__cause__ = RunInterruptedException("stopped")
    assert isinstance(original(outer), KeyboardInterrupt)


def test_other_errors_keep_their_exit_code() -> None:
    outer, inner = RuntimeError("step failed"), InvalidInput("no such file")
    outer.__cause__ = inner
    assert original(outer) is inner
    assert original(plain := ValueError("odd")) is plain
