"""The video ViT of every phase, with timm's parameter names and our own blocks.

    frames_BTHWC uint8 (+ visible_idx_BV)  ->  patches_BVP  ->  tokens_BVD  ->  blocks  ->  tokens_BVD

`Encoder` is the trunk. `MaskedAutoencoder` (stage 1) and `Classifier` (everything with labels) subclass it, so their
state dicts hold the trunk under the names of timm's VisionTransformer: patch_embed.proj, blocks.i.{norm1, attn.qkv,
attn.proj, norm2, mlp.fc1, mlp.fc2}, then `norm` (stage 1) or `fc_norm` (mean pooling). Of timm's code the blocks use
`Mlp`, for its two layers. `timm_models` registers the classifier with timm, which can then create and load it.

B rows, N tokens of a clip, V of them visible, D token width, P values of a patch, L layers. Shapes: PPMA (NeurIPS
2023), VideoMAE.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppma.config.errors import InputError
from ppma.config.model import PIXEL_MEAN, PIXEL_STD, PRESETS, ViTConfig, preset
from ppma.kernels.attention import projected_attention
from ppma.kernels.gelu import linear_gelu
from ppma.kernels.patchify import patchify
from ppma.kernels.philox import DevicePurpose, uniform

__all__ = ["PRESETS", "Block", "Encoder", "ViTConfig", "preset"]

TRUNK = ("patch_embed.", "blocks.")
"""Prefixes of the parameters that all phases share."""
LinearInit = Literal["xavier", "truncated_normal"]


def sinusoid_table(positions: int, width: int) -> Tensor:
    """Return (N, D) float64 sine (even channels) and cosine position embeddings, base 10000."""
    position_N1 = torch.arange(positions, dtype=torch.float64)[:, None]
    column_D = torch.arange(width)
    angle_ND = position_N1 / 10000 ** (2 * (column_D // 2).double() / width)
    return torch.where(column_D % 2 == 0, angle_ND.sin(), angle_ND.cos())


def layer_norm(width: int, eps: float = 1e-6) -> nn.LayerNorm:
    """Return a LayerNorm with the epsilon of every ViT here."""
    return nn.LayerNorm(width, eps=eps)


def weight_generator(seed: int, part: Literal["trunk", "tail"]) -> torch.Generator:
    """Return the random generator of a part's initial weights.

    It runs on the CPU, so weights are the same on every rank and device, and trunks of one seed are equal under every
    tail.
    """
    return torch.Generator().manual_seed(2 * seed + (part == "tail"))


def initialize_head(head: nn.Linear, generator: torch.Generator) -> nn.Linear:
    """Initialize a classification head, weight normal with std 0.01 and bias 0, and return it."""
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    return head


def initialize_linear(module: nn.Module, init: LinearInit, generator: torch.Generator) -> None:
    """Initialize the weight of every Linear in a module, and set its bias to 0.

    Args:
        module: Module to search for Linear layers.
        init: xavier for stage 1, truncated_normal (std 0.02) for models with labels.
        generator: Random generator on the CPU.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            if init == "xavier":
                nn.init.xavier_uniform_(layer.weight, generator=generator)
            else:
                nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _add(x_BND: Tensor, branch_BND: Tensor, scale_B: Tensor | None) -> Tensor:
    return x_BND + (branch_BND if scale_B is None else branch_BND * scale_B[:, None, None].to(branch_BND.dtype))


