"""`ppma convert`: convert checkpoints of other projects to ours and back, tensor by tensor.

    ppma (published, omnivision)   {"model": {"trunk.blocks...", "trunk.decoder.decoder_blocks...", "heads.0..."}}
    videomae (MCG-NJU)             {"model" | "module": {"encoder.blocks..." or "blocks..."}}, q_bias and v_bias, no k bias
    huggingface (VideoMAE)         {"videomae.encoder.layer...", "decoder...", "classifier..."}
    timm                           our names; a file, or the name of a model
                 |
                 v
    timm's names: patch_embed.proj, blocks.i.{norm1, attn.qkv, ...}, norm or fc_norm, decoder.*, head

One table of names a format serves both directions. Tensors are renamed, split and joined and never computed, so a round trip is exact to
the bit. Every tensor is converted, left out by name, or refused. Pickles are read with weights_only=True: no code of a foreign file runs.
Sources: the model code of the three projects.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ppma.common.files import atomic_path
from ppma.config.command import DONE, NewPath, parse
from ppma.config.errors import InputError, first_few
from ppma.models.vit import sinusoid_table
from ppma.training import checkpoint, lineage
from ppma.training.run import MIXING

log = logging.getLogger(__name__)

Format = Literal["ppma", "videomae", "huggingface", "timm"]
Weights = dict[str, Tensor]
Names = dict[str, str]
"""{our module: their module}; # stands for the number of a block or head."""

PARTS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
HUGGINGFACE_PARTS = (
    "layernorm_before", "attention.attention.qkv", "attention.output.dense", "layernorm_after", "intermediate.dense", "output.dense",
)  # fmt: skip
TABLE_TOLERANCE = 1e-4
"""Largest difference between two equal position tables: float32 rounding of angles up to 1568 is 1e-4."""
DECODER_REASON = "its mask token and positions are added after the projection, ours before"
LEFT_OUT = {"videomae": ("decoder.", "encoder_to_decoder.", "mask_token"),
            "huggingface": ("decoder.", "encoder_to_decoder.", "mask_token", "position_embeddings")}  # fmt: skip
"""Prefixes of foreign tensors that have no place in our model."""


def _blocks(ours: str, theirs: str, parts: Iterable[str] = PARTS) -> Names:
    return {f"{ours}.#.{mine}": f"{theirs}.#.{other}" for mine, other in zip(PARTS, parts)}


def names_of(kind: Format, *, stage_1: bool, several_heads: bool = False) -> Names:
    """Return the table of names of a format.

    Args:
        kind: The format.
        stage_1: The checkpoint is of a masked autoencoder, not of a classifier.
        several_heads: It has a head for each of several label spaces (format ppma).
    """
    norm = "norm" if stage_1 else "fc_norm"
    if kind == "ppma":
        heads = {"heads.space#": "heads.#"} if several_heads else {"head": "heads.0"}
        decoder = {
            **_blocks("decoder.blocks", "trunk.decoder.decoder_blocks"), "decoder.embed": "trunk.decoder.decoder_embed",
            "decoder.norm": "trunk.decoder.norm", "decoder.head": "heads.0.projector",
        }  # fmt: skip
        trunk = {
            "patch_embed.proj": "trunk.patch_embed.proj.1",
            **_blocks("blocks", "trunk.blocks"),
            norm: "trunk.norm",
        }
        return trunk | (decoder if stage_1 else heads)
    if kind == "huggingface":
        return {
            "patch_embed.proj": "videomae.embeddings.patch_embeddings.projection", "norm": "videomae.layernorm",
            **_blocks("blocks", "videomae.encoder.layer", HUGGINGFACE_PARTS), "fc_norm": "fc_norm", "head": "classifier",
        }  # fmt: skip
    prefix = "encoder." if kind == "videomae" and stage_1 else ""
    plain = {name: prefix + name for name in ("patch_embed.proj", "norm", "fc_norm", "head")}
    return plain | _blocks("blocks", f"{prefix}blocks")


