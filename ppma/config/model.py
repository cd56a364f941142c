"""Configs of the model and its optimizer: encoder, masked autoencoder, classifier, mixing, AdamW.

Every default is a value of the paper (Zhong et al., "Learning Human Action Recognition Representations Without Real
Humans", NeurIPS 2023), that of stage 1 where the stages differ.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from ppma.config.errors import require, require_at_least, require_share

PIXEL_MEAN = (0.485, 0.456, 0.406)
"""Mean of the encoder's input per color (red, green, blue), for pixels in [0, 1] (ImageNet)."""
PIXEL_STD = (0.229, 0.224, 0.225)
"""Standard deviation that goes with PIXEL_MEAN (ImageNet)."""

Residual = Literal["float32", "autocast"]


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """A video ViT: pre-norm blocks, no class token, fixed position embeddings. Defaults are the paper's ViT-B."""

    width: int = 768
    """Channels of a token."""
    depth: int = 12
    """Transformer blocks."""
    heads: int = 12
    """Attention heads per block."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP divided by the token width."""
    patch: tuple[int, int, int] = (2, 16, 16)
    """Frames, height and width of a patch in pixels."""
    frames: int = 16
    """Frames per clip."""
    size: int = 224
    """Height and width of a clip in pixels."""
    drop_path: float = 0.0
    """Probability that a clip skips a branch of the last block; rises linearly from 0 at the first block."""
    recompute: bool = False
    """Recompute the activations of each block, the decoder's too, in the backward pass: same results to the bit, less
    memory, a third more arithmetic (published: on in stage 1, Q2)."""
    norm_eps: float = 1e-6
    """Epsilon of the LayerNorms (paper: 1e-6; transformers: 1e-12)."""
    head_norm_eps: float = 1e-6
    """Epsilon of the LayerNorm before a head, `fc_norm` or the decoder's last (paper: 1e-6; transformers: 1e-5)."""
    residual: Residual = "float32"
    """Type of the tokens between blocks: float32, or autocast for the type of the matrix products, which halves the
    memory traffic of the residual stream and rounds it to 8 bits after every branch. No effect without autocast."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "vit.", "width", "depth", "heads", "frames", "size")
        require(min(self.patch) >= 1, f"vit.patch is {self.patch}; its three sides must be at least 1")
        require(self.width % self.heads == 0, f"vit.width {self.width} does not divide into {self.heads} heads")
        require(0 <= self.drop_path < 1, f"vit.drop_path is {self.drop_path}; it must be at least 0 and below 1")
        require_at_least(0, self, "vit.", "norm_eps", "head_norm_eps")
        t, h, w = self.patch
        fits = self.frames % t == 0 and self.size % h == 0 and self.size % w == 0
        pixels = f"{self.frames} frames of {self.size} x {self.size} pixels"
        require(fits, f"{pixels} do not divide into patches of {t} frames of {h} x {w} pixels; use multiples of these")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        return self.frames // self.patch[0], self.size // self.patch[1], self.size // self.patch[2]

    @property
    def tokens(self) -> int:
        """Tokens per clip (paper: 8 * 14 * 14 = 1568)."""
        t, h, w = self.grid
        return t * h * w

    @property
    def patch_values(self) -> int:
        """Values per patch (paper: 2 * 16 * 16 * 3 = 1536)."""
        t, h, w = self.patch
        return t * h * w * 3


PRESETS = {
    "tiny": ViTConfig(width=192, depth=12, heads=3),
    "small": ViTConfig(width=384, depth=12, heads=6),
    "base": ViTConfig(),
    "large": ViTConfig(width=1024, depth=24, heads=16),
    "huge": ViTConfig(width=1280, depth=32, heads=16),
}
"""The sizes of timm's ViTs."""


