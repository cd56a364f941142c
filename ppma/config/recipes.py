"""Recipes: functions that return a RunConfig.

    recipe(model, size, frames, ...)  ->  RunConfig

A recipe's docstring says what it trains, how to start it, what it costs, and where its values come from. Values without
a source are the paper's (Zhong et al., NeurIPS 2023, table of settings). Where the authors' scripts depart from it, or
from what we think right, `published` turns a recipe into the run of the script. These departures are the quirks Q1 to Q10
of docs/published.md, and each docstring names its own. Costs are for the paper's data on one H200 at its peak matrix
throughput; `benchmarks/` measures what is reached.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.config.model import ClassifierConfig, MAEConfig, MixConfig, OptimConfig, ViTConfig, preset
from ppma.config.protocols import GridConfig
from ppma.config.run import EvaluationConfig, RunConfig

NO_HUMAN, KINETICS, SYNTHETIC = "no-human-kinetics", "kinetics", "synapt"
"""Names of the paper's three sources in the data catalog."""
FRAME_FOLDERS = ("ucf101", "hmdb51", "diving48", "ikea-fa", "uav-human")
"""Data sets that the authors read as folders of frames, which count as 25 frames/s (Q9)."""
People = Literal["shown", "blur-faces", "blur-bodies", "downsample"]
"""How the people in Kinetics were hidden: not at all, or by a --method of `ppma remove-humans`."""
DemoStage = Literal["scenes", "actions", "probe"]
DEMO_FPS, DEMO_CLIP_SIZE = 4.0, 48
"""Frames per second and pixels of the clips of `ppma demo`: a window of 2.7 s holds 11 frames, the model takes 8."""


def _mae(name: str, sources: tuple[str, ...], model: str, size: int, frames: int) -> RunConfig:
    """Return stage 1: four views per decoded window, 200 epochs."""
    return RunConfig(
        recipe=name,
        phase="mae",
        sources=sources,
        run_dir=Path("runs") / name,
        batch=128,
        vit=preset(model, size=size, frames=frames),
        loader=LoaderConfig(size=size, frames=frames, short_side=round(size * 256 / 224), views=4),
    )


def _labeled(name: str, sources: tuple[str, ...], model: str, size: int, frames: int) -> RunConfig:
    """Return what Align and fine-tuning share: RandAugment, erasing, mixing, drop path, layer decay."""
    run = _mae(name, sources, model, size, frames)
    return replace(
        run,
        phase="classify",
        vit=replace(run.vit, drop_path=0.1),
        loader=replace(run.loader, views=1, randaugment_ops=4, erase_probability=0.25),
        optim=OptimConfig(
            epochs=50, peak_lr=2e-3, reference_batch=128, warmup_fraction=0.125, final_lr=5e-7, betas=(0.9, 0.999),
            weight_decay=1e-4, layer_decay=0.75,
        ),
    )  # fmt: skip


def _hide(run: RunConfig, people: People) -> RunConfig:
    """Return the run on Kinetics with its people hidden, with its own source and run folder."""
    if people == "shown":
        return run
    sources = tuple(f"{name}-{people}" if name == KINETICS else name for name in run.sources)
    return replace(run, sources=sources, run_dir=Path("runs") / f"{run.recipe}-{people}")


def _renamed(run: RunConfig, recipe: str, **changes: Any) -> RunConfig:
    """Return the run with changes under another recipe's name, in a run folder named after recipe and data set."""
    return replace(run, recipe=recipe, run_dir=Path("runs") / f"{recipe}-{run.sources[0]}", **changes)


def published(run: RunConfig) -> RunConfig:
    """Return the run of a recipe as the authors' script runs it, quirks included (`--published`; docs/published.md).

    Raises:
        InputError: The authors have no such run.
    """
    if run.recipe == "demo" or (run.phase != "mae" and run.phase != "classify"):
        ours = f"{run.recipe} is ours, so --published has no meaning"
        raise InputError(f"{ours}; the authors' linear probe is `ppma train probe_published --published`")
    run = replace(run, run_dir=run.run_dir.with_name(f"{run.run_dir.name}-published"))
    loader = replace(run.loader, mix="batch", reshuffle="epoch")  # Q3, Q10
    if run.phase == "mae":
        optim = replace(run.optim, cosine_start=0.5, cosine_over="run", decay_vectors=True)  # Q1, Q8, Q10
        return replace(run, precision="fp16", vit=replace(run.vit, recompute=True), loader=loader, optim=optim)  # Q2
    linear = run.recipe in ("probe_published", "adaptive_average")
    loader = published_rate(loader, run.sources)
    rows_of_a_gpu = 16 if run.recipe.startswith("align") else 8
    mix = replace(run.classifier.mix, group=rows_of_a_gpu)
    return replace(
        run,
        precision="fp32",  # Q2
        classifier=replace(run.classifier, shared_head=True, freeze_encoder=False, mix=mix),  # Q3, Q6
        loader=loader,
        evaluation=published_views(run.evaluation),
        optim=replace(
            run.optim, cosine_start=1.0 if linear else 0.5, layer_decay=0.75, decay_head=True, decay_vectors=True
        ),  # Q1, Q6, Q7
        mix_norm=run.recipe == "adaptive_average",  # Q7
    )


