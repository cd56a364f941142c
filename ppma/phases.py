"""`ppma train RECIPE`: run a recipe of any phase.

    RunConfig  ->  task (model, stream)  ->  [ batch -> loss -> gradients -> AdamW ] x steps  ->  run folder

The step is all the state there is: the schedule, the sampler and every random number follow from it. So a resumed run
computes what an uninterrupted run computes, to the bit on a CPU.
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ppma.common.files import write_text
from ppma.config.command import DONE, as_flags
from ppma.config.errors import Stopped
from ppma.config.flags import resolve
from ppma.config.recipes import RECIPES
from ppma.config.run import ENCODED_ONCE, UNTRAINED, RunConfig, check_ranks, check_run_folder
from ppma.loaders.sampler import shard_rows
from ppma.loaders.sources.manifest import Manifest
from ppma.models import flops
from ppma.models.classify import Classifier
from ppma.models.flops import measured_peak_flops
from ppma.models.masking import kept_count
from ppma.privacy import strict
from ppma.training import checkpoint, distributed, inputs, parallel, seal, tasks
from ppma.training.compute import Compute, choose, compile_mode
from ppma.training.distributed import Ranks, StopFlag
from ppma.training.lineage import Lineage
from ppma.training.lineage import write as write_lineage
from ppma.training.monitor import Monitor, implementations, write_environment
from ppma.training.run import trained_steps
from ppma.training.run_folder import NAN_STOP, owned, read_metrics, step_seconds
from ppma.training.tasks import ClassifyTask, MaeTask, Task
from ppma.training.trainer import Trainer
from ppma.training.watchdog import Watchdog
from ppma.transfer import few_shot, knn
from ppma.transfer.adaptive import AdaptiveClassifier
from ppma.transfer.evaluate import evaluate
from ppma.transfer.frozen import load_frozen
from ppma.transfer.probe import AttentiveTask, ProbeTask
from ppma.transfer.result import write_result

log = logging.getLogger(__name__)

SCORERS = {"knn": knn.score, "few_shot": few_shot.score}
"""Phases without a training loop: from cached features to a result."""


def build(config: RunConfig, sources: Sequence[Manifest], ranks: Ranks) -> Task:
    """Return the task of a run, its model initialized from the seed and from --init."""
    if config.phase in ("probe", "attentive"):
        return (AttentiveTask if config.phase == "attentive" else ProbeTask)(config, sources, ranks)
    task = MaeTask(config, sources) if config.phase == "mae" else classify_task(config, sources)
    if config.init is not None:
        checkpoint.load_encoder(task.model, config.init)
    return task


def classify_task(config: RunConfig, sources: Sequence[Manifest]) -> ClassifyTask:
    """Return the task of a classifier whose encoder runs in every step, or of the adaptive average of several."""
    if config.average:
        made = partial(AdaptiveClassifier, models=config.average, per=config.mixing, mix_norm=config.mix_norm)
        return ClassifyTask(config, sources, made)
    return ClassifyTask(config, sources)


def _make_run_folder(
    config: RunConfig, ranks: Ranks, compute: Compute, lineage: Lineage, began: float, step: int = 0
) -> None:
    distributed.barrier(ranks)  # every rank has checked the folder before rank 0 writes
    if ranks.is_main:
        write_text(config.run_dir / "config.json", config.to_json())
        write_environment(config, ranks, compute, began=began, step=step)
        write_lineage(config.run_dir, lineage, of_files=False)
        for part, chosen in implementations(config, ranks).items():
            log.info("%s: %s", part, chosen)
    distributed.barrier(ranks)


def train(config: RunConfig, *, leave: Callable[[int], None] = os._exit) -> Path:
    """Train on all ranks, test the result if the config asks for it, and return the run folder.

    Args:
        config: The run.
        leave: Called with 75 when the run hangs.

    Raises:
        InputError: The input is wrong or another process owns the run folder. Nothing has been written; of a resumed run,
            damaged checkpoints may have been renamed.
        Stopped: A signal asked to stop; a checkpoint is saved, or the batches of a pass over all clips are kept.
    """
    began = time.time()
    with distributed.session(config.device) as ranks, contextlib.ExitStack() as stack:
        distributed.on_main(ranks, lambda: stack.enter_context(owned(config.run_dir, leave)))
        check_ranks(config, ranks.world_size)
        check_run_folder(config)
        compute = choose(config.precision, ranks.device)
        compile_mode(config.compile, ranks.device)
        # Rank 0 decides for all: a file system may show other ranks an older listing of the folder.
        recover = partial(checkpoint.recover, config.run_dir / "checkpoints")
        saved = distributed.on_main(ranks, recover) if config.resume else None
        tested = inputs.read_sources(config, config.evaluation.split)[:1] if config.evaluation.at_end else []
        inputs.check_starts(config)
        hashes = _input_hashes(config)
        sources = inputs.read_sources(config)
        inputs.check_labels(config, sources)
        lineage = strict.admit(config, sources, ranks, saved.folder if saved else None)
        sources = tasks.on_resume(config, sources, saved)
        if config.phase in UNTRAINED:
            with distributed.stopped_at_once(ranks):
                _score(config, ranks, compute, lineage, began)
            _seal(config, ranks, hashes, time.time() - began)
            return config.run_dir
        with distributed.stopped_at_once(ranks):  # a probe encodes its clips here
            task = build(config, sources, ranks)
        for manifest in tested:
            assert isinstance(task.model, Classifier)
            inputs.tested_by_name(manifest, task.model.class_names[manifest.name], config)  # refuse before the training
        trainer = Trainer(task.config, task, ranks, compute, lineage)  # not `config`: a grid may have chosen the rate
        resumed = config.resume and trainer.restore()
        before = step_seconds(read_metrics(config.run_dir), config.batch) if resumed else 0.0
        # Last: a refusal leaves a finished run's seal intact.
        _make_run_folder(config, ranks, compute, lineage, began, trainer.step)
        title = f"{config.recipe} ({sum(p.numel() for p in trainer.model.parameters()) / 1e6:.1f} M parameters)"
        with contextlib.closing(StopFlag(ranks)) as stop, _nan_marker(config.run_dir, ranks):
            try:
                _run(trainer, tested, title, stop, leave)
            except FloatingPointError as error:  # once: a defect of the hardware or of the weights may be gone
                if not trainer.go_back(error):
                    raise
                log.warning("%s. Going back to the checkpoint of step %d, once", error, trainer.step)
                _run(trainer, tested, title, stop, leave)
        _seal(config, ranks, hashes, before + time.time() - began)
    return config.run_dir


@contextlib.contextmanager
def _nan_marker(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Write a marker where the block ends because the loss stays NaN: it would again after a requeue."""
    marker = folder / NAN_STOP
    if ranks.is_main:
        marker.unlink(missing_ok=True)
    try:
        yield
    except FloatingPointError as error:
        remedy = f"{marker} keeps the launcher from requeueing the run; starting it again with --resume removes it"
        message = f"{error}. {remedy}"
        distributed.on_main(ranks, partial(write_text, marker, message + "\n"))
        raise FloatingPointError(message) from error


