"""The references agree with the restatement of the paper, patch by patch."""

import pytest
import restatement
import torch

from ppma.kernels import reference

PATCH = (2, 4, 8)
FRAMES = torch.randint(0, 256, (2, 4, 12, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDX = torch.tensor([[0, 7, 11], [3, 2, 1]])


def test_grid_names_indivisible_sizes():
    assert reference.grid_of((4, 12, 16), PATCH) == (2, 3, 2)
    with pytest.raises(ValueError, match=r"\(4, 13, 16\).*\(2, 4, 8\)"):
        reference.grid_of((4, 13, 16), PATCH)


def test_patchify_has_the_order_of_a_conv3d_weight():
    patches = reference.patchify(
        FRAMES, None, patch=PATCH, mean=restatement.MEAN, std=restatement.STD, dtype=torch.float64
    )
    clip = restatement.normalized_clip(FRAMES, torch.float64)
    kernel = torch.randn(5, 3, *PATCH, dtype=torch.float64)
    convolved = torch.nn.functional.conv3d(clip, kernel, stride=PATCH).flatten(2).transpose(1, 2)
    torch.testing.assert_close(
        patches @ kernel.flatten(1).T, convolved, rtol=0, atol=1e-10
    )  # float64: sums of 192 values


def test_chosen_patches_are_rows_of_all_patches():
    arguments = {"patch": PATCH, "mean": restatement.MEAN, "std": restatement.STD, "dtype": torch.float64}
    everything = reference.patchify(FRAMES, None, **arguments)
    assert torch.equal(reference.patchify(FRAMES, IDX, **arguments), restatement.rows(everything, IDX))


def test_paste_inverts_cut():
    everything = torch.arange(12).expand(2, -1)
    values = reference.patch_targets(FRAMES, everything, patch=PATCH, normalize=False, dtype=torch.float64)
    assert torch.equal((reference.paste(values, (4, 12, 16), PATCH) * 255).round().to(torch.uint8), FRAMES)


@pytest.mark.parametrize("normalize", [True, False])
def test_pixel_loss(normalize):
    prediction = torch.randn(2, 3, 192, dtype=torch.float64)
    loss = reference.pixel_loss(prediction, FRAMES, IDX, patch=PATCH, normalize=normalize)
    stated = restatement.mae_loss(prediction, FRAMES, IDX, PATCH, normalize)
    torch.testing.assert_close(loss, stated, rtol=1e-12, atol=0)  # float64 sums in another order


def test_attention():
    qkv = torch.randn(2, 7, 3 * 15, dtype=torch.float64)
    torch.testing.assert_close(reference.attention(qkv, 3), restatement.attention(qkv, 3), rtol=0, atol=1e-12)
