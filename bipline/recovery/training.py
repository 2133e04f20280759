"""The training itself: transformers' Trainer, with what bipline asks of it beyond its own.

Its own: steps, accumulation, the schedule, clipping, checkpoints, early stopping, resumption, and
several processes by accelerate. Ours: the objective, an order of windows that a seed decides, a
guard against losses and gradients that are not finite, and the seal on each checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bipline.base.progress import note, ticking
from bipline.recovery.examples import NOT_LEARNED, Examples
from bipline.recovery.objectives import Teacher, objective, token_losses
from bipline.recovery.place import Place, Trained
from bipline.recovery.sealed import hold_to_seal, is_sealed, seal
from bipline.settings.recipes import FullRecipe, Schedule
from bipline.values.recovery import TrainingPoint

NOTES = 10


class NotFiniteError(Exception):
    """A loss or a gradient became NaN or infinite; the step it belongs to was not taken."""


def train(
    model: Any, examples: Examples, recipe: Schedule, teacher: Teacher | None, place: Place
) -> Trained:
    """Train a model in place, from the last checkpoint in ``place`` where there is one.

    Raises Refused for a checkpoint that is not what was written.
    """
    aside = max(1, round(len(examples) * recipe.validation)) if recipe.patience else 0
    aside = min(aside, len(examples) - recipe.batch_size)
    learned = _Windows(examples, ordered(len(examples) - aside, recipe))
    held = _Windows(examples, torch.arange(len(examples) - aside, len(examples)))
    last = last_checkpoint(place)
    with ticking(f"train {recipe.model_dump()['kind']}", recipe.total_steps) as tick:
        watch = _Watch(recipe, place, tick, bool(aside))
        trainer = _Trainer(recipe, teacher, model, _arguments(recipe, place), learned, held, watch)
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        except NotFiniteError as error:
            good = last_checkpoint(place, before=trainer.state.global_step)
            step = trainer.state.global_step + 1
            return Trained(_curve(trainer), step - 1, f"{error} at step {step}", last_good=good)
    best = trainer.state.best_global_step if aside else None
    return Trained(_curve(trainer), trainer.state.global_step, best_step=best)


def ordered(windows: int, recipe: Schedule) -> Tensor:
    """The numbers of the windows of every step, one after the other.

    They are shuffled anew by the seed each time fewer than a step's are left.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    steps, order = [], torch.empty(0, dtype=torch.int64)
    for _ in range(recipe.total_steps):
        if len(order) < recipe.batch_size:
            order = torch.randperm(windows, generator=generator)
        steps.append(order[: recipe.batch_size])
        order = order[recipe.batch_size :]
    return torch.cat(steps)


def last_checkpoint(place: Place, before: int | None = None) -> Path | None:
    """The newest whole checkpoint, held to its seal, of a step before ``before``."""
    whole = {
        int(path.name.rpartition("-")[2]): path
        for path in place.folder.glob("checkpoint-*")
        if is_sealed(path)
    }
    steps = [step for step in whole if before is None or step < before]
    if not steps:
        return None
    hold_to_seal(whole[max(steps)], processes=place.processes)
    return whole[max(steps)]


def _arguments(recipe: Schedule, place: Place) -> TrainingArguments:
    share = place.processes * recipe.accumulation
    saving = {"save_strategy": "steps", "save_steps": recipe.saved_every, "save_total_limit": 2}
    if recipe.patience:
        saving |= {
            "eval_strategy": "steps", "eval_steps": recipe.saved_every,
            "load_best_model_at_end": True, "metric_for_best_model": "loss",
            "greater_is_better": False,
        }  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(place.folder),
        per_device_train_batch_size=recipe.batch_size // share,
        per_device_eval_batch_size=recipe.batch_size // share,
        gradient_accumulation_steps=recipe.accumulation,
        activation_checkpointing=recipe.checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        max_steps=recipe.total_steps,
        learning_rate=recipe.learning_rate,
        weight_decay=0.0,
        lr_scheduler_type="cosine",
        warmup_steps=int(recipe.warmup * recipe.total_steps),
        logging_steps=recipe.point_every,
        logging_nan_inf_filter=False,
        bf16=isinstance(recipe, FullRecipe) and place.dtype == torch.bfloat16,
        use_cpu=place.device.type == "cpu",
        ddp_backend="gloo" if place.device.type == "cpu" and place.processes > 1 else None,
        ddp_find_unused_parameters=False,
        seed=recipe.seed % (1 << 32),
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        prediction_loss_only=True,
        **saving,
    )
    if place.processes == 1 and arguments.n_gpu > 1:
        arguments._n_gpu = 1  # of several cards one, as everywhere; torchrun takes more
    return arguments


