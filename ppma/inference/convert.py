"""`ppma convert`: checkpoints of other projects to ours, and back, tensor by tensor.

    ppma (published, omnivision)   {"model": {"trunk.blocks...", "trunk.decoder.decoder_blocks...", "heads.0..."}}
    videomae (MCG-NJU)             {"model" | "module": {"encoder.blocks..." or "blocks..."}}, q_bias and v_bias, no k bias
    huggingface (VideoMAE)         {"videomae.encoder.layer...", "decoder...", "classifier..."}
    timm                           our names; by file, or by the name of a model (`interop_timm`)
                 |
                 v
    timm's names: patch_embed.proj, blocks.i.{norm1, attn.qkv, ...}, norm or fc_norm, decoder.*, head

A conversion renames, splits and joins tensors and computes nothing, so going there and back is exact to the bit. Every tensor is accounted
for: it is taken, or it is of a kind that is known to be left out and named, or the conversion is refused. Pickles are read with
weights_only=True: no code of a foreign file runs. Sources: the model code of the three projects, read and stated anew.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppma.config.command import DONE, parse
from ppma.config.errors import InputError
from ppma.inference.convert_timm import check_embedding, is_name, load_by_name
from ppma.models.vit import sinusoid_table
from ppma.training import checkpoint, lineage
from ppma.transfer.adaptive import MIXING

log = logging.getLogger(__name__)

Format = Literal["ppma", "videomae", "huggingface", "timm"]
Weights = dict[str, Tensor]

BLOCK_PARTS = ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
HUGGINGFACE_PARTS = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
KIND = {".weight", ".bias"}
TABLE_TOLERANCE = 1e-4
"""Largest difference from our fixed position table that counts as the same table: float32 rounding of angles up to 1568 is 1e-4."""


@dataclass
class _Rest:
    """The tensors of a foreign file that nobody has taken yet."""

    weights: Weights

    def take(self, name: str) -> Tensor:
        """Remove and return a tensor that has to be there."""
        if name not in self.weights:
            raise InputError(f"the checkpoint has no tensor {name}")
        return self.weights.pop(name)

    def move(self, target: Weights, pairs: dict[str, str]) -> None:
        """Take weight and bias of each foreign module name into a module of ours: {theirs: ours}."""
        for theirs, ours in pairs.items():
            for kind in sorted(KIND):
                target[ours + kind] = self.take(theirs + kind)

    def has(self, prefix: str) -> bool:
        """Whether any tensor that is left begins so."""
        return any(name.startswith(prefix) for name in self.weights)

    def drop(self, *prefixes: str) -> list[str]:
        """Leave out what is known to have no place here; returns the names."""
        names = [name for name in self.weights if name.startswith(prefixes)]
        for name in names:
            del self.weights[name]
        return names

    def finish(self) -> None:
        """InputError that lists what nobody took."""
        if self.weights:
            names = sorted(self.weights)
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            raise InputError(f"{len(names)} tensors have no place in our model: {', '.join(names[:8])}{more}")


def _depth(names: Weights, pattern: str) -> int:
    """Number of blocks, from names like blocks.11.norm1.weight."""
    found = {int(match[1]) for name in names if (match := re.match(pattern, name))}
    if found != set(range(len(found))):
        raise InputError(f"the blocks are numbered {sorted(found)}; some are missing")
    return len(found)


def _check_table(rest: _Rest, name: str) -> None:
    """Take a fixed position table and make sure that it is ours: another one would make another model."""
    if name not in rest.weights:
        return
    table = rest.take(name).squeeze(0)
    apart = float((table.double() - sinusoid_table(*table.shape)).abs().max())
    if apart > TABLE_TOLERANCE:
        raise InputError(
            f"{name} differs from the fixed sinusoidal table by {apart:.3g}: learned positions have no place in our model"
        )


def from_ppma(weights: Weights) -> tuple[Weights, list[str]]:
    """The published PPMA checkpoints, with and without decoder and heads: (our tensors, names that were left out)."""
    rest, out = _Rest(dict(weights)), Weights()
    embed = "trunk.patch_embed.proj.1" if rest.has("trunk.patch_embed.proj.1.") else "trunk.patch_embed.proj"
    rest.move(out, {embed: "patch_embed.proj"})
    for i in range(_depth(weights, r"trunk\.blocks\.(\d+)\.")):
        rest.move(out, {f"trunk.blocks.{i}.{part}": f"blocks.{i}.{part}" for part in (*BLOCK_PARTS, "attn.qkv")})
    _check_table(rest, "trunk.pos_embed")
    _check_table(rest, "trunk.decoder.pos_embed")
    stage_1 = rest.has("trunk.decoder.")
    if rest.has("trunk.norm."):
        rest.move(out, {"trunk.norm": "norm" if stage_1 else "fc_norm"})
    if stage_1:
        out["decoder.mask_token"] = rest.take("trunk.mask_token").flatten()
        rest.move(out, {"trunk.decoder.decoder_embed": "decoder.embed", "trunk.decoder.norm": "decoder.norm"})
        for i in range(_depth(weights, r"trunk\.decoder\.decoder_blocks\.(\d+)\.")):
            theirs = f"trunk.decoder.decoder_blocks.{i}."
            rest.move(out, {theirs + part: f"decoder.blocks.{i}.{part}" for part in (*BLOCK_PARTS, "attn.qkv")})
    _heads(rest, out, stage_1)
    rest.finish()
    return out, []


def _heads(rest: _Rest, out: Weights, stage_1: bool) -> None:
    """heads.0.<...>.weight: the pixel head of stage 1, or the classifier's; several become heads.0, heads.1, ..."""
    modules = sorted({name.rpartition(".")[0] for name in rest.weights if name.startswith("heads.")})
    for module in modules:
        number = module.split(".")[1]
        single = "decoder.head" if stage_1 else "head"
        rest.move(out, {module: single if len(modules) == 1 else f"heads.space{number}"})


