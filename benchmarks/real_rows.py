"""The rows of the benchmark on a real model: how each smaller model is made, and what is measured.

Names say what a row is: a method, then the ratio where it is not 0.2, then the layout where blocks
differ. ``first`` marks the rows that say most for the least time.
"""

from __future__ import annotations

from dataclasses import dataclass

from bipline.compression.efforts import CORRECTIONS

UNIFORM, PER_LAYER = "uniform", "per-layer"
BIAS = ("--compensation", "bias", "--compensation-option", "sequential=false")
# The widths that auto takes, without what it corrects: the same size for a peer.
AUTO_WIDTHS = ("--allocation", "compensated")
# obs with neither random nor generated windows; it chooses again whatever scores say.
UNDRAWN = (
    "--criterion", "magnitude", "--allocation", "compensated", "--compensation", "obs",
    "--compensation-option", "random_windows=0", "--compensation-option", "generated_windows=0",
)  # fmt: skip
METHODS: dict[str, tuple[str, ...]] = {
    "llm-bip-glu": ("--criterion", "llm-bip-glu"),
    "llm-bip": ("--criterion", "llm-bip"),
    "llm-bip-exact": ("--criterion", "llm-bip-exact"),
    "llm-bip-exact, auto's widths": (
        "--criterion", "llm-bip-exact", *AUTO_WIDTHS, "--compensation", "none",
    ),
    "wanda-sp": ("--criterion", "wanda-sp"),
    "flap": ("--criterion", "flap", *BIAS),
    "llm-pruner": ("--criterion", "llm-pruner"),
    "osscar": ("--criterion", "wanda-sp", "--compensation", "osscar"),
    "osscar, auto's widths": (
        "--criterion", "magnitude", *AUTO_WIDTHS, "--compensation", "osscar",
    ),
    "slimgpt": ("--criterion", "wanda-sp", "--compensation", "slimgpt"),
    "auto quick": ("--effort", "quick"),
    "auto balanced": ("--effort", "balanced"),
    "auto best": ("--effort", "best"),
    "auto balanced, none drawn": ("--effort", "balanced", *UNDRAWN),
    "auto best, none drawn": ("--effort", "best", *UNDRAWN),
}  # fmt: skip
FIRST = ("llm-bip-glu", "wanda-sp", "osscar", "auto quick", "auto balanced")
DENSE = "dense"
OTHER_RATIOS = ("0.1", "0.3", "0.5")
OTHERWISE = ("wanda-sp", "osscar", "auto quick", "auto balanced")
# More windows than the other rows are calibrated on.
LONGER = (
    ("osscar, auto's widths", 512), ("auto quick", 512), ("auto balanced, none drawn", 512),
    ("auto best, none drawn", 512), ("auto balanced", 256),
)  # fmt: skip
# Windows of 128 tokens that best draws where none are named.
BEST = CORRECTIONS["best"]["text_tokens"] // 128
# Efforts whose windows run in bfloat16 too.
NARROWER = ("auto quick", "auto balanced", "auto best")
DIFFERING = ("flap", "osscar", "auto quick", "auto balanced")
# Ratios of rows whose blocks differ, with the uniform row that theirs is held to.
DIFFERING_RATIOS = ("0.2", "0.35")
# What is trained on, and how: 0.3 M tokens.
TRAINED, RECIPES = (DENSE, "llm-bip-glu", "auto quick"), ("lora", "distill")
TRAINING = ("--tokens", "299008", "--dtype", "bfloat16")


@dataclass(frozen=True)
class Row:
    """One model: the flags of ``bipline prune`` that make it; none for the dense one.

    ``base`` is the row whose model is trained on, for a recovered one, whose flags are of ``bipline
    recover``; ``samples`` are the windows of calibration.
    """

    name: str
    flags: tuple[str, ...] = ()
    first: bool = False
    base: str = ""
    samples: int = 128