def published_views(evaluation: EvaluationConfig) -> EvaluationConfig:
    """Return the test as the authors' code does it (Q9)."""
    return replace(evaluation, last_window="pytorchvideo", average="logits")


def published_rate(loader: LoaderConfig, sources: Sequence[str]) -> LoaderConfig:
    """Return the loader at 25 frames/s for data sets that the authors read as folders of frames (Q9)."""
    return replace(loader, assumed_fps=25.0) if set(sources) & set(FRAME_FOLDERS) else loader


# ------------------------------------------------------------------------------------------------------------- stage 1


def mae_nohuman(*, model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 1 on videos with the humans removed: the paper's main pre-training.

    Run `ppma train mae_nohuman`, or `python slurm/launch.py pretrain --nodes 2` for both stages. 17.9 million views
    of 202 GFLOP: 1.3 H200 hours. --published restores Q1 and Q8 (the cosine), Q2 (fp16 instead of bf16, activations
    recomputed) and Q10 (a new random quarter of the clips in every epoch, the mask token decayed).
    """
    return _mae("mae_nohuman", (NO_HUMAN,), model, size, frames)


def mae_kinetics(*, people: People = "shown", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 1 on the same videos with their humans: the baseline without privacy.

    Run `ppma train mae_kinetics`. Costs as much as mae_nohuman, and departs from the authors' run in the same quirks (Q1,
    Q2, Q8, Q10). --people blur-faces, blur-bodies or downsample reads the source kinetics-blur-faces and so on, which
    `ppma remove-humans --method` makes: further baselines of the paper.
    """
    return _hide(_mae("mae_kinetics", (KINETICS,), model, size, frames), people)


def mae_synthetic(*, model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 1 on virtual humans alone: a baseline of the paper.

    Run `ppma train mae_synthetic`. Costs as much as mae_nohuman, in proportion to the number of clips. Departs from the
    authors' run in Q1, Q2, Q8 and Q10, as mae_nohuman does.
    """
    return _mae("mae_synthetic", (SYNTHETIC,), model, size, frames)


def mae_joint(*, model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 1 on human-removed and synthetic videos, mixed in proportion to their lengths: a baseline of the paper.

    Run `ppma train mae_joint`. Costs as much as mae_nohuman and mae_synthetic together. --published restores what it does
    in mae_nohuman (Q1, Q2, Q8, Q10), and takes one source a batch (Q10).
    """
    return _mae("mae_joint", (NO_HUMAN, SYNTHETIC), model, size, frames)


def mae_kinetics_synthetic(
    *, people: People = "shown", model: str = "base", size: int = 224, frames: int = 16
) -> RunConfig:
    """Stage 1 on videos with their humans and on synthetic ones: the counterpart of mae_joint without privacy.

    Run `ppma train mae_kinetics_synthetic`. Costs as much as mae_joint, and departs from the authors' run in the same
    quirks (Q1, Q2, Q8, Q10). --people as in mae_kinetics.
    """
    return _hide(_mae("mae_kinetics_synthetic", (KINETICS, SYNTHETIC), model, size, frames), people)


# ------------------------------------------------------------------------------------------------------------- stage 2


def align_nohuman_synthetic(*, model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 2, PPMA itself: labels of human-removed and synthetic videos, from the encoder of mae_nohuman.

    Run `ppma train align_nohuman_synthetic --init runs/mae_nohuman`. 50 epochs of 1,078 GFLOP per clip: 3.4 H200 hours
    for the 89,665 and up to 150,000 clips. Each label space has its own head, because equal numbers are different classes,
    and a batch mixes the sources; --published shares one 150-way head and draws each batch from one source (Q3). It also
    restores Q1 (the cosine starts at half the peak), Q2 (fp32 instead of bf16) and Q6 (heads at 0.75 of the rate).
    """
    return _labeled("align_nohuman_synthetic", (NO_HUMAN, SYNTHETIC), model, size, frames)


def align_nohuman(*, model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 2 on human-removed videos alone: a baseline of the paper.

    Run `ppma train align_nohuman --init runs/mae_nohuman`. 1.7 H200 hours. --published restores Q1, Q2 and Q6, as in
    align_nohuman_synthetic.
    """
    return _labeled("align_nohuman", (NO_HUMAN,), model, size, frames)


def align_synthetic(*, model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 2 on virtual humans alone: a baseline of the paper.

    Run `ppma train align_synthetic --init runs/mae_synthetic` (or runs/mae_nohuman). Up to 2.8 H200 hours. --published
    restores Q1, Q2 and Q6, as in align_nohuman_synthetic.
    """
    return _labeled("align_synthetic", (SYNTHETIC,), model, size, frames)


def align_kinetics(*, people: People = "shown", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 2 on videos with their humans: the baseline without privacy.

    Run `ppma train align_kinetics --init runs/mae_kinetics`. 1.7 H200 hours. --people as in mae_kinetics. --published
    restores Q1, Q2 and Q6, as in align_nohuman_synthetic.
    """
    return _hide(_labeled("align_kinetics", (KINETICS,), model, size, frames), people)


def align_kinetics_synthetic(
    *, people: People = "shown", model: str = "base", size: int = 224, frames: int = 16
) -> RunConfig:
    """Stage 2 on videos with their humans and on synthetic ones: PPMA without privacy.

    Run `ppma train align_kinetics_synthetic --init runs/mae_kinetics`. Costs as much as
    align_nohuman_synthetic. --people as in mae_kinetics. --published restores Q1, Q2, Q3 and Q6, as there.
    """
    return _hide(_labeled("align_kinetics_synthetic", (KINETICS, SYNTHETIC), model, size, frames), people)


def align_scratch(*, model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Stage 2 without stage 1, on human-removed and synthetic videos: a baseline of the paper.

    Run `ppma train align_scratch`. Costs as much as align_nohuman_synthetic. --published restores Q1, Q2, Q3 and Q6, as
    there.
    """
    return _labeled("align_scratch", (NO_HUMAN, SYNTHETIC), model, size, frames)


# ------------------------------------------------------------------------------------------------------------ transfer
# These recipes test an encoder on --dataset and end with the 2 x 3 view test on the split `val`. Recipes with a frozen
# encoder share the cache of its features.


def finetune(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Transfer by fine-tuning every weight.

    Run `ppma train finetune --dataset ucf101 --init runs/align_nohuman_synthetic`. UCF101: 0.3 million clips, 7 H200
    minutes. The final LayerNorm comes with the encoder where that has been trained with labels (Q7, as
    published). --published restores Q1 (the cosine starts at half the peak), Q2 (fp32 instead of bf16), Q6 (the head
    at 0.75 of the rate) and Q9 (the test).
    """
    run = _labeled("finetune", (dataset,), model, size, frames)
    optim = replace(run.optim, epochs=30, reference_batch=32)
    return _renamed(run, "finetune", batch=32, optim=optim, evaluation=EvaluationConfig(at_end=True))


def probe(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Transfer by a linear probe on features of unaugmented views, computed once.

    Run `ppma train probe --dataset ucf101 --init runs/align_nohuman_synthetic`. One pass of 361 GFLOP per clip; the
    head takes seconds. The paper's protocol, with augmentation and an encoder pass every epoch, is probe_published.
    """
    run = RunConfig(
        recipe="probe",
        phase="probe",
        sources=(dataset,),
        batch=32,
        vit=preset(model, size=size, frames=frames),
        classifier=ClassifierConfig(freeze_encoder=True),
        loader=LoaderConfig(size=size, frames=frames, short_side=size, views=1, crop="center"),
        optim=OptimConfig(
            epochs=50, peak_lr=2e-3, reference_batch=32, warmup_fraction=0.125, final_lr=0.0, betas=(0.9, 0.999), weight_decay=1e-4
        ),
        evaluation=EvaluationConfig(at_end=True),
    )  # fmt: skip
    return _renamed(run, "probe")


def probe_published(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Transfer by the paper's linear probe: the frozen encoder runs every epoch on augmented clips.

    Run `ppma train probe_published --dataset ucf101 --init runs/align_nohuman_synthetic`. 30 epochs of 361 GFLOP per
    clip. As the paper says, the encoder is frozen; the authors' script trains it, with layer decay from 0.75 at the head
    on (Q6). --published restores that, Q2 (fp32 instead of bf16) and Q9 (the test).
    """
    run = finetune(dataset=dataset, model=model, size=size, frames=frames)
    optim = replace(run.optim, peak_lr=1.6e-2, warmup_lr=4e-6, final_lr=4e-6, layer_decay=None)
    return _renamed(run, "probe_published", classifier=ClassifierConfig(freeze_encoder=True), optim=optim)


def probe_grid(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """The linear probe with learning rate and weight decay chosen from a grid on a tenth of the training clips.

    Run `ppma train probe_grid --dataset ucf101 --init runs/align_nohuman_synthetic`. All 14 heads learn in one pass
    over the cached features; then a probe with the best pair learns from all training clips. The test split takes no
    part in the choice. Costs as much as probe, plus minutes on a CPU for the heads.
    """
    grid = GridConfig(rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), weight_decays=(1e-4, 1e-2))
    return _renamed(probe(dataset=dataset, model=model, size=size, frames=frames), "probe_grid", grid=grid)


def knn(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Classification without training: the 20 nearest training clips vote.

    Run `ppma train knn --dataset ucf101 --init runs/align_nohuman_synthetic`. One pass of 361 GFLOP per clip, none
    after a probe of the same encoder. Not in the paper; k and temperature are DINO's.
    """
    return _renamed(probe(dataset=dataset, model=model, size=size, frames=frames), "knn", phase="knn")


def few_shot(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """A linear head on 1, 5 and 10 training clips per class, ten random selections of each.

    Run `ppma train few_shot --dataset ucf101 --init runs/align_nohuman_synthetic`. Costs as much as knn, plus minutes
    for the heads. The result of the run is that of 10 clips; --few-shot.shots 1 makes it that of one. Not in the paper.
    """
    return _renamed(probe(dataset=dataset, model=model, size=size, frames=frames), "few_shot", phase="few_shot")


def attentive_probe(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """A probe that attends to all tokens of the frozen encoder instead of averaging them.

    Run `ppma train attentive_probe --dataset ucf101 --init runs/align_nohuman_synthetic`. Costs one encoder pass, 2.4
    MB of disk per training clip (23 GB for UCF101; an eighth with --attentive.cells 2 2 2) and 20 epochs of 7.4 GFLOP
    per clip. Not in the paper; as in V-JEPA, without augmentation.
    """
    run = probe(dataset=dataset, model=model, size=size, frames=frames)
    optim = replace(run.optim, epochs=20, peak_lr=1e-3, weight_decay=1e-2)
    return _renamed(run, "attentive_probe", phase="attentive", optim=optim)


def adaptive_average(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """The weighted mean of several frozen encoders, its weights learned with the head: a baseline of the paper.

    Run `ppma train adaptive_average --dataset ucf101 --average runs/align_nohuman runs/align_synthetic`. As
    probe_published, without warm-up. --mixing model learns one weight per encoder, --mixing tensor one per encoder and
    tensor. The final LayerNorm starts as the mean of the encoders' and is learned; --published mixes it by the learned
    weights (Q7), decays these, scales every rate by 0.75 (Q6), and restores Q2 and Q9. Costs as much as finetune, 1,078
    GFLOP per clip: the gradient of the weights passes through the whole encoder.
    """
    run = probe_published(dataset=dataset, model=model, size=size, frames=frames)
    optim = replace(run.optim, warmup_fraction=0.0)
    return _renamed(run, "adaptive_average", optim=optim, compile="off")  # each step reads the encoders from disk


# ---------------------------------------------------------------------------------------------------------------- demo


def demo(*, stage: DemoStage = "scenes", size: int = 32, frames: int = 8) -> RunConfig:
    """Both stages and the probe in miniature on virtual people, as `ppma demo` runs them. No value is the paper's.

    Run `ppma train demo --stage actions --data runs/demo/data.toml --run-dir runs/again --init RUN`. On two cores
    stage 1 costs one minute, stage 2 two, a probe ten seconds. A token spans the whole clip (patch 8 x 4 x 4), so that
    a single layer sees motion: with patches of two frames, so few clips taught the model nothing. Stage 2 takes one
    view per clip: several views in a batch taught it far less. Actions and scenes share a head with disjoint labels: a
    scene shows the background of an action clip without its people, so the model must look at the people to tell them
    apart.
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
    linear = probe(dataset="transfer", size=size, frames=frames)
    return replace(
        linear,
        recipe="demo",
        run_dir=run.run_dir,
        vit=run.vit,
        optim=replace(linear.optim, epochs=150, peak_lr=3e-2),  # until the heads on the weak encoders stop gaining
        log_every=run.log_every * 4,
        evaluation=EvaluationConfig(at_end=True, windows=2, crops=1, batch_clips=32),
    )


RECIPES: dict[str, Callable[..., RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        mae_nohuman, mae_kinetics, mae_synthetic, mae_joint, mae_kinetics_synthetic,
        align_nohuman_synthetic, align_nohuman, align_synthetic, align_kinetics, align_kinetics_synthetic, align_scratch,
        finetune, probe, probe_published, probe_grid,
        knn, few_shot, attentive_probe, adaptive_average,
        demo,
    )
}  # fmt: skip


def recipe(name: str) -> Callable[..., RunConfig]:
    """Return the recipe of that name.

    Raises:
        InputError: There is no such recipe.
    """
    if name not in RECIPES:
        raise InputError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]
