"""Align, fine-tuning and linear probes: the one model with labels.

    frames_BTHWC uint8, key_B, label_B, source_B, erase_B4  ->  erase, mix  ->  tokens  ->  mean, fc_norm, heads  ->  loss

A label space is a list of classes, whose names its head carries; sources with the same label space share its head. A
single head is named `head`, so that the state dict is that of timm's VisionTransformer with global_pool="avg"; several are
`heads.<label space>`. Source: PPMA (NeurIPS 2023).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppma.config.errors import InputError
from ppma.config.model import ClassifierConfig, ViTConfig
from ppma.kernels.erase import erase_
from ppma.kernels.reference import take
from ppma.models.masking import kept_count, kept_tokens
from ppma.models.mixing import draw_mix, mix, mixed_cross_entropy
from ppma.models.vit import TRUNK, Encoder, initialize_head, layer_norm, weight_generator

__all__ = ["Classifier", "ClassifierConfig", "LabelSpaces"]

LabelSpaces = Mapping[str, int | Sequence[str]]
"""{label space: the names of its classes by label, or only their number}."""


class Classifier(Encoder):
    """The encoder with mean pooling, `fc_norm` and heads; `forward` returns the loss of a training step.

    Args:
        vit: Shape of the encoder.
        label_spaces: Classes of each label space.
        classifier: Heads, mixing, freezing.
        source_spaces: Label space of each source, in the order of ClipBatch.source_B; None: the label spaces in their
            order.
        seed: Seed of the initial weights.
    """

    def __init__(
        self,
        vit: ViTConfig,
        label_spaces: LabelSpaces,
        classifier: ClassifierConfig | None = None,
        *,
        source_spaces: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(vit, init="truncated_normal", seed=seed)
        self.classifier = classifier or ClassifierConfig()
        kept_count(vit.tokens, self.classifier.token_drop)
        self.class_names = {
            space: ("",) * classes if isinstance(classes, int) else tuple(classes)
            for space, classes in label_spaces.items()
        }
        self.label_spaces = {space: len(names) for space, names in self.class_names.items()}
        self.fc_norm = layer_norm(vit.width, vit.head_norm_eps)
        self._add_heads(weight_generator(seed, "tail"))
        self.register_buffer("head_of_source", self._head_of_source(source_spaces), persistent=False)
        self.head_of_source: Tensor
        if self.classifier.freeze_encoder:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(not name.startswith(TRUNK))

    def _add_heads(self, generator: torch.Generator) -> None:
        """Add one head per label space, or a shared one with the classes of the largest."""
        reserved = {name for name in self.label_spaces if "." in name or not name or hasattr(nn.ModuleDict(), name)}
        if not self.label_spaces or reserved or min(self.label_spaces.values()) < 1:
            raise InputError(
                f"label spaces {self.label_spaces}: give at least one, each with a plain name and at least one class"
            )

        def head(classes: int) -> nn.Linear:
            return initialize_head(nn.Linear(self.config.width, classes), generator)

        if len(self.label_spaces) == 1 or self.classifier.shared_head:
            self.head = head(max(self.label_spaces.values()))
        else:
            self.heads = nn.ModuleDict({name: head(classes) for name, classes in self.label_spaces.items()})

    def _head_of_source(self, source_spaces: Sequence[str] | None) -> Tensor:
        """Return the int64 index into `logits_of_heads` of each source."""
        spaces = list(self.label_spaces)
        for name in source_spaces or ():
            self._space(name)
        if not hasattr(self, "heads"):
            return torch.zeros(len(source_spaces or spaces), dtype=torch.int64)
        return torch.tensor([spaces.index(name) for name in source_spaces or spaces])

    def _space(self, name: str) -> str:
        if name not in self.label_spaces:
            raise InputError(f"no label space {name!r}; there are {', '.join(self.label_spaces)}")
        return name

    def facts(self) -> dict[str, Any]:
        """Return results of the training other than weights; subclasses add to it."""
        return {}

    def features(self, frames_BTHWC: Tensor, key_B: Tensor | None = None) -> Tensor:
        """Return (B, D) pooled tokens after `fc_norm`; `key_B` is needed for drop path in training only."""
        return self.final_norm(self.pool(self.tokens(self.patches(frames_BTHWC), key_B)))

    def final_norm(self, pooled_BD: Tensor) -> Tensor:
        """Return pooled tokens after `fc_norm`."""
        return self.fc_norm(pooled_BD)

    def logits_of_heads(self, features_BD: Tensor) -> list[Tensor]:
        """Return the (B, K) logits of every head, in the order of the label spaces; of one head if it is shared."""
        heads = list(self.heads.values()) if hasattr(self, "heads") else [self.head]
        return [head(features_BD) for head in heads]

    def logits_of_space(self, pooled_BD: Tensor, space: str) -> Tensor:
        """Return (..., K) logits of one label space from pooled (..., D) tokens, before `fc_norm`."""
        head = self.heads[space] if hasattr(self, "heads") else self.head
        return head(self.fc_norm(pooled_BD))[..., : self.label_spaces[space]]

    def logits(self, frames_BTHWC: Tensor, space: str | None = None) -> Tensor:
        """Return (B, K) logits of one label space, which None means if there is only one."""
        if space is None and len(self.label_spaces) > 1:
            raise InputError(f"name a label space; there are {', '.join(self.label_spaces)}")
        space = self._space(space or next(iter(self.label_spaces)))
        return self.logits_of_space(self.pool(self.tokens(self.patches(frames_BTHWC), None)), space)

    def forward(
        self, frames_BTHWC: Tensor, key_B: Tensor, label_B: Tensor, source_B: Tensor, erase_B4: Tensor | None = None
    ) -> Tensor:
        """Return the loss, a scalar in float32 or float64; in evaluation mode without erasing, mixing and smoothing.

        Args:
            frames_BTHWC: uint8 clips.
            key_B: Row keys of all random numbers.
            label_B: Labels in the label space of each row's source.
            source_B: Source of each row.
            erase_B4: Box to erase in each row (see `ppma.kernels.erase`); None: nothing is erased.
        """
        mixing, head_B, lam_B = self.classifier.mix, self.head_of_source[source_B], None
        idx_BV = None
        if self.training and self.classifier.token_drop > 0:
            idx_BV = kept_tokens(key_B, self.config.tokens, self.classifier.token_drop)
        if self.training and (mixing.mixes or erase_B4 is not None):
            patches_BNP = self.patches(frames_BTHWC, dtype=self.patch_embed.proj.weight.dtype)
            if erase_B4 is not None:
                erase_(patches_BNP, erase_B4, key_B, grid=self.config.grid, patch=self.config.patch)
            if mixing.mixes:
                draw = draw_mix(key_B, mixing, self.config.size, self.config.size)
                patches_BNP, lam_B = mix(patches_BNP, draw, mixing.group, self.config), draw.lam_B
            patches_BVP = patches_BNP if idx_BV is None else take(patches_BNP, idx_BV)
        else:
            patches_BVP = self.patches(frames_BTHWC, idx_BV)
        rows = self.rows
        patches_BVP, key_B, idx_BV = patches_BVP[rows], key_B[rows], None if idx_BV is None else idx_BV[rows]
        logits = self.logits_of_heads(self.final_norm(self.pool(self.tokens(patches_BVP, key_B, idx_BV))))
        smoothing = mixing.smoothing if self.training else 0.0
        return mixed_cross_entropy(
            logits, label_B, head_B, smoothing=smoothing, lam_B=lam_B, group=mixing.group, rows=rows
        )
