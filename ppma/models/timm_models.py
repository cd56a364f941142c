"""The encoder for users of timm. Importing this module registers ppma_vit_{tiny, small, base, large, huge}_patch16_224.

    video_BCTHW, normalized float  ->  tokens_BND  ->  mean, fc_norm, head  ->  logits_BK      (fc_norm=False: norm, mean, head)

`ppma export --to timm RUN DIR` writes weights for timm.create_model(NAME, checkpoint_path="DIR/model.safetensors", ...).
B rows, N tokens, D token width, K classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ppma.config.errors import InputError
from ppma.config.model import PIXEL_MEAN, PIXEL_STD, PRESETS, ViTConfig, preset
from ppma.models.torchvision_shim import timm
from ppma.models.vit import Encoder, initialize_head, layer_norm, weight_generator


class VideoTransformer(Encoder):
    """A video ViT with timm's methods: float clips to logits, or to pooled features for 0 classes.

    Args:
        config: Shape.
        num_classes: Classes of the head; 0: no head.
        fc_norm: Normalize the mean of the tokens, as classifiers do, instead of the tokens (`norm`), as stage 1 does.
        seed: Seed of the initial weights.
    """

    def __init__(self, config: ViTConfig, *, num_classes: int = 0, fc_norm: bool = True, seed: int = 0) -> None:
        super().__init__(config, init="truncated_normal", seed=seed)
        self.num_features = self.embed_dim = config.width
        self.seed = seed
        self.norm = nn.Identity() if fc_norm else layer_norm(config.width, config.norm_eps)
        self.fc_norm = layer_norm(config.width, config.head_norm_eps) if fc_norm else nn.Identity()
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new one; 0 classes: no head."""
        self.num_classes = num_classes
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.head = initialize_head(nn.Linear(self.num_features, num_classes), weight_generator(self.seed, "tail"))

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def forward_features(self, video_BCTHW: Tensor) -> Tensor:
        """Return (B, N, D) tokens of normalized clips. In training, drop path takes its row keys from torch's generator."""
        B, C, *frames_THW = video_BCTHW.shape
        self.check_frames(tuple(frames_THW))
        (nt, nh, nw), (t, h, w) = self.config.grid, self.config.patch
        cells = video_BCTHW.reshape(B, C, nt, t, nh, h, nw, w).permute(0, 2, 4, 6, 1, 3, 5, 7)
        draws = self.training and self.config.drop_path > 0
        key_B = torch.randint(0, 2**63 - 1, (B,), device=video_BCTHW.device) if draws else None
        return self.norm(self.encode(self.embed(cells.reshape(B, self.config.tokens, -1)), self.drop_path(key_B)))

    def forward_head(self, tokens_BND: Tensor, pre_logits: bool = False) -> Tensor:
        """Return (B, K) logits, or (B, D) pooled features after `fc_norm` if `pre_logits`."""
        features_BD = self.fc_norm(tokens_BND.mean(dim=1))
        return features_BD if pre_logits else self.head(features_BD)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(video_BCTHW))


def _register(name: str) -> None:
    """Register the preset of that name with timm, whose registry takes a function of the model's name."""
    model_name = f"ppma_vit_{name}_patch16_224"

    def make(
        *, pretrained: bool = False, num_classes: int = 0, drop_path_rate: float = 0.0, img_size: int = 224, frames: int = 16,
        fc_norm: bool = True, norm_eps: float = 1e-6, head_norm_eps: float = 1e-6, seed: int = 0, **factory: Any,
    ) -> VideoTransformer:  # fmt: skip
        unknown = set(factory) - {
            "pretrained_cfg",
            "pretrained_cfg_overlay",
            "cache_dir",
        }  # timm.create_model adds these
        if unknown or pretrained:
            raise InputError(
                f"{model_name} takes num_classes, drop_path_rate, img_size, frames, fc_norm, norm_eps, head_norm_eps and seed, "
                "and has no released weights; "
                f"it was given {', '.join(sorted(unknown)) or 'pretrained=True'}"
            )
        shape = {"size": img_size, "frames": frames, "norm_eps": norm_eps, "head_norm_eps": head_norm_eps}
        config = preset(name, drop_path=drop_path_rate, **shape)
        model = VideoTransformer(config, num_classes=num_classes, fc_norm=fc_norm, seed=seed)
        model.pretrained_cfg = model.default_cfg = {  # type: ignore[assignment]
            "input_size": (3, img_size, img_size), "mean": PIXEL_MEAN, "std": PIXEL_STD, "num_classes": num_classes,
            "first_conv": "patch_embed.proj", "classifier": "head",
        }  # fmt: skip
        return model

    make.__name__ = make.__qualname__ = model_name
    timm.models.register_model(make)


for _name in PRESETS:
    _register(_name)