class Attention(nn.Module):
    """Self-attention with a packed qkv projection; `ppma.kernels.attention` selects the backend."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.proj(projected_attention(x_BND, self.qkv.weight, self.qkv.bias, self.heads))


class Block(nn.Module):
    """Pre-norm transformer block: x + scale * branch(norm(x)) for attention, then for the MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, norm_eps: float = 1e-6) -> None:
        from ppma.models.torchvision_shim import timm  # takes 0.6 s, so commands without a model do not import it

        super().__init__()
        self.norm1 = layer_norm(width, norm_eps)
        self.attn = Attention(width, heads)
        self.norm2 = layer_norm(width, norm_eps)
        self.mlp = timm.layers.Mlp(width, int(width * mlp_ratio))

    def forward(self, x_BND: Tensor, scale_2B: Tensor | None = None) -> Tensor:
        """Return the tokens after the block; `scale_2B` holds drop-path factors of both branches (None: no drop
        path)."""
        attention_scale_B, mlp_scale_B = (None, None) if scale_2B is None else scale_2B.unbind(0)
        x_BND = _add(x_BND, self.attn(self.norm1(x_BND)), attention_scale_B)
        fc1 = self.mlp.fc1
        assert fc1.bias is not None
        hidden_BNF = linear_gelu(self.norm2(x_BND), fc1.weight, fc1.bias)
        return _add(x_BND, self.mlp.fc2(hidden_BNF), mlp_scale_B)


def through_blocks(
    blocks: Iterable[Callable[..., Tensor]], x_BND: Tensor, config: ViTConfig, scale_L2B: Tensor | None = None
) -> Tensor:
    """Return x_BND after all blocks, in its own type.

    Args:
        blocks: `Block`s of the encoder or the decoder.
        x_BND: Tokens.
        config: `recompute` and `residual` apply to the blocks.
        scale_L2B: Drop-path factors of each block and branch; None: no drop path.
    """
    dtype = x_BND.dtype
    if config.residual == "autocast":
        x_BND = x_BND.to(compute_dtype(x_BND))
    for layer, block in enumerate(blocks):
        scale_2B = None if scale_L2B is None else scale_L2B[layer]
        if config.recompute and torch.is_grad_enabled():
            # Blocks use none of torch's random generators, so there is no state to restore.
            x_BND = checkpoint(block, x_BND, scale_2B, use_reentrant=False, preserve_rng_state=False)
        else:
            x_BND = block(x_BND, scale_2B)
    return x_BND.to(dtype)


class PatchEmbed(nn.Module):
    """Patch embedding: a weight in the shape of a Conv3d, applied as one matrix product over patch values (c, t, h,
    w)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, config.width, kernel_size=config.patch, stride=config.patch)

    def initialize(self, generator: torch.Generator) -> None:
        """Initialize the flattened weight with Xavier uniform, and the bias uniformly within 1 / sqrt(patch values)."""
        nn.init.xavier_uniform_(
            self.proj.weight.detach().flatten(1), generator=generator
        )  # a view, initialized in place
        assert self.proj.bias is not None
        bound = self.proj.weight[0].numel() ** -0.5
        nn.init.uniform_(self.proj.bias, -bound, bound, generator=generator)

    def forward(self, patches_BVP: Tensor) -> Tensor:
        return F.linear(patches_BVP, self.proj.weight.flatten(1), self.proj.bias)


def drop_path_scale(key_B: Tensor, depth: int, rate: float, dtype: torch.dtype) -> Tensor:
    """Return (L, 2, B) drop-path factors: 0 with the layer's probability p, else 1 / (1 - p).

    Args:
        key_B: Row keys, which alone decide what is dropped.
        depth: Number of layers L. Layer l, branch b uses the random stream 2 l + b.
        rate: Probability at the last layer; it rises linearly from 0 at the first.
        dtype: Type of the result.
    """
    B, streams = len(key_B), 2 * depth
    stream_S = torch.arange(streams, device=key_B.device)
    u_SB = uniform(key_B.repeat(streams), DevicePurpose.DROP_PATH, 1, stream=stream_S.repeat_interleave(B)[:, None])
    keep_L11 = 1 - torch.linspace(0, rate, depth, device=key_B.device, dtype=torch.float64)[:, None, None]
    return ((u_SB.view(depth, 2, B) < keep_L11) / keep_L11).to(dtype)


def compute_dtype(operand: Tensor) -> torch.dtype:
    """Return the type that a matrix product with `operand` computes in: autocast's where it is on, else its own."""
    device = operand.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else operand.dtype


