"""What each command reads and writes, as its user named it: see :mod:`bipline.storage.places`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bipline.base.errors import BiplineError, InvalidInput
from bipline.face.output import is_result
from bipline.settings.gate import READY
from bipline.settings.line import LineSettings
from bipline.settings.stack import USUAL_STATE
from bipline.storage.directory import occupied
from bipline.storage.folder import S3_SCHEME
from bipline.storage.places import Place, Use, check_places, is_elsewhere

# What the first line of a compiled pipeline begins with.
COMPILED = "# For review and diff, not for submission"
# A name, what it names, and what becomes of it; a name of elsewhere, or none, is no place here.
Named = tuple[str, Any, Use]


def check_prune(
    settings: LineSettings, *, out: Any, work: Any, store: Any, plan_out: Any, json_file: Any,
    state: Any,
) -> None:  # fmt: skip
    """Raise InvalidInput where places of ``bipline prune`` cannot be what they are named for."""
    work = work or f"{Path(out)}.work"
    named = [
        *_of_line(settings), ("--out", out, Use.FOLDER), ("--work", work, Use.WORK),
        ("--store", store, Use.KEPT), ("--state", state, Use.STATE),
    ]  # fmt: skip
    files = {"--plan-out": (plan_out, is_plan), "--json": (json_file, is_result("prune"))}
    _check(named, files)


def check_evaluate(
    models: Iterable[Any], inputs: Mapping[str, Any], *, json_file: Any, state: Any
) -> None:
    """As :func:`check_prune`; ``inputs`` are texts and tasks by the flag that names them."""
    named = [
        *(("MODEL", model, Use.READ_FOLDER) for model in models),
        *((flag, each, Use.READ_FILE) for flag, each in inputs.items()),
        ("--state", state, Use.STATE),
    ]
    _check(named, {"--json": (json_file, is_result("evaluate"))})


def check_speed(models: Iterable[Any], *, json_file: Any, state: Any) -> None:
    """As :func:`check_prune`; a model may be a file or an address too."""
    local = [each for each in models if each and not str(each).startswith(("http:", "https:"))]
    named = [
        ("MODEL", each, Use.READ_FILE if str(each).endswith(".gguf") else Use.READ_FOLDER)
        for each in local
    ]
    _check([*named, ("--state", state, Use.STATE)], {"--json": (json_file, is_result("speed"))})


def check_diff(places: Iterable[Any], *, json_file: Any, state: Any) -> None:
    """As :func:`check_prune`; ``places`` are packages or results."""
    named = [
        *(
            (name, place, Use.READ_FOLDER if Path(place).is_dir() else Use.READ_FILE)
            for name, place in zip(("A", "B"), places, strict=True)
        ),
        ("--state", state, Use.STATE),
    ]
    _check(named, {"--json": (json_file, is_result("diff"))})


def check_export(
    model: Any, texts: Mapping[str, Any], *, out: Any, json_file: Any, state: Any
) -> None:
    """As :func:`check_prune`; ``texts`` are by name."""
    named = [
        ("MODEL", model, Use.READ_FOLDER),
        *((f"--text {name}", text, Use.READ_FILE) for name, text in texts.items()),
        ("--out", out, Use.FOLDER), ("--state", state, Use.STATE),
    ]  # fmt: skip
    _check(named, {"--json": (json_file, is_result("export"))})


def check_audit(
    source: Any, key: Any, trust: Any, texts: Mapping[str, Any], json_file: Any, html_file: Any,
    state: Any,
) -> None:  # fmt: skip
    """As :func:`check_prune`; an audit writes its results, and copies below the state, alone."""
    from bipline.audits.page import is_audit_page

    named = [
        ("SOURCE", source, Use.READ_FOLDER), ("--key", key, Use.READ_FILE),
        ("--trust", trust, Use.READ_FILE),
        *((f"--text {name}", text, Use.READ_FILE) for name, text in texts.items()),
        ("--state", state, Use.STATE),
    ]  # fmt: skip
    results = {"--json": (json_file, is_result("audit")), "--html": (html_file, is_audit_page)}
    _check(named, results)


def check_registered(gate: Any, *, json_file: Any, command: str, state: Any) -> None:
    """As :func:`check_prune`, for commands on a registry; a gate by its name is no place."""
    is_file = gate is not None and str(gate) not in READY
    named = [("--gate", gate if is_file else None, Use.READ_FILE), ("--state", state, Use.STATE)]
    _check(named, {"--json": (json_file, is_result(command))})


def check_recover(
    model: Any, sources: Mapping[str, Any], written: Mapping[str, Any], *, json_file: Any,
    state: Any,
) -> None:  # fmt: skip
    """As :func:`check_prune`; ``sources`` and ``written`` are by the flag that names them."""
    uses = {"--teacher": Use.READ_FOLDER}
    named = [
        ("MODEL", model, Use.READ_FOLDER),
        *((flag, each, uses.get(flag, Use.READ_FILE)) for flag, each in sources.items()),
        *((flag, each, Use.FOLDER) for flag, each in written.items()),
        ("--work", f"{Path(written['--out'])}.work", Use.WORK), ("--state", state, Use.STATE),
    ]  # fmt: skip
    _check(named, {"--json": (json_file, is_result("recover"))})


def check_compare(
    models: Iterable[Any], texts: Iterable[Any], *, out: Any, files: Mapping[str, Any], state: Any
) -> None:
    """As :func:`check_prune`; results are replaced where an earlier comparison wrote them."""
    from bipline.comparison.files import is_comparison

    named = [
        *(("MODEL", model, Use.READ_FOLDER) for model in models),
        *(("--calibration, --text or --tasks", text, Use.READ_FILE) for text in texts),
        ("--out", out, Use.KEPT), ("--state", state, Use.STATE),
    ]  # fmt: skip
    _check(named, {f"--{name}": (file, is_comparison) for name, file in files.items()})


def check_pipeline(settings: Any, command: str, json_file: Any) -> None:
    """As :func:`check_prune`, for a configuration of compress or sweep."""
    if settings.state is not None and set("#?%") & set(str(Path(settings.state).absolute())):
        reason = "ZenML and MLflow take #, ? and % for parts of an address; give another folder"
        raise InvalidInput(f"state {settings.state}: {reason}")
    state = USUAL_STATE if settings.state is None else settings.state
    read = _of_line(settings) if isinstance(settings, LineSettings) else _sources(settings)
    named = [*read, *_signing(settings), ("state", state, Use.STATE)]
    _check(named, {"--json": (json_file, is_result(command))})


def _signing(settings: Any) -> list[Named]:
    """The files that a package is signed by; a sweep makes none."""
    if (export := getattr(settings, "export", None)) is None:
        return []
    sign = export.sign
    single = [(name, getattr(sign, name)) for name in ("key", "certificate")]
    chain = [("certificate_chain", each) for each in sign.certificate_chain]
    return [(f"export.sign.{name}", each, Use.READ_FILE) for name, each in (*single, *chain)]


def check_stack(file: Any, values: Any, json_file: Any, state: Any) -> None:
    """As :func:`check_prune`; a stack's file and values are read, and may not be its result."""
    named = [
        ("FILE", file, Use.READ_FILE), ("--values", values, Use.READ_FILE),
        ("--state", state, Use.STATE),
    ]  # fmt: skip
    _check(named, {"--json": (json_file, is_result("stack"))})


