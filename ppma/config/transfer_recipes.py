"""Recipes that test an encoder on a data set: fine-tuning, probes, neighbours, few clips, and the adaptive average of several encoders.

All take --dataset NAME and --init RUN, end with the 2 x 3 view test on the split `val`, and write `result.json` and `scores.npz`. Those
that leave the encoder frozen share its cached features.
"""

from dataclasses import replace
from pathlib import Path

from ppma.config.loader import LoaderConfig
from ppma.config.model import ClassifierConfig, OptimConfig, preset
from ppma.config.protocols import GridConfig
from ppma.config.recipe_parts import labelled_run
from ppma.config.run import EvaluationConfig, RunConfig


def finetune(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Transfer by fine-tuning every weight, then the 2 x 3 view test on the split `val`.

    ppma train finetune --dataset ucf101 --init runs/align_nohuman_synthetic. UCF101: 0.3 million clips, 7 H200 minutes at the ceiling.
    The head has its full rate, as published it has 0.75 of it (Q6: --optim.published-head-decay). bf16, there float32 (Q2).
    """
    run = labelled_run("finetune", (dataset,), model, size, frames)
    return replace(
        run,
        run_dir=Path("runs") / f"finetune-{dataset}",
        batch=32,
        optim=replace(run.optim, epochs=30, reference_batch=32),
        evaluation=EvaluationConfig(at_end=True),
    )


def probe(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Transfer by a linear probe on features of plain views, computed once; then the 2 x 3 view test.

    ppma train probe --dataset ucf101 --init runs/align_nohuman_synthetic. One pass of 361 GFLOP a clip; the head takes seconds.
    Not the paper's protocol: no augmentation, so that the encoder runs once and not once an epoch. `probe_published` is.
    """
    return RunConfig(
        recipe="probe",
        phase="probe",
        sources=(dataset,),
        run_dir=Path("runs") / f"probe-{dataset}",
        batch=32,
        vit=preset(model, size=size, frames=frames),
        classifier=ClassifierConfig(freeze_encoder=True),
        loader=LoaderConfig(size=size, frames=frames, short_side=size, views=1, crop="center"),
        optim=OptimConfig(
            epochs=50, peak_lr=2e-3, reference_batch=32, warmup_fraction=0.125, final_lr=0.0, betas=(0.9, 0.999), weight_decay=1e-4
        ),
        evaluation=EvaluationConfig(at_end=True),
    )  # fmt: skip


def probe_published(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Transfer by linear probing as the paper describes it: the encoder runs every epoch on augmented clips and stays frozen.

    ppma train probe_published --dataset ucf101 --init runs/align_nohuman_synthetic. 30 epochs of 361 GFLOP a clip.
    The published script never freezes the encoder, and scales the head's rate by 0.75 (Q6); this recipe does neither.
    """
    run = finetune(dataset=dataset, model=model, size=size, frames=frames)
    return replace(
        run,
        recipe="probe_published",
        run_dir=Path("runs") / f"probe_published-{dataset}",
        classifier=replace(run.classifier, freeze_encoder=True),
        optim=replace(run.optim, peak_lr=1.6e-2, warmup_lr=4e-6, final_lr=4e-6, layer_decay=None),
    )


def _named(run: RunConfig, recipe: str, dataset: str) -> RunConfig:
    """Under another recipe's name, in a folder called after it."""
    return replace(run, recipe=recipe, run_dir=Path("runs") / f"{recipe}-{dataset}")


def probe_grid(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """The linear probe with its rate and weight decay chosen from a grid on a tenth of the training clips, never on the test split.

    ppma train probe_grid --dataset ucf101 --init runs/align_nohuman_synthetic. All 14 heads learn in one pass over the cached features;
    then a probe with the best pair learns from all training clips. Costs what probe costs, the heads some minutes on a CPU.
    """
    run = _named(probe(dataset=dataset, model=model, size=size, frames=frames), "probe_grid", dataset)
    rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    return replace(run, grid=GridConfig(rates=rates, weight_decays=(1e-4, 1e-2)))


def knn(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """What the features are worth with nothing learned: 20 nearest training clips vote.

    ppma train knn --dataset ucf101 --init runs/align_nohuman_synthetic. One pass of 361 GFLOP a clip, none where a probe was run before.
    Not in the paper; k and temperature are DINO's.
    """
    run = _named(probe(dataset=dataset, model=model, size=size, frames=frames), "knn", dataset)
    return replace(run, phase="knn")


def few_shot(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """A linear head from 1, 5 and 10 training clips a class, ten draws of each: means with intervals over the draws.

    ppma train few_shot --dataset ucf101 --init runs/align_nohuman_synthetic. Costs what knn costs, and minutes for the heads. The run's own
    result is that of 10 clips; --few-shot.shots 1 makes a run of one clip a class. Not in the paper.
    """
    run = _named(probe(dataset=dataset, model=model, size=size, frames=frames), "few_shot", dataset)
    return replace(run, phase="few_shot")


def attentive_probe(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """A probe that attends to all tokens of the frozen encoder instead of their mean.

    ppma train attentive_probe --dataset ucf101 --init runs/align_nohuman_synthetic. Costs the encoder's pass, 2.4 MB of disk a
    training clip (23 GB for UCF101; --attentive.cells 2 2 2 takes an eighth) and 20 epochs of 7.4 GFLOP a clip. Not in the paper; as in
    V-JEPA, without augmentation.
    """
    run = _named(probe(dataset=dataset, model=model, size=size, frames=frames), "attentive_probe", dataset)
    optim = replace(run.optim, epochs=20, peak_lr=1e-3, weight_decay=1e-2)
    return replace(run, phase="attentive", optim=optim)


def adaptive_average(*, dataset: str = "ucf101", model: str = "base", size: int = 224, frames: int = 16) -> RunConfig:
    """Weights of several frozen encoders averaged by shares that are learned with the head: a baseline of the paper.

    ppma train adaptive_average --dataset ucf101 --average runs/align_nohuman runs/align_synthetic. Settings of probe_published without the
    warm-up; the encoders' final LayerNorm is kept. One share a model; --mixing tensor learns one for each model and tensor. Costs what
    finetune costs, 1,078 GFLOP a clip: the shares' gradient goes through the whole encoder.
    """
    run = _named(probe_published(dataset=dataset, model=model, size=size, frames=frames), "adaptive_average", dataset)
    return replace(
        run,
        classifier=replace(run.classifier, keep_norm=True),
        optim=replace(run.optim, warmup_fraction=0.0),
        compile="off",  # the encoders are read from their files in every step
    )
