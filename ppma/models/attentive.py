"""The attentive probe: a learned query attends to all tokens of a frozen encoder; a linear head classifies.

    tokens_BND  ->  norm  ->  keys, values; one query  ->  cross-attention, MLP  ->  fc_norm, head  ->  logits

Attention can find what a mean over the tokens averages out. Training uses cached tokens of unaugmented views; the test
runs the encoder on its own views. Source: V-JEPA (Bardes et al., 2024), with one query and one block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppma.config.errors import InputError
from ppma.config.model import ClassifierConfig, ViTConfig
from ppma.config.protocols import AttentiveConfig
from ppma.models.classify import Classifier, LabelSpaces
from ppma.models.vit import TRUNK, initialize_linear, layer_norm, weight_generator

POOLING = "pooling."


def cells_of(tokens_BND: Tensor, vit: ViTConfig, cells: tuple[int, int, int]) -> Tensor:
    """Return (B, N', D) averages over cells of (time, height, width) tokens; InputError if cells do not divide the
    grid."""
    if cells == (1, 1, 1):
        return tokens_BND
    (nt, nh, nw), (t, h, w) = vit.grid, cells
    if nt % t or nh % h or nw % w:
        raise InputError(f"attentive.cells {cells} do not divide the encoder's grid of {nt} x {nh} x {nw} tokens")
    grid = tokens_BND.reshape(len(tokens_BND), nt // t, t, nh // h, h, nw // w, w, -1)
    return grid.mean(dim=(2, 4, 6)).flatten(1, 3)


def normed_cells(tokens_BND: Tensor, vit: ViTConfig, cells: tuple[int, int, int]) -> Tensor:
    """Return the cells of `cells_of`, each normalized to mean 0 and variance 1: what is cached of a clip."""
    return F.layer_norm(cells_of(tokens_BND, vit, cells), tokens_BND.shape[-1:], eps=1e-6)


class AttentivePool(nn.Module):
    """Pools (B, N, D) normalized tokens to (B, D) by a cross-attention block with one learned query."""

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        from ppma.models.torchvision_shim import timm

        super().__init__()
        if width % heads:
            raise InputError(f"attentive.heads {heads} does not divide the encoder's width {width}")
        self.heads = heads
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02, generator=generator))
        self.norm1 = layer_norm(width)
        self.to_query = nn.Linear(width, width)
        self.to_key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = layer_norm(width)
        self.mlp = timm.layers.Mlp(width, 4 * width)
        initialize_linear(self, "truncated_normal", generator)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return the tokens gathered by the learned query, (B, D)."""
        B, _, D = tokens_BND.shape
        query_BHE = self.to_query(self.query).view(1, self.heads, 1, D // self.heads).expand(B, -1, -1, -1)
        key_value = self.to_key_value(self.norm1(tokens_BND)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        gathered_BHE = F.scaled_dot_product_attention(query_BHE, key_value[0], key_value[1])
        x_BD = self.query + self.proj(gathered_BHE.flatten(1))
        return x_BD + self.mlp(self.norm2(x_BD))


class AttentiveClassifier(Classifier):
    """A classifier with a frozen encoder that pools by attention."""

    before_features = (*TRUNK, POOLING)

    def __init__(
        self, vit: ViTConfig, label_spaces: LabelSpaces, classifier: ClassifierConfig, attentive: AttentiveConfig,
        *, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(vit, label_spaces, classifier, seed=seed)
        cells_of(torch.empty(1, vit.tokens, 1, device="meta"), vit, attentive.cells)  # refuse before the encoder's pass
        self.cells = attentive.cells
        self.pooling = AttentivePool(vit.width, attentive.heads, weight_generator(seed, "tail"))

    def pool(self, tokens_BVD: Tensor) -> Tensor:
        """Return (B, D) tokens pooled by attention, before `fc_norm`."""
        return self.pooling(normed_cells(tokens_BVD, self.config, self.cells))


class AttentiveProbe(AttentiveClassifier):
    """An AttentiveClassifier that trains on cached tokens; its checkpoints are the same."""

    def forward(self, tokens_BND: Tensor, label_B: Tensor) -> Tensor:  # type: ignore[override]  # kept tokens, not clips
        """Return the cross-entropy for (B, N, D) cached tokens, without mixing or smoothing."""
        (logits_BK,) = self.logits_of_heads(self.fc_norm(self.pooling(tokens_BND)))
        return F.cross_entropy(logits_BK, label_B)
