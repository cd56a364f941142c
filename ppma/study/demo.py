"""`ppma demo`: the paper's idea in ten minutes, with nothing to download.

    virtual people  ->  stage 1 on scenes without people  ->  stage 2 on 20 actions and those scenes  ->  the 10 other actions,
    done by unseen people before unseen cameras and backgrounds: one linear probe on each of four encoders  ->  table, figures, TensorBoard

Every step leaves its result in the folder and is skipped when that is there, so the same command goes on where an earlier one stopped.
"""

import csv
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from ppma.config import recipes
from ppma.config.command import DONE, RUN_AGAIN, parse
from ppma.config.errors import InputError
from ppma.config.run import RunConfig, check_run_folder
from ppma.data import index, pack
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.loaders.sources.store import REJECTED
from ppma.study.demo_report import ARMS, write_report
from ppma.synthetic import CLASSES, SynthesisConfig, generate
from ppma.synthetic.production import plan
from ppma.train import Stopped, train
from ppma.training import checkpoint

log = logging.getLogger(__name__)

NEW = CLASSES[1::3]
"""Every third action in the alphabet is kept for the transfer; nobody chose them by result."""
LEARNED = tuple(name for name in CLASSES if name not in NEW)
ACTIONS, SCENES, REAL, TRANSFER = "actions", "scenes", "real", "transfer"
"""Sources in the demo's own data catalog."""
MAX_SEEDS = 20
LINE_EVERY_SECONDS = 10.0
"""Between progress lines while clips are drawn."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Pre-train without a single real human, then see what it is worth: ten minutes on two cores, no download.

    ppma demo, or make demo (SEEDS=3, VIDEOS=DIR, OUT=DIR). Run it again after Ctrl-C: it goes on where it was.
    """

    out: Path = Path("runs/demo")
    """Folder for clips, runs, table and figures."""
    seeds: int = 1
    """Runs of everything but the drawing of clips, each with a seed of its own, 1 to 20."""
    videos: Path | None = None
    """Your own human-removed clips, <class>/<video>: they take the place of the drawn scenes, on your word that nobody is in them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes that draw clips, and loader processes (default: one a core)."""
    learned: tuple[str, ...] = LEARNED
    """Actions of stage 2."""
    new: tuple[str, ...] = NEW
    """Actions of the transfer; none of them may be learned."""
    learned_clips: int = 120
    """Clips of each learned action, and of scenes without people."""
    probe_clips: int = 40
    """Clips of each new action, done by the people of stage 2, that the probe's head learns from."""
    test_clips: int = 40
    """Clips of each new action, done by unseen people, that it is tested on."""
    scenes_epochs: int = 0
    """Epochs of stage 1; 0: the recipe's."""
    actions_epochs: int = 0
    """Epochs of stage 2; 0: the recipe's."""
    dry_run: bool = False
    """Only say what would be done."""

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= MAX_SEEDS:
            raise InputError(f"--seeds is {self.seeds}; it must be 1 to {MAX_SEEDS}")
        for name in ("workers", "learned_clips", "probe_clips", "test_clips"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        for name in ("scenes_epochs", "actions_epochs"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be 0 (the recipe's) or more"
                )
        if both := sorted(set(self.learned) & set(self.new)):
            raise InputError(
                f"--new: {', '.join(both)} would be learned in stage 2 already; transfer needs other actions"
            )
        if len(self.learned) < 2 or len(self.new) < 2:
            raise InputError("--learned and --new need two actions each, at least")
        if self.videos is not None and not self.videos.is_dir():
            raise InputError(
                f"--videos {self.videos}: no such folder; give one with your human-removed clips, <class>/<video>"
            )

    @property
    def data(self) -> Path:
        """The demo's own data catalog."""
        return self.out / "data.toml"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to do."""

    title: str
    cost: float
    """Seconds on two free cores, as measured; only their proportions matter."""
    done: Callable[[], bool]
    """Whether an earlier run has finished it."""
    work: Callable[[], object]
    again: bool = False
    """Call `work` even when done: that costs nothing then, and finds settings that have changed."""


def run_config(config: DemoConfig, seed: int, stage: recipes.DemoStage, run: str, init: str | None) -> RunConfig:
    """A stage of the recipe `demo` in the demo's folder; `init` names the run it starts from. Few clips make a smaller batch."""
    base, folder = recipes.demo(stage=stage), config.out / f"seed{seed}"
    sources, weights = base.sources, base.weights
    if config.videos is not None:
        sources = tuple(REAL if name == SCENES else name for name in sources)
        if stage == "actions" and not _has_labels(config):
            sources, weights = (ACTIONS,), None
    clips = sum(len(catalog.read(config.data).manifest(name)) for name in sources)
    drawn = len(config.learned) * config.learned_clips
    batch = max(base.loader.views, min(base.batch, clips // base.loader.views * base.loader.views))
    epochs = {"scenes": config.scenes_epochs, "actions": config.actions_epochs}.get(stage) or base.optim.epochs
    if config.videos is not None and stage == "scenes":
        epochs = round(epochs * drawn / clips)  # as many views of few clips as of many
    return replace(
        base, run_dir=folder / run, init=None if init is None else folder / init, sources=sources, weights=weights, seed=seed,
        data=config.data, batch=batch, resume=True, device=config.device, optim=replace(base.optim, epochs=epochs),
        loader=replace(base.loader, workers=config.workers),
    )  # fmt: skip


def _has_labels(config: DemoConfig) -> bool:
    """Whether the user's clips lie in at least two class folders, so that stage 2 can learn from their labels."""
    real = catalog.read(config.data).manifest(REAL)
    return len(real.class_names) >= 2 and bool((real.labels >= 0).all())


def _synthesis(config: DemoConfig, folder: str) -> SynthesisConfig:
    """What is drawn into clips/actions (people doing what stage 2 learns), clips/probe and clips/test (the new actions)."""
    classes = config.learned if folder == ACTIONS else config.new
    clips = {ACTIONS: config.learned_clips, "probe": config.probe_clips, "test": config.test_clips}[folder]
    return SynthesisConfig(
        out=config.out / "clips" / folder,
        classes=classes,
        clips=clips,
        size=recipes.DEMO_CLIP_SIZE,
        fps=recipes.DEMO_FPS,
        split="test" if folder == "test" else "train",
        empty=folder == ACTIONS and config.videos is None,
        workers=config.workers,
    )


def draw(config: DemoConfig, folder: str) -> None:
    """Draw one set of clips and enter it, and its empty scenes, into the catalog."""
    asked, said = _synthesis(config, folder), time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > LINE_EVERY_SECONDS:
            said = time.monotonic()
            log.info("%d of %d clips", done, total)

    manifest = generate(asked, on_progress=tell)
    name, split = (ACTIONS if folder == ACTIONS else TRANSFER), ("val" if folder == "test" else "train")
    catalog.add(config.data, name=name, split=split, manifest=manifest, root=asked.out)
    if asked.empty:
        _enter_scenes(config, SCENES, asked.out / "train_empty.csv", asked.out)
    if folder == ACTIONS:
        _pack(config, ACTIONS)


def _enter_scenes(config: DemoConfig, name: str, path: Path, root: Path) -> None:
    """Enter scenes without people and pack them.

    Labels count on from those of the actions, for the head that stage 2 shares. Of the user's clips at most as many are taken, evenly, as
    would be drawn, so that the time stays what it is.
    """
    listed, most = Manifest.read(path, root=root), len(config.learned) * config.learned_clips
    rows = np.unique(np.linspace(0, len(listed) - 1, min(most, len(listed))).astype(int))
    clips = [listed.clip(int(row)) for row in rows]
    shifted = config.out / f"{name}.csv"
    clips = [clip if clip.label is None else replace(clip, label=clip.label + len(config.learned)) for clip in clips]
    refused = _enter_and_pack(config, name, shifted, clips, root)
    if (
        refused
    ):  # a quick look into a file does not find everything; what cannot be packed could not be trained on either
        log.warning("%d of %d clips are damaged and are left out", len(refused), len(clips))
        shutil.rmtree(config.out / f"{name}.beton")
        _enter_and_pack(config, name, shifted, [clip for i, clip in enumerate(clips) if i not in refused], root)


def _enter_and_pack(config: DemoConfig, name: str, path: Path, clips: Sequence[Clip], root: Path) -> set[int]:
    """Write a manifest, enter it and pack it; the rows that could not be packed."""
    Manifest.write(path, clips)
    catalog.add(config.data, name=name, split="train", manifest=path, root=root)
    _pack(config, name)
    return _refused(config, name)


def _refused(config: DemoConfig, name: str) -> set[int]:
    """Rows that a packed source lacks."""
    with (config.out / f"{name}.beton" / REJECTED).open(newline="") as file:
        return {int(row["row"]) for row in csv.DictReader(file)}


def _indexed(config: DemoConfig) -> bool:
    """Whether the user's own clips are packed, and all of them: REJECTED is written last."""
    return (config.out / f"{REAL}.beton" / REJECTED).is_file() and not _refused(config, REAL)


def _pack(config: DemoConfig, name: str) -> None:
    """Keep a source's frames as JPEG: stage 2 reads each clip dozens of times, and decoding video would take as long as learning."""
    flags = {"--out": config.out / f"{name}.beton", "--data": config.data, "--workers": config.workers}
    flags |= {"--short-side": recipes.DEMO_CLIP_SIZE, "--fps": recipes.DEMO_FPS}
    pack.main([name, *(str(part) for flag in flags.items() for part in flag)])


def drawn(config: DemoConfig, folder: str) -> bool:
    """Whether one set of clips is there."""
    asked = _synthesis(config, folder)
    return all(job.done() for job in plan(asked)) and (asked.out / f"{asked.split}.csv").is_file()


def index_videos(config: DemoConfig) -> None:
    """Look into the user's own clips and enter them as what the user says they are."""
    assert config.videos is not None
    config.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(config.out / f"{REAL}.beton", ignore_errors=True)  # half of one, of a run that was stopped
    found = config.out / "real_as_found.csv"
    index.main([str(config.videos), "--out", str(found), "--domain", "human-removed"])
    _enter_scenes(config, REAL, found, config.videos.absolute())


def _finished(run: RunConfig) -> bool:
    """Whether a run has its last checkpoint and, where it is tested, its result. InputError when the folder holds another run."""
    check_run_folder(run)
    saved = checkpoint.newest(run.run_dir / "checkpoints")
    if saved is None or saved.step < saved.state["steps_per_epoch"] * run.optim.epochs:
        return False
    return not run.evaluation.at_end or (run.run_dir / "result.json").is_file()


def _stage(
    config: DemoConfig, seed: int, stage: recipes.DemoStage, run: str, init: str | None, title: str, cost: float
) -> Step:
    """One training run; its config is made when it is looked at, as the catalog must be there first."""

    def resolved() -> RunConfig:
        return run_config(config, seed, stage, run, init)

    def work() -> None:
        train(resolved())

    started = config.out / f"seed{seed}" / run / "config.json"
    return Step(title=title, cost=cost, done=lambda: started.is_file() and _finished(resolved()), work=work)


def steps(config: DemoConfig) -> list[Step]:
    """Everything to do, in order. Costs are those of the default settings on two free cores."""
    many = config.seeds > 1
    drawings = [
        (ACTIONS, f"draw people doing {len(config.learned)} actions, and their scenes without them", 70.0),
        ("probe", f"draw the same people doing {len(config.new)} new actions", 20.0),
        ("test", "draw unseen people doing those, before unseen cameras and backgrounds", 20.0),
    ]
    todo = [
        Step(
            title=title,
            cost=cost,
            done=partial(drawn, config, folder),
            work=partial(draw, config, folder),
            again=True,
        )
        for folder, title, cost in drawings
    ]
    if config.videos is not None:
        todo.append(
            Step(
                title=f"look into your clips in {config.videos}",
                cost=10,
                done=partial(_indexed, config),
                work=partial(index_videos, config),
            )
        )
    for seed in range(config.seeds):
        which = f", seed {seed}" if many else ""
        todo += [
            _stage(config, seed, "scenes", "scenes", None, f"stage 1, scenes without people{which}", 60),
            _stage(config, seed, "actions", "actions", "scenes", f"stage 2 after stage 1{which}", 120),
            _stage(config, seed, "actions", "scratch", None, f"stage 2 from scratch, to compare with{which}", 120),
        ]
        todo += [_stage(config, seed, "probe", arm.run, arm.init, f"probe: {arm.title}{which}", 15) for arm in ARMS]
    return todo


def _work_through(todo: list[Step]) -> None:
    """Do what is not done, and say before each step how long everything that is left will take at the pace so far."""
    open_steps = [not step.done() for step in todo]
    spent = expected = 0.0
    for number, step in enumerate(todo):
        left = sum(other.cost for other, is_open in zip(todo[number:], open_steps[number:]) if is_open)
        if not open_steps[number]:
            log.info("[%d/%d] %s: done before", number + 1, len(todo), step.title)
            if step.again:
                step.work()
            continue
        pace = spent / expected if expected else 1.0
        log.info(
            "[%d/%d] %s (all that is left: about %s)",
            number + 1,
            len(todo),
            step.title,
            timedelta(seconds=round(left * pace)),
        )
        began = time.monotonic()
        step.work()
        spent, expected = spent + time.monotonic() - began, expected + step.cost


def main(argv: list[str]) -> int:
    """Run `ppma demo ARGV`."""
    config = parse(DemoConfig, argv, prog="ppma demo")
    todo = steps(config)
    if config.dry_run:
        minutes = sum(step.cost for step in todo) / 60
        for number, step in enumerate(todo, 1):
            log.info("[%d/%d] %s", number, len(todo), step.title)
        log.info("about %.0f minutes on two cores; would write %s", minutes, config.out)
        return DONE
    try:
        _work_through(todo)
        write_report(config.out, config.seeds, config.new, own_videos=config.videos is not None)
    except Stopped:
        sys.stderr.write("ppma demo: stopped cleanly; run the same command again to continue\n")
        return RUN_AGAIN
    return DONE
