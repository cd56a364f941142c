"""Reimplement the published training step as the baseline of our benchmarks.

    clip_BCTHW float32, normalized (+ masked_BN bool, or label_B)  ->  loss

Its inefficiencies are kept on purpose, as in the published code: every patch is embedded and nine tenths of the tokens
are discarded; attention materializes its (N, N) scores and scales them; pixel head, target and squared error are
computed for all patches and masked afterwards; in stage 1 the activations of every block are recomputed in the backward
pass. It imports nothing from ppma. Its state dict has our names, and a test checks that both compute the same loss.
Source: the published PPMA code (NeurIPS 2023).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PATCH = (2, 16, 16)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def position_table(tokens: int, width: int) -> Tensor:
    """Return sinusoidal position embeddings, (1, N, D)."""
    angle = torch.arange(tokens)[:, None] / 10000 ** (2 * (torch.arange(width) // 2) / width).double()
    return torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos()).float()[None]


def normalized(frames_BTHWC: Tensor) -> Tensor:
    """Return frames as normalized float32 (B, C, T, H, W), as the published loader delivers them."""
    mean, std = (torch.tensor(v, device=frames_BTHWC.device).view(3, 1, 1, 1) for v in (MEAN, STD))
    return (frames_BTHWC.movedim(-1, 1).float() / 255 - mean) / std


class Attention(nn.Module):
    """Attention that keeps three (B, heads, N, N) tensors for the backward pass."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * (D // self.heads) ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(B, N, D))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(mlp_ratio * width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Trunk(nn.Module):
    """Conv3d patch embedding, positions and blocks; with `recompute` only the input of each block is kept."""

    def __init__(self, *, width: int, depth: int, heads: int, mlp_ratio: float, tokens: int, recompute: bool) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv3d(3, width, kernel_size=PATCH, stride=PATCH)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.recompute = recompute
        self.register_buffer("position_1ND", position_table(tokens, width), persistent=False)

    def embed(self, clip_BCTHW: Tensor) -> Tensor:
        """Embed every patch, (B, N, D)."""
        return self.patch_embed.proj(clip_BCTHW).flatten(2).transpose(1, 2) + self.position_1ND

    def run(self, x: Tensor, blocks: nn.ModuleList) -> Tensor:
        """Run the blocks in order."""
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return x


class PublishedMAE(Trunk):
    """Stage 1."""

    def __init__(self, *, decoder_width: int, decoder_depth: int, decoder_heads: int, **trunk: float) -> None:
        super().__init__(**trunk)
        width, mlp_ratio = trunk["width"], trunk["mlp_ratio"]
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder = nn.Module()
        self.decoder.mask_token = nn.Parameter(torch.zeros(width))
        self.decoder.embed = nn.Linear(width, decoder_width)
        blocks = (Block(decoder_width, decoder_heads, mlp_ratio) for _ in range(decoder_depth))
        self.decoder.blocks = nn.ModuleList(blocks)
        self.decoder.norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.decoder.head = nn.Linear(decoder_width, 3 * PATCH[0] * PATCH[1] * PATCH[2])

    def forward(self, clip_BCTHW: Tensor, masked_BN: Tensor) -> Tensor:
        """Return the loss. Every row of `masked_BN` has the same number of True."""
        B, N = masked_BN.shape
        everything = self.embed(clip_BCTHW)
        seen = self.norm(self.run(everything[~masked_BN].view(B, -1, everything.shape[2]), self.blocks))
        table = self.decoder.mask_token.to(seen.dtype).repeat(B, N, 1)
        table[~masked_BN] = seen.flatten(0, 1)
        x = self.run(self.decoder.embed(table + self.position_1ND), self.decoder.blocks)
        prediction = self.decoder.head(self.decoder.norm(x))
        error_BN = ((prediction - patch_targets(clip_BCTHW)) ** 2).mean(dim=-1)
        return (error_BN * masked_BN).sum() / masked_BN.sum()


@torch.no_grad()
def patch_targets(clip_BCTHW: Tensor) -> Tensor:
    """Return the targets of all patches, (B, N, P): pixels in [0, 1], normalized per patch and color, P ordered (t, h,
    w, c)."""
    mean, std = (torch.tensor(v, device=clip_BCTHW.device).view(3, 1, 1, 1) for v in (MEAN, STD))
    B, C, *sides = clip_BCTHW.shape
    (nt, t), (nh, h), (nw, w) = ((side // step, step) for side, step in zip(sides, PATCH, strict=True))
    cells = (clip_BCTHW * std + mean).view(B, C, nt, t, nh, h, nw, w).permute(0, 2, 4, 6, 3, 5, 7, 1)
    pixels = cells.reshape(B, nt * nh * nw, t * h * w, C)
    return ((pixels - pixels.mean(2, keepdim=True)) / (pixels.var(2, keepdim=True) + 1e-6).sqrt()).flatten(2)


class PublishedClassifier(Trunk):
    """Stage 2 without mixing: mean pool, norm, one head."""

    def __init__(self, *, classes: int, **trunk: float) -> None:
        super().__init__(**trunk)
        self.fc_norm = nn.LayerNorm(trunk["width"], eps=1e-6)
        self.head = nn.Linear(trunk["width"], classes)

    def forward(self, clip_BCTHW: Tensor, label_B: Tensor) -> Tensor:
        """Return the cross-entropy loss with label smoothing 0.1."""
        tokens = self.run(self.embed(clip_BCTHW), self.blocks)
        return F.cross_entropy(self.head(self.fc_norm(tokens.mean(dim=1))).float(), label_B, label_smoothing=0.1)
