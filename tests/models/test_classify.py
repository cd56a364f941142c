"""The classifier against the restatement of the paper: features, loss and gradients; heads, freezing, loading."""

from dataclasses import replace

import pytest
import restatement
import torch

from ppma.config.errors import InputError
from ppma.config.model import ClassifierConfig, MAEConfig, MixConfig, ViTConfig
from ppma.models import timm_models
from ppma.models.classify import Classifier
from ppma.models.masking import kept_tokens
from ppma.models.mixing import draw_mix

VIT = ViTConfig(width=48, depth=2, heads=3, size=32, frames=4, drop_path=0.5)
SPACES = {"real": 5, "synthetic": 3}
PLAIN = ClassifierConfig(mix=MixConfig(probability=0, smoothing=0.1))
KEYS = torch.tensor([11, 1 << 60, 5, 6])
LABELS, SOURCES = torch.tensor([4, 2, 0, 1]), torch.tensor([0, 1, 0, 1])
BOXES = torch.tensor([[3, 5, 10, 11], [0, 0, 0, 0], [0, 0, 32, 32], [20, 0, 4, 24]])
FRAMES = torch.randint(0, 256, (4, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
MAE = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=2)


def shaken(model):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def stated(model):
    """Leaves of the restatement, the features and the smoothed loss, unmixed, with the model's drop path."""
    weights = {n: v.detach().double().clone().requires_grad_() for n, v in model.state_dict().items()}
    features = restatement.pooled_features(FRAMES, weights, depth=2, heads=3, scale_L2B=model.drop_path(KEYS))
    loss = 0
    for row, name in enumerate(("real", "synthetic", "real", "synthetic")):
        logits = restatement.linear(features[row], weights, f"heads.{name}")
        loss = loss + restatement.smoothed_cross_entropy(logits, int(LABELS[row]), 0.1) / 4
    return weights, features, loss


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_features_loss_and_gradients_equal_the_restatement(dtype, tolerance):
    """Of the largest value; gradients ten times that."""
    model = shaken(Classifier(VIT, SPACES, PLAIN)).to(dtype)
    model.position_ND = Classifier(
        VIT, SPACES
    ).position_ND  # .to(float32) rounds the buffer: the restatement's is exact
    weights, features, loss = stated(model.double() if dtype == torch.float64 else model)
    assert (model.features(FRAMES, KEYS).double() - features).abs().max() <= tolerance * features.abs().max()
    ours = model(FRAMES, KEYS, LABELS, SOURCES)
    assert abs(ours.double() - loss) <= tolerance * loss
    ours.backward(), loss.backward()
    for name, parameter in model.named_parameters():
        theirs = weights[name].grad
        assert (parameter.grad.double() - theirs).abs().max() <= 10 * tolerance * theirs.abs().max(), name


def test_a_mixed_step_is_the_weighted_sum_of_its_labels():
    """The loss is linear in the targets: from the logits of the mixed clips, which only the labels' weights tell apart."""
    config = ClassifierConfig(mix=MixConfig(group=2, smoothing=0))
    model = shaken(Classifier(VIT, SPACES, config)).double()
    logits = []
    model.logits_of_heads = lambda features: logits.append(Classifier.logits_of_heads(model, features)) or logits[-1]
    loss = model(FRAMES, KEYS, LABELS, SOURCES, BOXES)
    own, expected = draw_mix(KEYS, config.mix, 32, 32).lam_B, 0
    for row, other in enumerate((1, 0, 3, 2)):
        for weight, of in ((own[row], row), (1 - own[row], other)):
            head = logits[0][int(SOURCES[of])][row]
            expected = expected - weight * torch.log_softmax(head, -1)[LABELS[of]] / 4
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_dropped_tokens_do_not_exist_for_a_training_step():
    """The loss of the tokens that are kept, mixed and erased before they are chosen; the rows alone decide which."""
    dropping = ClassifierConfig(mix=MixConfig(probability=0, smoothing=0.1), token_drop=0.5)
    vit = replace(VIT, patch=(2, 8, 8))
    model = shaken(Classifier(vit, SPACES, dropping)).double()
    loss = model(FRAMES, KEYS, LABELS, SOURCES)
    assert kept_tokens(KEYS, 32, 0.5).shape == (4, 16)
    rows = [model(FRAMES[i : i + 1], KEYS[i : i + 1], LABELS[i : i + 1], SOURCES[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(loss, torch.stack(rows).mean(), rtol=1e-12, atol=0)
    other = FRAMES.clone()
    kept = set(kept_tokens(KEYS, 32, 0.5)[0].tolist())
    for number in set(range(32)) - kept:
        restatement.patch_of(other[0], number, vit.patch).add_(77)
    assert torch.equal(model(other, KEYS, LABELS, SOURCES), loss)
    restatement.patch_of(other[0], min(kept), vit.patch).add_(77)
    assert not torch.equal(model(other, KEYS, LABELS, SOURCES), loss)


def test_tokens_are_dropped_after_mixing_and_not_in_evaluation():
    vit = replace(VIT, patch=(2, 8, 8))
    mixed = [shaken(Classifier(vit, SPACES, ClassifierConfig(token_drop=drop))) for drop in (0.0, 0.5)]
    seen = []
    for model in mixed:
        model.embed = lambda patches, idx=None, model=model: (
            seen.append((patches, idx)) or type(model).embed(model, patches, idx)
        )
        model(FRAMES, KEYS, LABELS, SOURCES, BOXES)
    (whole, nothing), (part, idx) = seen
    assert nothing is None and torch.equal(part, restatement.rows(whole, idx))
    assert torch.equal(*(m.eval()(FRAMES, KEYS, LABELS, SOURCES) for m in mixed))


def test_evaluation_neither_mixes_nor_erases_nor_smooths_nor_drops():
    model = shaken(Classifier(VIT, SPACES)).double().eval()
    loss = model(FRAMES, KEYS, LABELS, SOURCES, BOXES)
    rows = [model.logits(FRAMES[i : i + 1], list(SPACES)[SOURCES[i]]) for i in range(4)]
    expected = torch.stack([torch.nn.functional.cross_entropy(r, LABELS[i : i + 1]) for i, r in enumerate(rows)]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_a_batch_is_the_mean_of_its_groups_whatever_its_size():
    """Mixing, erasing and drop path in float64: the step of one rank is the mean of the steps of two."""
    model = shaken(Classifier(VIT, SPACES, ClassifierConfig(mix=MixConfig(group=2)))).double()
    halves = [model(FRAMES[s], KEYS[s], LABELS[s], SOURCES[s], BOXES[s]) for s in (slice(0, 2), slice(2, 4))]
    whole = model(FRAMES, KEYS, LABELS, SOURCES, BOXES)
    torch.testing.assert_close(whole, torch.stack(halves).mean(), rtol=1e-12, atol=0)


def test_names_of_heads():
    def heads(model):
        return [n for n in model.state_dict() if n.startswith("head")]

    assert heads(Classifier(VIT, {"real": 5})) == ["head.weight", "head.bias"]
    assert heads(Classifier(VIT, SPACES))[::2] == ["heads.real.weight", "heads.synthetic.weight"]
    shared = Classifier(VIT, SPACES, ClassifierConfig(shared_head=True))
    assert shared.head.weight.shape == (5, 48) and heads(shared) == ["head.weight", "head.bias"]
    assert shared.eval().logits(FRAMES[:1], "synthetic").shape == (1, 3)
    assert abs(Classifier(VIT, {"a": 400}).head.weight.std() / 0.01 - 1) < 0.03


def test_one_head_has_the_state_of_timms_model():
    model = Classifier(VIT, {"real": 5})
    theirs = timm_models.timm.create_model("ppma_vit_tiny_patch16_224", num_classes=5, img_size=32, frames=4)
    assert set(model.state_dict()) <= set(theirs.state_dict())
    assert set(theirs.state_dict()) - set(model.state_dict()) == {
        n for n in theirs.state_dict() if n.startswith("blocks.") and int(n.split(".")[1]) >= 2
    }


def test_sources_may_share_a_label_space():
    model = Classifier(VIT, SPACES, PLAIN, source_spaces=["synthetic", "real", "synthetic"]).eval()
    assert model.head_of_source.tolist() == [1, 0, 1]
    swapped = Classifier(VIT, SPACES, PLAIN).eval()
    same = model(FRAMES, KEYS, LABELS, torch.tensor([1, 2, 1, 0]))
    assert torch.equal(same, swapped(FRAMES, KEYS, LABELS, SOURCES))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classifier(VIT, {}), "label spaces"),
        (lambda: Classifier(VIT, {"a.b": 3}), "a plain name"),
        (lambda: Classifier(VIT, {"keys": 3}), "a plain name"),
        (lambda: Classifier(VIT, SPACES, source_spaces=["ucf101"]), "'ucf101'; there are real, synthetic"),
        (lambda: Classifier(VIT, SPACES).logits(FRAMES), "real, synthetic"),
        (lambda: Classifier(VIT, {"a": 0}), "at least one class"),
    ],
)
def test_wrong_labels_and_spaces_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_heads_carry_the_names_of_their_classes():
    model = Classifier(VIT, {"real": ["archery", "", "diving"], "synthetic": 2})
    assert model.class_names == {"real": ("archery", "", "diving"), "synthetic": ("", "")}
    assert model.label_spaces == {"real": 3, "synthetic": 2}


def test_a_frozen_encoder_gets_no_gradient_and_the_tail_does():
    model = Classifier(VIT, SPACES, ClassifierConfig(freeze_encoder=True))
    model(FRAMES, KEYS, LABELS, SOURCES).backward()
    learning = {n for n, p in model.named_parameters() if p.grad is not None}
    assert learning == {n for n, _ in model.named_parameters() if n.startswith(("fc_norm", "heads"))}


def test_every_head_takes_part_in_every_step():
    model = Classifier(VIT, SPACES)
    model(FRAMES, KEYS, LABELS.clamp(max=2), torch.zeros(4, dtype=torch.int64)).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not model.heads["synthetic"].weight.grad.any() and model.heads["real"].weight.grad.any()


def test_bfloat16_autocast_is_near_float32():
    model = shaken(Classifier(VIT, SPACES))
    loss = model(FRAMES, KEYS, LABELS, SOURCES, BOXES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(FRAMES, KEYS, LABELS, SOURCES, BOXES)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, loss, rtol=0.03, atol=0)  # 8 bits through two blocks


@pytest.mark.slow
def test_a_step_compiled_by_inductor_equals_eager():
    model = shaken(Classifier(VIT, SPACES))
    compiled = torch.compile(model, fullgraph=True)
    eager = model(FRAMES, KEYS, LABELS, SOURCES, BOXES)
    torch.testing.assert_close(compiled(FRAMES, KEYS, LABELS, SOURCES, BOXES), eager, rtol=1e-5, atol=0)
