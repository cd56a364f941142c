"""A run small enough for a test: every recipe shrunk to a few thousand weights, and clips that need no decoding."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from ppma.common.philox import Purpose, generator
from ppma.config.flags import resolve
from ppma.config.model import MAEConfig, ViTConfig
from ppma.config.recipes import RECIPES
from ppma.config.run import RunConfig
from ppma.loaders.batch import ClipBatch
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.training.compute import choose
from ppma.training.distributed import Ranks, StopFlag
from ppma.training.monitor import Monitor
from ppma.training.tasks import ClassifyTask, MaeTask
from ppma.training.trainer import Trainer
from ppma.training.watchdog import Watchdog

FRAMES, SIZE = 4, 32
_SHAPE = "--size 32 --frames 4 --vit.width 48 --vit.depth 2 --vit.heads 3 --vit.patch 2 8 8"
FLAGS = f"{_SHAPE} --log-every 1 --device cpu --loader.workers 1".split()
"""What makes a recipe tiny, as flags of `ppma train`."""
_DECODER = "--mae.decoder-width 32 --mae.decoder-depth 1 --mae.decoder-heads 2"
MAE_FLAGS = f"--loader.views 2 {_DECODER}".split()
ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


def make_data(folder: Path, clips: Path, *splits: str) -> Path:
    """Index a tree of clips as splits of source `made`, or of another one as in "other.train"; return the data catalog."""
    from ppma.cli import main as ppma

    for named in splits:
        name, split = f"made.{named}".split(".")[-2:]
        flags = f"--root {clips} --out {folder}/{name}_{split}.csv --name {name} --split {split} --domain synthetic"
        assert (
            ppma(["index", str(clips), *flags.split(), "--licence", "made here", "--data", f"{folder}/data.toml"]) == 0
        )
    return folder / "data.toml"


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """Return the newest weights of a run."""
    return load_file(run_dir / "checkpoints" / "latest" / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """True if two models are the same to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def config(name: str, data: Path, run_dir: Path, *flags: object) -> RunConfig:
    """Return a recipe with tiny flags on source `made`: one epoch in batches of 4."""
    common = [*FLAGS, "--dataset", "made", "--batch", 4, "--optim.epochs", 1, "--data", data, "--run-dir", run_dir]
    return resolve(name, [str(word) for word in (*common, *flags)])


def shrink(name: str, **changes: object) -> RunConfig:
    """A recipe of a tiny model in float64 for 20 steps of 8 rows over 32 clips, nothing dropped."""
    config = RECIPES[name](size=SIZE, frames=FRAMES)
    views = 2 if config.phase == "mae" else 1
    return replace(
        config,
        vit=ViTConfig(width=48, depth=2, heads=3, patch=(2, 8, 8), frames=FRAMES, size=SIZE),
        mae=MAEConfig(decoder_width=32, decoder_depth=1, decoder_heads=2),
        loader=replace(config.loader, views=views, workers=1),
        optim=replace(config.optim, epochs=5, reference_batch=8, peak_lr=2e-3),
        batch=8,
        precision="fp64",
        device="cpu",
        **changes,
    )


def source(name: str, clips: int = 32, classes: int = 4) -> Manifest:
    """A manifest of clips that exist in name only."""
    facts = {"fps": 25.0, "frames": 100, "width": 48, "height": 40, "duration_seconds": 4.0, "key_frame_spacing": 1}
    facts |= {"codec": "h264", "domain": "synthetic", "source": name}
    rows = [Clip(path=f"{i}.mp4", label=i % classes, class_name=f"{i % classes}", **facts) for i in range(clips)]
    return Manifest.from_clips(rows, root=Path("/nowhere"), name=name)