class _Windows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Examples in an order."""

    def __init__(self, examples: Examples, order: Tensor) -> None:
        self.examples, self.order = examples, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        number = self.order[place]
        found = self.examples.windows[number], self.examples.labels[number], number
        return dict(zip(("input_ids", "labels", "number"), found, strict=True))


class _Trainer(Trainer):
    """transformers' Trainer with a recipe's objective, and windows in the order they are given."""

    def __init__(
        self, recipe: Schedule, teacher: Teacher | None, model: Any, arguments: TrainingArguments,
        learned: _Windows, held: _Windows, watch: _Watch,
    ) -> None:  # fmt: skip
        callbacks: list[TrainerCallback] = [watch]
        if recipe.patience:
            callbacks.append(EarlyStoppingCallback(recipe.patience))
        super().__init__(
            model, arguments, data_collator=torch.utils.data.default_collate,
            train_dataset=learned, eval_dataset=held, callbacks=callbacks,
        )  # fmt: skip
        self.remove_callback(PrinterCallback)  # what is shown is the listener's affair
        self.recipe, self.teacher, self.watch = recipe, teacher, watch
        # A step's tokens are counted over all its parts and processes, so parts weigh alike.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        chosen: Sized = self.train_dataset if train_dataset is None else train_dataset
        return torch.utils.data.SequentialSampler(chosen)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over learned tokens of a step; outside training, of the text's loss alone."""
        logits = model(input_ids=inputs["input_ids"]).logits[:, :-1].float()
        targets = inputs["labels"][:, 1:]
        counted = targets != NOT_LEARNED
        if not model.training:
            losses = token_losses(logits, targets)
            return (losses.sum() / counted.sum(), {}) if return_outputs else losses.mean()
        losses = objective(self.recipe, logits, targets, inputs, self.teacher)
        loss = (losses * counted).sum() / num_items_in_batch * self.accelerator.num_processes
        self.watch.see(loss.detach())
        return (loss, {}) if return_outputs else loss


class _Watch(TrainerCallback):
    """Progress, the guard and the seals."""

    def __init__(
        self, recipe: Schedule, place: Place, tick: Callable[[], None], validated: bool
    ) -> None:
        self.recipe, self.place, self.tick, self.validated = recipe, place, tick, validated
        self.finite, self.began, self.first = True, 0.0, 0
        self.told_every = max(recipe.point_every, -(-recipe.total_steps // NOTES))

    def see(self, loss: Tensor) -> None:
        """Take in the loss of a part of a step."""
        self.finite = self.finite and bool(torch.isfinite(loss))

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Steps that a killed run took are done."""
        self.began, self.first = time.perf_counter(), state.global_step
        for _ in range(state.global_step):
            self.tick()
        if state.global_step:
            note(f"training goes on after step {state.global_step}")

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any, **rest: Any
    ) -> None:
        """Raise NotFiniteError before weights take in what is not finite."""
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        alone = self.place.processes == 1  # gradients are shared, so that all processes stop
        if (alone and not self.finite) or not math.isfinite(float(norm)):
            what = "gradient" if self.finite else "loss"
            raise NotFiniteError(f"the {what} became NaN or infinite")

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """One more step."""
        self.tick()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **rest: Any) -> None:
        """Some points of the curve as lines."""
        step = state.global_step
        if "loss" not in logs or (step % self.told_every and step < self.recipe.total_steps):
            return
        tokens = (step - self.first) * self.recipe.batch_size * self.recipe.seqlen
        speed = tokens / (time.perf_counter() - self.began)
        note(
            f"step {step} of {self.recipe.total_steps}: loss {logs['loss']:.3f}, "
            f"rate {logs['learning_rate']:.1e}, {speed:,.0f} tokens/s"
        )

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Seal a checkpoint when every process has written its part."""
        if self.place.processes > 1:
            distributed.barrier()
        if self.place.rank == 0:
            folder = self.place.folder / f"checkpoint-{state.global_step}"
            seal(folder, processes=self.place.processes)


def _curve(trainer: Trainer) -> tuple[TrainingPoint, ...]:
    """The points that were logged; a validation belongs to the point of its step."""
    seen = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    return tuple(
        TrainingPoint(
            step=each["step"], loss=each["loss"], learning_rate=each["learning_rate"],
            validation=seen.get(each["step"]),
        )
        for each in trainer.state.log_history
        if "loss" in each and math.isfinite(each["loss"])
    )  # fmt: skip
