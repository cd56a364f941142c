"""`ppma convert`: make a run folder of a checkpoint of another project, which every command takes like a run of ours.

    file, folder or name  ->  open_foreign  ->  read_as: our names  ->  shape_of: what tensors and config.json say
        ->  OUT/{config.json, model.safetensors, state.json, lineage.json};  OUT/model_0, OUT/model_1, ... for an ensemble

The way back is `ppma export --to`.
"""

import logging
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from ppma.config.command import DONE, NewPath, parse
from ppma.config.errors import require
from ppma.config.loader import LoaderConfig
from ppma.config.model import MAEConfig, ViTConfig
from ppma.config.run import Phase, RunConfig
from ppma.inference.foreign import Foreign, is_name, load_by_name, open_foreign
from ppma.inference.layouts import FIRST_TOKEN, Format, Weights, layout_of, read_as, unwrapped
from ppma.loaders.sources.formats import read_classes
from ppma.training import checkpoint, lineage

log = logging.getLogger(__name__)

HEADS = {192: 3, 384: 6, 512: 8, 640: 8, 768: 12, 1024: 16, 1280: 16, 1408: 16}
"""Attention heads by width in VideoMAE v1 and v2, encoders and decoders; tensors do not show them."""
PPMA_DECODER_HEADS = 16
VIDEOMAE_WINDOW = 64 / 30
"""Seconds that VideoMAE's Kinetics models see: 16 frames, every fourth one at 30 frames per second."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Convert a checkpoint of PPMA, VideoMAE v1 or v2, Hugging Face or timm to a run folder, which every command takes.

    For example:
      ppma convert videomae_vitb.pth converted
      ppma convert models--MCG-NJU--videomae-base-finetuned-kinetics k400 --dataset kinetics400
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A .pth, .pt, .bin, .ckpt or .safetensors file; a folder of `save_pretrained` or of the Hugging Face cache; or the
    name of a timm model."""
    out: Annotated[NewPath, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """New folder."""
    from_: Annotated[Format | None, tyro.conf.arg(name="from")] = None
    """Layout to expect (default: any of them; the names of the tensors tell)."""
    dataset: str = "converted"
    """Data set whose classes the head has, for `ppma evaluate --dataset`."""
    classes: Path | None = None
    """Its class names, one per line by label (default: those of a folder of transformers, if it has any)."""
    frames: int | None = None
    """Frames per clip (default: what config.json says, else 16)."""
    size: int | None = None
    """Height and width of a clip in pixels (default: what config.json says, else 224)."""
    heads: int | None = None
    """Attention heads per block (default: what config.json says, else those of the published model of this width)."""
    decoder_heads: int | None = None
    """Attention heads per block of the decoder (default: likewise)."""
    window_seconds: float | None = None
    """Length of the window that a clip's frames are taken from (default: 2.7 for PPMA and timm, 64/30 for VideoMAE)."""


def shape_of(
    weights: Weights, config: dict[str, Any], options: ConvertOptions, kind: Format
) -> tuple[ViTConfig, MAEConfig]:
    """Return the shape of a converted model.

    Args:
        weights: Tensors under our names.
        config: config.json of transformers; empty without one.
        options: Replace what `config` says.
        kind: The layout that the tensors came from.

    Raises:
        InputError: The number of heads is unknown, or the shapes do not fit each other or our model.
    """
    embed, fc1 = weights["patch_embed.proj.weight"], weights["blocks.0.mlp.fc1.weight"]
    fits = embed.ndim == 5 and embed.shape[1] == 3 and fc1.ndim == 2
    require(fits, f"patch_embed.proj.weight has shape {tuple(embed.shape)}; it must be (width, 3, time, height, width)")
    width, patch = len(embed), tuple(embed.shape[2:])
    said = config.get("model_config", config)  # VideoMAE v2 nests it
    activation = said.get("hidden_act", "gelu")
    require(activation == "gelu", f"hidden_act is {activation}; our blocks use gelu")
    size = options.size or said.get("image_size") or said.get("img_size") or 224
    require(isinstance(size, int), f"image_size is {size}; clips of our model are square: one number")
    transformers = kind == "huggingface"
    vit = ViTConfig(
        width=width, depth=_depth(weights, "blocks."), mlp_ratio=_ratio(width, len(fc1)),
        heads=options.heads or said.get("num_attention_heads") or said.get("num_heads") or _heads(width, "--heads"),
        patch=(patch[0], patch[1], patch[2]), frames=options.frames or said.get("num_frames") or 16, size=size,
        norm_eps=said.get("layer_norm_eps", 1e-12 if transformers else 1e-6), head_norm_eps=1e-5 if transformers else 1e-6,
    )  # fmt: skip
    if "decoder.head.weight" not in weights:
        return vit, MAEConfig(decoder_depth=0)
    decoder_width, after = len(weights["decoder.norm.weight"]), "decoder.embed.bias" not in weights
    heads = options.decoder_heads or said.get("decoder_num_attention_heads")
    heads = heads or (_heads(decoder_width, "--decoder-heads") if after else PPMA_DECODER_HEADS)
    hidden, expected = len(weights["decoder.blocks.0.mlp.fc1.weight"]), int(decoder_width * vit.mlp_ratio)
    require(hidden == expected, f"the decoder's MLP is {hidden} wide; with the encoder's ratio it must be {expected}")
    return vit, MAEConfig(
        decoder_width=decoder_width, decoder_depth=_depth(weights, "decoder.blocks."), decoder_heads=heads,
        decoder_positions="after" if after else "before", normalize_targets=said.get("norm_pix_loss", True),
    )  # fmt: skip


def _depth(weights: Weights, prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


def _ratio(width: int, hidden: int) -> float:
    """Return the smallest ratio with int(width * ratio) == hidden."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _heads(width: int, flag: str) -> int:
    require(width in HEADS, f"the attention heads of a model of width {width} are unknown; give {flag}")
    return HEADS[width]


def class_names(weights: Weights, config: dict[str, Any], options: ConvertOptions) -> dict[str, int | list[str]]:
    """Return the label spaces of a converted classifier with their class names, or only their number of classes."""
    biases = [name for name in weights if name.startswith("heads.") and name.endswith("bias")]
    if biases:
        require(options.classes is None, f"--classes {options.classes}: the checkpoint has {len(biases)} heads")
        return {name.split(".")[1]: len(weights[name]) for name in biases}
    count = len(weights["head.weight"])
    unnamed = [f"LABEL_{label}" for label in range(count)]
    labels = {int(label): str(name) for label, name in (config.get("id2label") or {}).items()}
    names = [labels.get(label, name) for label, name in enumerate(unnamed)]
    if options.classes:
        names = read_classes(options.classes)
        require(len(names) == count, f"--classes {options.classes} has {len(names)} names, the head {count} classes")
    return {options.dataset: names if names != unnamed and len(set(names)) == count else count}


def _phase(weights: Weights) -> Phase | None:
    """Return the phase of a run that has these tensors; None for an encoder without its final norm or its head."""
    if "fc_norm.weight" in weights and any(name.startswith("head") for name in weights):
        return "classify"
    return "mae" if "norm.weight" in weights else None


def convert(foreign: Weights, source: Foreign, options: ConvertOptions, out: Path) -> None:
    """Write one model as a run folder.

    Args:
        foreign: Tensors under the names of their project.
        source: Where they are from.
        options: The flags.
        out: The folder to make.

    Raises:
        InputError: The model is of another architecture.
    """
    kind = layout_of(unwrapped(foreign))
    require(
        options.from_ in (None, kind), f"{source.file} has the layout {kind}, not {options.from_}; leave --from out"
    )
    weights = read_as(kind, foreign)
    phase = _phase(weights)
    pools = phase != "classify" or source.config.get("use_mean_pooling", True)
    require(pools, f"{source.file}: {FIRST_TOKEN}")
    vit, mae = shape_of(weights, source.config, options, kind)
    window = options.window_seconds or (VIDEOMAE_WINDOW if kind in ("videomae", "huggingface") else 2.7)
    state: dict[str, object] = {"converted_from": kind, "file": source.file.name}
    if phase == "classify":
        state["label_spaces"] = class_names(weights, source.config, options)
    config = RunConfig(
        recipe="convert", phase=phase or "classify", sources=(options.dataset,), vit=vit, mae=mae, batch=1,
        loader=LoaderConfig(frames=vit.frames, size=vit.size, short_side=max(vit.size, 256), window_seconds=window, views=1),
    )  # fmt: skip
    origin = lineage.unknown(f"converted from a file of {kind}, {source.file.name}")
    if (source.file.resolve().parent / lineage.FILE).is_file():
        origin = replace(lineage.read(source.file), weights_sha256="")
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save_weights(out, weights, state, config=config.to_json() if phase else "", lineage=origin)
    what = {
        "classify": "a classifier",
        "mae": f"a stage 1 model with {mae.decoder_depth} decoder blocks",
        None: "an encoder without its final norm or head, which only --init takes,",
    }[phase]
    log.info("%s: %s from %s, %d tensors", out, what, kind, len(weights))


def main(argv: list[str]) -> int:
    """Run `ppma convert`."""
    options = parse(ConvertOptions, argv, prog="ppma convert")
    if options.from_ in (None, "timm") and is_name(options.source):
        source = Foreign(file=options.source, models=(load_by_name(str(options.source)),))
    else:
        source = open_foreign(options.source)
    if len(source.models) == 1:
        convert(source.models[0], source, options, options.out)
        return DONE
    options.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{options.out.name}.", dir=options.out.absolute().parent) as temp_folder:
        for number, foreign in enumerate(source.models):
            convert(foreign, source, options, Path(temp_folder, "models", f"model_{number}"))
        Path(temp_folder, "models").rename(options.out)
    folders = " ".join(str(options.out / f"model_{number}") for number in range(len(source.models)))
    log.info("average them with: ppma average %s --out DIR", folders)
    return DONE