def preset(name: str, **changes: object) -> ViTConfig:
    """Return the ViTConfig of a preset with some fields replaced, e.g. preset("base", drop_path=0.1).

    Raises:
        InputError: There is no such preset.
    """
    require(name in PRESETS, f"no ViT preset {name!r}; there are {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class MAEConfig:
    """Stage 1: masking and the decoder."""

    mask_ratio: float = 0.9
    """Share of the tokens that is masked (paper: 0.9)."""
    decoder_width: int = 384
    """Channels of a token in the decoder (paper: 384)."""
    decoder_depth: int = 4
    """Blocks of the decoder (paper: 4). 0: no decoder, for a converted encoder, which stage 1 cannot train further."""
    decoder_heads: int = 16
    """Attention heads per decoder block (paper: 16 of width 24)."""
    decoder_positions: Literal["before", "after"] = "before"
    """Add the mask token and the position embeddings before the projection into the decoder (paper), or after it, where
    the projection has no bias (VideoMAE)."""
    normalize_targets: bool = True
    """Predict each patch normalized per color (paper) rather than pixels in [0, 1]."""
    decoder_share: float = 1.0
    """Share of the masked tokens that the decoder sees and predicts; below 1 they are chosen by running cells (VideoMAE
    V2, which uses one half and reports hardly any loss of accuracy after fine-tuning; not measured here)."""

    def __post_init__(self) -> None:
        require(0 < self.mask_ratio < 1, f"mae.mask_ratio is {self.mask_ratio}; it must be between 0 and 1")
        fits = 0 < self.decoder_share <= 1
        require(fits, f"mae.decoder_share is {self.decoder_share}; it must be above 0 and at most 1")
        require_at_least(1, self, "mae.", "decoder_width", "decoder_heads")
        require_at_least(0, self, "mae.", "decoder_depth")
        divides = self.decoder_width % self.decoder_heads == 0
        require(divides, f"mae.decoder_width {self.decoder_width} does not divide into {self.decoder_heads} heads")


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixup, CutMix and label smoothing on clips. Defaults are the paper's for Align, FT and LP."""

    mixup_alpha: float = 0.8
    """Both parameters of the Beta distribution of mixup's weight; 0 turns mixup off (paper: 0.8)."""
    cutmix_alpha: float = 1.0
    """Both parameters of the Beta distribution of CutMix's area; 0 turns CutMix off (paper: 1)."""
    switch_probability: float = 0.5
    """Probability of CutMix where both are on (paper: 0.5)."""
    probability: float = 1.0
    """Probability that a group is mixed at all (paper: 1)."""
    group: int = 4
    """Consecutive rows that share one random draw and swap partners, first with last. Even, and divides a rank's
    micro-batch, so that a run mixes the same clips at every world size. (Published: one group per rank.)"""
    smoothing: float = 0.1
    """Label smoothing (paper: 0.1)."""

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            fits = value == 0 or 0.05 <= value <= 2
            require(fits, f"mix.{name} is {value}; it must be 0 (off) or between 0.05 and 2")
        require_share(self, "mix.", "switch_probability", "probability")
        require(0 <= self.smoothing < 1, f"mix.smoothing is {self.smoothing}; it must be at least 0 and below 1")
        even = self.group >= 2 and self.group % 2 == 0
        require(even, f"mix.group is {self.group}; it must be an even number of rows")

    @property
    def mixes(self) -> bool:
        """True if clips are mixed at all."""
        return self.probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Heads, mixing and freezing, for Align, fine-tuning and linear probes."""

    mix: MixConfig = field(default_factory=MixConfig)
    """Mixing and label smoothing in training."""
    shared_head: bool = False
    """Share one head among all label spaces, as in the published stage 2; otherwise each has its own."""
    freeze_encoder: bool = False
    """Train only fc_norm and the heads (linear probe). Drop path still follows vit.drop_path, as in the paper."""
    token_drop: float = 0.0
    """Share of a clip's tokens that a training step drops, at random for each clip; an evaluation sees all. The cost in
    accuracy is not measured here (PatchDropout reports little on ImageNet at one half)."""

    def __post_init__(self) -> None:
        fits = 0 <= self.token_drop < 1
        require(fits, f"classifier.token_drop is {self.token_drop}; it must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, its schedule and its parameter groups. Defaults are stage 1."""

    epochs: int = 200
    """Length of the run and of its schedule (paper: 200 MAE, 50 Align, 30 FT and LP)."""
    peak_lr: float = 8e-4
    """Rate after the warm-up, for a batch of `reference_batch` (paper: 8e-4 MAE, 2e-3 Align and FT, 1.6e-2 LP)."""
    reference_batch: int = 128
    """Global batch (clips x views) that the three rates are for; they scale linearly with the batch of the run."""
    warmup_fraction: float = 0.05
    """Share of the steps with a linearly rising rate (paper: 0.05 MAE, 0.125 elsewhere)."""
    warmup_lr: float = 5e-7
    """Rate of the first step (paper: 5e-7; LP 4e-6)."""
    final_lr: float = 0.0
    """Rate at the end of the cosine (paper: 0 MAE, 5e-7 Align and FT, 4e-6 LP)."""
    cosine_start: float = 1.0
    """Highest rate of the cosine as a share of peak_lr; below 1 the rate drops after the warm-up (published: 0.5 in
    stage 1, Align and FT, Q1)."""
    cosine_over: Literal["rest", "run"] = "rest"
    """rest: the cosine starts at the end of the warm-up; run: at step 0, hidden by the warm-up until that ends
    (published stage 1, Q8)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the two moments (paper: 0.9, 0.95 MAE; 0.9, 0.999 elsewhere)."""
    weight_decay: float = 0.05
    """Decoupled weight decay of matrices (paper: 0.05 MAE, 1e-4 elsewhere)."""
    decay_vectors: bool = False
    """Decay the mask token and the shares of an average too, as published (Q10, Q7); biases and norms never are."""
    layer_decay: float | None = None
    """Ratio between the rates of a layer and the next; None: one rate for all (paper: 0.75 in Align and FT)."""
    decay_head: bool = False
    """Count layer_decay from 1 at the heads, as published (Q6): heads and final norm learn at layer_decay times the rate
    and the last block at its square. By default the heads learn at the full rate, as in BEiT and timm."""
    clip_grad: float | None = None
    """Maximum norm of the whole gradient; None: not clipped (paper)."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "optim.", "epochs", "reference_batch")
        require_at_least(0, self, "optim.", "peak_lr", "warmup_lr", "final_lr", "weight_decay")
        fraction = self.warmup_fraction
        require(0 <= fraction < 1, f"optim.warmup_fraction is {fraction}; it must be at least 0 and below 1")
        starts = 0 < self.cosine_start <= 1
        require(starts, f"optim.cosine_start is {self.cosine_start}; it must be above 0 and at most 1")
        require(
            all(0 <= b < 1 for b in self.betas), f"optim.betas are {self.betas}; both must be at least 0 and below 1"
        )
        fits = self.layer_decay is None or 0 < self.layer_decay <= 1
        require(fits, f"optim.layer_decay is {self.layer_decay}; it must be above 0 and at most 1, or None")
        clips = self.clip_grad is None or self.clip_grad > 0
        require(clips, f"optim.clip_grad is {self.clip_grad}; it must be above 0, or None")
