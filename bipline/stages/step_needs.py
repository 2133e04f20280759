"""What each step of a run needs: from the model's header and the settings, before it runs.

Memory is private memory, because its limit is what kills a pod; files are those that a step makes
and those it fetches. Seconds are operations and bytes at given rates, and what starting costs.
A test holds all of it within a factor of 1.5 of what a run then uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from bipline.compression.allocate import needs_windows
from bipline.compression.allocation.operations import allocation_operations, windows_back
from bipline.compression.auto import applies, settled_settings
from bipline.compression.compensation import checks
from bipline.compression.compensation.drawn_windows import WEIGHED
from bipline.compression.compensation.memory import moments_operations
from bipline.compression.compensation.operations import attention_stays, sequential_operations
from bipline.compression.compensation.options import CompensationOptions
from bipline.compression.criteria import needs_of, options_of
from bipline.compression.gradient_sums import gradient_need
from bipline.compression.scoring_operations import scoring_operations
from bipline.model.checkpoint import Checkpoint
from bipline.model.devices import torch_dtype
from bipline.model.floor import Counted, Rates, Work, forward_operations, head_operations
from bipline.model.memory import pass_need
from bipline.settings.compress import CompressSettings
from bipline.settings.line import AllocateSettings, DtypeName, LineSettings
from bipline.settings.protocol import Protocol
from bipline.settings.recipes import TAUGHT
from bipline.stages.beside_products import seconds_beside
from bipline.stages.calibrate import samples_of
from bipline.stages.line import runs_windows
from bipline.stages.score import reads_windows
from bipline.stages.targets import with_ratio
from bipline.storage.task_rows import SHARED, holds_rows, read_task_rows
from bipline.values.need import StepNeed

MEBIBYTE = 1 << 20
# Measured: private memory of a process that has opened ZenML, MLflow, torch and a model.
LIBRARIES = 640 * MEBIBYTE
# Of one that trains: accelerate, peft, and what autograd keeps of its own.
TRAINING_LIBRARIES = 200 * MEBIBYTE
# What CUDA takes of the host's memory: not measured here, room for its context and libraries.
CUDA = 2048 * MEBIBYTE
# lm-eval, and the questions with their answers.
TASK_LIBRARIES = 200 * MEBIBYTE
# Pieces that are read ahead, cut and hashed, and those that are written.
PIECES = 192 * MEBIBYTE
# Seconds of ZenML around a step, in a process that runs already; a pod's start is its pool's.
AROUND = 1.0
# Measured, more than that: what some steps import, draw, verify and write pages of.
BESIDE = {"resolve": 0.7, "calibrate": 3.0, "prune": 0.7, "recover": 4.0, "export": 5.5}
# A token of English text; choices of a task's row, where the rows are not known.
TOKEN_BYTES, USUAL_CHOICES = 4, 4
# Files of any step: records, logs, pages.
FILES = 4 * MEBIBYTE
# Passes that a training step comes to: forward, back to what every product was given and, where
# all weights are trained, to the weights too.
ADAPTER_TRAINED, ALL_TRAINED = 2, 3


@dataclass(frozen=True)
class MakingEstimates:
    """The needs of the steps that make the smaller model; ``gpu`` says whether there is one to use.

    ``libraries`` is what the process holds before it works, in bytes, and ``around`` the seconds of
    whatever drives the steps, for each of them.
    """

    settings: LineSettings
    checkpoint: Checkpoint
    rates: Rates
    gpu: bool = False
    libraries: int = LIBRARIES
    around: float = AROUND

    def making(self) -> Iterator[tuple[str, StepNeed]]:
        """Every step to the smaller model that the settings bring, in order."""
        settings = self.settings
        yield "resolve", self._need(Work(read=self.checkpoint.weight_bytes))
        if runs_windows(settings):
            yield "calibrate", self._need(disk=self.samples * settings.calibrate.seqlen * 8)
        if applies(settings):
            given = "given_corrections" if settings.compensate.corrections else "given_plan"
            yield given, self._need()
        else:
            yield from self._scoring()
            measures = needs_windows(settings.allocate)
            yield "allocate", self._allocation() if measures else self._need()
        yield from self._between()
        if settings.compensate.chosen != "none":
            yield "compensate", self._compensation()
        smaller = self.smaller
        yield "prune", self._need(Work(read=smaller, written=smaller), smaller, _pieces(smaller))

    def _between(self) -> Iterator[tuple[str, StepNeed]]:
        """What a driver does between plan and corrections."""
        yield from ()

    def _scoring(self) -> Iterator[tuple[str, StepNeed]]:
        section, size = self.settings.score, self.checkpoint.weight_bytes
        if not reads_windows(section):
            yield "score", self._need(self._reading(Counted()), FILES, _pieces(size))
            return
        name, parts = section.criterion, section.parts
        options = options_of(name, self.settings.seed, section.criterion_option)
        counted = scoring_operations(name, options, self.checkpoint.shape, *self._drawn)
        for index in range(parts if parts > 1 else 0):
            yield f"score_part_{index + 1}", self._pass(counted.times(1 / parts))
        backward = self.samples if needs_of(name).backward else 0
        yield "score", self._need() if parts > 1 else self._pass(counted, backward)

    @cached_property
    def section(self) -> AllocateSettings:
        """What is allocated, with a target's ratio."""
        if applies(self.settings):
            return self.settings.allocate
        return with_ratio(self.checkpoint, self.settings.allocate)

    @cached_property
    def samples(self) -> int:
        """Calibration windows."""
        settings = self.settings
        return samples_of(self.checkpoint, settings.calibrate, [settings.compensate])

    @property
    def _drawn(self) -> tuple[int, int]:
        return self.samples, self.settings.calibrate.seqlen

    @cached_property
    def smaller(self) -> int:
        """Bytes of the pruned model's weights: without the share of the blocks that goes."""
        section, whole = self.section, self.checkpoint.weight_bytes
        shape, parameters = self.checkpoint.shape, self.checkpoint.parameters
        of = parameters if section.ratio_of == "total" else shape.linear_weights
        return int(whole * (1 - section.ratio * of / parameters))

    def _allocation(self) -> StepNeed:
        """An allocation that runs windows, and where it tries widths all that these need."""
        shape, section = self.checkpoint.shape, self.settings.allocate
        need = self._pass(backward=windows_back(section))
        operations = allocation_operations(shape, section, self._ratio, *self._drawn)
        memory = need.memory - self.libraries - CUDA * self.gpu
        return self._computing(self._reading(operations), memory, need.disk - FILES)

    def _reading(self, counted: Counted) -> Work:
        """All weights, and operations on them."""
        return Work(self.checkpoint.weight_bytes, 0, counted.all, counted.wide, counted.quick)

    @property
    def _ratio(self) -> float:
        """The share of the blocks' weights that goes."""
        section = self.section
        if section.ratio_of == "blocks":
            return section.ratio
        return section.ratio * self.checkpoint.parameters / self.checkpoint.shape.linear_weights

    def _pass(self, counted: Counted | None = None, backward: int = 0) -> StepNeed:
        compute = self.settings.compute
        made = self.checkpoint, torch_dtype(compute.named_dtype)
        need = pass_need(*made, self._drawn, False, compute.micro_batch, self.libraries)
        if backward:  # so many windows, of which the inputs of all blocks are kept
            need = gradient_need(*made, (backward, self._drawn[1]), self.libraries)
        work = self._reading(counted or Counted())
        return self._computing(work, need.total - self.libraries, need.hidden_states)

    def _compensation(self) -> StepNeed:
        settings = self.settings
        section, seqlen = settings.compensate, settings.calibrate.seqlen
        options = checks.compensation_options(section)
        streams = 2 if options.sequential else 1
        need = self._pass()
        beside = checks.needed_bytes(self.checkpoint, section, self.samples, seqlen)
        hidden = need.disk - FILES
        # One of the streams is kept between a block's halves too.
        memory = need.memory - self.libraries - CUDA * self.gpu + beside + streams * hidden
        work = self._reading(self._fitting(options))
        return self._computing(work, memory, (streams + 1) * hidden + work.read)

    def _fitting(self, options: CompensationOptions) -> Counted:
        """Operations of the passes, and of what is fitted on what they give."""
        settings, shape = self.settings, self.checkpoint.shape
        name, seqlen = settings.compensate.chosen, settings.calibrate.seqlen
        if options.sequential and name in WEIGHED:
            allocate = settings.allocate
            measured = allocate.allocation == "compensated"
            stays = measured and attention_stays(shape, self._ratio, allocate.layout)
            whole = stays or bool(shape.num_experts)  # of which experts go first
            return sequential_operations(
                shape, name, options, self.samples, seqlen, self._ratio, whole
            )
        streams = 2 if options.sequential else 1
        moments = moments_operations(shape, self.samples * seqlen, options.sequential, False)
        wide = float(shape.num_hidden_layers * moments)
        return Counted(streams * forward_operations(shape, self.samples, seqlen) + wide, wide)

    def _computing(self, work: Work, memory: int, disk: int = 0) -> StepNeed:
        """A step that runs the model: on a GPU where there is one, which then holds the same."""
        need = self._need(work, disk, memory + CUDA * self.gpu)
        return replace(need, gpu=True, gpu_memory=memory) if self.gpu else need

    def _need(self, work: Work | None = None, disk: int = 0, memory: int = 0) -> StepNeed:
        work = work or Work()
        beside = seconds_beside(work, self.rates, self.checkpoint.shape.hidden_size)
        return StepNeed(
            memory=self.libraries + memory,
            disk=FILES + disk,
            seconds=self.around + work.seconds(self.rates) + beside,
            operations=work.operations,
            read=work.read,
            written=work.written,
        )


