"""How much code there is, by room: now, and at an older commit.

python -m benchmarks.lines [--repo DIR] [--commit COMMIT]

Lines are those of ``git ls-files '*.py'`` below ``PACKAGES``, blank ones and docstrings included.

*Driving* is what wires the stages together and asks for them: pipelines, steps and their
materializers, command line, stages, settings, the rows of a comparison. Before there were rooms it
lay in other places. At 8ac9c21 the files that ``DRIVING`` names have 6,300 of 24,351 lines: the
"about 6,300 of 24,350" that the house of one line of stages is measured by. Then as now the pages
and files that show a comparison are none of it. ``quality/protocols.py`` and ``recipes.py`` (78
lines) have since become settings: they count now and did not then, at the cost of now.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from statistics import median

PACKAGES = ("bipline", "steps", "pipelines", "materializers", "infra")
LONGEST_FILE = 350
DRIVING = (
    "pipelines/*", "steps/*", "materializers/*", "bipline/face/*", "bipline/stages/*",
    "bipline/settings/*", "bipline/comparison/*", "bipline/quality/comparison/*",
)  # fmt: skip
# What a comparison shows: at 8ac9c21 it lay in delivery.
SHOWING = tuple(
    f"bipline/comparison/{name}.py" for name in ("report", "files", "pictures", "tracking")
)


def function_lines(source: str) -> Iterator[tuple[str, int]]:
    """Every function of a source text by name, and its lines from ``def`` to its end.

    Its docstring does not count, nor do decorators.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = node.body[0] if ast.get_docstring(node) is not None else None
            said = _span(text) if text is not None else 0
            yield node.name, _span(node) - said


def _span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def sources(repo: Path, commit: str | None) -> dict[str, str]:
    """The product's source texts by path: of a commit, or as they lie in the working tree."""
    listing = ["ls-tree", "-r", "-z", "--name-only", commit] if commit else ["ls-files", "-z"]
    names = [
        name
        for name in _git(repo, *listing, "--", *PACKAGES).split("\0")
        if name.endswith(".py") and (commit or (repo / name).is_file())
    ]
    if commit:
        return {name: _git(repo, "show", f"{commit}:{name}") for name in names}
    return {name: (repo / name).read_text(encoding="utf-8") for name in names}


def _git(repo: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repo), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603


def is_driving(name: str) -> bool:
    """Whether a file wires stages together or asks for them, then or now."""
    at_the_root = PurePosixPath(name).parent == PurePosixPath("bipline")
    driving = any(fnmatch(name, pattern) for pattern in DRIVING)
    return (at_the_root or driving) and name not in SHOWING


def is_s3(name: str) -> bool:
    """Whether a file is of the folders and stores in S3."""
    path = PurePosixPath(name)
    return path.name.startswith("s3") and path.parent.name in {"storage", "artifacts"}


def room_of(name: str) -> str:
    """The room of a file: the first folder below ``bipline``, or its package."""
    parts = PurePosixPath(name).parts
    return "/".join(parts[:2]) if parts[0] == "bipline" and len(parts) > 2 else parts[0]


def report(texts: Mapping[str, str]) -> str:
    """What there is, as lines of text."""
    lines = {name: text.count("\n") for name, text in texts.items()}
    rooms: Counter[str] = Counter()
    for name, count in lines.items():
        rooms[room_of(name)] += count
    told = [f"{count:7,}  {room}" for room, count in sorted(rooms.items())]
    driving = sum(count for name, count in lines.items() if is_driving(name))
    s3 = sum(count for name, count in lines.items() if is_s3(name))
    told += [
        f"{driving:7,}  driving",
        f"{s3:7,}  S3 storage",
        f"{sum(lines.values()):7,}  in all",
        "",
        _functions(texts),
    ]
    long = {name: count for name, count in lines.items() if count > LONGEST_FILE}
    told += [f"files above {LONGEST_FILE} lines: {len(long)}"]
    return "\n".join([*told, *(f"{count:7,}  {name}" for name, count in long.items())])


def _functions(texts: Mapping[str, str]) -> str:
    found = [
        (lines, f"{name}:{function}")
        for name, text in texts.items()
        for function, lines in function_lines(text)
    ]
    most, where = max(found)
    middle = median(lines for lines, _ in found)
    return f"functions: {len(found):,}, median {middle:g} lines, longest {most} ({where})"


def main() -> None:
    """Print the figures of a repository."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repo", type=Path, default=Path(), help="the checkout")
    parser.add_argument("--commit", help="count this commit's files, not the working tree's")
    asked = parser.parse_args()
    print(report(sources(asked.repo, asked.commit)))


if __name__ == "__main__":
    main()
