"""`patchify` agrees with its reference."""

import pytest
import torch

from ppma.kernels import reference
from ppma.kernels.patchify import gather_patches, patchify

COLORS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def frames(B, T, H, W):
    return torch.randint(0, 256, (B, T, H, W, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(B * T * H))


@pytest.mark.parametrize(
    ("shape", "patch"), [((2, 4, 32, 32), (2, 16, 16)), ((3, 3, 10, 21), (1, 5, 7)), ((1, 2, 16, 16), (2, 16, 16))]
)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_agrees_with_the_reference(shape, patch, dtype, atol):
    """Values reach 2.7, where an ulp of float32 is 2.4e-7 and half an ulp of bfloat16 0.008."""
    clip = frames(*shape)
    n = shape[1] * shape[2] * shape[3] // (patch[0] * patch[1] * patch[2])
    idx = torch.stack([torch.randperm(n)[: max(1, n // 2)] for _ in range(shape[0])])
    for chosen in (None, idx):
        ours = patchify(clip, chosen, patch=patch, **COLORS, dtype=dtype)
        plain = reference.patchify(clip, chosen, patch=patch, **COLORS, dtype=torch.float64)
        assert ours.dtype == dtype and ours.shape == plain.shape
        torch.testing.assert_close(ours.double(), plain, rtol=0, atol=atol)


def test_bfloat16_is_float32_rounded_once():
    clip = frames(2, 4, 32, 32)
    exact = patchify(clip, None, **COLORS, dtype=torch.float32)
    assert torch.equal(patchify(clip, None, **COLORS, dtype=torch.bfloat16), exact.bfloat16())


def test_indivisible_or_float_frames_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 40, 32\)"):
        patchify(frames(1, 4, 40, 32), None, **COLORS, dtype=torch.float32)
    with pytest.raises(ValueError, match="uint8"):
        patchify(frames(1, 4, 32, 32).float(), None, **COLORS, dtype=torch.float32)


def test_gather_works_on_views_of_larger_clips():
    clip = frames(2, 4, 48, 48)[:, :, 8:40, 8:40]
    assert torch.equal(gather_patches(clip, None, (2, 16, 16)), reference.cut(clip, (2, 16, 16)))
