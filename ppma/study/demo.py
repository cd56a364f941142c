"""`ppma demo`: the whole method in minutes, with nothing to download.

    demo.toml  ->  virtual people  ->  stage 1 on scenes without people  ->  stage 2 on 20 actions and those scenes
               ->  a linear probe on 10 other actions, of unseen people and cameras  ->  table, figures, TensorBoard

A study of four encoders with its own report. Finished runs are kept, so the same command continues after a stop.
"""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from ppma.config import recipes
from ppma.config.command import DONE, OutFolder, check_ranges, parse
from ppma.loaders.sources import catalog
from ppma.study import spec, work
from ppma.study.data import ACTIONS, REAL, DataConfig, data_config, make_data

log = logging.getLogger(__name__)

SPEC = Path(__file__).with_name("demo.toml")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Pre-train on empty scenes and virtual humans and test the encoder: ten minutes on two cores, no download.

    `make demo` (SEEDS=3, VIDEOS=DIR, OUT=DIR) runs it too. Stop it with Ctrl-C; the same command continues.

    For example:
      ppma demo
    """

    out: OutFolder = Path("runs/demo")
    """Folder of clips, runs, table and figures."""
    seeds: int = 1
    """Runs of each training and probe, each with its own seed, 1 to 20."""
    videos: Path | None = None
    """Your human-removed clips, <class>/<video>, instead of the scenes; you vouch that they show no people."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes that render clips, and loader processes (default: one per core)."""
    dry_run: bool = False
    """List the runs and do nothing."""

    def __post_init__(self) -> None:
        check_ranges(self, seeds=(1, 20))


def study_of(config: DemoConfig) -> spec.Study:
    """Return the demo's study with the user's seeds."""
    study, workers = spec.read(SPEC), f" --loader.workers {config.workers}"
    return replace(study, seeds=tuple(range(config.seeds)), flags=study.flags + workers)


def on_own_clips(study: spec.Study, settings: DataConfig) -> spec.Study:
    """Return the study with the user's clips in place of the rendered scenes.

    Without at least two class folders stage 2 learns from the actions alone. Stage 1 takes as many steps on few clips
    as on many.
    """
    real, stage_1 = catalog.read(settings.data).manifest(REAL), recipes.demo(stage="scenes")
    views, rendered = stage_1.loader.views, len(settings.learned) * settings.learned_clips
    batch = max(views, min(stage_1.batch, len(real) // views * views))
    epochs = round(stage_1.optim.epochs * rendered / len(real))
    labeled = len(real.class_names) >= 2 and bool((real.labels >= 0).all())
    flags = {
        "scenes": f"--sources {REAL} --batch {batch} --optim.epochs {epochs}",
        "actions": f"--sources {ACTIONS} {REAL}" if labeled else f"--sources {ACTIONS} --weights None",
    }
    pretrain = {
        name: replace(method, recipe=f"{method.recipe} {flags[stage]}")
        for name, method in study.pretrain.items()
        for stage in flags
        if method.recipe.startswith(f"demo --stage {stage}")
    }
    return replace(study, pretrain=study.pretrain | pretrain)


def run(config: DemoConfig) -> None:
    """Render the clips, do the runs that are missing, and write the report."""
    from ppma.study.demo_report import write_report

    with work.lock(config.out):
        study = study_of(config)
        settings = data_config(study, config.out, config.videos, config.workers)
        make_data(settings)
        study = study if config.videos is None else on_own_clips(study, settings)
        planned = work.plan_runs(study, config.out, settings.data, device=config.device)
        listing = work.run_missing(planned, config.out)
        write_report(listing, settings, Console(highlight=False))


def main(argv: list[str]) -> int:
    """Run `ppma demo ARGV`."""
    config = parse(DemoConfig, argv, prog="ppma demo")
    study = study_of(config)
    settings = data_config(study, config.out, config.videos, config.workers)
    if config.dry_run:
        work.show(work.plan_runs(study, config.out, settings.data, device=config.device, complete=False))
        log.info("about ten minutes on two cores per seed; would write %s", config.out)
        return DONE
    run(config)
    return DONE
