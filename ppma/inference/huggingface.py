"""A folder that `from_pretrained` and pipeline("video-classification") of transformers read.

    FinishedRun  ->  config.json, preprocessor_config.json, model.safetensors

transformers computes the same function with one difference: the LayerNorm before a head has an epsilon of 1e-5 there, and
no setting. A model with another vit.head_norm_eps gives other outputs; `difference` measures by how much.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppma.config.errors import InputError, require
from ppma.config.model import PIXEL_MEAN, PIXEL_STD
from ppma.inference.layouts import Weights, write_as
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.training import checkpoint
from ppma.training.run import FinishedRun

HEAD_NORM_EPS = 1e-5
"""Epsilon of `fc_norm` and of the decoder's last LayerNorm in transformers."""


def one_head(weights: Weights, run: FinishedRun, space: str | None) -> tuple[Weights, list[str]]:
    """Return the weights with one head at most, and the names of its classes.

    Args:
        weights: Our tensors.
        run: Their run.
        space: The label space whose head to keep; None where there is one.

    Raises:
        InputError: There are several label spaces and `space` names none of them.
    """
    spaces = run.class_names
    if not spaces:
        require(space is None, f"--space {space}: a stage 1 run has no head")
        return weights, []
    if space is None and len(spaces) == 1:
        space = next(iter(spaces))
    if space not in spaces:
        raise InputError(f"--space is {space}; the run has the label spaces {', '.join(spaces)}: choose one")
    renamed = {name.replace(f"heads.{space}.", "head."): tensor for name, tensor in weights.items()}
    kept = {name: tensor for name, tensor in renamed.items() if not name.startswith("heads.")}
    names = [*spaces[space], *[""] * (len(kept["head.bias"]) - len(spaces[space]))]
    return kept, [name or f"LABEL_{label}" for label, name in enumerate(names)]


def config_of(run: FinishedRun, weights: Weights, classes: list[str]) -> dict[str, Any]:
    """Return the config.json of a run.

    Args:
        run: The run.
        weights: Its tensors under the names of transformers.
        classes: Class names by label; empty without a head.
    """
    vit, mae = run.config.vit, run.config.mae
    require(vit.patch[1] == vit.patch[2], f"vit.patch is {vit.patch}; transformers takes square patches only")
    decodes = "mask_token" in weights and "decoder.head.weight" in weights
    kind = "ForVideoClassification" if classes else "ForPreTraining" if decodes else "Model"
    config: dict[str, Any] = {
        "architectures": [f"VideoMAE{kind}"], "model_type": "videomae", "torch_dtype": "float32",
        "hidden_size": vit.width, "num_hidden_layers": vit.depth, "num_attention_heads": vit.heads,
        "intermediate_size": int(vit.width * vit.mlp_ratio), "hidden_act": "gelu", "layer_norm_eps": vit.norm_eps,
        "image_size": vit.size, "patch_size": vit.patch[1], "tubelet_size": vit.patch[0], "num_frames": vit.frames, "num_channels": 3,
        "qkv_bias": True, "use_mean_pooling": bool(classes), "norm_pix_loss": mae.normalize_targets,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02,
    }  # fmt: skip
    if classes:
        config["id2label"] = {str(label): name for label, name in enumerate(classes)}
        config["label2id"] = {name: label for label, name in enumerate(classes)}
    if decodes:
        config |= {
            "decoder_hidden_size": mae.decoder_width, "decoder_num_hidden_layers": mae.decoder_depth,
            "decoder_num_attention_heads": mae.decoder_heads, "decoder_intermediate_size": int(mae.decoder_width * vit.mlp_ratio),
        }  # fmt: skip
    return config


def preprocessor_of(run: FinishedRun) -> dict[str, Any]:
    """Return the preprocessor_config.json of a run: short side to the size of a clip, center square, normalized."""
    size = run.config.vit.size
    return {
        "image_processor_type": "VideoMAEImageProcessor", "do_resize": True, "size": {"shortest_edge": size}, "resample": 2,
        "do_center_crop": True, "crop_size": {"height": size, "width": size}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": PIXEL_MEAN, "image_std": PIXEL_STD,
    }  # fmt: skip


def write(folder: Path, run: FinishedRun, weights: Weights, space: str | None) -> None:
    """Write the three files of transformers into a folder.

    Args:
        folder: An empty folder.
        run: The run.
        weights: Its tensors under our names.
        space: Label space whose head to write.
    """
    kept, classes = one_head(weights, run, space)
    theirs = write_as("huggingface", kept)
    for name, content in (("config", config_of(run, theirs, classes)), ("preprocessor_config", preprocessor_of(run))):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    checkpoint.save_tensors(folder / checkpoint.MODEL, theirs)


@torch.no_grad()
def difference(model: Classifier | MaskedAutoencoder, frames_BTHWC: Tensor) -> float:
    """Return how far the epsilon of transformers moves features or predicted pixels, relative to the largest value."""
    if isinstance(model, MaskedAutoencoder) and model.decoder is None:
        return 0.0
    twin = copy.deepcopy(model)
    norm = twin.fc_norm if isinstance(twin, Classifier) else twin.get_submodule("decoder.norm")
    norm.eps = HEAD_NORM_EPS  # type: ignore[assignment]
    outputs = []
    for one in (model, twin):
        if isinstance(one, Classifier):
            outputs.append(one.features(frames_BTHWC))
        else:
            outputs.append(one.predict(frames_BTHWC, torch.arange(len(frames_BTHWC)))[0])
    return float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())
