"""Stage 1: a masked autoencoder on video.

    frames_BTHWC uint8, key_B  ->  visible_idx_BV, masked_idx_BM  ->  tokens_BVD  ->  prediction_BMP  ->  loss

Nine tenths of the patches are masked, and only the visible ones are normalized and embedded. The decoder sees all
positions, or with mae.decoder_share a share of the masked ones, and its head is applied to masked positions only.
Shapes, initialization and loss: PPMA (NeurIPS 2023), after VideoMAE.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ppma.config.errors import InputError
from ppma.config.model import MAEConfig, ViTConfig
from ppma.kernels.pixel_loss import patch_moments, pixel_loss
from ppma.kernels.reference import paste, patch_targets
from ppma.models.masking import masked_count, random_masking, running_cell, target_count
from ppma.models.vit import (
    Block,
    Encoder,
    initialize_linear,
    layer_norm,
    sinusoid_table,
    through_blocks,
    weight_generator,
)

__all__ = ["Decoder", "MAEConfig", "MaskedAutoencoder", "Reconstruction"]

Statistics = Literal["visible", "target"]


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Clips with values in [0, 1], for pictures."""

    masked_BTHWC: Tensor
    """Input of the encoder, with masked patches gray."""
    prediction_BTHWC: Tensor
    """Predicted masked patches and original visible ones; not clipped."""
    uses_hidden_statistics: bool
    """True if masked patches take brightness and contrast from the ground truth, as a caption must then say."""


class Decoder(nn.Module):
    """Puts a learned token at the masked positions and predicts their pixels."""

    def __init__(self, vit: ViTConfig, mae: MAEConfig) -> None:
        super().__init__()
        self.config = vit
        after = mae.decoder_positions == "after"
        # one axis, so no weight decay, as in VideoMAE
        self.mask_token = nn.Parameter(torch.zeros(mae.decoder_width if after else vit.width))
        self.embed = nn.Linear(vit.width, mae.decoder_width, bias=not after)
        block = (mae.decoder_width, mae.decoder_heads, vit.mlp_ratio, vit.norm_eps)
        self.blocks = nn.ModuleList(Block(*block) for _ in range(mae.decoder_depth))
        self.norm = layer_norm(mae.decoder_width, vit.head_norm_eps)
        self.head = nn.Linear(mae.decoder_width, vit.patch_values)
        own_table = sinusoid_table(vit.tokens, mae.decoder_width) if after else None
        self.register_buffer("position_NE", own_table, persistent=False)
        self.position_NE: Tensor | None

    def initialize(self, generator: torch.Generator) -> None:
        """Initialize weights with Xavier uniform, the pixel head with truncated normal 0.02, and biases with 0."""
        initialize_linear(self.embed, "xavier", generator)
        initialize_linear(self.blocks, "xavier", generator)
        initialize_linear(self.head, "truncated_normal", generator)

    def forward(
        self, tokens_BVD: Tensor, visible_idx_BV: Tensor, masked_idx_BM: Tensor, position_1ND: Tensor
    ) -> Tensor:
        """Return (B, M, P) predictions for the masked tokens, P in the order (t, h, w, c).

        Args:
            tokens_BVD: Encoded visible tokens.
            visible_idx_BV: Their positions.
            masked_idx_BM: Positions to predict. The decoder leaves out positions that are in neither.
            position_1ND: Position embeddings of all tokens.
        """
        if self.position_NE is None:
            hidden_1NE = self.embed(self.mask_token.to(position_1ND.dtype) + position_1ND)  # the same in every row
            seen_BVE = self.embed(tokens_BVD + position_1ND[0][visible_idx_BV])
        else:
            position_NE = self.position_NE.to(position_1ND.dtype)
            hidden_1NE = (self.mask_token.to(position_1ND.dtype) + position_NE)[None]
            seen_BVE = self.embed(tokens_BVD) + position_NE[visible_idx_BV]
        B, V, E = seen_BVE.shape
        if V + masked_idx_BM.shape[1] == position_1ND.shape[1]:
            x_BNE = hidden_1NE.expand(B, -1, -1).scatter(1, visible_idx_BV[..., None].expand(-1, -1, E), seen_BVE)
            x_BNE = through_blocks(self.blocks, x_BNE, self.config)
            x_BME = x_BNE.gather(1, masked_idx_BM[..., None].expand(-1, -1, E))
        else:
            hidden_BME = hidden_1NE.expand(B, -1, -1).gather(1, masked_idx_BM[..., None].expand(-1, -1, E))
            x_BXE = torch.cat([seen_BVE, hidden_BME], dim=1)
            x_BME = through_blocks(self.blocks, x_BXE, self.config)[:, V:]
        return self.head(self.norm(x_BME))


