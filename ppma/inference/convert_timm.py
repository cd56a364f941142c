"""Encoders of timm in our model: by file or by name, where their shapes fit.

    a state dict under timm's names, which are ours  ->  every tensor accounted for  ->  our tensors

Ours is a video ViT with a Conv3d embedding, fixed positions and no class token. timm's own ViTs embed single pictures and learn their
positions: they make another model and are refused with the reason, before anything is fetched. What fits are the models that
`ppma.models.timm_models` registers, trained or fine-tuned elsewhere with timm.
"""

from pathlib import Path

import torch
from torch import Tensor

from ppma.config.errors import InputError

Weights = dict[str, Tensor]


def check_embedding(weights: Weights, what: str) -> None:
    """InputError unless the model embeds clips as ours does."""
    name = "patch_embed.proj.weight"
    if name not in weights:
        raise InputError(f"{what} is no vision transformer of timm: it has no {name}")
    if weights[name].ndim != 5:
        shape = tuple(weights[name].shape)
        raise InputError(
            f"{what} embeds single pictures ({name} has shape {shape}), and our encoder clips (five axes, time among them): "
            "its weights do not fit; take a video model, such as VideoMAE with --from videomae or --from huggingface"
        )


def load_by_name(name: str) -> Weights:
    """The released weights of a timm model; InputError where there is no such model, where it does not fit, or where none are to be had."""
    import ppma.models.timm_models  # noqa: F401  # registers ours
    from ppma.models.torchvision_shim import timm

    if not timm.is_model(name):
        raise InputError(f"{name}: no such file, and timm has no model of that name")
    with torch.device("meta"):  # shapes only
        shapes = timm.create_model(name).state_dict()
    check_embedding(shapes, f"timm's {name}")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (RuntimeError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"timm cannot give the weights of {name}: {first}; fetch the file and give its path") from None


def is_name(source: Path) -> bool:
    """Whether a source is meant as the name of a timm model: no file, and nothing that looks like a path to one."""
    return (
        not source.exists() and len(source.parts) == 1 and source.suffix not in (".pth", ".pt", ".bin", ".safetensors")
    )