class Encoder(nn.Module):
    """The trunk: patch embedding, fixed position embeddings, blocks.

    Args:
        config: Shape.
        init: Initialization of the blocks.
        seed: Seed of the initial weights, which are the same on every rank and device.
    """

    before_features: tuple[str, ...] = TRUNK
    """Prefixes of the parameters that pooled features depend on."""
    rows: slice = slice(None)
    """Rows of a batch over which `forward` takes the loss; the other ranks that load the same rows take the rest."""

    def __init__(self, config: ViTConfig, *, init: LinearInit, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        block = (config.width, config.heads, config.mlp_ratio, config.norm_eps)
        self.blocks = nn.ModuleList(Block(*block) for _ in range(config.depth))
        # float64 serves models of any precision; not persistent, so that state dicts match timm's
        self.register_buffer("position_ND", sinusoid_table(config.tokens, config.width), persistent=False)
        self.position_ND: Tensor
        generator = weight_generator(seed, "trunk")
        self.patch_embed.initialize(generator)
        initialize_linear(self.blocks, init, generator)

    def check_frames(self, frames_THW: tuple[int, ...]) -> None:
        """Raise InputError unless a clip has the frames, height and width that the position embeddings are for."""
        wanted = (self.config.frames, self.config.size, self.config.size)
        if tuple(frames_THW) != wanted:
            raise InputError(
                f"a clip of {' x '.join(map(str, frames_THW))} (frames x height x width) does not fit this model of "
                f"{' x '.join(map(str, wanted))} in patches {self.config.patch}, {self.config.tokens} tokens"
            )

    def patches(
        self, frames_BTHWC: Tensor, idx_BV: Tensor | None = None, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return (B, V, P) normalized patch values.

        Args:
            frames_BTHWC: uint8 clips.
            idx_BV: Patches to take; None: all.
            dtype: Type of the result; None: the type that the patch embedding computes in.
        """
        self.check_frames(tuple(frames_BTHWC.shape[1:4]))
        dtype = dtype or compute_dtype(self.patch_embed.proj.weight)
        return patchify(frames_BTHWC, idx_BV, patch=self.config.patch, mean=PIXEL_MEAN, std=PIXEL_STD, dtype=dtype)

    def positions(self, idx_BV: Tensor | None = None) -> Tensor:
        """Return (B, V, D) position embeddings in the type of the weights, or all of them as (1, N, D) for None."""
        table_ND = self.position_ND.to(self.patch_embed.proj.weight.dtype)
        return table_ND[None] if idx_BV is None else table_ND[idx_BV]

    def embed(self, patches_BVP: Tensor, idx_BV: Tensor | None = None) -> Tensor:
        """Return (B, V, D) tokens with position embeddings, before the first block."""
        return self.patch_embed(patches_BVP) + self.positions(idx_BV)

    def drop_path(self, key_B: Tensor | None) -> Tensor | None:
        """Return (L, 2, B) drop-path factors of a training step; None in evaluation or at rate 0."""
        if not self.training or self.config.drop_path == 0:
            return None
        assert key_B is not None, "drop path in training needs key_B"
        dtype = self.patch_embed.proj.weight.dtype
        return drop_path_scale(key_B, self.config.depth, self.config.drop_path, dtype)

    def encode(self, tokens_BVD: Tensor, scale_L2B: Tensor | None = None) -> Tensor:
        """Return the tokens after all blocks, before the final norm."""
        return through_blocks(self.blocks, tokens_BVD, self.config, scale_L2B)

    def tokens(self, patches_BVP: Tensor, key_B: Tensor | None, idx_BV: Tensor | None = None) -> Tensor:
        """Return (B, V, D) encoded tokens of the patches at `idx_BV` (None: all), before the final norm."""
        return self.encode(self.embed(patches_BVP, idx_BV), self.drop_path(key_B))

    def pool(self, tokens_BVD: Tensor) -> Tensor:
        """Return (B, D) means over the tokens, before the final norm."""
        return tokens_BVD.mean(dim=1)