def _run(
    trainer: Trainer, tested: Sequence[Manifest], title: str, stop: StopFlag, leave: Callable[[int], None]
) -> None:
    """Train from the step of the trainer to the end, and test the result."""
    config, steps = trainer.config, {"total_steps": trainer.total_steps, "start_step": trainer.step}
    with Monitor(config.run_dir, writes=trainer.ranks.is_main, title=title, **steps) as monitor:
        if trainer.step < trainer.total_steps:
            trainer.run(monitor, stop, Watchdog(config.hang_seconds, leave))
        if tested:
            parallel.unshard(trainer.model)
        for manifest in tested:
            _test(trainer, manifest, monitor, stop)


def _test(trainer: Trainer, manifest: Manifest, monitor: Monitor, stop: StopFlag) -> None:
    """Test the classifier on a data set. A signal stops it at once, since a resumed run repeats only the test."""
    assert isinstance(trainer.model, Classifier)
    weights = str(trainer.checkpoints / f"step_{trainer.step:08d}")
    with stop.at_once():
        result = evaluate(
            trainer.model, manifest, manifest.name, trainer.config, trainer.ranks, trainer.compute, weights=weights,
            step=trainer.step, facts=trainer.task.facts(),
        )  # fmt: skip
    monitor.scalars(trainer.step, {"eval/top1": result["top1"], "eval/top5": result["top5"]})


def _score(config: RunConfig, ranks: Ranks, compute: Compute, lineage: Lineage, began: float) -> None:
    """Run a protocol without a training loop."""
    frozen = load_frozen(config, ranks, compute)
    scored = SCORERS[config.phase](frozen, config)
    _make_run_folder(config, ranks, compute, lineage, began)
    write_result(
        config, frozen.tested, scored.scores, draws=scored.draws, weights=str(config.init), more=scored.more, writes=ranks.is_main,
        step=trained_steps(config.init) if config.init else None,
        protocol=f"{config.recipe}, {scored.protocol}, {config.evaluation.protocol}",
    )  # fmt: skip


