"""What recipes are put together from: the settings that stage 1, and everything with labels, have in common.

Numbers without a word of explanation are those of the paper (Zhong et al., NeurIPS 2023, table of settings).
"""

from pathlib import Path
from typing import Literal

from ppma.config.loader import LoaderConfig
from ppma.config.model import OptimConfig, preset
from ppma.config.run import RunConfig

NO_HUMAN, KINETICS, SYNTHETIC = "no-human-kinetics", "kinetics", "synapt"
"""Names under which the recipes look for the paper's three sources in the data catalog."""

People = Literal["shown", "blur-faces", "blur-bodies", "downsample"]
"""What was done to the people in Kinetics: nothing, or a --method of `ppma remove-humans`."""


def kinetics(people: People) -> str:
    """The source's name: kinetics, kinetics-blur-faces, kinetics-blur-bodies or kinetics-downsample."""
    return KINETICS if people == "shown" else f"{KINETICS}-{people}"


def mae_run(name: str, sources: tuple[str, ...], model: str, size: int, frames: int) -> RunConfig:
    """Stage 1 as published: 16 x 224 x 224, four views a decoded window, batch of 128 views, 200 epochs."""
    return RunConfig(
        recipe=name,
        phase="mae",
        sources=sources,
        run_dir=Path("runs") / name,
        batch=128,
        vit=preset(model, size=size, frames=frames),
        loader=LoaderConfig(size=size, frames=frames, short_side=short_side(size), views=4),
    )


def short_side(size: int) -> int:
    """256 for views of 224, and in proportion for others."""
    return round(size * 256 / 224)


def labelled_run(name: str, sources: tuple[str, ...], model: str, size: int, frames: int) -> RunConfig:
    """What Align and fine-tuning share: RandAugment, erasing, mixing, drop path 0 to 0.1, layer decay 0.75."""
    return RunConfig(
        recipe=name,
        phase="classify",
        sources=sources,
        run_dir=Path("runs") / name,
        batch=128,
        vit=preset(model, size=size, frames=frames, drop_path=0.1),
        loader=LoaderConfig(
            size=size, frames=frames, short_side=short_side(size), views=1, randaugment_ops=4, erase_probability=0.25
        ),
        optim=OptimConfig(
            epochs=50, peak_lr=2e-3, reference_batch=128, warmup_fraction=0.125, final_lr=5e-7, betas=(0.9, 0.999),
            weight_decay=1e-4, layer_decay=0.75,
        ),
    )  # fmt: skip