def to_ppma(weights: Weights) -> Weights:
    """Our tensors under the published names: the inverse of `from_ppma`."""
    rest, out = _Rest(dict(weights)), Weights()
    rest.move(out, {"patch_embed.proj": "trunk.patch_embed.proj.1"})
    for i in range(_depth(weights, r"blocks\.(\d+)\.")):
        rest.move(out, {f"blocks.{i}.{part}": f"trunk.blocks.{i}.{part}" for part in (*BLOCK_PARTS, "attn.qkv")})
    for norm in ("norm", "fc_norm"):
        if rest.has(f"{norm}."):
            rest.move(out, {norm: "trunk.norm"})
    if rest.has("decoder."):
        out["trunk.mask_token"] = rest.take("decoder.mask_token")[None]
        rest.move(out, {"decoder.embed": "trunk.decoder.decoder_embed", "decoder.norm": "trunk.decoder.norm"})
        rest.move(out, {"decoder.head": "heads.0.projector"} if rest.has("decoder.head.") else {})
        for i in range(_depth(weights, r"decoder\.blocks\.(\d+)\.")):
            parts = (*BLOCK_PARTS, "attn.qkv")
            rest.move(out, {f"decoder.blocks.{i}.{part}": f"trunk.decoder.decoder_blocks.{i}.{part}" for part in parts})
    if rest.has("head."):
        rest.move(out, {"head": "heads.0"})
    for module in sorted({name.rpartition(".")[0] for name in rest.weights if name.startswith("heads.space")}):
        rest.move(out, {module: f"heads.{module.removeprefix('heads.space')}"})
    rest.finish()
    return out


def _join_biases(query: Tensor, value: Tensor) -> Tensor:
    """qkv bias from the two that VideoMAE has. A bias on k adds the same to every score of a query, which softmax ignores."""
    return torch.cat([query, torch.zeros_like(query), value])


def _split_biases(bias: Tensor) -> tuple[Tensor, Tensor]:
    query, key, value = bias.chunk(3)
    if bool(key.any()):
        log.info("a bias on k is left out: it changes no output, and VideoMAE has none")
    return query, value


DECODER_REASON = (
    "VideoMAE's decoder has its mask token and positions behind the projection; ours, PPMA's, has them before it"
)


def from_videomae(weights: Weights) -> tuple[Weights, list[str]]:
    """VideoMAE's own checkpoints, pre-trained (encoder.*) or fine-tuned, and transformers' files. A decoder is left out."""
    if any(".layer." in name for name in weights):
        return from_huggingface(weights)
    rest, out = _Rest(dict(weights)), Weights()
    prefix = "encoder." if rest.has("encoder.") else ""
    left = rest.drop("decoder.", "encoder_to_decoder.", "mask_token") if prefix else []
    rest.move(out, {f"{prefix}patch_embed.proj": "patch_embed.proj"})
    for i in range(_depth(weights, rf"{prefix}blocks\.(\d+)\.")):
        theirs = f"{prefix}blocks.{i}."
        rest.move(out, {theirs + part: f"blocks.{i}.{part}" for part in BLOCK_PARTS})
        out[f"blocks.{i}.attn.qkv.weight"] = rest.take(theirs + "attn.qkv.weight")
        out[f"blocks.{i}.attn.qkv.bias"] = _join_biases(
            rest.take(theirs + "attn.q_bias"), rest.take(theirs + "attn.v_bias")
        )
    _check_table(rest, f"{prefix}pos_embed")
    rest.move(out, {f"{prefix}{name}": name for name in ("norm", "fc_norm", "head") if rest.has(f"{prefix}{name}.")})
    rest.finish()
    return out, left


