"""Named runs: each is a function that returns a RunConfig and whose docstring says how it is started, what it costs and whose numbers it
holds. Numbers without a word of explanation are those of the paper (Zhong et al., NeurIPS 2023, table of settings).

`ppma train RECIPE` takes a recipe's own arguments (--model, --size, --frames, --dataset) and every field of the RunConfig as flags.
Cost is given for the paper's data on one H200 at the ceiling of its matrix units; `benchmarks/` says what is reached.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ppma.config import transfer_recipes
from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.config.model import ClassifierConfig, MAEConfig, MixConfig, OptimConfig, ViTConfig
from ppma.config.recipe_parts import NO_HUMAN, SYNTHETIC, People, kinetics, labelled_run, mae_run
from ppma.config.run import EvaluationConfig, RunConfig

DemoStage = Literal["scenes", "actions", "probe"]
DEMO_FPS, DEMO_CLIP_SIZE = 4.0, 48
"""Frames a second and pixels of the clips that `ppma demo` draws: the 8 frames of a 2.7 s window are most there are."""


def mae_nohuman(*, model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 1 on videos with the humans removed: the paper's main pre-training.

    python slurm/launch.py pretrain --nodes 8, or ppma train mae_nohuman. 17.9 million views of 202 GFLOP: 1.3 H200 hours at the ceiling.
    Differs from the published run in precision (bf16, there fp16) and recomputes no activations (Q2: --vit.recompute).
    """
    return mae_run("mae_nohuman", (NO_HUMAN,), model, size, frames)


def _of_people(run: RunConfig, people: People) -> RunConfig:
    """A folder of its own for a run on changed people."""
    return run if people == "shown" else replace(run, run_dir=Path("runs") / f"{run.recipe}-{people}")


