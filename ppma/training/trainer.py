"""The loop that trains every phase: one model, one optimizer, one step count.

    Task (model, stream)  ->  [ batch -> loss -> gradients -> AdamW ] x steps  ->  checkpoints, metrics

A step reads nothing back from the device between log intervals.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppma.config.errors import InputError
from ppma.config.run import RunConfig
from ppma.models.classify import Classifier
from ppma.models.flops import measured_peak_flops
from ppma.training import checkpoint, compiling, distributed, environment, parallel
from ppma.training.compute import Compute
from ppma.training.distributed import Ranks, StopFlag, Stopped
from ppma.training.lineage import Lineage
from ppma.training.monitor import Monitor
from ppma.training.optim import build_optimizer, learning_rate, set_learning_rate
from ppma.training.tasks import Batch, Task
from ppma.training.watchdog import Watchdog

log = logging.getLogger(__name__)


class Trainer:
    """The state of a run: model, optimiser, step. `run` takes it to the end."""

    def __init__(
        self, config: RunConfig, task: Task, ranks: Ranks, compute: Compute, lineage: Lineage | None = None
    ) -> None:
        self.config, self.task, self.ranks, self.compute, self.lineage = config, task, ranks, compute, lineage
        self.model = task.model.to(ranks.device, compute.weights)
        self.model.train()
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=compute.scales_loss)
        self.total_steps = task.steps_per_epoch * config.optim.epochs
        self.step = 0
        self.loss_sum = torch.zeros((), device=ranks.device, dtype=torch.float64)
        self.loss_steps = 0
        self._split = (
            parallel.over_ranks(self.model, ranks, shard=config.shard) if task.splits_over_ranks else self.model
        )
        self.optimizer = build_optimizer(self.model, config.optim)  # over the parts that this rank holds
        mode = compiling.choose(config.compile, ranks.device)
        self._clock = compiling.clock() if mode != "off" else None
        self._marks_steps = mode == "graphs"
        self._module = compiling.compiled(self._split, mode) if mode != "off" else self._split

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.config.run_dir / "checkpoints"

    def save(self) -> None:
        """Write a checkpoint of this step; every rank calls it, the first one writes."""
        model, optimizer = (
            parallel.whole(part.state_dict(), keep=self.ranks.is_main) for part in (self.model, self.optimizer)
        )
        if self.ranks.is_main:
            training = {
                "optimizer": optimizer,
                "scaler": self.scaler.state_dict(),
                "loss_sum": self.loss_sum,
                "loss_steps": self.loss_steps,
                "torch_rng": torch.get_rng_state(),
            }
            state: dict[str, Any] = {"recipe": self.config.recipe, "steps_per_epoch": self.task.steps_per_epoch}
            state |= self.task.facts()
            if isinstance(self.model, Classifier):
                state["label_spaces"] = self.model.label_spaces
            checkpoint.save(
                self.checkpoints, step=self.step, model=model, training=training, state=state,
                keep=self.config.keep_checkpoints, lineage=self.lineage,
            )  # fmt: skip
        distributed.barrier(self.ranks)

    def restore(self) -> bool:
        """Take up the newest checkpoint, where there is one."""
        saved = checkpoint.newest(self.checkpoints)
        if saved is None:
            return False
        if saved.state["steps_per_epoch"] != self.task.steps_per_epoch:
            before = saved.state["steps_per_epoch"]
            raise InputError(
                f"{saved.folder} had {before} steps an epoch, now there are {self.task.steps_per_epoch}; the data changed"
            )
        checkpoint.load_model(self.model, saved.folder)
        training = checkpoint.load_training(saved)
        parallel.load_optimizer(self.optimizer, training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        self.loss_sum, self.loss_steps = training["loss_sum"].to(self.ranks.device), training["loss_steps"]
        torch.set_rng_state(training["torch_rng"])
        self.step = saved.step
        log.info("resumed at step %d of %d from %s", self.step, self.total_steps, saved.folder)
        return True

    def train_step(self, batch: Batch) -> Tensor | None:
        """One optimiser step over the rank's part of a global batch. Returns the gradient's norm where it was needed."""
        rate = learning_rate(self.step, self.total_steps, self.config.optim, self.config.batch)
        set_learning_rate(self.optimizer, rate)
        if self._marks_steps:
            torch.compiler.cudagraph_mark_step_begin()  # what the step before made may be written over
        for number, inputs in enumerate(self._micro_batches(batch)):
            last = number == self.config.accumulate - 1
            with self._synchronised(last), self.compute.autocast():
                loss = self._module(*inputs)
            with self._synchronised(last):
                self.scaler.scale(loss / self.config.accumulate).backward()
            self.loss_sum += loss.detach().double() / self.config.accumulate
        self.step += 1
        self.loss_steps += 1
        norm = self._gradient_norm()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Tensor, ...]]:
        inputs = self.task.inputs(batch)
        return zip(*(tensor.chunk(self.config.accumulate) for tensor in inputs), strict=True)

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients travel between ranks once a step, with the last micro-batch."""
        return contextlib.nullcontext() if last else parallel.unsynchronised(self._split)

    def _gradient_norm(self) -> Tensor | None:
        """Clip where asked to; else the norm is computed only when it will be logged."""
        clip = self.config.optim.clip_grad
        if clip is None and self.step % self.config.log_every:
            return None
        self.scaler.unscale_(self.optimizer)
        return parallel.whole(nn.utils.clip_grad_norm_(self.model.parameters(), clip or float("inf")))

    def run(self, monitor: Monitor, stop: StopFlag, watchdog: Watchdog) -> None:
        """Train to the end. Raises Stopped after a checkpoint when any rank was asked to stop."""
        start = divmod(self.step, self.task.steps_per_epoch)
        pace = _Pace(self)
        with watchdog, self.task.stream(self.ranks, start) as stream:
            for batch in stream:
                norm = self.train_step(batch)
                watchdog.beat()
                monitor.advance(self.step)
                if self.step % self.config.log_every == 0 or self.step == self.total_steps:
                    self._log(monitor, batch, norm, pace)
                self._show(monitor, batch)
                asked = stop.agreed()
                if asked or self.step % self.config.checkpoint_every == 0 or self.step == self.total_steps:
                    self.save()
                if asked and self.step < self.total_steps:
                    raise Stopped(asked)

    def _log(self, monitor: Monitor, batch: Batch, norm: Tensor | None, pace: "_Pace") -> None:
        loss = distributed.mean_over_ranks(self.loss_sum / max(self.loss_steps, 1), self.ranks).item()
        self.loss_sum.zero_()
        self.loss_steps = 0
        values = {"train/loss": loss, "train/lr": max(group["lr"] for group in self.optimizer.param_groups)}
        if norm is not None:
            values["train/grad_norm"] = norm.item()
        values |= pace.values(batch)
        values["data/bad_files"] = float(batch.counters.bad_files)
        monitor.scalars(self.step, values, epoch=batch.epoch)
        if self._clock is not None:
            self._clock.report()
        if loss != loss:
            raise FloatingPointError(
                f"the loss is not a number at step {self.step}; the newest checkpoint is from before. Try a lower --optim.peak-lr,"
                " --optim.clip-grad 1, or --precision fp32"
            )

    def _show(self, monitor: Monitor, batch: Batch) -> None:
        every = self.config.pictures_every
        if not every or not (self.ranks.is_main or self.config.shard):
            return  # a spread model is run by all ranks or by none
        due = self.step in (1, self.total_steps) or self.step % every == 0
        with self.compute.autocast():
            shown = self.task.pictures(batch, due=due)
        for tag, picture in shown.items():
            monitor.picture(self.step, tag, picture)


class _Pace:
    """Speed since the last line of metrics. The first interval holds compilation and the start of the workers, and says so by its rate."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._peak = measured_peak_flops(trainer.ranks.device, trainer.compute.products)
        self._began, self._step, self._waited = time.perf_counter(), trainer.step, 0.0

    def values(self, batch: Batch) -> dict[str, float]:
        """perf/* over the steps since the last call; the losses were just read, so the device has caught up."""
        trainer, now = self._trainer, time.perf_counter()
        seconds, steps = now - self._began, trainer.step - self._step
        waited = batch.counters.wait_seconds - self._waited
        self._began, self._step, self._waited = now, trainer.step, batch.counters.wait_seconds
        world = trainer.ranks.world_size if trainer.task.splits_over_ranks else 1
        values = {
            "perf/clips_per_s": steps * trainer.config.batch / seconds,
            "perf/stall_percent": 100 * waited / seconds,
            "perf/mfu": steps * trainer.task.step_flops / world / seconds / self._peak,
        }
        if trainer.ranks.device.type == "cuda":
            values["perf/memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        else:
            values["perf/memory_gib"] = environment.resident_bytes() / 2**30
        return values
