"""Stacks: a run compiled for review, a stack registered from its file, and what is wrong with one.

What asks ZenML lies beside this package, in ``pipelines``.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bipline.base import extras
from bipline.base.errors import EnvironmentFailure
from bipline.base.printable import printable
from bipline.face import named_places, options
from bipline.face.options import option
from bipline.face.output import log_file, write_json
from bipline.settings.stack import USUAL_STATE, StackSettings

if TYPE_CHECKING:
    from bipline.settings.compress import CompressSettings


def compiled(
    settings: CompressSettings, stack: str | None, out: Path, json_file: Path | None = None
) -> dict[str, Any]:
    """Write what Kubeflow Pipelines would be given to ``out``, for review; no server is asked.

    ``stack`` is a stack file, or the name of one that comes with bipline. Gives the stack's name
    and those of the steps.
    """
    from bipline.face.running import checked

    extras.check_all(("pipeline", "kubeflow"), "--compile")
    named_places.check_compiled(settings, out, json_file)
    # A GPU is asked of the cluster, not of this machine.
    anywhere = settings.compute.model_copy(update={"device": "auto"})
    checked(settings.model_copy(update={"compute": anywhere}))
    made: dict[str, Any] = import_module("pipelines.compiled").compile_compress(
        settings, stack, out
    )
    write_json(json_file, "compile", made)
    return made


def told_needs(settings: CompressSettings) -> list[tuple[str, str]]:
    """What each step of a run needs, and where it goes on the stack that the settings mean.

    Raises InvalidInput where no pool of that stack has room for a step.
    """
    return list(import_module("pipelines.placement").told_places(settings, _pools(settings)))


def _pools(settings: CompressSettings) -> tuple[Any, ...]:
    """The node pools of a stack that is named: of a file, or as ZenML knows it; else none."""
    if settings.stack is None:
        return ()
    if settings.stack.endswith((".yaml", ".yml")):
        from bipline.settings.stack_file import load_stack

        return load_stack(Path(settings.stack), filled=False).pools
    extras.check("pipeline", "--stack")
    return tuple(import_module("pipelines.own_stack").pools_of(settings.stack))


def apply(
    file: Annotated[Path, typer.Argument(help="stack file; some come with bipline")],
    values: Annotated[
        Path | None, option("values for its places, as `terraform output -json` writes them")
    ] = None,
    json_file: options.JsonFile = None,
) -> None:
    """Register a stack as its file says; run again, it changes what differs and nothing else."""
    from bipline.face.console import working
    from bipline.settings.stack_file import load_stack

    extras.check("pipeline", "stack apply")
    named_places.check_stack(file, values, json_file, USUAL_STATE)
    stack = load_stack(file, values)
    with working(log_file(Path(USUAL_STATE), "stack")) as console:
        told: dict[str, str] = import_module("pipelines.stacks").apply_stack(stack)
        for name, change in told.items():
            console.print(printable(f"{change:<10}{name}"))
        if stack.not_run:
            console.print(printable(f"not run yet: {stack.not_run}"))
    write_json(json_file, "stack", {"stack": stack.name, "changes": told})


def doctor(
    stack: Annotated[str | None, option("registered ZenML stack; default: the active one")] = None,
    json_file: options.JsonFile = None,
) -> None:
    """Ask every component of a stack one thing; say what is wrong and what mends it."""
    from bipline.face.console import working

    extras.check("pipeline", "doctor")
    named_places.check_registered(None, json_file=json_file, command="doctor", state=USUAL_STATE)
    with working(log_file(Path(USUAL_STATE), "doctor")) as console:
        found = import_module("pipelines.doctor").examine(StackSettings(stack=stack))
        for each in found:
            console.print(printable(f"{'ok' if each.ok else 'FAILS':<7}{each.name}: {each.said}"))
            if not each.ok:
                console.print(printable(f"{'':<7}to mend it: {each.mend}"))
    told = [vars(each) for each in found]
    write_json(json_file, "doctor", {"components": told})
    if ill := [each.name for each in found if not each.ok]:
        raise EnvironmentFailure(f"{', '.join(ill)}: see above")