def check_compiled(settings: LineSettings, out: Any, json_file: Any) -> None:
    """As :func:`check_prune`; an earlier compiled file is replaced, another is not."""
    files = {"--compile": (out, is_compiled), "--json": (json_file, is_result("compile"))}
    _check(_of_line(settings), files)


def is_compiled(path: Path) -> bool:
    """Whether a file is what an earlier ``--compile`` wrote."""
    try:
        with path.open("rb") as file:
            return file.read(len(COMPILED)) == COMPILED.encode()
    except OSError:
        return False


def _of_line(settings: LineSettings) -> list[Named]:
    """Inputs of the line; directories that the user names are read where they hold something."""
    named = [
        ("statistics", settings.score.statistics),
        ("corrections", settings.compensate.corrections),
    ]
    kept = [
        (f"--{name}", place, Use.READ_FOLDER if occupied(Path(place)) else Use.FOLDER)
        for name, place in named
        if place
    ]
    return [*_sources(settings), ("--plan", settings.allocate.plan, Use.READ_FILE), *kept]


def _sources(settings: Any) -> list[Named]:
    texts = {**settings.texts, **getattr(settings, "tasks", {})}
    read = [(f"text {name}", source, Use.READ_FILE) for name, source in texts.items()]
    return [("model", settings.model, Use.READ_FOLDER), *read]


def _check(named: Iterable[Named], files: Mapping[str, tuple[Any, Callable[[Path], bool]]]) -> None:
    named = list(named)
    for flag, each, _ in named:
        _check_given(flag, each)
    here = [Place(flag, Path(str(each)), use) for flag, each, use in named if _is_here(each, use)]
    results = [
        Place(flag, Path(file), Use.FILE, is_earlier)
        for flag, (file, is_earlier) in files.items()
        if file
    ]
    check_places([*here, *results])


def _check_given(flag: str, given: Any) -> None:
    """Raise InvalidInput for what is no name at all."""
    if given is not None and not (isinstance(given, (str, Path)) and str(given)):
        raise InvalidInput(f"{flag} {given!r}: give a path")


def _is_here(source: Any, use: Use) -> bool:
    """Whether a source is a path, not a name of a hub, a bucket or a registry.

    What is written is one, but for a Store in a bucket.
    """
    if source is None:
        return False
    text = str(source)
    if use.written or use is Use.STATE:
        return not (use is Use.KEPT and text.startswith(S3_SCHEME))
    return not is_elsewhere(text)


def is_plan(path: Path) -> bool:
    """Whether a file holds a pruning plan."""
    from bipline.values.plan import read_plan

    try:
        read_plan(path)
    except BiplineError:
        return False
    return True
