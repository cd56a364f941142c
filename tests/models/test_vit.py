"""The encoder against the restatement of the paper and against timm's own blocks."""

import copy
from dataclasses import replace

import pytest
import restatement
import torch
from torch.profiler import ProfilerActivity, profile

from ppma.config.errors import InputError
from ppma.config.model import ViTConfig
from ppma.kernels.philox import DevicePurpose, uniform
from ppma.models.timm_models import VideoTransformer
from ppma.models.torchvision_shim import timm
from ppma.models.vit import Encoder, drop_path_scale, sinusoid_table

TINY = ViTConfig(width=48, depth=2, heads=3, size=32, frames=4)
ODD = ViTConfig(width=30, depth=1, heads=5, size=21, frames=3, patch=(1, 7, 3), mlp_ratio=3.5)
KEYS = torch.tensor([11, 1 << 60, 5])


def frames(config, B=2):
    shape = (B, config.frames, config.size, config.size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def weights_of(model):
    """The state dict with every value moved off its special start, so that a forgotten bias cannot hide."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(
                parameter.dtype
            )
    return {name: value.detach().clone().requires_grad_() for name, value in model.state_dict().items()}


def test_position_table():
    for width in (48, 45):  # an odd width as well
        stated = restatement.position_table(8, width, torch.float64)
        torch.testing.assert_close(sinusoid_table(8, width), stated, rtol=0, atol=1e-14)


@pytest.mark.parametrize("config", [TINY, ODD])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_tokens_and_gradients_equal_the_restatement(config, dtype, tolerance):
    """Of the largest value: float64 sums in another order, float32 after 2 blocks."""
    model = Encoder(config, init="truncated_normal").to(torch.float64)
    weights = weights_of(model)
    model = model.to(dtype)
    model.position_ND = sinusoid_table(config.tokens, config.width)
    clip = frames(config)
    ours = model.encode(model.embed(model.patches(clip)))
    stated = restatement.blocks(restatement.embed(clip, weights), weights, "blocks.", config.depth, config.heads)
    assert (ours.double() - stated).abs().max() <= tolerance * stated.abs().max()
    probe = torch.randn(stated.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (ours * probe.to(dtype)).sum().backward(), (stated * probe).sum().backward()
    for name, parameter in model.named_parameters():
        theirs = weights[name].grad
        assert (parameter.grad.double() - theirs).abs().max() <= 10 * tolerance * theirs.abs().max(), name


def test_chosen_tokens_are_rows_of_all_tokens():
    model = Encoder(TINY, init="xavier").double()
    clip, idx = frames(TINY), torch.tensor([[0, 3], [7, 2]])
    chosen = model.embed(model.patches(clip, idx), idx)
    torch.testing.assert_close(chosen, restatement.rows(model.embed(model.patches(clip)), idx), rtol=0, atol=1e-12)


def test_blocks_are_timms_blocks():
    """The same names, shapes and values: weights copied into timm's VisionTransformer give the same tokens."""
    model = VideoTransformer(TINY, num_classes=5).double().eval()
    theirs = timm.models.VisionTransformer(
        img_size=32, embed_dim=48, depth=2, num_heads=3, class_token=False, global_pool="avg", num_classes=5
    ).double()
    ours, timms = model.state_dict(), theirs.state_dict()
    assert set(timms) - set(ours) == {"pos_embed"} and set(ours) <= set(timms)
    assert [n for n in ours if ours[n].shape != timms[n].shape] == ["patch_embed.proj.weight"]
    theirs.load_state_dict({n: v for n, v in ours.items() if n != "patch_embed.proj.weight"}, strict=False)
    tokens = model.embed(model.patches(frames(TINY)))
    expected = theirs.blocks(tokens)
    torch.testing.assert_close(model.encode(tokens), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.forward_head(expected), theirs.eval().forward_head(expected), rtol=0, atol=1e-10)


def test_a_clip_that_does_not_fit_is_named():
    model = Encoder(TINY, init="xavier")
    with pytest.raises(InputError, match=r"4 x 48 x 32 .* 4 x 32 x 32 in patches \(2, 16, 16\), 8 tokens"):
        model.patches(torch.zeros(1, 4, 48, 32, 3, dtype=torch.uint8))


def test_initial_weights():
    """Bounds and spreads of the paper's distributions; 3 % of a spread is 5 of its standard errors with 10,000
    values."""
    xavier, normal = Encoder(TINY, init="xavier"), VideoTransformer(TINY, num_classes=400)
    fc1 = xavier.blocks[0].mlp.fc1.weight
    bound = (6 / (48 + 192)) ** 0.5
    assert bound * 0.99 < fc1.abs().max() <= bound and abs(fc1.std() / (bound / 3**0.5) - 1) < 0.03
    assert abs(normal.blocks[1].mlp.fc2.weight.std() / 0.02 - 1) < 0.03
    assert abs(normal.head.weight.std() / 0.01 - 1) < 0.03
    for model in (xavier, normal):
        embedding = model.patch_embed.proj
        bound = (6 / (1536 + 48)) ** 0.5
        assert bound * 0.99 < embedding.weight.abs().max() <= bound
        assert 0 < embedding.bias.abs().max() <= 1536**-0.5
        assert all(not p.any() for n, p in model.named_parameters() if n.startswith("blocks") and n.endswith("bias"))
        assert all((p == 1).all() for n, p in model.named_parameters() if "norm" in n and n.endswith("weight"))


def test_the_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    first = VideoTransformer(TINY, num_classes=4, seed=3).state_dict()
    torch.manual_seed(2)
    second = VideoTransformer(TINY, num_classes=4, seed=3).state_dict()
    other = VideoTransformer(TINY, num_classes=4, seed=4).state_dict()
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_drop_path_is_keyed_by_row_layer_and_branch():
    scale = drop_path_scale(KEYS, 5, 0.4, torch.float64)
    assert scale.shape == (5, 2, 3)
    for layer in range(5):
        keep = 1 - 0.4 * layer / 4
        for branch in range(2):
            u = uniform(KEYS, DevicePurpose.DROP_PATH, 1, stream=2 * layer + branch)[:, 0]
            torch.testing.assert_close(scale[layer, branch], (u < keep).double() / keep, rtol=1e-12, atol=0)
    for row in range(3):
        assert torch.equal(drop_path_scale(KEYS[row : row + 1], 5, 0.4, torch.float64)[..., 0], scale[..., row])


def test_drop_path_rates():
    """20,000 rows: a share has a standard error below 0.0036."""
    dropped = (drop_path_scale(torch.arange(20000), 5, 0.4, torch.float32) == 0).float().mean(dim=2)
    assert (dropped - torch.linspace(0, 0.4, 5)[:, None]).abs().max() < 0.015
    assert not dropped[0].any()


def test_a_dropped_branch_is_skipped_and_a_kept_one_scaled():
    config = ViTConfig(width=48, depth=3, heads=3, size=32, frames=4, drop_path=0.5)
    model = Encoder(config, init="truncated_normal").double()
    weights, clip = weights_of(model), frames(config, B=3)
    scale = model.drop_path(KEYS)
    stated = restatement.blocks(restatement.embed(clip, weights), weights, "blocks.", 3, 3, scale)
    torch.testing.assert_close(model.encode(model.embed(model.patches(clip)), scale), stated, rtol=0, atol=1e-10)
    assert model.eval().drop_path(KEYS) is None
    assert Encoder(TINY, init="xavier").drop_path(KEYS) is None


def test_bfloat16_autocast_embeds_in_bfloat16_and_keeps_the_stream_in_float32():
    model = Encoder(TINY, init="truncated_normal")
    clip = frames(TINY)
    exact = model.encode(model.embed(model.patches(clip)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.patches(clip).dtype == torch.bfloat16
        mixed = model.encode(model.embed(model.patches(clip)))
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, rtol=0, atol=0.03)  # 8 bits of values near 2


def kept_bytes(model, tokens):
    """Bytes that a forward pass through the blocks leaves allocated, its result among them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        out = model.encode(tokens)
    assert out.requires_grad
    return sum(event.self_cpu_memory_usage for event in seen.events())


def test_recomputed_activations_are_not_kept():
    """A block that keeps all keeps its output and 13 times its input in bytes at the least: two norms, q, k, v, attention, MLP before and
    after GELU. One that computes them again keeps its output, which is the next one's input, and nothing else."""
    kept, again = (Encoder(replace(TINY, depth=4, recompute=on), init="xavier") for on in (False, True))
    tokens = torch.randn(2, 8, 48)
    assert kept_bytes(again, tokens) == 4 * tokens.nbytes
    assert kept_bytes(kept, tokens) > 4 * 14 * tokens.nbytes
    with torch.no_grad():
        assert torch.equal(again.encode(tokens), kept.encode(tokens))


def test_models_can_be_copied():
    model = VideoTransformer(TINY, num_classes=2)
    twin = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