def mae_kinetics(*, people: People = "shown", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 1 on the same videos with their humans: the baseline that privacy is compared with.

    ppma train mae_kinetics. Costs what mae_nohuman costs. --people blur-faces, blur-bodies or downsample takes the source
    kinetics-blur-faces and so on: further baselines of the paper, which `ppma remove-humans --method` makes.
    """
    return _of_people(mae_run("mae_kinetics", (kinetics(people),), model, size, frames), people)


def mae_synthetic(*, model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 1 on virtual humans alone: a baseline of the paper.

    ppma train mae_synthetic. Costs what mae_nohuman costs, in proportion to the number of clips.
    """
    return mae_run("mae_synthetic", (SYNTHETIC,), model, size, frames)


def mae_joint(*, model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 1 on human-removed and synthetic videos together, mixed in proportion to their lengths: a baseline of the paper.

    ppma train mae_joint. Costs the sum of mae_nohuman and mae_synthetic.
    """
    return mae_run("mae_joint", (NO_HUMAN, SYNTHETIC), model, size, frames)


def mae_kinetics_synthetic(
    *, people: People = "shown", model: str = "base", size: int = 224, frames: int = 16
) -> RunConfig:
    """Stage 1 on videos with their humans and synthetic ones together: the mixture that mae_joint is compared with.

    ppma train mae_kinetics_synthetic. Costs what mae_joint costs. --people as in mae_kinetics.
    """
    run = mae_run("mae_kinetics_synthetic", (kinetics(people), SYNTHETIC), model, size, frames)
    return _of_people(run, people)


def align_nohuman_synthetic(
    *, model: str = "base", size: int = 224, frames: int = 16, published_heads: bool = False
) -> RunConfig:
    """Stage 2, PPMA itself: labels of human-removed and synthetic videos, from the encoder of mae_nohuman.

    ppma train align_nohuman_synthetic --init runs/mae_nohuman. 50 epochs of 1,078 GFLOP a clip: 3.4 H200 hours at the ceiling for the
    89,665 and up to 150,000 clips. One head for each label space and sources mixed by the sample; --published-heads shares one 150-way head
    and takes a batch from one source at a time, as published (Q3). bf16, there float32 (Q2).
    """
    run = labelled_run("align_nohuman_synthetic", (NO_HUMAN, SYNTHETIC), model, size, frames)
    if not published_heads:
        return run
    return replace(run, classifier=replace(run.classifier, shared_head=True), loader=replace(run.loader, mix="batch"))


def align_nohuman(*, model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 2 on human-removed videos alone: a baseline of the paper.

    ppma train align_nohuman --init runs/mae_nohuman. 1.7 H200 hours at the ceiling.
    """
    return labelled_run("align_nohuman", (NO_HUMAN,), model, size, frames)


def align_synthetic(*, model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 2 on virtual humans alone: a baseline of the paper.

    ppma train align_synthetic --init runs/mae_synthetic (or runs/mae_nohuman). Up to 2.8 H200 hours at the ceiling.
    """
    return labelled_run("align_synthetic", (SYNTHETIC,), model, size, frames)


def align_kinetics(*, people: People = "shown", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 2 on the videos with their humans: the baseline that privacy is compared with.

    ppma train align_kinetics --init runs/mae_kinetics. 1.7 H200 hours at the ceiling. --people as in mae_kinetics.
    """
    return _of_people(labelled_run("align_kinetics", (kinetics(people),), model, size, frames), people)


def align_kinetics_synthetic(
    *, people: People = "shown", model: str = "base", size: int = 224, frames: int = 16
) -> RunConfig:
    """Stage 2 on videos with their humans and synthetic ones together: PPMA without the privacy.

    ppma train align_kinetics_synthetic --init runs/mae_kinetics. Costs what align_nohuman_synthetic costs. --people as in mae_kinetics;
    --classifier.shared-head and --loader.mix batch are the published form (Q3), as --published-heads there.
    """
    run = labelled_run("align_kinetics_synthetic", (kinetics(people), SYNTHETIC), model, size, frames)
    return _of_people(run, people)


def align_scratch(*, model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 2 without stage 1, on human-removed and synthetic videos: a baseline of the paper.

    ppma train align_scratch. Costs what align_nohuman_synthetic costs.
    """
    return labelled_run("align_scratch", (NO_HUMAN, SYNTHETIC), model, size, frames)


def demo(*, stage: DemoStage = "scenes", size: int = 32, frames: int = 8) -> RunConfig:
    """The two stages and the probe in miniature, on virtual people: what `ppma demo` runs. No number here is the paper's.

    ppma train demo --stage actions --data runs/demo/data.toml --run-dir runs/again --init runs/demo/seed0/scenes. Stage 1 costs two cores
    one minute, stage 2 two, a probe ten seconds. A token spans the whole clip (patch 8 x 4 x 4), so that one layer sees movement: in
    patches of two frames so few clips in so short a time teach nothing. Stage 2 takes one view of a clip, as more of the same in a batch
    taught it far less. Actions and kinds of scenes share one head, their labels being apart: each scene is the place of some clip without
    its people, so telling the two takes a look at the people.
    """
    run = RunConfig(
        recipe="demo",
        phase="mae",
        sources=("scenes",),
        run_dir=Path("runs") / f"demo-{stage}",
        batch=64,
        vit=ViTConfig(width=96, depth=2, heads=3, patch=(frames, 4, 4), frames=frames, size=size),
        mae=MAEConfig(mask_ratio=0.75, decoder_width=64, decoder_depth=2, decoder_heads=4),
        loader=LoaderConfig(
            size=size, frames=frames, short_side=size * 3 // 2, views=4, crop_scale=(0.5, 1.0), flip_probability=0.5
        ),
        optim=OptimConfig(epochs=24, peak_lr=2e-3, reference_batch=64, clip_grad=1.0),
        log_every=50,
        checkpoint_every=200,
        pictures_every=200,
    )
    if stage == "scenes":
        return run
    if stage == "actions":
        return replace(
            run,
            phase="classify",
            sources=("actions", "scenes"),
            weights=(0.75, 0.25),
            classifier=ClassifierConfig(mix=MixConfig(probability=0.0, smoothing=0.0), shared_head=True),
            loader=replace(run.loader, views=1),
            optim=replace(run.optim, epochs=14, peak_lr=3e-3, betas=(0.9, 0.98), warmup_fraction=0.1),
        )
    linear = transfer_recipes.probe(dataset="transfer", size=size, frames=frames)
    return replace(
        linear,
        recipe="demo",
        run_dir=run.run_dir,
        vit=run.vit,
        optim=replace(linear.optim, epochs=150, peak_lr=3e-2),  # as far as the heads on the weak encoders still gain
        log_every=run.log_every * 4,
        evaluation=EvaluationConfig(at_end=True, windows=2, crops=1, batch_clips=32),
    )


RECIPES: dict[str, Callable[..., RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        mae_nohuman, mae_kinetics, mae_synthetic, mae_joint, mae_kinetics_synthetic,
        align_nohuman_synthetic, align_nohuman, align_synthetic, align_kinetics, align_kinetics_synthetic, align_scratch,
        transfer_recipes.finetune, transfer_recipes.probe, transfer_recipes.probe_published, transfer_recipes.probe_grid,
        transfer_recipes.knn, transfer_recipes.few_shot, transfer_recipes.attentive_probe, transfer_recipes.adaptive_average,
        demo,
    )
}  # fmt: skip


def recipe(name: str) -> Callable[..., RunConfig]:
    """The recipe of that name; InputError lists them."""
    if name not in RECIPES:
        raise InputError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]