class MaskedAutoencoder(Encoder):
    """Encoder with its final `norm`, and the decoder; `forward` returns the loss of a training step."""

    def __init__(self, vit: ViTConfig, mae: MAEConfig, *, seed: int = 0) -> None:
        super().__init__(vit, init="xavier", seed=seed)
        self.mae = mae
        target_count(masked_count(vit.tokens, mae.mask_ratio), mae.decoder_share)
        self.norm = layer_norm(vit.width, vit.norm_eps)
        self.decoder: Decoder | None = None
        if mae.decoder_depth > 0:
            self.decoder = Decoder(vit, mae)
            self.decoder.initialize(weight_generator(seed, "tail"))

    def mask(self, key_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return (visible_idx_BV, masked_idx_BM) of rows with these keys."""
        return random_masking(key_B, self.config.tokens, self.mae.mask_ratio)

    def features(
        self, frames_BTHWC: Tensor, visible_idx_BV: Tensor | None = None, key_B: Tensor | None = None
    ) -> Tensor:
        """Return (B, V, D) encoder output after the final norm.

        Args:
            frames_BTHWC: uint8 clips.
            visible_idx_BV: Tokens to encode; None: all.
            key_B: Row keys, needed for drop path in training only.
        """
        tokens_BVD = self.embed(self.patches(frames_BTHWC, visible_idx_BV), visible_idx_BV)
        return self.norm(self.encode(tokens_BVD, self.drop_path(key_B)))

    def predict(self, frames_BTHWC: Tensor, key_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (prediction_BMP, visible_idx_BV, masked_idx_BM); predictions are normalized if the targets are."""
        visible_idx_BV, masked_idx_BM = self.mask(key_B)
        return self._predict(frames_BTHWC, key_B, visible_idx_BV, masked_idx_BM), visible_idx_BV, masked_idx_BM

    def _predict(self, frames_BTHWC: Tensor, key_B: Tensor, visible_idx_BV: Tensor, target_idx_BK: Tensor) -> Tensor:
        """Return (B, K, P) predictions of the target tokens from the visible ones."""
        if self.decoder is None:
            raise InputError("the model has no decoder (mae.decoder_depth 0): it gives features and cannot reconstruct")
        tokens_BVD = self.features(frames_BTHWC, visible_idx_BV, key_B)
        return self.decoder(tokens_BVD, visible_idx_BV, target_idx_BK, self.positions())

    def forward(self, frames_BTHWC: Tensor, key_B: Tensor) -> Tensor:
        """Return the loss, a scalar in float32 or float64."""
        frames_BTHWC, key_B = frames_BTHWC[self.rows], key_B[self.rows]
        visible_idx_BV, target_idx_BK = self.mask(key_B)
        if self.mae.decoder_share < 1:
            target_idx_BK = running_cell(key_B, target_idx_BK, self.config.grid, self.mae.decoder_share)
        prediction_BKP = self._predict(frames_BTHWC, key_B, visible_idx_BV, target_idx_BK)
        return pixel_loss(
            prediction_BKP, frames_BTHWC, target_idx_BK, patch=self.config.patch, normalize=self.mae.normalize_targets
        )

    @torch.no_grad()
    def reconstruct(self, frames_BTHWC: Tensor, key_B: Tensor, *, statistics: Statistics = "visible") -> Reconstruction:
        """Return the prediction as pixels.

        Args:
            frames_BTHWC: uint8 clips.
            key_B: Row keys, which decide the mask.
            statistics: Source of brightness and contrast, which a model of normalized targets does not predict.
                visible: estimate them from the visible patches (`statistics_from_visible`), without ground truth;
                    target: read them from the masked patches.
        """
        prediction_BMP, visible_idx_BV, masked_idx_BM = self.predict(frames_BTHWC, key_B)
        dtype = torch.promote_types(prediction_BMP.dtype, torch.float32)
        pixels_BMKC = prediction_BMP.to(dtype).unflatten(2, (-1, 3))
        if self.mae.normalize_targets:
            if statistics == "target":
                _, mean_BM1C, deviation_BM1C = patch_moments(frames_BTHWC, masked_idx_BM, self.config.patch, dtype)
            else:
                mean_BM1C, deviation_BM1C = self.statistics_from_visible(
                    frames_BTHWC, visible_idx_BV, masked_idx_BM, dtype
                )
            pixels_BMKC = pixels_BMKC * deviation_BM1C + mean_BM1C
        return Reconstruction(
            masked_BTHWC=self._fill(frames_BTHWC, masked_idx_BM, torch.full_like(pixels_BMKC, 0.5)),
            prediction_BTHWC=self._fill(frames_BTHWC, masked_idx_BM, pixels_BMKC),
            uses_hidden_statistics=self.mae.normalize_targets and statistics == "target",
        )

    def statistics_from_visible(
        self, frames_BTHWC: Tensor, visible_idx_BV: Tensor, masked_idx_BM: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of masked patches, both (B, M, 1, C), estimated from visible ones.

        Visible patches are weighted by 1 / distance^4, in patches of space and time. This steep weight uses few of the
        nearest patches, without seams where the nearest one changes.
        """
        _, mean_BV1C, deviation_BV1C = patch_moments(frames_BTHWC, visible_idx_BV, self.config.patch, dtype)
        axes = [torch.arange(side, device=frames_BTHWC.device, dtype=dtype) for side in self.config.grid]
        place_N3 = torch.cartesian_prod(*axes)
        weight_BMV = torch.cdist(place_N3[masked_idx_BM], place_N3[visible_idx_BV]) ** -4
        weight_BMV = weight_BMV / weight_BMV.sum(dim=2, keepdim=True)
        mean_BM1C, deviation_BM1C = ((weight_BMV @ x.squeeze(2)).unsqueeze(2) for x in (mean_BV1C, deviation_BV1C))
        return mean_BM1C, deviation_BM1C

    def _fill(self, frames_BTHWC: Tensor, masked_idx_BM: Tensor, pixels_BMKC: Tensor) -> Tensor:
        """Return the clip in [0, 1] with its masked patches replaced."""
        B, T, H, W, _ = frames_BTHWC.shape
        patch, dtype = self.config.patch, pixels_BMKC.dtype
        everything_BN = torch.arange(self.config.tokens, device=frames_BTHWC.device).expand(B, -1)
        patches_BNP = patch_targets(frames_BTHWC, everything_BN, patch=patch, normalize=False, dtype=dtype)
        index_BMP = masked_idx_BM[..., None].expand(-1, -1, patches_BNP.shape[2])
        return paste(patches_BNP.scatter(1, index_BMP, pixels_BMKC.flatten(2)), (T, H, W), patch)
