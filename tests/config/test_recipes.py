"""Golden curves: 20 steps of every recipe, tiny and in float64, on fixed clips. A refactor may not move them.

The files in tests/config/golden hold the loss of each step. A change of maths replaces them in the same commit and says so:
PPMA_WRITE_GOLDEN=1 pytest tests/config/test_recipes.py
"""

import inspect
import json
import os
import re
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch

from ppma.config.flags import resolve
from ppma.config.protocols import AttentiveConfig
from ppma.config.recipes import RECIPES
from ppma.config.run import ENCODED_ONCE, UNTRAINED, RunConfig
from ppma.models.attentive import AttentiveProbe, normed_cells
from ppma.models.classify import Classifier
from ppma.phases import classify_task
from ppma.training import checkpoint
from ppma.training.compute import choose
from ppma.training.distributed import Ranks
from ppma.training.tasks import MaeTask
from ppma.training.trainer import Trainer
from ppma.transfer.features import feature_batches
from ppma.transfer.probe import Probe

TRAINED = [name for name in RECIPES if RECIPES[name]().phase not in UNTRAINED]
GOLDEN = Path(__file__).parent / "golden"
ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


class MadeProbe:
    """A probe's task on made features, or on made tokens."""

    splits_over_ranks, steps_per_epoch, step_flops = False, 4, 1.0

    def __init__(self, config: RunConfig, sources) -> None:
        self.config = config
        kind = partial(AttentiveProbe, attentive=AttentiveConfig(heads=3)) if config.phase == "attentive" else Probe
        self.model = kind(config.vit, {"made": 4}, config.classifier, seed=config.seed)
        frames = torch.stack([torch.from_numpy(tiny.pixels(0, clip, 0)) for clip in range(32)])
        model = self.model.to(torch.float64)
        with torch.no_grad():
            tokens_VND = model.tokens(model.patches(frames), None)
            kept = (
                normed_cells(tokens_VND, config.vit, (1, 1, 1))
                if config.phase == "attentive"
                else tokens_VND.mean(dim=1)
            )
            self.features_VD = kept.to(choose(config.precision, ALONE.device).weight_dtype)

    def stream(self, ranks: Ranks, start: tuple[int, int]):
        labels = torch.arange(32) % 4
        epochs, seed = self.config.optim.epochs, self.config.seed
        return closing(feature_batches(self.features_VD, labels, batch=8, epochs=epochs, seed=seed, start=start))

    def inputs(self, batch):
        return batch.features_BD, batch.label_B


