"""The Triton kernel of `patchify` agrees with the reference."""

import pytest
import torch

from ppma.kernels import reference
from ppma.kernels.patchify import patchify

COLORS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SHAPES = [
    ((2, 2, 32, 48), (2, 16, 16)),
    ((3, 3, 10, 21), (1, 5, 7)),
    ((1, 2, 16, 16), (2, 16, 16)),
    ((1, 2, 4, 192), (1, 2, 48)),  # wide rows, more than one line each, and lines past the end of the tile
]


def frames(B, T, H, W, C=3):
    return torch.randint(0, 256, (B, T, H, W, C), dtype=torch.uint8, generator=torch.Generator().manual_seed(B * T * H))


def some_tokens(shape, patch):
    n = shape[1] * shape[2] * shape[3] // (patch[0] * patch[1] * patch[2])
    return torch.stack([torch.randperm(n)[: max(1, n // 2)] for _ in range(shape[0])])


@pytest.mark.parametrize(("shape", "patch"), SHAPES)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02), (torch.float16, 2e-3)])
def test_agrees_with_the_reference(triton_device, shape, patch, dtype, atol):
    """Values reach 2.7, where an ulp of float32 is 2.4e-7, half an ulp of bfloat16 0.008, of float16 0.001."""
    if triton_device == "cpu" and dtype != torch.float32 and (shape, patch) != SHAPES[0]:
        pytest.skip("interpreted in float32; the type changes no branch")
    clip, idx = frames(*shape), some_tokens(shape, patch)
    for chosen in (None, idx, idx[:, :1]):
        at = None if chosen is None else chosen.to(triton_device)
        ours = patchify(clip.to(triton_device), at, patch=patch, **COLORS, dtype=dtype)
        plain = reference.patchify(clip, chosen, patch=patch, **COLORS, dtype=torch.float64)
        assert ours.dtype == dtype and ours.shape == plain.shape
        torch.testing.assert_close(ours.double().cpu(), plain, rtol=0, atol=atol)


def test_frames_and_tokens_of_any_strides(triton_device):
    clip = frames(2, 8, 48, 48, 4)[
        :, ::2, 8:40, 8:40, :3
    ]  # every second frame of a crop, one of four channels left out
    idx = torch.tensor([[3, 9, 0, 9], [1, 9, 2, 9]])[:, ::2]
    at = torch.empty(2, 4, dtype=torch.int64, device=triton_device)[:, ::2].copy_(idx)
    seen = clip.permute(4, 0, 1, 2, 3).contiguous().permute(1, 2, 3, 4, 0).to(triton_device)  # colors outermost
    expected = reference.patchify(clip, idx, patch=(2, 16, 16), **COLORS, dtype=torch.float32)
    for same in (clip.to(triton_device), seen):
        ours = patchify(same, at, **COLORS, dtype=torch.float32)
        torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=1e-6)


def test_wrong_input_is_named(triton_device):
    with pytest.raises(ValueError, match=r"\(4, 40, 32\)"):
        patchify(frames(1, 4, 40, 32).to(triton_device), None, **COLORS, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"torch\.uint8"):
        patchify(frames(1, 4, 32, 32).float().to(triton_device), None, **COLORS, dtype=torch.float32)


def test_the_operator_passes_opcheck(triton_device):
    clip, idx = frames(2, 4, 32, 32).to(triton_device), torch.tensor([[0, 5], [7, 1]], device=triton_device)
    given = (clip, idx, (2, 16, 16), COLORS["mean"], COLORS["std"], torch.bfloat16)
    torch.library.opcheck(torch.ops.ppma.patchify.default, given)
