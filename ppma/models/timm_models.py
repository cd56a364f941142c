"""The encoder as a classifier for users of timm: importing this module registers `ppma_vit_{tiny, small, base, large,
huge}_patch16_224`, so that timm.create_model makes them.

    video_BCTHW, normalised float  ->  tokens_BND  ->  mean, fc_norm, head  ->  logits_BK

B rows, N tokens, D token width, K classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ppma.config.errors import InputError
from ppma.config.model import PIXEL_MEAN, PIXEL_STD, ViTConfig, preset
from ppma.models.torchvision_shim import timm
from ppma.models.vit import Encoder, initialise_head, layer_norm, part_generator


class VideoTransformer(Encoder):
    """The classifier form for users of timm: float clips in, logits out, one head, timm's methods."""

    def __init__(self, config: ViTConfig, *, num_classes: int = 0, seed: int = 0) -> None:
        super().__init__(config, init="truncated_normal", seed=seed)
        self.num_features = self.embed_dim = config.width
        self.seed = seed
        self.fc_norm = layer_norm(config.width)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """A new head, normal 0.01 with zero bias; 0 classes leaves the pooled features."""
        self.num_classes = num_classes
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.head = initialise_head(nn.Linear(self.num_features, num_classes), part_generator(self.seed, "tail"))

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def forward_features(self, video_BCTHW: Tensor) -> Tensor:
        """(B, N, D) tokens of clips that are normalised already, as timm's users hold them.

        In training with drop path the row keys come from torch's generator, since a timm user has none.
        """
        B, C, *frames_THW = video_BCTHW.shape
        self.check_frames(tuple(frames_THW))
        (nt, nh, nw), (t, h, w) = self.config.grid, self.config.patch
        cells = video_BCTHW.reshape(B, C, nt, t, nh, h, nw, w).permute(0, 2, 4, 6, 1, 3, 5, 7)
        draws = self.training and self.config.drop_path > 0
        key_B = torch.randint(0, 2**63 - 1, (B,), device=video_BCTHW.device) if draws else None
        return self.encode(self.embed(cells.reshape(B, self.config.tokens, -1)), self.drop_path(key_B))

    def forward_head(self, tokens_BND: Tensor, pre_logits: bool = False) -> Tensor:
        """Mean over the tokens, LayerNorm, head; without the head when `pre_logits`."""
        features_BD = self.fc_norm(tokens_BND.mean(dim=1))
        return features_BD if pre_logits else self.head(features_BD)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(video_BCTHW))


def _timm_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int = 0,
    drop_path_rate: float = 0.0,
    img_size: int = 224,
    frames: int = 16,
    seed: int = 0,
    **factory: Any,
) -> VideoTransformer:
    """What timm.create_model calls; `factory` is what it passes of its own (pretrained_cfg and cache_dir)."""
    unknown = set(factory) - {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
    if unknown or pretrained:
        raise InputError(
            f"ppma_vit_{name}_patch16_224 takes num_classes, drop_path_rate, img_size, frames and seed, "
            f"and has no released weights; it was given {', '.join(sorted(unknown)) or 'pretrained=True'}"
        )
    config = preset(name, drop_path=drop_path_rate, size=img_size, frames=frames)
    model = VideoTransformer(config, num_classes=num_classes, seed=seed)
    model.pretrained_cfg = model.default_cfg = {  # type: ignore[assignment]
        "input_size": (3, img_size, img_size),
        "mean": PIXEL_MEAN,
        "std": PIXEL_STD,
        "num_classes": num_classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return model


@timm.models.register_model
def ppma_vit_tiny_patch16_224(**arguments: Any) -> VideoTransformer:
    """Width 192, 12 layers, 3 heads."""
    return _timm_model("tiny", **arguments)


@timm.models.register_model
def ppma_vit_small_patch16_224(**arguments: Any) -> VideoTransformer:
    """Width 384, 12 layers, 6 heads."""
    return _timm_model("small", **arguments)


@timm.models.register_model
def ppma_vit_base_patch16_224(**arguments: Any) -> VideoTransformer:
    """Width 768, 12 layers, 12 heads: the paper's."""
    return _timm_model("base", **arguments)


@timm.models.register_model
def ppma_vit_large_patch16_224(**arguments: Any) -> VideoTransformer:
    """Width 1024, 24 layers, 16 heads."""
    return _timm_model("large", **arguments)


@timm.models.register_model
def ppma_vit_huge_patch16_224(**arguments: Any) -> VideoTransformer:
    """Width 1280, 32 layers, 16 heads."""
    return _timm_model("huge", **arguments)