def _seal(config: RunConfig, ranks: Ranks, hashes: dict[str, Any], seconds: float) -> None:
    if ranks.is_main:
        seal.write(config.run_dir, **hashes, seconds=seconds)


def _input_hashes(config: RunConfig) -> dict[str, Any]:
    """Return hashes of manifests and initial weights, for the seal; InputError if weights are not finite."""
    for path in config.starts:
        checkpoint.check_finite(checkpoint.read_weights(path), path)
    hashes = [seal.sha256(checkpoint.locate_model(path)) for path in config.starts]
    return {"manifests": seal.manifest_hashes(config), "init": seal.starts_hash(hashes)}


def run_recipe(recipe: str, *, set: Mapping[str, object] | None = None, **flags: object) -> Path:
    """Run a recipe as `ppma train` does, and return the run folder.

    Args:
        recipe: Name of the recipe; `ppma train` lists them.
        set: Any field of the config by its dotted name: {"optim.epochs": 2, "optim.betas": (0.9, 0.95)}.
        flags: Flags of `ppma train RECIPE`, with _ for -: dataset="ucf101", init="runs/mae_nohuman", run_dir="runs/x".

    Raises:
        InputError: There is no such recipe or flag, or the input is wrong. Nothing has been written.
        Stopped: A signal asked to stop; a checkpoint is saved, and resume=True continues.
    """
    return train(resolve(recipe, as_flags(flags | dict(set or {}))))


def plan(config: RunConfig) -> None:
    """Check all inputs and log what the run would do, without training. Raises InputError as `train` does."""
    with distributed.session(config.device) as ranks:
        check_ranks(config, ranks.world_size)
        check_run_folder(config)
        compute = choose(config.precision, ranks.device)
        compile_mode(config.compile, ranks.device)
        inputs.check_starts(config)
        for check in inputs.data_checks([config]):
            check()
        _input_hashes(config)
        sources = inputs.read_sources(config)
        saved = tasks.newest(config)
        if config.privacy == "strict":
            strict.precheck(config, sources, saved.folder if saved else None)
        tasks.on_resume(config, sources, saved)
        if config.loader.shuffle == "shards":
            for source in sources:
                shard_rows(source)
        rows = sum(len(source) for source in sources) // config.batch * config.batch
        steps = rows // config.batch * config.optim.epochs
        forward = (
            flops.mae_flops(config.vit, config.mae)
            if config.phase == "mae"
            else flops.encoder_flops(config.vit, kept_count(config.vit.tokens, config.classifier.token_drop))
        )
        total = forward * rows * (1 if config.phase in ENCODED_ONCE else 3 * config.optim.epochs)
        peak = measured_peak_flops(ranks.device, compute.autocast_dtype)
        rate = config.optim.peak_lr * config.batch / config.optim.reference_batch
    lines = {
        "recipe": f"{config.recipe} ({config.phase})",
        "sources": ", ".join(f"{source.name}: {len(source)} clips" for source in sources),
        "encoder": f"width {config.vit.width}, {config.vit.depth} layers, {config.vit.tokens} tokens of {config.vit.patch}",
        "steps": f"{steps} of {config.batch} rows ({config.batch_clips} clips), {config.optim.epochs} epochs",
        "peak rate": f"{rate:.3g}",
        "arithmetic": f"{total / 1e15:.3g} PFLOP, at least {total / peak / 3600:.3g} h at the {peak / 1e12:.3g} TFLOP/s measured on"
        f" {ranks.device}",
        **implementations(config, ranks),
        "run folder": str(config.run_dir),
    }
    for name, value in lines.items():
        log.info("%-11s %s", name, value)


HELP = """ppma train RECIPE [FLAGS]: run a recipe.

`ppma train RECIPE --help` lists the flags that users change, --help-all all of them. --dry-run reports what the run
would do and writes nothing.

For example:
  ppma train mae_nohuman --model base --dry-run
  ppma train mae_nohuman
  ppma train finetune --dataset ucf101 --init runs/align_nohuman_synthetic

Recipes:
"""


def main(argv: list[str]) -> int:
    """Run `ppma train ARGV` and return the exit code."""
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
    except Stopped as stopped:
        raise Stopped(stopped.why, "run the same command again with --resume to continue") from None
    log.info("done: %s; see the curves with: tensorboard --logdir %s", folder, folder.parent)
    return DONE
