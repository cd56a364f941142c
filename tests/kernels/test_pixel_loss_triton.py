"""The Triton kernel of `pixel_loss` agrees with the reference: value and gradient."""

import pytest
import torch

from ppma.kernels import reference
from ppma.kernels.pixel_loss import VARIANCE_FLOOR, pixel_loss

CASES = [
    (2, 4, 32, 32, (2, 16, 16), 3),
    (3, 3, 10, 21, (1, 5, 7), 1),
    (1, 2, 16, 16, (2, 16, 16), 1),
    (1, 2, 4, 192, (1, 2, 48), 5),  # wide rows, and chunks past the end of the tile
]


def case(B, T, H, W, patch, M, device):
    generator = torch.Generator().manual_seed(B + M)
    clip = torch.randint(0, 256, (B, T, H, W, 3), dtype=torch.uint8, generator=generator)
    n = T * H * W // (patch[0] * patch[1] * patch[2])
    idx = torch.stack([torch.randperm(n, generator=generator)[:M] for _ in range(B)])
    prediction = torch.randn(B, M, patch[0] * patch[1] * patch[2] * 3, dtype=torch.float64, generator=generator)
    return prediction.to(device), clip.to(device), idx.to(device)


@pytest.mark.parametrize("sizes", CASES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_value_and_gradient(triton_device, sizes, normalize, dtype, rtol):
    """float32 sums keep 1e-5. 16-bit predictions and their gradients are rounded, in units of 2^-8 and 2^-11."""
    prediction, clip, idx = case(*sizes, triton_device)
    ours, plain = (prediction.to(t, copy=True).requires_grad_() for t in (dtype, torch.float64))
    loss = pixel_loss(ours, clip, idx, patch=sizes[4], normalize=normalize)
    stated = reference.pixel_loss(plain, clip, idx, patch=sizes[4], normalize=normalize)
    (3 * loss).backward(), (3 * stated).backward()
    assert loss.dtype == torch.float32 and ours.grad.dtype == dtype
    torch.testing.assert_close(loss.double(), stated, rtol=rtol, atol=0)
    largest = plain.grad.abs().max().item()
    torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=0, atol=rtol * largest)


def test_the_gradient_is_rounded_once_from_float32(triton_device):
    """In float16, because the interpreter rounds to bfloat16 differently from a GPU."""
    prediction, clip, idx = case(*CASES[2], triton_device)
    rounded = prediction.half()
    ours, exact = (rounded.to(t, copy=True).requires_grad_() for t in (torch.float16, torch.float32))
    for given in (ours, exact):
        (300 * pixel_loss(given, clip, idx, patch=(2, 16, 16))).backward()
    assert torch.equal(ours.grad, exact.grad.half())


def test_only_the_arguments_are_kept_for_the_backward_pass(triton_device):
    prediction, clip, idx = case(*CASES[2], triton_device)
    prediction, kept = prediction.bfloat16().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        pixel_loss(prediction, clip, idx, patch=(2, 16, 16))
    assert sorted(kept) == sorted(x.data_ptr() for x in (prediction, clip, idx))


def test_float16_gradients_do_not_underflow_under_a_loss_scale(triton_device):
    """2 / count is 4e-5 here; in a batch of 128 clips it is 7e-9, below the smallest float16, 6e-8."""
    prediction, clip, idx = case(2, 4, 64, 64, (2, 16, 16), 15, triton_device)
    ours, plain = (prediction.to(t, copy=True).requires_grad_() for t in (torch.float16, torch.float64))
    (pixel_loss(ours, clip, idx, patch=(2, 16, 16)) * 2.0**-14).backward(torch.tensor(2.0**16, device=triton_device))
    (reference.pixel_loss(plain, clip, idx, patch=(2, 16, 16)) * 2.0**2).backward()
    torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=0, atol=2e-3 * plain.grad.abs().max().item())


def test_bright_patches_of_little_contrast(triton_device):
    """With values of 254 and 255, mean of squares minus square of mean would lose four digits in float32."""
    clip = (torch.arange(512 * 3) % 7 == 0).reshape(1, 2, 16, 16, 3).to(torch.uint8) + 254
    prediction, idx = torch.zeros(1, 1, 1536), torch.tensor([[0]])
    given = [x.to(triton_device) for x in (prediction, clip, idx)]
    expected = reference.pixel_loss(prediction.double(), clip, idx, patch=(2, 16, 16))
    torch.testing.assert_close(pixel_loss(*given, patch=(2, 16, 16)).cpu().double(), expected, rtol=1e-5, atol=0)
    flat = torch.full_like(given[1], 200)
    assert pixel_loss(given[0], flat, given[2], patch=(2, 16, 16)) == 0


def test_any_strides(triton_device):
    prediction, clip, idx = case(2, 4, 48, 48, (2, 16, 16), 3, triton_device)
    crop = clip[:, :, 8:40, 8:40]
    at = (idx % 8).t().contiguous().t()
    wide = torch.empty(2, 1536, 3, device=triton_device).transpose(1, 2).copy_(prediction).requires_grad_()
    loss = pixel_loss(wide, crop, at, patch=(2, 16, 16))
    plain = prediction.clone().requires_grad_()
    stated = reference.pixel_loss(plain, crop, at, patch=(2, 16, 16))
    loss.backward(), stated.backward()
    torch.testing.assert_close(loss.double(), stated, rtol=1e-5, atol=0)
    torch.testing.assert_close(wide.grad.double(), plain.grad, rtol=0, atol=1e-5 * plain.grad.abs().max().item())


def test_the_operator_passes_opcheck(triton_device):
    prediction, clip, idx = case(*CASES[2], triton_device)
    given = (prediction.float().requires_grad_(), clip, idx, (2, 16, 16), True, VARIANCE_FLOOR)
    torch.library.opcheck(torch.ops.ppma.pixel_loss.default, given)
    gradient = torch.tensor(3.0, device=triton_device)
    torch.library.opcheck(torch.ops.ppma.pixel_loss_backward.default, (gradient, given[0].detach(), *given[1:]))