def to_videomae(weights: Weights) -> Weights:
    """Our tensors under VideoMAE's names: encoder.* for stage 1, bare names for a classifier. A decoder has no place there."""
    rest, out = _Rest(dict(weights)), Weights()
    prefix = "encoder." if rest.has("norm.") else ""
    rest.drop("decoder.")
    rest.move(out, {"patch_embed.proj": f"{prefix}patch_embed.proj"})
    for i in range(_depth(weights, r"blocks\.(\d+)\.")):
        theirs = f"{prefix}blocks.{i}."
        rest.move(out, {f"blocks.{i}.{part}": theirs + part for part in BLOCK_PARTS})
        out[theirs + "attn.qkv.weight"] = rest.take(f"blocks.{i}.attn.qkv.weight")
        query, value = _split_biases(rest.take(f"blocks.{i}.attn.qkv.bias"))
        out[theirs + "attn.q_bias"], out[theirs + "attn.v_bias"] = query, value
    rest.move(out, {name: prefix + name for name in ("norm", "fc_norm", "head") if rest.has(f"{name}.")})
    rest.finish()
    return out


def from_huggingface(weights: Weights) -> tuple[Weights, list[str]]:
    """VideoMAE as in transformers, for pre-training or classification, or the bare model (no videomae.*). A decoder is left out."""
    rest, out = _Rest(dict(weights)), Weights()
    prefix = "videomae." if rest.has("videomae.") else ""
    left = rest.drop("decoder.", "encoder_to_decoder.", "mask_token", "position_embeddings")
    rest.move(out, {f"{prefix}embeddings.patch_embeddings.projection": "patch_embed.proj"})
    for i in range(_depth(weights, rf"{prefix}encoder\.layer\.(\d+)\.")):
        theirs = f"{prefix}encoder.layer.{i}."
        rest.move(out, {theirs + HUGGINGFACE_PARTS[part]: f"blocks.{i}.{part}" for part in BLOCK_PARTS})
        attention = f"{theirs}attention.attention."
        parts = [rest.take(f"{attention}{name}.weight") for name in ("query", "key", "value")]
        out[f"blocks.{i}.attn.qkv.weight"] = torch.cat(parts)
        out[f"blocks.{i}.attn.qkv.bias"] = _join_biases(
            rest.take(f"{attention}q_bias"), rest.take(f"{attention}v_bias")
        )
    _check_table(rest, f"{prefix}embeddings.position_embeddings")
    names = {f"{prefix}layernorm": "norm", "fc_norm": "fc_norm", "classifier": "head"}
    rest.move(out, {theirs: ours for theirs, ours in names.items() if rest.has(f"{theirs}.")})
    rest.finish()
    return out, left


def to_huggingface(weights: Weights) -> Weights:
    """Our tensors under the names of transformers' VideoMAE. A decoder has no place there."""
    rest, out = _Rest(dict(weights)), Weights()
    rest.drop("decoder.")
    rest.move(out, {"patch_embed.proj": "videomae.embeddings.patch_embeddings.projection"})
    for i in range(_depth(weights, r"blocks\.(\d+)\.")):
        theirs = f"videomae.encoder.layer.{i}."
        rest.move(out, {f"blocks.{i}.{part}": theirs + HUGGINGFACE_PARTS[part] for part in BLOCK_PARTS})
        split = rest.take(f"blocks.{i}.attn.qkv.weight").chunk(3)
        for name, part in zip(("query", "key", "value"), split, strict=True):
            out[f"{theirs}attention.attention.{name}.weight"] = part
        query, value = _split_biases(rest.take(f"blocks.{i}.attn.qkv.bias"))
        out[f"{theirs}attention.attention.q_bias"], out[f"{theirs}attention.attention.v_bias"] = query, value
    names = {"norm": "videomae.layernorm", "fc_norm": "fc_norm", "head": "classifier"}
    rest.move(out, {ours: theirs for ours, theirs in names.items() if rest.has(f"{ours}.")})
    rest.finish()
    return out