def pixels(source: int, clip: int, view: int) -> np.ndarray:
    """uint8 (T, H, W, 3) of one view: coarse random blocks, and stripes whose angle is the clip's class."""
    rng = generator(source, Purpose.SYNTHESIS, sample=clip, view=view)
    blocks = rng.integers(0, 160, (FRAMES, SIZE // 4, SIZE // 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    y, x = np.mgrid[:SIZE, :SIZE]
    angle = np.pi * (clip % 4) / 4
    stripes = 80 * (np.sin((x * np.cos(angle) + y * np.sin(angle)) / 2) > 0)
    return (blocks + stripes[None, :, :, None]).astype(np.uint8)


def made_batch(sampler, sources, epoch: int, step: int, rank: int = 0, world_size: int = 1) -> ClipBatch:
    """Return the batch that a sampler asks for, with made pixels."""
    samples = sampler.samples(epoch, step, rank, world_size)
    rows = [(sample, view) for sample in samples for view in range(sampler.views)]
    return ClipBatch(
        frames_BTHWC=torch.from_numpy(np.stack([pixels(s.source, s.clip, v) for s, v in rows])),
        label_B=torch.tensor([int(sources[s.source].labels[s.clip]) for s, _ in rows]),
        source_B=torch.tensor([s.source for s, _ in rows]),
        sample_id_B=torch.tensor([s.clip for s, _ in rows]),
        view_B=torch.tensor([v for _, v in rows]),
        key_B=torch.tensor([s.views[v].key for s, v in rows]),
        erase_B4=torch.tensor([s.views[v].erase for s, v in rows]),
        decoded_B=torch.ones(len(rows), dtype=torch.bool),
        sources=frozenset(s.source for s in samples),
        epoch=epoch,
        step=step,
    )


class MadeClips:
    """Takes the place of ClipStream, with its arguments: the sampler's batches with made pixels."""

    def __init__(
        self, sampler, sources, config, *, epochs: int = 1, rank: int = 0, world_size: int = 1,
        start: tuple[int, int] = (0, 0), **_: object,
    ) -> None:  # fmt: skip
        self.sampler, self.sources, self.rank, self.world_size = sampler, sources, rank, world_size
        steps = sampler.steps_per_epoch
        self.positions = range(start[0] * steps + start[1], steps * epochs)

    def __enter__(self) -> "MadeClips":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[ClipBatch]:
        for position in self.positions:
            when = divmod(position, self.sampler.steps_per_epoch)
            yield made_batch(self.sampler, self.sources, *when, self.rank, self.world_size)


def made_stream(task, ranks: Ranks, start: tuple[int, int], kind: type[MadeClips] = MadeClips) -> MadeClips:
    """Return what takes the place of a task's stream."""
    place, epochs = {"rank": ranks.rank, "world_size": ranks.world_size}, task.config.optim.epochs
    return kind(task.sampler, task.sources, task.config.loader, epochs=epochs, start=start, **place)


def trainer(
    name: str, folder: Path, ranks: Ranks = ALONE, *, stream: type[MadeClips] = MadeClips, **changes: object
) -> Trainer:
    """A trainer of a shrunk recipe on made clips, which writes to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = replace(shrink(name), log_every=4, pictures_every=0, run_dir=folder)
    config = replace(config, **changes)
    kind = {"mae": MaeTask, "classify": ClassifyTask}[config.phase]
    task = kind(config, [source(one) for one in config.sources])
    task.stream = lambda ranks, start: made_stream(task, ranks, start, stream)
    return Trainer(config, task, ranks, choose(config.precision, ranks.device))


def loop(trainer: Trainer) -> None:
    """Train to the end as `train` does, with a monitor, a stop flag and a watchdog."""
    ranks, watchdog = trainer.ranks, Watchdog(600, lambda code: None)
    with (
        contextlib.closing(StopFlag(ranks)) as stop,
        Monitor(trainer.config.run_dir, writes=ranks.is_main, total_steps=trainer.total_steps) as monitor,
    ):
        trainer.run(monitor, stop, watchdog)


def named_world(folder: Path, runs: Path, clips: Path) -> None:
    """Lay out `tiny_runs` and `clip_tree` under the names of the docs: runs/mae_nohuman, runs/finetune-ucf101, ucf101, clip.mp4."""
    from conftest import write_barcoded_clip

    from ppma.loaders.sources import catalog

    for name, run in (("mae_nohuman", "mae"), ("finetune-ucf101", "finetune")):
        shutil.copytree(runs / "runs" / run, folder / "runs" / name, symlinks=True)
    for split in ("train", "val"):
        manifest = runs / f"made_{split}.csv"
        catalog.add(folder / "data.toml", name="ucf101", split=split, manifest=manifest, root=clips)
    state = folder / "runs/finetune-ucf101/checkpoints/latest/state.json"
    state.write_text(state.read_text().replace('"made"', '"ucf101"'))
    write_barcoded_clip(folder / "long.mp4", frames=70)
    shutil.copy(folder / "long.mp4", folder / "clip.mp4")
