"""The configs refuse what cannot be built, and a login node can read them."""

import pytest

from ppma.config.errors import InputError
from ppma.config.model import ClassifierConfig, MAEConfig, MixConfig, OptimConfig, ViTConfig, preset


def test_paper_shapes():
    config = preset("base")
    assert (config.grid, config.tokens, config.patch_values) == ((8, 14, 14), 1568, 1536)
    sizes = {
        name: (preset(name).width, preset(name).depth, preset(name).heads)
        for name in ("tiny", "small", "large", "huge")
    }
    assert sizes == {"tiny": (192, 12, 3), "small": (384, 12, 6), "large": (1024, 24, 16), "huge": (1280, 32, 16)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: preset("gigantic"), "'gigantic'; there are tiny, small, base, large, huge"),
        (lambda: ViTConfig(size=230), r"16 frames of 230 x 230 pixels"),
        (lambda: ViTConfig(frames=15), "15 frames"),
        (lambda: ViTConfig(width=100), "width 100 does not divide into 12 heads"),
        (lambda: ViTConfig(drop_path=1.0), r"drop_path is 1\.0"),
        (lambda: MAEConfig(mask_ratio=1.0), r"mask_ratio is 1\.0"),
        (lambda: MAEConfig(decoder_heads=5), "384 does not divide into 5 heads"),
        (lambda: MixConfig(group=3), "group is 3; it must be an even"),
        (lambda: MixConfig(mixup_alpha=9.0), r"mixup_alpha is 9\.0"),
        (lambda: OptimConfig(layer_decay=0.0), r"layer_decay is 0\.0"),
        (lambda: OptimConfig(clip_grad=0.0), r"clip_grad is 0\.0"),
        (lambda: OptimConfig(warmup_fraction=1.0), r"warmup_fraction is 1\.0"),
    ],
)
def test_what_cannot_be_built_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_mixing_is_off_when_both_are():
    assert ClassifierConfig().mix.mixes
    assert not MixConfig(mixup_alpha=0, cutmix_alpha=0).mixes and not MixConfig(probability=0).mixes