def _translate(name: str, names: Names) -> str | None:
    """Translate a tensor's name by the table; None if the table does not have it."""
    module, _, kind = name.rpartition(".")
    number = re.search(r"\d+", module)
    pattern = module if module in names else re.sub(r"\d+", "#", module, count=1)
    if pattern not in names or kind not in ("weight", "bias"):
        return None
    return f"{names[pattern].replace('#', number[0] if number else '')}.{kind}"


def _rename(weights: Weights, names: Names) -> Weights:
    """Rename every tensor; InputError lists those that the table does not have."""
    renamed = {name: _translate(name, names) for name in weights}
    if unknown := sorted(name for name, other in renamed.items() if other is None):
        raise InputError(f"{len(unknown)} tensors have no place in the model: {first_few(unknown, 8)}")
    return {other: weights[name] for name, other in renamed.items() if other}


def _check_complete(ours: Weights, names: Names) -> None:
    """Raise InputError where our model misses a tensor of the trunk or the decoder; `names` translates it for the message."""
    modules = {"patch_embed.proj"}
    for prefix in ("blocks", "decoder.blocks"):
        found = {int(match[1]) for name in ours if (match := re.match(rf"{prefix}\.(\d+)\.", name))}
        if found != set(range(len(found))):
            raise InputError(f"the {prefix} are numbered {sorted(found)}; some are missing")
        modules |= {f"{prefix}.{number}.{part}" for number in found for part in PARTS}
    if any(name.startswith("decoder.") for name in ours):
        modules |= {"decoder.embed", "decoder.norm"}
    missing = sorted({f"{module}.{kind}" for module in modules for kind in ("weight", "bias")} - ours.keys())
    if missing:
        shown = [_translate(name, names) or name for name in missing[:8]]
        raise InputError(f"the checkpoint has no tensor {', '.join(shown)}")


def _drop_tables(weights: Weights) -> None:
    """Remove fixed position tables; InputError for one that differs from ours, because the model would differ."""
    for name in [name for name in weights if name.rpartition(".")[2] in ("pos_embed", "position_embeddings")]:
        table = weights.pop(name).squeeze(0)
        apart = float((table.double() - sinusoid_table(*table.shape)).abs().max())
        if apart > TABLE_TOLERANCE:
            raise InputError(
                f"{name} differs from the fixed sinusoidal table by {apart:.3g}: our model has no learned positions"
            )


