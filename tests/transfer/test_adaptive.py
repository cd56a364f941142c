"""Adaptive averaging against a plain restatement: all tensors mixed at once by autograd; and what it costs in memory."""

import ctypes
import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import restatement
import tiny
import torch
from safetensors.torch import load_file

from ppma.cli import main as ppma
from ppma.config.errors import InputError
from ppma.config.flags import resolve
from ppma.config.model import ClassifierConfig, MAEConfig, MixConfig, ViTConfig
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.phases import train
from ppma.training import checkpoint
from ppma.transfer.adaptive import AdaptiveClassifier
from ppma.transfer.average import average

VIT = ViTConfig(width=48, depth=2, heads=3, size=32, frames=4, drop_path=0.5)
PLAIN = ClassifierConfig(mix=MixConfig(probability=0, smoothing=0.1), freeze_encoder=True)
FRAMES = torch.randint(0, 256, (4, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
KEYS, LABELS, SOURCES = torch.tensor([11, 1 << 60, 5, 6]), torch.tensor([4, 2, 0, 1]), torch.zeros(4, dtype=torch.int64)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three encoders of random numbers, final norm and all."""
    folder = tmp_path_factory.mktemp("encoders")
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        module = Classifier(VIT, {"old": 7}, seed=number)
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        checkpoint.save_weights(folder / f"m{number}", module.state_dict(), {})
    return [folder / f"m{number}" for number in range(3)]


def adaptive(models, per, *, mix_norm=False, **vit):
    model = AdaptiveClassifier(
        replace(VIT, **vit), {"new": 5}, PLAIN, models=models, per=per, mix_norm=mix_norm
    ).double()
    model.position_ND = Classifier(VIT, {"new": 5}).position_ND  # .double() keeps the table exact
    with torch.no_grad():
        generator = torch.Generator().manual_seed(9)
        model.mixing += torch.randn(model.mixing.shape, generator=generator).double()
    return model


def stated(model, models):
    """The loss as a function of leaves: mixing, fc_norm, head."""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
    share_MG = torch.softmax(leaves["mixing"].view(len(models), -1), dim=0)
    files = [load_file(m / "model.safetensors") for m in models]
    mixed = [n for n in files[0] if n.startswith(("blocks.", "patch_embed.", "fc_norm.")) and n not in leaves]
    weights = dict(leaves)
    for group, name in enumerate(sorted(mixed, key=lambda n: (n.startswith("fc_"), n == "fc_norm.bias", n))):
        column = group if share_MG.shape[1] > 1 else 0
        weights[name] = sum(share_MG[m, column] * file[name].double() for m, file in enumerate(files))
    features = restatement.pooled_features(FRAMES, weights, depth=2, heads=3, scale_L2B=model.drop_path(KEYS))
    logits = restatement.linear(features, weights, "head")
    loss = sum(restatement.smoothed_cross_entropy(logits[b], int(LABELS[b]), 0.1) for b in range(4)) / 4
    return leaves, weights, loss


@pytest.mark.parametrize("per", ["model", "tensor"])
@pytest.mark.parametrize(("recompute", "mix_norm"), [(False, False), (True, False), (False, True)])
def test_loss_and_gradients_equal_the_plain_restatement(models, per, recompute, mix_norm):
    model = adaptive(models, per, recompute=recompute, mix_norm=mix_norm)
    assert model.fc_norm.weight.requires_grad is not mix_norm
    leaves, weights, expected = stated(model, models)
    loss = model(FRAMES, KEYS, LABELS, SOURCES)
    assert (loss - expected).abs().item() < 1e-10
    loss.backward(), expected.backward()
    for name, leaf in leaves.items():
        found = model.get_parameter(name).grad
        assert (found - leaf.grad).abs().max() < 1e-9 * max(1.0, float(leaf.grad.abs().max())), name
    assert leaves["mixing"].grad.abs().max() > 1e-4  # the comparison is of something
    for name, tensor in model.state_dict().items():
        if name in weights and name not in leaves:
            assert (tensor - weights[name]).abs().max() < 1e-12 and model.get_parameter(name).grad is None, name


def test_shares_are_equal_at_the_start_and_the_norm_is_kept(models):
    model = AdaptiveClassifier(VIT, {"new": 5}, PLAIN, models=models, per="tensor")
    assert torch.equal(model.shares(), torch.full_like(model.shares(), 1 / 3))
    for name, mean in average(models).items():
        assert (model.state_dict()[name] - mean).abs().max() < 1e-6, name
    assert model.fc_norm.weight.requires_grad and not torch.equal(model.fc_norm.weight, torch.ones(48))


def test_encoders_of_stage_1_have_no_final_norm_to_mix(tmp_path):
    for name in "ab":
        checkpoint.save_weights(tmp_path / name, MaskedAutoencoder(VIT, MAEConfig()).state_dict(), {})
    both = [tmp_path / "a", tmp_path / "b"]
    assert (AdaptiveClassifier(VIT, {"new": 5}, PLAIN, models=both).fc_norm.weight == 1).all()
    with pytest.raises(InputError, match="--mix-norm"):
        AdaptiveClassifier(VIT, {"new": 5}, PLAIN, models=both, mix_norm=True)


def test_evaluation_and_checkpoint_see_the_shares_as_they_are_now(models):
    model = adaptive(models, "model")
    with torch.no_grad():
        model.mixing.copy_(torch.tensor([0.0, 50.0, 0.0]))  # all weight on the second encoder, since the last mixture
    only = load_file(models[1] / "model.safetensors")
    saved = model.state_dict()
    assert all((saved[n] - only[n]).abs().max() < 1e-12 for n in only if n.startswith("blocks."))
    with torch.no_grad():
        model.mixing.copy_(torch.tensor([50.0, 0.0, 0.0]))
    model.eval()
    first = load_file(models[0] / "model.safetensors")
    assert (model.blocks[0].mlp.fc1.weight - first["blocks.0.mlp.fc1.weight"]).abs().max() < 1e-12


def test_the_recipe_learns_shares_resumes_and_is_tested_as_any_classifier(tmp_path, clip_tree):
    data, encoders = tiny.make_data(tmp_path, clip_tree, "train", "val"), [tmp_path / "a", tmp_path / "b"]
    mixed = ("--published", "--classifier.mix.group", 4, "--average", *encoders, "--mixing", "tensor")
    flags = (*mixed, "--loader.randaugment-ops", 0, "--optim.epochs", 2)
    config = tiny.config("adaptive_average", data, tmp_path / "run", *flags)
    for seed, encoder in enumerate(encoders):
        checkpoint.save_weights(encoder, Classifier(config.vit, {"x": 3}, seed=seed).state_dict(), {})
    train(config)
    result = json.loads((tmp_path / "run/result.json").read_text())
    shares = result["mixing"]
    assert [s["model"] for s in shares] == list(map(str, encoders))
    assert sum(s["share"] for s in shares) == pytest.approx(1) and shares[0]["least"] < 0.5 < shares[0]["most"]
    kept = json.loads((tmp_path / "run/checkpoints/latest/lineage.json").read_text())["lineage"]
    assert len(kept["parents"]) == 2
    train(replace(config, resume=True))
    again = f"evaluate --checkpoint {tmp_path}/run --dataset made --data {data} --out {tmp_path}/again"
    published = "--evaluation.average logits --evaluation.last-window pytorchvideo"
    assert ppma(f"{again} {published}".split()) == 0
    found = json.loads((tmp_path / "again/result.json").read_text())
    assert found["top1"] == result["top1"] and found["ece"] == pytest.approx(result["ece"], abs=1e-6)


def test_wrong_input(models, tmp_path):
    wide = tmp_path / "wide"
    checkpoint.save_weights(wide, Classifier(replace(VIT, width=96), {"x": 3}).state_dict(), {})
    for several, problem in ((models[:1], "two models"), ([models[0], wide], "shapes"), ([wide, wide], "does not fit")):
        with pytest.raises(InputError, match=problem):
            AdaptiveClassifier(VIT, {"new": 5}, PLAIN, models=several)
    for argv in ("adaptive_average --average a b --init c", "probe --average a b"):
        name, *flags = argv.split()
        with pytest.raises(InputError, match="--average"):
            resolve(name, flags)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_keeps_no_tensor_of_an_encoder_for_the_backward_pass(models, recompute):
    """In float64 the float32 encoders are converted when they are read, as they are copied on a GPU."""
    kept = []
    for encoders in (models[:2], models * 2):
        model, saved = adaptive(encoders, "tensor", recompute=recompute), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            model(FRAMES, KEYS, LABELS, SOURCES).backward()
        kept.append(sum({t.data_ptr(): t.nbytes for t in saved if t.numel() > 1000}.values()))  # larger than the shares
    assert kept[0] == kept[1] > 0


@pytest.fixture
def no_malloc_reserve():
    """Make malloc return every block above 256 kB to the system at once; afterwards it may keep all, as it learns to."""
    mallopt, trim_threshold, mmap_threshold = ctypes.CDLL("libc.so.6").mallopt, -1, -3
    assert mallopt(mmap_threshold, 1 << 18)
    yield
    assert mallopt(mmap_threshold, 1 << 25) and mallopt(trim_threshold, 1 << 26)


def own_megabytes():
    """Memory of this process without the pages of mapped files."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if "RssAnon" in line) / 1024


@pytest.mark.usefixtures("no_malloc_reserve")
def test_more_encoders_take_no_more_memory(tmp_path):
    """Six of 48 MB each: a model on them and a step of it take what two take, far less than the four more would."""
    vit = ViTConfig(width=1024, depth=1, heads=8, size=32, patch=(2, 16, 16), frames=2)
    checkpoint.save_weights(tmp_path / "m0", Classifier(vit, {"x": 3}).state_dict(), {})
    for number in range(1, 6):
        (tmp_path / f"m{number}").mkdir()
        (tmp_path / f"m{number}/model.safetensors").hardlink_to(tmp_path / "m0/model.safetensors")
    frames, key, one, source = FRAMES[:1, :2], KEYS[:1], LABELS[1:2], SOURCES[:1]
    held = {}
    for count in (2, 6):
        paths = [tmp_path / f"m{number}" for number in range(count)]
        before = own_megabytes()
        model = AdaptiveClassifier(vit, {"new": 5}, PLAIN, models=paths, per="tensor")
        for _ in range(2):
            loss = model(frames, key, one, source)
            forward = own_megabytes() - before
            loss.backward()
            model.zero_grad()
        held[count] = (forward, own_megabytes() - before)
        del model, loss
    assert all(six - two < 8 for two, six in zip(held[2], held[6], strict=True)), held
    assert held[6][0] < 1.5 * 48, held  # the mixture is in the model's parameters, not in a second copy
