"""`ppma train RECIPE`: one loop for every phase. The only file that knows all the parts.

    RunConfig  ->  task (model, stream)  ->  [ batch -> loss -> gradients -> AdamW ] x steps  ->  run folder

A step reads nothing back from the device between log intervals. Where a run stands is one number, the step: the schedule, the sampler
and every draw follow from it, so a resumed run computes what the run that never stopped computes, to the bit on a CPU.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppma.config.command import DONE, RUN_AGAIN
from ppma.config.recipes import RECIPES, resolve
from ppma.config.run import ENCODED_ONCE, RunConfig, check_ranks, check_run_folder
from ppma.loaders.errors import InputError
from ppma.loaders.sources.manifest import Manifest
from ppma.models import flops
from ppma.models.classify import Classifier, check_labels
from ppma.models.flops import measured_peak_flops
from ppma.models.masking import kept_count
from ppma.privacy import strict
from ppma.training import checkpoint, compiling, distributed, environment, parallel, seal, tasks
from ppma.training.compute import Compute, choose
from ppma.training.distributed import Ranks, StopFlag, Stopped
from ppma.training.lineage import Lineage
from ppma.training.lineage import write as write_lineage
from ppma.training.monitor import Monitor
from ppma.training.optim import build_optimizer, learning_rate, set_learning_rate
from ppma.training.tasks import Batch, Task
from ppma.training.watchdog import Watchdog
from ppma.transfer import few_shot, knn
from ppma.transfer.evaluate import evaluate
from ppma.transfer.frozen import load_frozen
from ppma.transfer.result import write_result

log = logging.getLogger(__name__)

UNTRAINED = {"knn": knn.score, "few_shot": few_shot.score}
"""Phases without a training loop: cached features to a result."""


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

    def test(self, manifest: Manifest, monitor: Monitor, stop: StopFlag) -> None:
        """Score a data set with what was trained. A signal raises Stopped at once: the run that goes on has only this to do."""
        assert isinstance(self.model, Classifier)
        weights = str(self.checkpoints / f"step_{self.step:08d}")
        with stop.at_once():
            result = evaluate(
                self.model, manifest, manifest.name, self.config, self.ranks, self.compute, weights=weights,
                facts=self.task.facts(),
            )  # fmt: skip
        monitor.scalars(self.step, {"eval/top1": result["top1"], "eval/top5": result["top5"]})

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


def _make_run_folder(config: RunConfig, ranks: Ranks, compute: Compute, lineage: Lineage) -> None:
    distributed.barrier(ranks)  # every rank has looked before the first one writes
    if ranks.is_main:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        (config.run_dir / "config.json").write_text(config.to_json())
        environment.write(config.run_dir / "environment.json", config, ranks, compute)
        write_lineage(config.run_dir, lineage, of_files=False)
        for part, chosen in environment.implementations(config, ranks).items():
            log.info("%s: %s", part, chosen)
    distributed.barrier(ranks)


def train(config: RunConfig, *, leave: Callable[[int], None] = os._exit) -> Path:
    """Run a RunConfig to its end on the ranks there are, test it where the config says so, and return the run folder.

    Raises InputError for a wrong input, before anything is written, and Stopped after a signalled stop. `leave` is called with 75 when
    the run hangs.
    """
    began = time.monotonic()
    with distributed.session(config.device) as ranks:
        check_ranks(config, ranks.world_size)
        check_run_folder(config)
        compute = choose(config.precision, ranks.device)
        compiling.choose(config.compile, ranks.device)
        tested = tasks.read_sources(config, config.evaluation.split)[:1] if config.evaluation.at_end else []
        made_of = _inputs(config)
        sources = tasks.read_sources(config)
        lineage = strict.admit(config, sources, ranks)
        if config.phase in UNTRAINED:
            _score(config, ranks, compute, lineage)
            _seal(config, ranks, made_of, time.monotonic() - began)
            return config.run_dir
        task = tasks.build(config, sources, ranks)
        for manifest in tested:
            assert isinstance(task.model, Classifier)
            check_labels(
                manifest.labels, task.model.label_spaces[manifest.name], f"{manifest.name} {config.evaluation.split}"
            )
        _make_run_folder(config, ranks, compute, lineage)
        trainer = Trainer(task.config, task, ranks, compute, lineage)  # a grid has chosen the rate
        before = seal.logged_seconds(config.run_dir, config.batch) if config.resume and trainer.restore() else 0.0
        title = f"{config.recipe} ({sum(p.numel() for p in trainer.model.parameters()) / 1e6:.1f} M parameters)"
        stop = StopFlag(ranks)
        try:
            with Monitor(
                config.run_dir,
                writes=ranks.is_main,
                total_steps=trainer.total_steps,
                start_step=trainer.step,
                title=title,
            ) as monitor:
                if trainer.step < trainer.total_steps:
                    trainer.run(monitor, stop, Watchdog(config.hang_seconds, leave))
                if tested:
                    parallel.gather(trainer.model)
                for manifest in tested:
                    trainer.test(manifest, monitor, stop)
        finally:
            stop.close()
        _seal(config, ranks, made_of, before + time.monotonic() - began)
    return config.run_dir


def _score(config: RunConfig, ranks: Ranks, compute: Compute, lineage: Lineage) -> None:
    """A protocol that has nothing to train in steps."""
    frozen, views = load_frozen(config, ranks, compute), config.evaluation
    scored = UNTRAINED[config.phase](frozen, config)
    _make_run_folder(config, ranks, compute, lineage)
    write_result(
        config, frozen.tested, scored.scores, draws=scored.draws, weights=str(config.init), more=scored.more, writes=ranks.is_main,
        protocol=f"{config.recipe}, {scored.protocol}, {views.windows} windows x {views.crops} crops",
    )  # fmt: skip


def _seal(config: RunConfig, ranks: Ranks, made_of: dict[str, Any], seconds: float) -> None:
    if ranks.is_main:
        seal.write(config.run_dir, **made_of, seconds=seconds)


def _inputs(config: RunConfig) -> dict[str, Any]:
    """Hashes of what the run is made of, for its seal."""
    hashes = [seal.sha256(checkpoint.locate_model(path)) for path in config.starts]
    return {"manifests": seal.manifest_hashes(config), "init": seal.starts_hash(hashes)}


def plan(config: RunConfig) -> None:
    """Check everything that can be checked without training, and say what a run would do."""
    with distributed.session(config.device) as ranks:
        check_ranks(config, ranks.world_size)
        check_run_folder(config)
        compute = choose(config.precision, ranks.device)
        compiling.choose(config.compile, ranks.device)
        sources = tasks.read_sources(config)
        if config.privacy == "strict":
            strict.look(config, sources)
        rows = sum(len(source) for source in sources) // config.batch * config.batch
        steps = rows // config.batch * config.optim.epochs
        forward = (
            flops.mae_flops(config.vit, config.mae)
            if config.phase == "mae"
            else flops.encoder_flops(config.vit, kept_count(config.vit.tokens, config.classifier.token_drop))
        )
        total = forward * rows * (1 if config.phase in ENCODED_ONCE else 3 * config.optim.epochs)
        peak = measured_peak_flops(ranks.device, compute.products)
        rate = learning_rate(round(steps * config.optim.warmup_fraction), max(steps, 1), config.optim, config.batch)
    lines = {
        "recipe": f"{config.recipe} ({config.phase})",
        "sources": ", ".join(f"{source.name}: {len(source)} clips" for source in sources),
        "encoder": f"width {config.vit.width}, {config.vit.depth} layers, {config.vit.tokens} tokens of {config.vit.patch}",
        "steps": f"{steps} of {config.batch} rows ({config.batch_clips} clips), {config.optim.epochs} epochs",
        "peak rate": f"{rate:.3g}",
        "arithmetic": f"{total / 1e15:.3g} PFLOP, {total / peak / 3600:.3g} h at the {peak / 1e12:.3g} TFLOP/s measured on"
        f" {ranks.device}, were nothing else to be done",
        **environment.implementations(config, ranks),
        "run folder": str(config.run_dir),
    }
    for name, value in lines.items():
        log.info("%-11s %s", name, value)


HELP = """ppma train RECIPE [flags]: run a recipe.

For example: ppma train mae_nohuman --model base
             ppma train finetune --dataset ucf101 --init runs/align_nohuman_synthetic
             ppma train RECIPE --help lists the flags and what they stand at.
             ppma train RECIPE --dry-run says what the run would do, and does nothing.

Recipes:
"""


def main(argv: list[str]) -> int:
    """The command."""
    import sys

    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, RECIPES))
        lines = [f"  {name:<{width}}  {(make.__doc__ or '').strip().splitlines()[0]}" for name, make in RECIPES.items()]
        sys.stdout.write(HELP + "\n".join(lines) + "\n")
        return DONE
    config = resolve(argv[0], [flag for flag in argv[1:] if flag != "--dry-run"])
    if "--dry-run" in argv:
        plan(config)
        return DONE
    try:
        folder = train(config)
    except Stopped:
        log.info("stopped in good order; `ppma train %s --resume` with the same flags goes on", argv[0])
        return RUN_AGAIN
    log.info("done: %s; tensorboard --logdir %s", folder, folder.parent)
    return DONE