def from_timm(weights: Weights) -> tuple[Weights, list[str]]:
    """A model of `ppma.models.timm_models`, whose names are ours. Anything of timm that is another model is refused."""
    check_embedding(weights, "the checkpoint")
    rest, out = _Rest(dict(weights)), Weights()
    rest.move(out, {"patch_embed.proj": "patch_embed.proj"})
    for i in range(_depth(weights, r"blocks\.(\d+)\.")):
        rest.move(out, {name: name for part in (*BLOCK_PARTS, "attn.qkv") if (name := f"blocks.{i}.{part}")})
    _check_table(rest, "pos_embed")
    rest.move(out, {name: name for name in ("norm", "fc_norm", "head") if rest.has(f"{name}.")})
    rest.finish()
    return out, []


def to_timm(weights: Weights) -> Weights:
    """Our tensors for a model of `ppma.models.timm_models`. A decoder has no place there."""
    return {name: tensor for name, tensor in weights.items() if not name.startswith("decoder.")}


READERS: dict[Format, Callable[[Weights], tuple[Weights, list[str]]]] = {
    "ppma": from_ppma,
    "videomae": from_videomae,
    "huggingface": from_huggingface,
    "timm": from_timm,
}
WRITERS: dict[Format, Callable[[Weights], Weights]] = {
    "ppma": to_ppma,
    "videomae": to_videomae,
    "huggingface": to_huggingface,
    "timm": to_timm,
}


def read_foreign(path: Path) -> Weights:
    """The tensors of a .safetensors file or of a pickle, which is read without running what it holds."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is no readable safetensors file: {error}") from None
    content = checkpoint.read_pickle(path)
    for key in ("model", "module", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} holds no table of tensors, at its top or under model, module or state_dict")
    return {str(name): tensor for name, tensor in content.items()}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Convert a checkpoint of another project to ours, or ours to theirs.

    For example: ppma convert --from ppma ppma_vitb.pth converted, then --init converted
                 ppma convert --to huggingface runs/mae_nohuman videomae.safetensors
    """

    source: tyro.conf.Positional[Path]
    """What to convert: a .pth, .pt, .bin or .safetensors file, with --from timm also the name of a model, or with --to a run of ours."""
    out: tyro.conf.Positional[Path]
    """With --from a folder that --init takes; with --to a file, .safetensors or .pth."""
    from_: Annotated[Format | None, tyro.conf.arg(name="from")] = None
    """The project that the file is from."""
    to: Format | None = None
    """The project that the file is for."""


def _import(options: Options, kind: Format) -> None:
    by_name = kind == "timm" and is_name(options.source)
    found = load_by_name(str(options.source)) if by_name else read_foreign(options.source)
    converted, left = READERS[kind](found)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    state: dict[str, object] = {"converted_from": kind, "file": options.source.name}
    if "head.weight" in converted:
        state["label_spaces"] = {"converted": len(converted["head.weight"])}
    origin = lineage.unknown(f"converted from a file of {kind}, {options.source.name}")
    checkpoint.save_weights(options.out, converted, state, lineage=origin)
    log.info("%s: %d tensors from %s", options.out, len(converted), options.source)
    if left:
        log.info("left out: %d tensors (%s, ...). %s", len(left), left[0], DECODER_REASON)


def _export(options: Options, kind: Format) -> None:
    trained = {name: tensor for name, tensor in checkpoint.read_weights(options.source).items() if name != MIXING}
    weights = WRITERS[kind](trained)
    beside = options.out.with_name(f".{options.out.name}.tmp")
    beside.parent.mkdir(parents=True, exist_ok=True)
    if options.out.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, beside)
    else:
        torch.save({"model": {name: tensor.contiguous() for name, tensor in weights.items()}}, beside)
    beside.replace(options.out)
    log.info("%s: %d tensors under the names of %s", options.out, len(weights), kind)


def main(argv: list[str]) -> int:
    """The command."""
    options = parse(Options, argv, prog="ppma convert")
    if (options.from_ is None) == (options.to is None):
        raise InputError(f"give --from or --to, one of {', '.join(READERS)}")
    if options.out.exists():
        raise InputError(f"{options.out} is there already; choose another name")
    if options.from_ is not None:
        _import(options, options.from_)
    elif options.to is not None:
        _export(options, options.to)
    return DONE
