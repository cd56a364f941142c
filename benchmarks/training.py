"""Build the training step of `ppma train` for benchmarks that supply its batches.

phase, model, batch, device  ->  Trainer (compile, precision and optimizer of a real run)   +   a ClipBatch of random pixels
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from ppma.config.model import MixConfig, preset
from ppma.config.recipes import RECIPES
from ppma.config.run import Compile, Precision, RunConfig
from ppma.loaders.batch import ClipBatch
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.training.compute import choose
from ppma.training.distributed import Ranks
from ppma.training.tasks import ClassifyTask, MaeTask
from ppma.training.trainer import Trainer

Phase = Literal["mae", "align"]
CLASSES = 150


def run_config(
    phase: Phase, *, model: str, batch: int, size: int = 224, frames: int = 16, as_recipe: bool = False
) -> RunConfig:
    """Return the config of a phase for `batch` clips of one view.

    Args:
        phase: `mae` is stage 1, `align` stage 2.
        model: Encoder size.
        batch: Rows per step.
        size: Height and width of a clip in pixels.
        frames: Frames per clip.
        as_recipe: Keep mixing, erasing and drop path, which the published baseline lacks.
    """
    config = RECIPES["mae_nohuman" if phase == "mae" else "align_nohuman"](model=model, size=size, frames=frames)
    config = replace(config, batch=batch, loader=replace(config.loader, views=1))
    if as_recipe:
        return config
    return replace(
        config,
        vit=preset(model, size=size, frames=frames),
        loader=replace(config.loader, erase_probability=0.0),
        classifier=replace(config.classifier, mix=MixConfig(probability=0.0)),
    )


def made_source(name: str, clips: int) -> Manifest:
    """Return a manifest of clips that do not exist."""
    listed = [
        Clip(
            path=f"{i}.mp4", label=i % CLASSES, class_name=str(i % CLASSES), frames=300, fps=25.0, width=336, height=256,
            codec="h264", key_frame_spacing=250, duration_seconds=12.0,
        )
        for i in range(clips)
    ]  # fmt: skip
    return Manifest.from_clips(listed, root=Path("made"), name=name)


def make_trainer(
    config: RunConfig, device: torch.device, *, compile: Compile = "auto", precision: Precision = "auto"
) -> Trainer:
    """Build a single-process Trainer on a source that does not exist."""
    config = replace(config, compile=compile, precision=precision)
    task = (MaeTask if config.phase == "mae" else ClassifyTask)(
        config, [made_source(config.sources[0], max(config.batch, CLASSES))]
    )
    return Trainer(config, task, Ranks(rank=0, world_size=1, local_rank=0, device=device), choose(precision, device))


def made_batch(config: RunConfig, device: torch.device, *, seed: int = 0) -> ClipBatch:
    """Return a batch of random pixels on the device. With erasing enabled, every fourth row has a box of a ninth of its
    area."""
    generator = torch.Generator().manual_seed(seed)
    size, rows = config.vit.size, torch.arange(config.batch, device=device)
    shape = (config.batch, config.vit.frames, size, size, 3)
    box = torch.tensor([size // 4, size // 4, size // 3, size // 3], device=device)
    erased = (rows[:, None] % 4 == 0) & (config.loader.erase_probability > 0)
    return ClipBatch(
        frames_BTHWC=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device),
        label_B=rows % CLASSES,
        source_B=torch.zeros_like(rows),
        sample_id_B=rows,
        view_B=torch.zeros_like(rows),
        key_B=rows + seed * config.batch,
        erase_B4=torch.where(erased, box, 0),
        decoded_B=torch.ones_like(rows, dtype=torch.bool),
        sources=frozenset({0}),
        epoch=0,
        step=0,
    )