@dataclass(frozen=True)
class Estimates(MakingEstimates):
    """The needs of all steps of a compress run, by name."""

    settings: CompressSettings

    def needs(self) -> dict[str, StepNeed]:
        """Every step that the settings bring, in order."""
        return {
            name: replace(need, seconds=need.seconds + BESIDE.get(name, 0.0))
            for name, need in (*self.making(), *self._delivering())
        }

    def _between(self) -> Iterator[tuple[str, StepNeed]]:
        if set(self.settings.export.formats) != {"hf"}:
            yield "check_formats", self._need()

    def _delivering(self) -> Iterator[tuple[str, StepNeed]]:
        settings = self.settings
        if settings.recover.enabled:
            yield "recover", self._recovery()
        yield from self._measuring()
        size = self.smaller * len(settings.export.formats)
        yield "export", self._need(Work(read=2 * size, written=size), size, PIECES)
        yield "promote", self._need(Work(read=size, written=size), 0, PIECES)

    def _measuring(self) -> Iterator[tuple[str, StepNeed]]:
        settings = self.settings
        texts = sum(_size(settings.texts[name]) for name in settings.evaluate.texts)
        protocol = settings.evaluate.protocol
        rows = sum(_asked(settings.tasks[name], protocol) for name in settings.evaluate.tasks)
        windows = max(1, (texts + rows) // TOKEN_BYTES // protocol.seqlen)
        whole = self._evaluation(windows, protocol.seqlen, protocol.dtype, 1.0)
        share = self.smaller / self.checkpoint.weight_bytes
        part = self._evaluation(windows, protocol.seqlen, protocol.dtype, share)
        yield from self._in_parts("evaluate_dense", whole)
        yield from self._in_parts("evaluate_pruned", part)
        if settings.recover.enabled:
            yield from self._in_parts("evaluate_recovered", part)
        if protocol.speed:
            both = self.checkpoint.weight_bytes + self.smaller
            yield "speed", self._computing(Work(read=both), both)

    def _in_parts(self, name: str, whole: StepNeed) -> Iterator[tuple[str, StepNeed]]:
        """A model's measurement: every part reads all its weights and runs a share of the rest."""
        count = self.settings.evaluate.parts
        if count == 1:
            yield name, whole
            return
        share = replace(
            whole,
            seconds=self.around + (whole.seconds - self.around) / count,
            operations=whole.operations / count,
        )
        for index in range(count):
            yield f"{name}_part_{index + 1}", share
        yield name, self._need()

    def _evaluation(self, windows: int, seqlen: int, dtype: DtypeName, share: float) -> StepNeed:
        drawn = windows, seqlen
        need = pass_need(self.checkpoint, torch_dtype(dtype), drawn, True, None, self.libraries)
        operations = self._passing(*drawn, share)
        work = Work(read=int(share * self.checkpoint.weight_bytes), operations=operations)
        tasks = TASK_LIBRARIES if self.settings.evaluate.tasks else 0
        return self._computing(work, need.total - self.libraries + tasks)

    def _recovery(self) -> StepNeed:
        """The whole model, its activations and logits, and the adapter with AdamW's moments."""
        recipe, shape = self.settings.recover.recipe, self.checkpoint.shape
        size = torch_dtype(self.settings.compute.named_dtype).itemsize
        tokens = recipe.batch_size // recipe.accumulation * recipe.seqlen
        share = self.smaller / self.checkpoint.weight_bytes
        weights = int(self.checkpoint.parameters * share * size)
        attention = shape.num_attention_heads * shape.head_dim
        kept = 8 * shape.hidden_size + 4 * shape.intermediate_size + 4 * attention
        blocks = 1 if recipe.checkpointing else shape.num_hidden_layers
        activations = tokens * (kept * size * blocks + 3 * 4 * shape.vocab_size)
        work = Work(read=self.smaller, written=self.smaller, operations=self._training(share))
        memory = TRAINING_LIBRARIES + 2 * weights + activations
        return self._computing(work, memory, self.smaller)

    def _training(self, share: float) -> float:
        """Operations of all steps, of the teacher beside them, and of what judges the result."""
        section = self.settings.recover
        recipe = section.recipe
        passes = ALL_TRAINED if recipe.kind == "full" else ADAPTER_TRAINED
        passes += recipe.checkpointing
        learned = recipe.trained_tokens // recipe.seqlen
        judged = max(
            1, _size(self.settings.texts[section.held_out]) // TOKEN_BYTES // recipe.seqlen
        )
        # Before and after, and once by the dense model.
        whole = judged + (learned if recipe.kind in TAUGHT else 0)
        own = passes * self._passing(learned, recipe.seqlen, share)
        own += 2 * self._passing(judged, recipe.seqlen, share)
        return own + self._passing(whole, recipe.seqlen, 1.0)

    def _passing(self, windows: int, seqlen: int, share: float) -> float:
        """Operations of a forward pass to the logits, with a share of the blocks' weights."""
        sizes = self.checkpoint.shape, windows, seqlen
        return share * forward_operations(*sizes) + head_operations(*sizes)


def step_needs(
    settings: CompressSettings, checkpoint: Checkpoint, rates: Rates, gpu: bool = False
) -> dict[str, StepNeed]:
    """What each step of a run needs, at these rates; ``gpu`` says whether there is one to use."""
    settled, _ = settled_settings(settings, bool(checkpoint.shape.num_experts))
    return Estimates(settled, checkpoint, rates, gpu).needs()


def _pieces(size: int) -> int:
    """Bytes of what is read ahead and written of so many."""
    return min(PIECES, 2 * size)


def _size(source: str) -> int:
    """Bytes of a text or of rows that lie here; a fetched one is taken for a small one."""
    path = Path(source.partition(":")[2] if source.startswith("chat:") else source)
    return path.stat().st_size if path.is_file() else MEBIBYTE


def _asked(source: str, protocol: Protocol) -> int:
    """Bytes of text that a model reads of a task: every choice behind what comes before it."""
    path, behind = Path(source), 1 + protocol.num_fewshot
    if not (path.is_file() and holds_rows(path)):
        return _size(source) * USUAL_CHOICES * behind
    kind, rows = read_task_rows(path)
    measured = rows[: protocol.limit]
    shared = sum(len(row[SHARED[kind]]) * len(row[kind]) for row in measured)
    return behind * (shared + sum(len(each) for row in measured for each in row[kind]))
