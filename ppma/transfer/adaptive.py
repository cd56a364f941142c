"""Adaptive averaging: a classifier on the mean of several encoders, whose shares are learned with the head (a baseline of the paper).

    frozen encoders on disk (M)  ->  softmax(mixing_MG) x tensors  ->  the mixed trunk, in place  ->  mean, fc_norm, head  ->  loss
    gradient of a mixed tensor   ->  its product with the same tensor of each encoder  ->  gradient of M shares; then it is dropped

In memory is the mixed trunk alone, in the model's own parameters, and the gradient of one tensor at a time: the encoders stay in their
mapped files, from which the kernel reads what is asked for. The shares are one for each model, or one for each model and tensor; they are
equal at the start. Source: Zhong et al. (NeurIPS 2023), "adaptive averaging".
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint as recomputed

from ppma.config.model import ClassifierConfig, ViTConfig
from ppma.config.protocols import Mixing
from ppma.models.classify import Classifier
from ppma.models.vit import TRUNK, compute_dtype
from ppma.training import checkpoint
from ppma.transfer.average import check_configs, encoder_tensors, shares

MIXING = "mixing"
"""Name of the learned parameter in a checkpoint: M models x G groups in a row, so that it is not decayed."""


class Sources:
    """The encoders, in their files. InputError where they are not of one shape, or not of this model's."""

    def __init__(self, models: Sequence[Path], own: Mapping[str, Tensor]) -> None:
        shares((), len(models))  # two or more
        check_configs(models)
        self.models = tuple(models)
        self._files = [checkpoint.open_weights(model) for model in models]
        self._all = encoder_tensors(self._files, self.models)
        self.names = [name for name in self._all if name.startswith(TRUNK)]
        shapes = {name: self._files[0].get_slice(name).get_shape() for name in self.names}
        wanted = {name: tensor for name, tensor in own.items() if name.startswith(TRUNK)}
        checkpoint.check_fits(
            wanted, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, models[0]
        )

    def tensors(self, name: str, like: Tensor) -> Iterator[Tensor]:
        """That tensor of each model, one at a time, on the device and in the type of `like`."""
        for file in self._files:
            yield file.get_tensor(name).to(like.device, like.dtype)

    def norm(self) -> dict[str, Tensor]:
        """The mean final LayerNorm of all models; empty where they have none in common."""
        names = [name for name in self._all if not name.startswith(TRUNK)]
        means = {name: torch.stack(list(self.tensors(name, torch.zeros(0)))).mean(dim=0) for name in names}
        return {name.rpartition(".")[2]: mean for name, mean in means.items()}


class _Mixed(torch.autograd.Function):
    """One tensor of the trunk as a function of the shares of the models."""

    @staticmethod
    def forward(ctx: Any, share_M: Tensor, sources: Sources, name: str, place: Tensor) -> Tensor:  # type: ignore[override]
        """Write the mixture into `place`, the storage of the parameter of that name, and return it as a tensor with a gradient."""
        ctx.sources, ctx.name = sources, name
        place.zero_()
        for share, source in zip(share_M, sources.tensors(name, place)):
            place.addcmul_(source, share)
        return place.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        """d loss / d share of a model is the product of the tensor's gradient with that model's tensor."""
        flat = gradient.flatten()
        products = [flat @ source.flatten() for source in ctx.sources.tensors(ctx.name, gradient)]
        return torch.stack(products), None, None, None


class AdaptiveClassifier(Classifier):
    """A classifier whose trunk is mixed anew in every training step. Learns the shares, `fc_norm` and the heads.

    A step is one forward pass and its backward pass: the next forward pass writes over the trunk that the former one used.
    """

    def __init__(
        self, vit: ViTConfig, label_spaces: Mapping[str, int], classifier: ClassifierConfig, *, models: Sequence[Path],
        per: Mixing = "model", source_spaces: Sequence[str] | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(vit, label_spaces, classifier, source_spaces=source_spaces, seed=seed)
        self.sources = Sources(models, self.state_dict())
        self._group = {name: g if per == "tensor" else 0 for g, name in enumerate(self.sources.names)}
        self.mixing = nn.Parameter(torch.zeros(len(models) * (max(self._group.values()) + 1)))
        for name, parameter in self.named_parameters():
            if name.startswith(TRUNK):
                parameter.requires_grad_(False)
        if self.classifier.keep_norm and (norm := self.sources.norm()):
            self.fc_norm.load_state_dict(norm)
        self.mix()
        self.register_state_dict_pre_hook(lambda module, *_: module.mix())

    def shares(self) -> Tensor:
        """(M, G) shares, which sum to 1 over the models."""
        return self.mixing.view(len(self.sources.models), -1).softmax(dim=0)

    @torch.no_grad()
    def mix(self) -> None:
        """Bring the trunk to what the shares say now."""
        for prefix in TRUNK:
            self._mixed(prefix, self.shares())

    def train(self, mode: bool = True) -> "AdaptiveClassifier":
        """Also mix when training ends: the last step moved the shares away from the last mixture."""
        super().train(mode)
        if not mode:
            self.mix()
        return self

    def _mixed(self, prefix: str, share_MG: Tensor) -> dict[str, Tensor]:
        """The parameters of a module of the trunk, by their names in it, as functions of the shares."""
        return {
            name.removeprefix(prefix): _Mixed.apply(
                share_MG[:, self._group[name]], self.sources, name, self.get_parameter(name).data
            )
            for name in self.sources.names
            if name.startswith(prefix)
        }

    def tokens(self, patches_BVP: Tensor, key_B: Tensor | None, idx_BV: Tensor | None = None) -> Tensor:
        """As the classifier's; in a training step through the mixture, module by module."""
        if not (self.training and torch.is_grad_enabled()):
            return super().tokens(patches_BVP, key_B, idx_BV)
        share_MG = self.shares()

        def through(prefix: str, module: nn.Module, *inputs: Tensor | None) -> Tensor:
            return functional_call(module, self._mixed(prefix, share_MG), inputs)

        x_BVD = through("patch_embed.", self.patch_embed, patches_BVP) + self.positions(idx_BV)
        scale_L2B, dtype = self.drop_path(key_B), x_BVD.dtype
        if self.config.residual == "autocast":
            x_BVD = x_BVD.to(compute_dtype(self.patch_embed.proj.weight))
        for layer, block in enumerate(self.blocks):
            inputs = (f"blocks.{layer}.", block, x_BVD, None if scale_L2B is None else scale_L2B[layer])
            if self.config.recompute:
                x_BVD = recomputed(through, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BVD = through(*inputs)
        return x_BVD.to(dtype)

    def facts(self) -> dict[str, Any]:
        """The shares, for the run's files: of each model the mean over the tensors, the least and the most."""
        share_MG = self.shares().detach().cpu()
        return {
            "mixing": [
                {
                    "model": str(model),
                    "share": float(of_G.mean()),
                    "least": float(of_G.min()),
                    "most": float(of_G.max()),
                }
                for model, of_G in zip(self.sources.models, share_MG)
            ]
        }
