"""Adaptive averaging: a classifier on the weighted mean of several encoders, whose weights are learned with the head (paper baseline).

    frozen encoders on disk (M)  ->  softmax(mixing_MG), one share per model, or per model and tensor  ->  sum of share x tensor,
    in place  ->  functional_call with the mixed parameters  ->  mean over tokens, fc_norm, head  ->  loss
    gradient of a mixed tensor  ->  its dot product with the same tensor of each encoder  ->  gradient of M shares

Memory does not grow with M, on a CPU or a GPU: the mixture is in the model's own parameters, and the encoders stay in their
memory-mapped files, from which one tensor at a time is read in the forward pass and again in the backward pass. All shares are equal at
the start. Source: Zhong et al. (NeurIPS 2023), "adaptive averaging".
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppma.config.errors import require
from ppma.config.model import ClassifierConfig, ViTConfig
from ppma.config.protocols import Mixing
from ppma.models.classify import Classifier, LabelSpaces
from ppma.models.vit import TRUNK, through_blocks
from ppma.training import checkpoint
from ppma.transfer.average import check_configs, encoder_tensors, mean_tensor, shares


class _Mixture(torch.autograd.Function):
    """A tensor of the trunk as a function of the shares. Autograd's own product would keep the tensors of all encoders."""

    @staticmethod
    def forward(ctx: Any, share_M: Tensor, read: Callable[[], Iterator[Tensor]], place: Tensor) -> Tensor:  # type: ignore[override]
        ctx.read = read
        place.zero_()
        for share, tensor in zip(share_M, read(), strict=True):
            place.addcmul_(tensor, share)
        return place.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        flat = gradient.flatten()
        return torch.stack([flat @ tensor.flatten() for tensor in ctx.read()]), None, None


class AdaptiveClassifier(Classifier):
    """A classifier that mixes its trunk in every training step and learns the shares, `fc_norm` and the heads.

    The trunk's own parameters are frozen and hold the mixture, which each forward pass in training writes again: run the
    backward pass before the shares change. Evaluation mode and the state dict see the current shares.
    """

    def __init__(
        self, vit: ViTConfig, label_spaces: LabelSpaces, classifier: ClassifierConfig, *, models: Sequence[Path],
        per: Mixing = "model", mix_norm: bool = False, source_spaces: Sequence[str] | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        """Open the encoders.

        Args:
            vit: Shape of the encoders.
            label_spaces: Classes of each label space.
            classifier: Heads.
            models: Two or more run folders, checkpoint folders or .safetensors files.
            per: What gets its own share: each model, or each tensor of each model.
            mix_norm: Mix `fc_norm` like the trunk; otherwise it is learned, and starts as the mean of those of the
                encoders where all have one.
            source_spaces: Label space of each source of the run.
            seed: Initializes the heads.

        Raises:
            InputError: The encoders differ in shape from each other or from `vit`, or `mix_norm` finds no `fc_norm`.
        """
        super().__init__(vit, label_spaces, classifier, source_spaces=source_spaces, seed=seed)
        equal = shares((), len(models))
        check_configs(models)
        self.models = tuple(models)
        self._files = [checkpoint.open_weights(model) for model in models]
        averaged = encoder_tensors(self._files, self.models)
        norms = [name for name in averaged if name.startswith("fc_norm.")]
        remedy = "average encoders that were trained with labels, or leave it out (--no-mix-norm)"
        require(bool(norms) or not mix_norm, f"--mix-norm: these encoders have no fc_norm; {remedy}")
        mixed = (*TRUNK, "fc_norm.") if mix_norm else TRUNK
        names = [name for name in averaged if name.startswith(mixed)]
        own: dict[str, Tensor] = {
            name: parameter for name, parameter in self.named_parameters() if name.startswith(mixed)
        }
        checkpoint.check_fits(own, {name: self._files[0].get_tensor(name) for name in names}, models[0])
        for parameter in own.values():
            parameter.requires_grad_(False)
        self._group = {name: number if per == "tensor" else 0 for number, name in enumerate(names)}
        self.mixing = nn.Parameter(torch.zeros(len(models) * len(set(self._group.values()))))
        if not mix_norm:
            norm = {name.rpartition(".")[2]: mean_tensor(name, self._files, equal) for name in norms}
            self.fc_norm.load_state_dict(norm, strict=False)
        self.mix()
        self.register_state_dict_pre_hook(lambda module, *_: module.mix())

    def shares(self) -> Tensor:
        """Return the (M, G) shares, which sum to 1 over the models."""
        return self.mixing.view(len(self.models), -1).softmax(dim=0)

    def _mixed(self, name: str, share_MG: Tensor) -> Tensor:
        """Write the mixture of a tensor of the trunk into its parameter; return it, differentiable in the shares."""
        own = self.get_parameter(name)

        def read() -> Iterator[Tensor]:
            return (file.get_tensor(name).to(own.device, own.dtype) for file in self._files)

        return _Mixture.apply(share_MG[:, self._group[name]], read, own.data)  # type: ignore[no-any-return]

    @torch.no_grad()
    def mix(self) -> None:
        """Set the trunk's parameters to the current mixture."""
        share_MG = self.shares()
        for name in self._group:
            self._mixed(name, share_MG)

    def train(self, mode: bool = True) -> "AdaptiveClassifier":
        """Switch the mode; evaluation sees the mixture of the newest shares."""
        super().train(mode)
        if not mode:
            self.mix()
        return self

    def tokens(self, patches_BVP: Tensor, key_B: Tensor | None, idx_BV: Tensor | None = None) -> Tensor:
        """Return the tokens of a Classifier; in a training step each module runs on its mixed parameters."""
        if not (self.training and torch.is_grad_enabled()):
            return super().tokens(patches_BVP, key_B, idx_BV)
        x_BVD = self._on_mixed("patch_embed.", self.patch_embed)(patches_BVP) + self.positions(idx_BV)
        blocks = [self._on_mixed(f"blocks.{layer}.", block) for layer, block in enumerate(self.blocks)]
        return through_blocks(blocks, x_BVD, self.config, self.drop_path(key_B))

    def final_norm(self, pooled_BD: Tensor) -> Tensor:
        """Return pooled tokens after `fc_norm`; in a training step after the mixed one, with `mix_norm`."""
        mixes = self.training and torch.is_grad_enabled()
        return self._on_mixed("fc_norm.", self.fc_norm)(pooled_BD) if mixes else super().final_norm(pooled_BD)

    def _on_mixed(self, prefix: str, module: nn.Module) -> Callable[..., Tensor]:
        """Return a module as a function that runs on the mixtures of those of its parameters that are mixed."""
        share_MG, names = self.shares(), [name for name in self._group if name.startswith(prefix)]

        def call(*inputs: Tensor | None) -> Tensor:  # mixes again where vit.recompute repeats a block
            parameters = {name.removeprefix(prefix): self._mixed(name, share_MG) for name in names}
            return functional_call(module, parameters, inputs)

        return call

    def facts(self) -> dict[str, Any]:
        """Return the shares for the run's files: of each model the mean, smallest and largest over the tensors."""
        share_MG = self.shares().detach().cpu()
        return {
            "mixing": [
                {"model": str(model), "share": float(of_G.mean()), "least": float(of_G.min()), "most": float(of_G.max())}
                for model, of_G in zip(self.models, share_MG)
            ]
        }  # fmt: skip
