"""The loop that trains every phase: one model, one optimizer, one step count.

    Task (model, stream)  ->  [ batch -> loss -> gradients -> AdamW ] x steps  ->  checkpoints, metrics

A step reads nothing back from the device between log intervals. That includes the decision to skip a step whose gradient
is not finite: after the exchange the gradient's norm is the same on all ranks, and the optimizer reads it on the device.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppma.config.errors import Stopped, first_few, reading
from ppma.config.run import RunConfig
from ppma.loaders.batch import ClipBatch
from ppma.loaders.stream import check_bad_fraction
from ppma.models.classify import Classifier
from ppma.models.flops import measured_peak_flops
from ppma.training import checkpoint, distributed, parallel
from ppma.training.compute import Compute, Stopwatch, compile_clock, compile_mode, compiled
from ppma.training.distributed import Ranks, Stop, StopFlag
from ppma.training.lineage import Lineage
from ppma.training.monitor import Monitor
from ppma.training.optim import build_optimizer, learning_rate, set_learning_rate
from ppma.training.speed import Speed
from ppma.training.tasks import Batch, Task
from ppma.training.watchdog import Watchdog

log = logging.getLogger(__name__)

SHOWN_CLIPS = 8
"""Clips that the message of skipped steps names."""
MAX_SKIPPED = 10
"""Steps in a row with a loss or gradient that is not finite, after which a run goes back to its checkpoint, or stops."""
SUMS = ("loss_sum", "loss_steps", "skipped", "skipped_in_a_row")
"""Sums on the device since the last line of metrics, which a checkpoint holds."""
FIRST_SAVE_SECONDS = 0.3
"""What a save is taken to cost before one was measured."""


class SkippedError(FloatingPointError):
    """Raised when too many steps in a row were skipped: `steps`, counted from 0."""

    def __init__(self, message: str, steps: range) -> None:
        super().__init__(message)
        self.steps = steps


class Trainer:
    """The state of a run: model, optimizer, step. `run` trains to the end.

    Args:
        config: The run.
        task: Its model and batches.
        ranks: The processes that train together.
        compute: Precision.
        lineage: What the weights were trained on, for the checkpoints; None: unknown.
    """

    def __init__(
        self, config: RunConfig, task: Task, ranks: Ranks, compute: Compute, lineage: Lineage | None = None
    ) -> None:
        self.config, self.task, self.ranks, self.compute, self.lineage = config, task, ranks, compute, lineage
        self.model = task.model.to(ranks.device, compute.weight_dtype)
        self.model.train()
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=compute.scales_loss)
        self.total_steps = task.steps_per_epoch * config.optim.epochs
        self.step = 0
        zero = torch.zeros((), device=ranks.device, dtype=torch.float64)
        self.loss_sum, self.loss_steps = zero, zero.clone()  # since the last line of metrics, without skipped steps
        self.skipped, self.skipped_in_a_row = zero.clone(), zero.clone()
        self._excluded = set[int]()  # steps that are skipped whatever their gradient
        splits = task.splits_over_ranks
        self._parallel = parallel.over_ranks(self.model, ranks, shard=config.shard) if splits else self.model
        self.optimizer = build_optimizer(self.model, config.optim)  # after sharding: over the shards of this rank
        mode = compile_mode(config.compile, ranks.device)
        self._writer, self._host_copy = checkpoint.Writer(), parallel.HostCopy()
        self._saved_at, self._save_seconds = time.monotonic(), FIRST_SAVE_SECONDS
        self._clock = compile_clock() if mode != "off" else None
        self._marks_steps = mode == "graphs"
        self._module = compiled(self._parallel, mode) if mode != "off" else self._parallel
        self._forward = Stopwatch(ranks.device)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.config.run_dir / "checkpoints"

    def save(self) -> None:
        """Copy the state of this step to host memory and start to write it as a checkpoint. Every rank calls it.

        The error of the write before is raised first, on every rank.
        """
        distributed.on_main(self.ranks, self._writer.wait)
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize()  # the queued steps are no part of what a save costs
        began = time.monotonic()
        model, optimizer = parallel.state_dicts(self.model, self.optimizer)
        training = {
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "torch_rng": torch.get_rng_state(),
            **{name: getattr(self, name) for name in SUMS},
        }
        model, training = self._host_copy.take((model, training), self.ranks)
        state: dict[str, Any] = {"recipe": self.config.recipe, "steps_per_epoch": self.task.steps_per_epoch}
        state |= self.task.facts()
        if isinstance(self.model, Classifier):
            state["label_spaces"] = self.model.class_names
        write = partial(
            checkpoint.save, self.checkpoints, step=self.step, model=model, training=training, state=state,
            keep=self.config.keep_checkpoints, lineage=self.lineage,
        )  # fmt: skip
        if self.ranks.is_main:
            self._writer.start(write)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - began

    def _due(self) -> Stop:
        """Return, on rank 0, whether all ranks should save after the next step: by time, or to meet the error of a write."""
        minutes = self.config.checkpoint_minutes
        interval = checkpoint.young_seconds(self._save_seconds, self.ranks.nodes) if minutes is None else 60 * minutes
        waited = time.monotonic() - self._saved_at
        if self._writer.failed or (self.ranks.is_main and waited > interval and not self._writer.busy):
            self._saved_at += waited  # asked once; `save` follows
            return Stop.CHECKPOINT
        return Stop.NO

    def restore(self) -> bool:
        """Continue from the newest checkpoint; return False if there is none.

        Raises:
            InputError: The checkpoint is damaged.
        """
        # Rank 0 decides, because a file system may show other ranks an older listing of the folder.
        saved = distributed.on_main(self.ranks, partial(checkpoint.newest, self.checkpoints))
        if saved is None:
            return False
        checkpoint.load_model(self.model, saved.folder)
        training = checkpoint.read_pickle(saved.folder / checkpoint.TRAINING)
        with reading(saved.folder / checkpoint.TRAINING, "the state of a training by this ppma"):
            parallel.load_optimizer(self.model, self.optimizer, training["optimizer"])
            self.scaler.load_state_dict(training["scaler"])
            for name in SUMS:
                setattr(self, name, training[name].to(self.ranks.device))
            torch.set_rng_state(training["torch_rng"])
        self.step = saved.step
        log.info("resumed at step %d of %d from %s", self.step, self.total_steps, saved.folder)
        return True

    def go_back(self, error: FloatingPointError) -> bool:
        """Continue from the newest checkpoint without the steps that an error names; return False if there is none."""
        restored = self.restore()
        if restored and isinstance(error, SkippedError):
            # On disk, so that every later resume leaves out the same steps.
            distributed.on_main(self.ranks, partial(checkpoint.exclude_steps, self.checkpoints, error.steps))
        return restored

    def train_step(self, batch: Batch) -> Tensor:
        """Take one optimizer step on this rank's part of a global batch, or skip it if the gradient is not finite.

        Returns:
            The gradient norm before clipping; 0 of a step that is excluded.
        """
        if self.step in self._excluded:
            self.step += 1
            self.skipped += 1
            self.skipped_in_a_row.zero_()
            return torch.zeros(())
        rate = learning_rate(self.step, self.total_steps, self.config.optim, self.config.batch)
        set_learning_rate(self.optimizer, rate)
        if self._marks_steps:
            torch.compiler.cudagraph_mark_step_begin()  # the outputs of the previous step may be overwritten
        # 1. gradients, exchanged between ranks with the last micro-batch
        losses = torch.zeros_like(self.loss_sum)
        for number, inputs in enumerate(self._micro_batches(batch)):
            last = number == self.config.accumulate - 1
            with self._sync(last), self.compute.autocast(), self._forward.running():
                loss = self._module(*inputs)
            with self._sync(last):
                self.scaler.scale(loss / self.config.accumulate).backward()
            losses += loss.detach().double() / self.config.accumulate
        self.step += 1
        # 2. weights, unless the gradient is not finite on some rank
        norm = self._gradient_norm()
        bad = (~norm.isfinite()).double()
        self.loss_sum += torch.where(bad > 0, 0.0, losses)
        self.loss_steps += 1 - bad
        self.skipped += bad
        self.skipped_in_a_row = (self.skipped_in_a_row + bad) * bad
        if not self.scaler.is_enabled():  # the scaler does the same
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # the fused AdamW then changes nothing
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Tensor, ...]]:
        inputs = self.task.inputs(batch)
        return zip(*(tensor.chunk(self.config.accumulate) for tensor in inputs), strict=True)

    def _sync(self, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if last else parallel.no_sync(self._parallel)

    def _gradient_norm(self) -> Tensor:
        """Clip the gradient and return its norm before that."""
        clip = self.config.optim.clip_grad
        self.scaler.unscale_(self.optimizer)
        if clip is None:
            gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
            return parallel.full_tensor(nn.utils.get_total_norm(gradients))
        return parallel.full_tensor(nn.utils.clip_grad_norm_(self.model.parameters(), clip))

    def run(self, monitor: Monitor, stop: StopFlag, watchdog: Watchdog) -> None:
        """Train to the end, writing checkpoints and metrics.

        Raises:
            Stopped: A rank was asked to stop; a checkpoint of the last step is written.
            SkippedError: More than MAX_SKIPPED steps in a row had a gradient that is not finite.
            FloatingPointError: The weights are not finite.
        """
        start = divmod(self.step, self.task.steps_per_epoch)
        self._excluded = distributed.on_main(self.ranks, partial(checkpoint.excluded_steps, self.checkpoints))
        self._saved_at, speed = time.monotonic(), self._start_speed()
        try:
            with watchdog, self.task.stream(self.ranks, start) as stream:
                for batch in stream:
                    norm = self.train_step(batch)
                    watchdog.beat()
                    monitor.advance(self.step)
                    if self.step % self.config.log_every == 0 or self.step == self.total_steps:
                        self._log(monitor, batch, norm, speed)
                    self._show(monitor, batch)
                    self._save_or_stop(monitor, stop)
        finally:
            self._writer.settle()

    def _save_or_stop(self, monitor: Monitor, stop: StopFlag) -> None:
        """Save if this step is one of those, if the time has come, at the end and at a stop; the last two wait for the write."""
        ended = self.step == self.total_steps
        by_step = ended or self.step % self.config.checkpoint_every == 0
        asked = stop.agreed(Stop.NO if by_step else self._due())
        if asked or by_step:
            monitor.catch_up()
            self.save()
        if ended or asked > Stop.CHECKPOINT:
            distributed.on_main(self.ranks, self._writer.wait)
        if asked > Stop.CHECKPOINT and not ended:
            raise Stopped(asked)

    def _start_speed(self) -> Speed:
        peak = measured_peak_flops(self.ranks.device, self.compute.autocast_dtype)
        flops = self.task.step_flops / (self.ranks.world_size if self.task.splits_over_ranks else 1)
        self._forward.take()
        return Speed(
            self.ranks, self._forward, batch=self.config.batch, step=self.step, step_flops=flops, peak_flops=peak
        )

    def _log(self, monitor: Monitor, batch: Batch, norm: Tensor, speed: Speed) -> None:
        loss = distributed.mean_over_ranks(self.loss_sum / self.loss_steps, self.ranks).item()  # nan: all were skipped
        values = {"train/loss": loss, "train/lr": max(group["lr"] for group in self.optimizer.param_groups)}
        values |= {"train/grad_norm": norm.item(), "train/skipped_steps": self.skipped.item()}
        values |= speed.values(self.step, batch.counters)
        monitor.scalars(self.step, values, epoch=batch.epoch)
        check_bad_fraction(speed.bad, sum(map(len, self.task.sources)), self.config.loader.max_bad_fraction)
        if self._clock is not None:
            self._clock.report()
        for sums in (self.loss_sum, self.loss_steps, self.skipped):
            sums.zero_()
        if (skipped := int(self.skipped_in_a_row.item())) > MAX_SKIPPED:
            raise SkippedError(
                f"{skipped} steps in a row up to step {self.step} were skipped, because the loss or its gradient was not finite; this"
                f" rank's last clips: {first_few(self._clips(batch), SHOWN_CLIPS)}. If these are fine, try a lower --optim.peak-lr,"
                " --optim.clip-grad 1, or --precision fp32",
                range(self.step - skipped, self.step),
            )

    def _clips(self, batch: Batch) -> list[str]:
        """Return the paths of a batch's clips on this rank."""
        if not isinstance(batch, ClipBatch):
            return [f"those of step {batch.step} in epoch {batch.epoch}"]
        rows = dict.fromkeys(zip(batch.source_B.tolist(), batch.sample_id_B.tolist(), strict=True))
        return [self.task.sources[source].clip(clip).path for source, clip in rows]

    def _show(self, monitor: Monitor, batch: Batch) -> None:
        """Show pictures in TensorBoard when they are due. All ranks run a sharded model, or none does."""
        every = self.config.pictures_every
        if not every or not (self.ranks.is_main or self.config.shard):
            return
        due = self.step in (1, self.total_steps) or self.step % every == 0
        with self.compute.autocast():
            shown = self.task.pictures(batch, due=due)
        for tag, picture in shown.items():
            monitor.picture(self.step, tag, picture)