def curve(config: RunConfig) -> list[float]:
    kind = {"mae": MaeTask, "classify": classify_task}.get(config.phase, MadeProbe)
    task = kind(config, [tiny.source(name) for name in config.sources])
    if config.phase in ("mae", "classify"):
        config = replace(config, optim=replace(config.optim, epochs=-(-20 // task.steps_per_epoch)))
        task = kind(config, [tiny.source(name) for name in config.sources])
        task.stream = lambda ranks, start: tiny.made_stream(task, ranks, start)
    trainer = Trainer(config, task, ALONE, choose(config.precision, ALONE.device))
    losses = []
    with task.stream(ALONE, (0, 0)) as stream:
        for batch in stream:
            trainer.train_step(batch)
            losses.append(trainer.loss_sum.item())
            trainer.loss_sum.zero_()
            if len(losses) == 20:
                return losses
    raise AssertionError(f"{len(losses)} steps only")


@pytest.mark.parametrize("name", TRAINED)
def test_golden_curve(name, tmp_path):
    config = tiny.shrink(name)
    if name == "adaptive_average":
        encoders = (tmp_path / "a", tmp_path / "b")
        for seed, encoder in enumerate(encoders):
            checkpoint.save_weights(encoder, Classifier(config.vit, {"x": 2}, seed=seed).state_dict(), {})
        config = replace(config, average=encoders)
    losses = curve(config)
    path = GOLDEN / f"{name}.json"
    if os.environ.get("PPMA_WRITE_GOLDEN"):
        path.write_text(json.dumps(losses, indent=1) + "\n")
    assert losses == pytest.approx(json.loads(path.read_text()), abs=1e-6, rel=0)
    assert len(set(losses)) == 20


@pytest.mark.parametrize("name", ["mae_nohuman", "align_nohuman_synthetic", "probe"])
def test_float32_twice_is_the_same_to_the_bit(name):
    config = replace(tiny.shrink(name), precision="fp32")
    assert curve(config) == curve(config)


def test_the_seed_changes_the_curve():
    assert curve(tiny.shrink("mae_nohuman")) != curve(tiny.shrink("mae_nohuman", seed=1))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_how_it_is_started_and_what_it_costs(name):
    text = inspect.getdoc(RECIPES[name])
    assert f"ppma train {name}" in text
    assert "H200" in text or "GFLOP" in text or "osts" in text
    assert RECIPES[name]().recipe == name


def test_the_paper_s_table_of_settings():
    """The recipes have the paper's values of optimization and data."""
    mae, align, fine, probe = (
        RECIPES[n]() for n in ("mae_nohuman", "align_nohuman_synthetic", "finetune", "probe_published")
    )
    assert (mae.batch, align.batch, fine.batch, probe.batch) == (128, 128, 32, 32)
    assert [c.optim.epochs for c in (mae, align, fine, probe)] == [200, 50, 30, 30]
    assert [c.optim.peak_lr for c in (mae, align, fine, probe)] == [8e-4, 2e-3, 2e-3, 1.6e-2]
    assert [c.optim.reference_batch for c in (mae, align, fine, probe)] == [128, 128, 32, 32]
    assert [c.optim.warmup_fraction for c in (mae, align, fine, probe)] == [0.05, 0.125, 0.125, 0.125]
    assert [c.optim.warmup_lr for c in (mae, align, fine, probe)] == [5e-7, 5e-7, 5e-7, 4e-6]
    assert [c.optim.final_lr for c in (mae, align, fine, probe)] == [0, 5e-7, 5e-7, 4e-6]
    assert [c.optim.weight_decay for c in (mae, align, fine, probe)] == [0.05, 1e-4, 1e-4, 1e-4]
    assert [c.optim.betas for c in (mae, align, fine, probe)] == [(0.9, 0.95)] + [(0.9, 0.999)] * 3
    assert [c.optim.layer_decay for c in (mae, align, fine, probe)] == [None, 0.75, 0.75, None]
    assert [c.vit.drop_path for c in (mae, align, fine, probe)] == [0, 0.1, 0.1, 0.1]
    assert [c.loader.views for c in (mae, align, fine, probe)] == [4, 1, 1, 1]
    assert [c.loader.randaugment_ops for c in (mae, align, fine, probe)] == [0, 4, 4, 4]
    assert [c.loader.erase_probability for c in (mae, align, fine, probe)] == [0, 0.25, 0.25, 0.25]
    assert all(
        c.loader.window_seconds == 2.7 and c.loader.short_side == 256 and c.loader.flip_probability == 0
        for c in (mae, align)
    )
    assert (align.classifier.mix.mixup_alpha, align.classifier.mix.cutmix_alpha, align.classifier.mix.smoothing) == (
        0.8,
        1.0,
        0.1,
    )
    assert mae.vit.tokens == 1568 and mae.mae.mask_ratio == 0.9
    assert probe.classifier.freeze_encoder and (fine.evaluation.windows, fine.evaluation.crops) == (2, 3)


def test_the_baselines_of_the_paper_have_names_or_flags():
    """MAE and MAE + Align on each source and on their mixtures, from scratch, heads shared or not, and people blurred or scaled down."""
    for stage in ("mae", "align"):
        for name, sources in (
            (f"{stage}_nohuman", ("no-human-kinetics",)),
            (f"{stage}_kinetics", ("kinetics",)),
            (f"{stage}_synthetic", ("synapt",)),
            ("mae_joint" if stage == "mae" else "align_nohuman_synthetic", ("no-human-kinetics", "synapt")),
            (f"{stage}_kinetics_synthetic", ("kinetics", "synapt")),
        ):
            assert resolve(name).sources == sources
        for people in ("blur-faces", "blur-bodies", "downsample"):
            found = resolve(f"{stage}_kinetics", ["--people", people])
            assert (found.sources, found.run_dir.name) == ((f"kinetics-{people}",), f"{stage}_kinetics-{people}")
            assert resolve(f"{stage}_kinetics_synthetic", ["--people", people]).sources == (
                f"kinetics-{people}",
                "synapt",
            )
    assert resolve("align_scratch").init is None and not resolve("align_scratch").classifier.shared_head
    assert resolve("align_scratch", ["--classifier.shared-head"]).classifier.shared_head
    adaptive = resolve("adaptive_average", ["--average", "a", "b"])
    assert (adaptive.optim.warmup_fraction, adaptive.optim.peak_lr, adaptive.mixing) == (0.0, 1.6e-2, "model")
    assert adaptive.classifier.freeze_encoder and not adaptive.mix_norm


@pytest.mark.parametrize("name", RECIPES)
def test_published_is_the_authors_run_in_a_folder_of_its_own_and_other_flags_still_count(name):
    plain = RECIPES[name]()
    if name == "demo" or plain.phase in ENCODED_ONCE:
        return  # refused: test_flags.py
    named = set(re.findall(r"Q\d+", RECIPES[name].__doc__))
    assert named >= ({"Q1", "Q2", "Q8", "Q10"} if plain.phase == "mae" else {"Q2", "Q6"})
    assert named >= ({"Q3"} if plain.phase == "classify" and len(plain.sources) > 1 else set())
    assert named >= ({"Q9"} if plain.evaluation.at_end else set())
    run = resolve(name, ["--published", "--seed", "3"])
    assert run.seed == 3 and run.run_dir.name == f"{plain.run_dir.name}-published"
    assert run.loader.mix == "batch" and run.loader.reshuffle == "epoch"
    assert (run.precision, run.vit.recompute) == (("fp16", True) if run.phase == "mae" else ("fp32", False))
    if run.phase == "classify":
        assert run.classifier.shared_head and not run.classifier.freeze_encoder
        assert run.classifier.mix.group == (16 if name.startswith("align") else 8)
        assert (run.evaluation.last_window, run.evaluation.average) == ("pytorchvideo", "logits")
        assert run.loader.assumed_fps == (None if name.startswith("align") else 25)
    if "dataset" in inspect.signature(RECIPES[name]).parameters:
        assert resolve(name, ["--published", "--dataset", "mini-ssv2"]).loader.assumed_fps is None
    assert resolve(name, ["--published", "--precision", "bf16"]).precision == "bf16"