@dataclass(frozen=True)
class Text:
    """A text that perplexity is measured on: its first bytes, all for 0, in windows of a length."""

    name: str
    file: str
    seqlen: int = 128
    first_bytes: int = 0


TEXTS = (
    Text("wikitext2, 60 kB", "wikitext2.test.raw.txt", 128, 60_000),
    Text("wikitext2, 2048", "wikitext2.test.raw.txt", 2048, 120_000),
    Text("novel", "novel.treasure-island.txt", 128, 120_000),
    Text("novel, 2048", "novel.treasure-island.txt", 2048, 120_000),
    Text("whole wikitext2", "wikitext2.test.raw.txt"),
    Text("whole novel", "novel.treasure-island.txt"),
)
FIRST_TEXT = TEXTS[0].name
TASKS, SPEED = "tasks", "speed"
MEASURES = (*(text.name for text in TEXTS), TASKS, SPEED)


def rows() -> list[Row]:
    """All rows in the order of the table."""
    found = [Row(DENSE, first=True)]
    found += [
        Row(name, _flags(flags, "0.2", UNIFORM), name in FIRST, samples=windows_of(name))
        for name, flags in METHODS.items()
    ]
    found += [_in_bfloat16(name, "0.2", f"{name}, bfloat16") for name in NARROWER]
    for ratio in OTHER_RATIOS:
        found += [Row(f"{n}, {ratio}", _flags(METHODS[n], ratio, UNIFORM)) for n in OTHERWISE]
    found += _halved()
    for ratio in DIFFERING_RATIOS:
        found += _differing(ratio)
    for name, samples in LONGER:
        flags = _flags(METHODS[name], "0.2", UNIFORM)
        found.append(Row(f"{name}, {samples} windows", flags, samples=samples))
    found += [
        Row(f"{base}, {recipe}", ("--recipe", recipe, *TRAINING), base=base)
        for base in TRAINED
        for recipe in RECIPES
    ]
    return found


def windows_of(name: str) -> int:
    """The calibration windows of a method: 128, or what best takes by default."""
    return BEST if name == "auto best" else 128


def _halved() -> list[Row]:
    """At 0.5, beside those of all methods: the peer at auto's widths, and what takes longest."""
    peer = "osscar, auto's widths"
    slowest = ("auto balanced", "auto best")
    return [
        Row(f"{peer}, 0.5", _flags(METHODS[peer], "0.5", UNIFORM)),
        *(_in_bfloat16(name, "0.5", f"{name}, 0.5, bfloat16") for name in slowest),
    ]


def _in_bfloat16(method: str, ratio: str, name: str, layout: str = UNIFORM) -> Row:
    flags = _flags((*METHODS[method], "--dtype", "bfloat16"), ratio, layout)
    return Row(name, flags, samples=windows_of(method))


def _differing(ratio: str) -> list[Row]:
    """Rows whose blocks differ, each method with its best allocation there."""
    told, found = "" if ratio == "0.2" else f", {ratio}", []
    for name in DIFFERING:
        flags = METHODS[name]
        if name == "flap":
            flags = (*flags, "--allocation", "standardized")
        if name == "osscar":
            flags = (*flags, *AUTO_WIDTHS)
        found.append(Row(f"{name}, per-layer{told}", _flags(flags, ratio, PER_LAYER)))
    slowest = "auto balanced"
    found.append(_in_bfloat16(slowest, ratio, f"{slowest}, per-layer{told}, bfloat16", PER_LAYER))
    if told:
        found.append(_in_bfloat16(slowest, ratio, f"{slowest}{told}, bfloat16"))
        names = ("osscar, auto's widths", "auto quick", "auto balanced")
        found += [Row(f"{name}{told}", _flags(METHODS[name], ratio, UNIFORM)) for name in names]
    return found


def _flags(flags: tuple[str, ...], ratio: str, layout: str) -> tuple[str, ...]:
    return (*flags, "--ratio", ratio, "--layout", layout)
