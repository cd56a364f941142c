"""Random erasing: what a box replaces, and the Triton kernel, which generates noise only inside the boxes."""

import pytest
import torch

from ppma.kernels import choice, erase
from ppma.kernels.erase import erase_

GRID, PATCH = (2, 3, 3), (2, 8, 8)
KEYS = torch.tensor([11, 1 << 60, 5, -7])
BOXES = torch.tensor([[3, 5, 10, 11], [0, 0, 0, 0], [0, 0, 24, 24], [20, 0, 4, 24]])


def patches_of(clips_BCTHW):
    """Return patches (B, N, P), cut one by one, with P ordered (c, t, h, w)."""
    (nt, nh, nw), (t, h, w) = GRID, PATCH
    places = [(i, j, k) for i in range(nt) for j in range(nh) for k in range(nw)]
    cut = [clips_BCTHW[..., i * t : i * t + t, j * h : j * h + h, k * w : k * w + w] for i, j, k in places]
    return torch.stack([patch.flatten(1) for patch in cut], dim=1)


def picture_patches():
    generator = torch.Generator().manual_seed(0)
    return patches_of(torch.randn(4, 3, 4, 24, 24, dtype=torch.float64, generator=generator))


def inside_boxes():
    inside = torch.zeros(4, 3, 4, 24, 24)
    for row, (top, left, height, width) in enumerate(BOXES.tolist()):
        inside[row, ..., top : top + height, left : left + width] = 1
    return patches_of(inside).bool()


def test_a_box_becomes_fresh_noise_in_every_frame():
    patches, inside = picture_patches(), inside_boxes()
    erased = erase_(patches.clone(), BOXES, KEYS, grid=GRID, patch=PATCH)
    assert torch.equal(erased[~inside], patches[~inside])
    noise = erased[inside]
    assert abs(noise.mean()) < 0.04 and abs(noise.std() - 1) < 0.04  # 9,400 values: 4 standard errors
    assert noise.unique().numel() > 0.999 * noise.numel()
    alone = erase_(patches[2:3].clone(), BOXES[2:3], KEYS[2:3], grid=GRID, patch=PATCH)
    assert torch.equal(alone[0], erased[2])


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 3e-6), (torch.bfloat16, 0.02), (torch.float16, 3e-3)])
def test_triton_writes_the_same_noise_only_inside_the_boxes(triton_device, monkeypatch, dtype, atol):
    """Noise reaches 4.5, where half an ulp of bfloat16 is 0.016, of float16 0.002; float32 log and cos differ."""
    plain = erase_(picture_patches(), BOXES, KEYS, grid=GRID, patch=PATCH)
    monkeypatch.delattr(erase, "normal")  # which draws a value for every position of the batch
    patches = picture_patches().to(dtype).to(triton_device)
    boxes, keys = BOXES.to(triton_device), KEYS.to(triton_device)
    erased = erase_(patches.clone(), boxes, keys, grid=GRID, patch=PATCH)
    assert torch.equal(erased[~inside_boxes()], patches[~inside_boxes()])
    torch.testing.assert_close(erased.double().cpu(), plain, rtol=0, atol=atol)


def test_boxes_and_keys_of_any_strides(triton_device):
    patches, boxes, keys = (given.to(triton_device) for given in (picture_patches().float(), BOXES, KEYS))
    strided = torch.cat([boxes, boxes], dim=1)[:, ::2], torch.stack([keys, keys], dim=1)[:, 0]
    other = torch.tensor([[3, 10, 3, 10], [0, 0, 0, 0], [0, 24, 0, 24], [20, 4, 20, 4]], device=triton_device)
    assert torch.equal(strided[0], other)
    erased = erase_(patches.clone(), *strided, grid=GRID, patch=PATCH)
    assert torch.equal(erased, erase_(patches, other, keys, grid=GRID, patch=PATCH))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.02), (torch.float16, 3e-3)])
def test_plain_noise_in_16_bits_is_that_of_64(dtype, atol):
    plain = erase_(picture_patches(), BOXES, KEYS, grid=GRID, patch=PATCH)
    with choice.use("torch"):
        erased = erase_(picture_patches().to(dtype), BOXES, KEYS, grid=GRID, patch=PATCH)
    torch.testing.assert_close(erased.double(), plain, rtol=0, atol=atol)


def test_patches_of_an_odd_size(triton_device):
    """3 x 5 x 7 values are not divisible by four, so plain PyTorch runs."""
    patches, boxes = torch.zeros(2, 4, 105, device=triton_device), torch.tensor([[1, 2, 4, 9], [0, 0, 10, 14]])
    given = (boxes.to(triton_device), KEYS[:2].to(triton_device))
    erased = erase_(patches, *given, grid=(1, 2, 2), patch=(1, 5, 7))
    assert (erased != 0).sum(dim=(1, 2)).tolist() == [4 * 9 * 3, 10 * 14 * 3]


def test_the_operator_declares_that_it_writes_its_argument(triton_device):
    given = (picture_patches()[:1].float(), BOXES[:1], KEYS[:1])
    given = (*(tensor.to(triton_device) for tensor in given), GRID, PATCH)
    torch.library.opcheck(torch.ops.ppma.erase_.default, given)
