"""`pixel_loss` agrees with its reference: value and gradient."""

import pytest
import torch

from ppma.kernels import reference
from ppma.kernels.pixel_loss import patch_moments, pixel_loss


def case(B, T, H, W, patch, M):
    generator = torch.Generator().manual_seed(B + M)
    clip = torch.randint(0, 256, (B, T, H, W, 3), dtype=torch.uint8, generator=generator)
    n = T * H * W // (patch[0] * patch[1] * patch[2])
    idx = torch.stack([torch.randperm(n, generator=generator)[:M] for _ in range(B)])
    prediction = torch.randn(B, M, patch[0] * patch[1] * patch[2] * 3, dtype=torch.float64, generator=generator)
    return prediction, clip, idx


CASES = [(2, 4, 32, 32, (2, 16, 16), 7), (3, 3, 10, 21, (1, 5, 7), 1), (1, 2, 16, 16, (2, 16, 16), 1)]


@pytest.mark.parametrize("sizes", CASES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_value_and_gradient(sizes, normalize, dtype, rtol):
    """The loss is about 2: float32 sums keep 1e-5; a bfloat16 prediction is rounded by 2^-9 first."""
    prediction, clip, idx = case(*sizes)
    ours, plain = (prediction.to(t, copy=True).requires_grad_() for t in (dtype, torch.float64))
    loss = pixel_loss(ours, clip, idx, patch=sizes[4], normalize=normalize)
    stated = reference.pixel_loss(plain, clip, idx, patch=sizes[4], normalize=normalize)
    loss.backward(), stated.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), stated, rtol=rtol, atol=0)
    largest = plain.grad.abs().max().item()
    torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=0, atol=rtol * largest)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_batch_of_vit_b_loses_nothing_in_float32(normalize):
    """8 clips of 1,411 masked patches. One float32 norm of all the values lost 1.4e-3."""
    prediction, clip, idx = case(8, 16, 224, 224, (2, 16, 16), 1411)
    loss = pixel_loss(prediction.float(), clip, idx, patch=(2, 16, 16), normalize=normalize)
    stated = reference.pixel_loss(prediction, clip, idx, patch=(2, 16, 16), normalize=normalize)
    torch.testing.assert_close(loss.double(), stated, rtol=1e-6, atol=0)


def test_a_flat_patch_has_a_finite_target():
    clip = torch.full((1, 2, 16, 16, 3), 200, dtype=torch.uint8)
    loss = pixel_loss(torch.zeros(1, 1, 1536), clip, torch.tensor([[0]]), patch=(2, 16, 16))
    assert loss == 0


def test_moments_are_those_of_each_patch_and_color():
    _, clip, idx = case(*CASES[0])
    values, mean, deviation = patch_moments(clip, idx, (2, 16, 16), torch.float64)
    assert values.shape == (2, 7, 512, 3)
    expected = (values[1, 3, :, 2].var() + 1e-6).sqrt()
    assert torch.isclose(deviation[1, 3, 0, 2], expected, rtol=1e-12) and torch.isclose(
        mean[1, 3, 0, 2], values[1, 3, :, 2].mean()
    )