def _join_attention(weights: Weights) -> None:
    """Join q, k and v where a format keeps them apart. VideoMAE has no bias on k, which softmax would ignore: it becomes 0."""
    for name in [name for name in weights if name.endswith((".query.weight", ".q_bias"))]:
        prefix = name.removesuffix("query.weight").removesuffix("q_bias")
        try:
            if name.endswith("query.weight"):
                parts = [weights.pop(f"{prefix}{part}.weight") for part in ("query", "key", "value")]
                weights[f"{prefix}qkv.weight"] = torch.cat(parts)
            else:
                query, value = weights.pop(f"{prefix}q_bias"), weights.pop(f"{prefix}v_bias")
                weights[f"{prefix}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
        except KeyError as error:
            raise InputError(f"the checkpoint has no tensor {error.args[0]}") from None


def _split_attention(weights: Weights, *, weight_too: bool) -> None:
    """Undo `_join_attention` in place; `weight_too`: q, k and v have a weight each."""
    left_out = False
    for name in [name for name in weights if name.endswith(".qkv.bias")]:
        prefix = name.removesuffix("qkv.bias")
        query, key, value = weights.pop(name).chunk(3)
        weights[f"{prefix}q_bias"], weights[f"{prefix}v_bias"] = query, value
        left_out |= bool(key.any())
        if weight_too:
            split = weights.pop(f"{prefix}qkv.weight").chunk(3)
            weights |= {f"{prefix}{part}.weight": tensor for part, tensor in zip(("query", "key", "value"), split)}
    if left_out:
        log.info("left out: the bias of k, which changes no output and which VideoMAE does not have")


def read_as(kind: Format, foreign: Weights) -> tuple[Weights, list[str]]:
    """Convert tensors of another project.

    Args:
        kind: The project. videomae also takes files of transformers' VideoMAE.
        foreign: Its tensors by name.

    Returns:
        Our tensors, and the names of those that were left out.

    Raises:
        InputError: A tensor has no place in our model, or our model misses one.
    """
    weights = dict(foreign)
    if kind == "videomae" and any(".layer." in name for name in weights):
        kind = "huggingface"
    if kind == "timm":
        check_embedding(weights, "the checkpoint")
    stage_1, several, left = False, False, list[str]()
    if kind == "ppma":
        stage_1 = any(name.startswith("trunk.decoder.") for name in weights)
        weights, several = _plain_ppma(weights, stage_1=stage_1)
    elif kind == "huggingface":
        bare = not any(name.startswith("videomae.") for name in weights)
        weights = {f"videomae.{name}" if bare else name: tensor for name, tensor in weights.items()}
    elif kind == "videomae":
        stage_1 = any(name.startswith("encoder.") for name in weights)
    if kind == "huggingface" or (kind == "videomae" and stage_1):
        left = [name for name in weights if name.removeprefix("videomae.").startswith(LEFT_OUT[kind])]
        weights = {name: tensor for name, tensor in weights.items() if name not in left}
    _drop_tables(weights)
    _join_attention(weights)
    names = names_of(kind, stage_1=stage_1, several_heads=several)
    mask_token = weights.pop("trunk.mask_token", None) if kind == "ppma" and stage_1 else None
    out = _rename(weights, {theirs: ours for ours, theirs in names.items()})
    _check_complete(out, names)
    if mask_token is not None:
        out["decoder.mask_token"] = mask_token.flatten()
    elif kind == "ppma" and stage_1:
        raise InputError("the checkpoint has no tensor trunk.mask_token")
    return out, left


def _plain_ppma(weights: Weights, *, stage_1: bool) -> tuple[Weights, bool]:
    """Return published tensors with one spelling of embedding and heads, and whether there are several heads.

    The module inside heads.N has several names in the published checkpoints.
    """
    several = len({name.split(".")[1] for name in weights if name.startswith("heads.")}) > 1
    out = Weights()
    for name, tensor in weights.items():
        if found := re.fullmatch(r"(heads\.\d+)\..*?(weight|bias)", name):
            name = f"{found[1]}.{'projector.' if stage_1 else ''}{found[2]}"
        out[re.sub(r"patch_embed\.proj\.(weight|bias)$", r"patch_embed.proj.1.\1", name)] = tensor
    return out, several


def write_as(kind: Format, ours: Weights) -> Weights:
    """Convert our tensors to another project: the inverse of `read_as`.

    Args:
        kind: The project.
        ours: Our tensors by name. All formats but ppma have no place for a decoder and for several heads, which are left out.

    Raises:
        InputError: A tensor has no place in that project's model.
    """
    weights = {
        name: tensor for name, tensor in ours.items() if kind == "ppma" or not name.startswith(("decoder.", "heads."))
    }
    if len(weights) < len(ours):
        log.info("left out: %d tensors of decoder or heads, for which %s has no place", len(ours) - len(weights), kind)
    _check_complete(weights, {})
    stage_1 = "norm.weight" in weights
    mask_token = weights.pop("decoder.mask_token", None)
    spaces = sorted(
        {name.split(".")[1] for name in weights if name.startswith("heads.")}, key=lambda space: (len(space), space)
    )
    for number, space in enumerate(spaces):
        for part in ("weight", "bias"):
            weights[f"heads.space{number}.{part}"] = weights.pop(f"heads.{space}.{part}")
    out = _rename(weights, names_of(kind, stage_1=stage_1, several_heads=bool(spaces)))
    if mask_token is not None:
        out["trunk.mask_token"] = mask_token[None]
    if kind in ("videomae", "huggingface"):
        _split_attention(out, weight_too=kind == "huggingface")
    return out


def check_embedding(weights: Weights, what: str) -> None:
    """Raise InputError unless the model of these tensors embeds clips as ours does."""
    name = "patch_embed.proj.weight"
    if name not in weights:
        raise InputError(f"{what} is not a vision transformer of timm: it has no {name}")
    if weights[name].ndim != 5:
        shape = tuple(weights[name].shape)
        raise InputError(
            f"{what} embeds single pictures ({name} has shape {shape}), and our encoder clips (five axes, one of them time): "
            "its weights do not fit; use a video model, such as VideoMAE with --from videomae or --from huggingface"
        )


def load_by_name(name: str) -> Weights:
    """Return the released weights of a timm model by its name.

    Raises:
        InputError: There is no such model, it does not fit, or it has no released weights. Nothing is downloaded before the shapes fit.
    """
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
        raise InputError(
            f"timm cannot load the weights of {name}: {first}; download the file and give its path"
        ) from None


def is_name(source: Path) -> bool:
    """Return True for the name of a timm model: no existing file, no folder, no suffix of a weight file."""
    return (
        not source.exists() and len(source.parts) == 1 and source.suffix not in (".pth", ".pt", ".bin", ".safetensors")
    )


def read_foreign(path: Path) -> Weights:
    """Return the tensors of a .safetensors file or of a pickle, whose code is not run; InputError for anything else."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is not a readable safetensors file: {error}") from None
    content = checkpoint.read_pickle(path)
    for key in ("model", "module", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} has no dictionary of tensors, at the top or under model, module or state_dict")
    return {str(name): tensor for name, tensor in content.items()}


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Convert a checkpoint of another project to ours, or ours to theirs.

    For example: ppma convert --from ppma ppma_vitb.pth converted, then --init converted
                 ppma convert --to huggingface runs/mae_nohuman videomae.safetensors
    """

    source: tyro.conf.Positional[Path]
    """With --from a .pth, .pt, .bin or .safetensors file (or, for timm, the name of a model); with --to a run of ours."""
    out: tyro.conf.Positional[NewPath]
    """With --from a new folder, which --init takes; with --to a new .safetensors or .pth file."""
    from_: Annotated[Format | None, tyro.conf.arg(name="from")] = None
    """The project that the file is from."""
    to: Format | None = None
    """The project that the file is for."""


def _import(options: ConvertOptions, kind: Format) -> None:
    by_name = kind == "timm" and is_name(options.source)
    found = load_by_name(str(options.source)) if by_name else read_foreign(options.source)
    converted, left = read_as(kind, found)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    state: dict[str, object] = {"converted_from": kind, "file": options.source.name}
    if "head.weight" in converted:
        state["label_spaces"] = {"converted": len(converted["head.weight"])}
    origin = lineage.unknown(f"converted from a file of {kind}, {options.source.name}")
    checkpoint.save_weights(options.out, converted, state, lineage=origin)
    log.info("%s: %d tensors from %s", options.out, len(converted), options.source)
    if left:
        log.info("left out: the decoder, %d tensors (%s, ...): %s", len(left), left[0], DECODER_REASON)


def _export(options: ConvertOptions, kind: Format) -> None:
    trained = {name: tensor for name, tensor in checkpoint.read_weights(options.source).items() if name != MIXING}
    weights = {name: tensor.contiguous() for name, tensor in write_as(kind, trained).items()}
    with atomic_path(options.out) as temp_path:
        if options.out.suffix == ".safetensors":
            checkpoint.save_tensors(temp_path, weights)
        else:
            checkpoint.save_pickle(temp_path, {"model": weights})
    log.info("%s: %d tensors under the names of %s", options.out, len(weights), kind)


def main(argv: list[str]) -> int:
    """Run `ppma convert`."""
    options = parse(ConvertOptions, argv, prog="ppma convert")
    if (options.from_ is None) == (options.to is None):
        raise InputError(f"give --from or --to, one of {', '.join(get_args(Format))}")
    if options.from_ is not None:
        _import(options, options.from_)
    elif options.to is not None:
        _export(options, options.to)
    return DONE
