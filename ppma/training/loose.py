"""Describe weights that come from no run: folders of `ppma convert`, `ppma average` and `ppma export`, and single files.

weights, state.json or export.json if there is one  ->  shapes of the tensors  ->  RunConfig, label spaces

The tensors give width, depth, patch and classes. Heads, frames and size are in the JSON under `vit`; without it they are
those of every published video ViT: heads of 64 channels, 16 frames of 224 pixels.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ppma.config.errors import InputError, reading
from ppma.config.loader import LoaderConfig
from ppma.config.model import ClassifierConfig, MAEConfig, ViTConfig
from ppma.config.records import restore
from ppma.config.run import RunConfig
from ppma.models.classify import Classifier
from ppma.models.vit import Encoder
from ppma.training import checkpoint

EXPORT = "export.json"
"""What `ppma export` writes about a model, next to its weights."""
HEAD_CHANNELS = 64

Shapes = Mapping[str, tuple[int, ...]]


def describe(weights: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Return a config for weights, and what the training step's state.json holds of a run: the label spaces.

    Raises:
        InputError: They are not of a video ViT, or what is written about them is damaged.
    """
    with checkpoint.open_weights(weights) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    about: dict[str, Any] = {}
    for note in (weights.with_name(checkpoint.STATE), weights.with_name(EXPORT)):
        if note.is_file():
            with reading(note, "what ppma writes about a model"):
                about |= json.loads(note.read_text(encoding="utf-8"))
    with reading(weights, "a video ViT"):
        vit = restore(ViTConfig, about["vit"], "vit") if "vit" in about else _vit(shapes)
        spaces = about.get("label_spaces") or _label_spaces(shapes)
        config = RunConfig(
            recipe=about.get("recipe", "converted"), phase="classify" if "fc_norm.weight" in shapes else "mae",
            sources=("none",), run_dir=weights.parent, vit=vit, mae=_mae(shapes),
            classifier=ClassifierConfig(shared_head="head.weight" in shapes),
            loader=LoaderConfig(frames=vit.frames, size=vit.size, short_side=vit.size),
        )  # fmt: skip
    return config, {"label_spaces": spaces}


def _vit(shapes: Shapes) -> ViTConfig:
    patch = shapes.get("patch_embed.proj.weight", ())
    if len(patch) != 5:
        found = f"embeds pictures, with weights of shape {patch}" if patch else "has no patch_embed.proj.weight"
        raise InputError(f"is no video ViT of ppma: it {found}; `ppma convert --from PROJECT` converts other models")
    width, hidden = patch[0], shapes.get("blocks.0.mlp.fc1.weight", (0,))[0]
    if width % HEAD_CHANNELS:
        raise InputError(f"has width {width}, whose number of heads is not known; give the folder of its run")
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    t, h, w = patch[2:]
    return ViTConfig(width=width, depth=depth, heads=width // HEAD_CHANNELS, mlp_ratio=hidden / width, patch=(t, h, w))


def _mae(shapes: Shapes) -> MAEConfig:
    width = shapes.get("decoder.embed.weight", (0,))[0]
    depth = len({name.split(".")[2] for name in shapes if name.startswith("decoder.blocks.")})
    heads = max(1, width // HEAD_CHANNELS)
    return MAEConfig(decoder_width=width, decoder_depth=depth, decoder_heads=heads) if depth else MAEConfig()


def _label_spaces(shapes: Shapes) -> dict[str, int]:
    if "head.weight" in shapes:
        return {"classes": shapes["head.weight"][0]}
    found = {name.split(".")[1]: shape[0] for name, shape in shapes.items() if name.startswith("heads.")}
    return found or {"none": 1}  # of the head that `remove_missing` takes away


def remove_missing(model: Encoder, weights: Path) -> None:
    """Remove the parts of a model that its weights do not have: decoder, heads, final norm."""
    with checkpoint.open_weights(weights) as file:
        parts = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118 - no mapping
    for part in {name for name, _ in model.named_children()} - parts:
        if part in ("norm", "fc_norm"):
            setattr(model, part, nn.Identity())
        else:
            delattr(model, part)
    if isinstance(model, Classifier) and not {"head", "heads"} & parts:
        model.class_names = {}
