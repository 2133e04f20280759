"""Flags out of settings: what ``--help`` says of a field is what its class says of it.

A command is a function with a few parameters of its own; :func:`with_settings` gives it one flag,
or the API one keyword, for every field of the settings it takes.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from bipline.base.errors import InvalidInput
from bipline.settings.base import ByteCount, Settings
from bipline.settings.line import (
    EFFORT,
    MODEL,
    USUAL_EFFORT,
    CalibrateSettings,
    ComputeSettings,
    PruneSettings,
)
from bipline.settings.protocol import Protocol

Function = TypeVar("Function", bound=Callable[..., Any])
WHAT, CALIBRATION, MACHINE, OUTPUT = "What", "Calibration", "Machine", "Output"
PROTOCOL = "Protocol"
# Where the flags of settings are shown that do not say what is made.
PANELS: dict[type[Settings], str] = {
    CalibrateSettings: CALIBRATION,
    ComputeSettings: MACHINE,
    PruneSettings: OUTPUT,
    Protocol: PROTOCOL,
}


def option(help_: str, panel: str = OUTPUT, *names: str, **more: Any) -> Any:
    """An option of a command's own."""
    return typer.Option(*names, help=help_, rich_help_panel=panel, **more)


def named_sources(given: list[str] | None) -> dict[str, str]:
    """Texts by name. Raises InvalidInput for what is no NAME=FILE, and for a name that is taken."""
    texts: dict[str, str] = {}
    for text in given or ():
        name, equals, source = text.partition("=")
        if not (name and equals and source):
            raise InvalidInput(f"--text {text!r}: write NAME=FILE")
        if name in texts:
            raise InvalidInput(f"--text: two texts are named {name!r}; name them apart")
        texts[name] = source
    return texts


def with_settings(
    *kinds: type[Settings], leave_out: Sequence[str] = ()
) -> Callable[[Function], Function]:
    """Give a function a flag for every field of these settings.

    Flags that are not given are None, so that a default is written once, in its class.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function, eval_str=True)
        variable = inspect.Parameter.VAR_KEYWORD
        own = [each for each in signature.parameters.values() if each.kind is not variable]
        taken = {each.name for each in own} | set(leave_out)
        flags: dict[str, inspect.Parameter] = {}
        for kind in kinds:
            for name, field in kind.model_fields.items():
                # Of two classes with a field of one name the first has the flag.
                if name not in taken:
                    flags.setdefault(name, _flag(name, field, PANELS.get(kind, WHAT)))
        # What says how much comes first.
        ordered = sorted(flags.values(), key=lambda each: each.name != "ratio")
        needed = [each for each in own if each.default is each.empty]
        parameters = [*needed, *ordered, *(each for each in own if each not in needed)]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {each.name: each.annotation for each in parameters}
        return function

    return decorate


def _flag(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    described = str(field.description).replace("null", "the default").replace("Null", "The default")
    if get_origin(field.annotation) is tuple:
        described = f"comma-separated: {described}"
    option_ = typer.Option(help=described + _shown(name, field), rich_help_panel=panel)
    annotation: Any = Annotated[_typed(field) | None, option_]
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter(name, either, default=None, annotation=annotation)


def _shown(name: str, field: FieldInfo) -> str:
    """The default as the help tells it, where there is one that says something."""
    default = field.get_default(call_default_factory=True)
    if name == "ratio":
        return "; needed unless a plan is applied"
    if default in (None, {}, False, (), 0):
        return ""
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    return f" (default: {default / 1e9:g}GB)" if _is_size(field) else f" (default: {default})"


def _typed(field: FieldInfo) -> Any:
    """What the command line reads a field as: a number, a list of KEY=VALUE, or a text.

    The parts of a tuple are written with commas between them.
    """
    outer, parts = get_origin(field.annotation), get_args(field.annotation)
    if outer is dict:
        return list[str]
    kinds = parts if outer in (Union, types.UnionType) else (field.annotation,)
    plain = [kind for kind in (bool, int, float) if kind in kinds and not _is_size(field)]
    return plain[0] if plain else str


def _is_size(field: FieldInfo) -> bool:
    return any(type(each) is type(get_args(ByteCount)[1]) for each in field.metadata)


Model = Annotated[str, typer.Argument(help=MODEL)]
Out = Annotated[Path, option("output directory; must be empty or not exist", WHAT)]
Calibration = Annotated[
    list[str] | None,
    option(
        "text: FILE or hf:NAME?split=...; may be repeated for a mix, each with ,WEIGHT", CALIBRATION
    ),
]
Seed = Annotated[int, option("draws windows, and whatever a method draws", CALIBRATION)]
Effort = Annotated[str | None, option(f"{EFFORT} (default: {USUAL_EFFORT})", WHAT)]
Text = Annotated[list[str] | None, option("NAME=FILE to measure on; may be repeated", WHAT)]
Tasks = Annotated[str, option("comma-separated names of tasks", WHAT)]
TaskData = Annotated[
    Path | None,
    option("folder of NAME.jsonl rows, or of data sets; the hub's where not given", WHAT),
]
JsonFile = Annotated[Path | None, option("write the result as JSON here", OUTPUT, "--json")]
State = Annotated[Path, option("folder for logs and state")]
Verbose = Annotated[bool, option("also tell how far each stage is from its floor")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value; may be repeated")
]
Stack = Annotated[
    str | None,
    option("registered ZenML stack; default: the active one, its servers are used", MACHINE),
]
DryRun = Annotated[bool, typer.Option(help="print the plan of work, do nothing")]
