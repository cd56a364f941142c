"""Layouts of checkpoints: the tensor names of each project, translated to ours and back.

    ppma (published, omnivision)    trunk.blocks..., trunk.decoder.decoder_blocks..., heads.0...
    videomae (v1 and v2)            encoder.blocks... and decoder.blocks..., or blocks... with q_bias and v_bias
    huggingface (VideoMAE)          videomae.encoder.layer..., decoder.decoder_layers..., classifier
    timm                            our names, without a decoder
                 |
                 v
    timm's names: patch_embed.proj, blocks.i.{norm1, attn.qkv, ...}, norm or fc_norm, decoder.*, head

One table of names for each layout serves both directions. Tensors are renamed, split and joined and never computed, so a
round trip is exact to the bit. Every tensor is converted or refused, except fixed position tables, which are compared
with ours. Sources: the model code of the projects.
"""

import logging
import re
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from ppma.config.errors import InputError, first_few, require
from ppma.models.vit import sinusoid_table

log = logging.getLogger(__name__)

Format = Literal["ppma", "videomae", "huggingface", "timm"]
Weights = dict[str, Tensor]
Names = dict[str, str]
"""{our module: their module}; # stands for the number of a block or head."""

KNOWN = (
    "known layouts: ppma (trunk.blocks.0...), videomae v1 and v2 (encoder.blocks.0..., or blocks.0... with q_bias), "
    "huggingface VideoMAE (videomae.encoder.layer.0...), timm (blocks.0... with qkv.bias)"
)
PARTS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
HUGGINGFACE_PARTS = (
    "layernorm_before", "attention.attention.qkv", "attention.output.dense", "layernorm_after", "intermediate.dense", "output.dense",
)  # fmt: skip
TABLE_TOLERANCE = 1e-4
"""Largest difference between two equal position tables: float32 rounding of angles up to 1568 is 1e-4."""
WRAPPERS = re.compile(r"^(?:module|_orig_mod|model)\.")
"""Prefixes that DistributedDataParallel, torch.compile and VideoMAE v2's published folder put before every name."""
MASK_TOKEN = {"ppma": "trunk.mask_token", "videomae": "mask_token", "huggingface": "mask_token"}
V_JEPA = (
    "V-JEPA 2 encodes positions by rotating queries and keys in every block, our encoder by adding a fixed table once: "
    f"its weights do not fit; {KNOWN}"
)
FIRST_TOKEN = (
    "its head reads the first token after the final LayerNorm (use_mean_pooling is false), our classifiers the mean of "
    "all tokens: the head does not fit; fine-tune the encoder without it, or train that model with use_mean_pooling"
)


def layout_of(names: Iterable[str]) -> Format:
    """Return the layout of tensors with these names; InputError lists the known layouts."""
    names = list(names)
    require(all(name.isprintable() for name in names), f"a tensor has a name with control characters; {KNOWN}")
    v_jepa = re.compile(r"(.+\.)?layer\.\d+\.norm1\.|backbone\.patch_embed\.proj\.|predictor_blocks\.")
    require(not any(v_jepa.match(name) for name in names), V_JEPA)
    if any(name.startswith("trunk.") for name in names):
        return "ppma"
    if any(".layer." in name for name in names):
        return "huggingface"
    if any(name.startswith("encoder.blocks.") or name.endswith(".q_bias") for name in names):
        return "videomae"
    if any(name.startswith(("blocks.", "patch_embed.")) for name in names):
        return "timm"
    raise InputError(f"the tensors ({first_few(names, 3) or 'none'}) are of no known layout; {KNOWN}")


def _blocks(ours: str, theirs: str, parts: Iterable[str] = PARTS) -> Names:
    return {f"{ours}.#.{mine}": f"{theirs}.#.{other}" for mine, other in zip(PARTS, parts)}


def names_of(kind: Format, *, stage_1: bool, several_heads: bool = False) -> Names:
    """Return the table of names of a layout.

    Args:
        kind: The layout.
        stage_1: The checkpoint is of a masked autoencoder, not of a classifier.
        several_heads: It has a head for each of several label spaces (layout ppma).
    """
    if kind == "ppma":
        heads = {"heads.space#": "heads.#"} if several_heads else {"head": "heads.0"}
        decoder = {
            **_blocks("decoder.blocks", "trunk.decoder.decoder_blocks"), "decoder.embed": "trunk.decoder.decoder_embed",
            "decoder.norm": "trunk.decoder.norm", "decoder.head": "heads.0.projector",
        }  # fmt: skip
        norm = "norm" if stage_1 else "fc_norm"
        trunk = {"patch_embed.proj": "trunk.patch_embed.proj.1", norm: "trunk.norm"} | _blocks("blocks", "trunk.blocks")
        return trunk | (decoder if stage_1 else heads)
    decoder = {"decoder.embed": "encoder_to_decoder", "decoder.norm": "decoder.norm", "decoder.head": "decoder.head"}
    if kind == "huggingface":
        return {
            "patch_embed.proj": "videomae.embeddings.patch_embeddings.projection", "norm": "videomae.layernorm",
            **_blocks("blocks", "videomae.encoder.layer", HUGGINGFACE_PARTS), "fc_norm": "fc_norm", "head": "classifier",
            **_blocks("decoder.blocks", "decoder.decoder_layers", HUGGINGFACE_PARTS), **decoder,
        }  # fmt: skip
    prefix = "encoder." if kind == "videomae" and stage_1 else ""
    plain = {name: prefix + name for name in ("patch_embed.proj", "norm", "fc_norm", "head")}
    if kind == "videomae":
        plain |= decoder | _blocks("decoder.blocks", "decoder.blocks")
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
        raise InputError(f"{len(unknown)} tensors have no place in the model: {first_few(unknown, 8)}; {KNOWN}")
    return {other: weights[name] for name, other in renamed.items() if other}


def _check_complete(ours: Weights, names: Names) -> None:
    """Raise InputError where our model misses a tensor of the trunk or the decoder; `names` translates it for the message."""
    modules = {"patch_embed.proj"}
    for prefix in ("blocks", "decoder.blocks"):
        found = {int(match[1]) for name in ours if (match := re.match(rf"{prefix}\.(\d+)\.", name))}
        if found != set(range(len(found))):
            raise InputError(f"the {prefix} are numbered {sorted(found)}; some are missing")
        modules |= {f"{prefix}.{number}.{part}" for number in found for part in PARTS}
    wanted = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    if any(name.startswith("decoder.") for name in ours):
        wanted |= {"decoder.embed.weight", "decoder.norm.weight", "decoder.norm.bias"}
    if missing := sorted(wanted - ours.keys()):
        shown = [_translate(name, names) or name for name in missing]
        raise InputError(f"the checkpoint has no tensor {first_few(shown, 8)}")


def _drop_tables(weights: Weights) -> None:
    """Remove fixed position tables; InputError for one that differs from ours, because the model would differ."""
    for name in [name for name in weights if name.rpartition(".")[2] in ("pos_embed", "position_embeddings")]:
        table = weights.pop(name).squeeze(0)
        require(table.ndim == 2, f"{name} has shape {tuple(table.shape)}; a table of positions has two axes")
        apart = float((table.double() - sinusoid_table(*table.shape)).abs().max())
        message = f"{name} differs from the fixed sinusoidal table by {apart:.3g}: our model has no learned positions"
        require(apart <= TABLE_TOLERANCE, message)


def _join_attention(weights: Weights) -> None:
    """Join q, k and v where a layout keeps them apart. A bias on k, which softmax ignores, becomes 0 where there is none."""

    def take(name: str) -> Tensor:
        if name not in weights:
            raise InputError(f"the checkpoint has no tensor {name}")
        return weights.pop(name)

    for name in [name for name in weights if name.endswith(".query.weight")]:
        prefix = name.removesuffix("query.weight")
        weights[f"{prefix}qkv.weight"] = torch.cat(
            [take(f"{prefix}{part}.weight") for part in ("query", "key", "value")]
        )
    for name in [name for name in weights if name.endswith((".query.bias", ".q_bias"))]:
        if name not in weights:  # the other spelling of the same bias
            continue
        prefix = name.removesuffix("query.bias").removesuffix("q_bias")
        spellings = [(first, last) for first, last in (("query.bias", "value.bias"), ("q_bias", "v_bias"))
                     if f"{prefix}{first}" in weights]  # fmt: skip
        pairs = [(take(prefix + first), take(prefix + last)) for first, last in spellings]
        query, value = pairs[0]
        same = all(torch.equal(one, other) for pair in pairs for one, other in zip(pair, pairs[0]))
        require(same, f"{prefix}query.bias and {prefix}q_bias differ; keep the ones that the model was trained with")
        key = weights.pop(f"{prefix}key.bias", torch.zeros_like(query))
        weights[f"{prefix}qkv.bias"] = torch.cat([query, key, value])


def _split_attention(weights: Weights, kind: Format) -> None:
    """Undo `_join_attention` in place. huggingface gets both spellings of the biases: transformers 4 and 5 read one each."""
    left_out = False
    for name in [name for name in weights if name.endswith(".qkv.bias")]:
        prefix = name.removesuffix("qkv.bias")
        query, key, value = weights.pop(name).chunk(3)
        weights |= {f"{prefix}q_bias": query, f"{prefix}v_bias": value}
        if kind == "videomae":
            left_out |= bool(key.any())
            continue
        biases = (("query.bias", query), ("key.bias", key), ("value.bias", value))
        parts = zip(("query.weight", "key.weight", "value.weight"), weights.pop(f"{prefix}qkv.weight").chunk(3))
        weights |= {prefix + part: tensor.clone() for part, tensor in (*biases, *parts)}
    if left_out:
        log.info("left out: the bias of k, which changes no output and which VideoMAE does not have")


def unwrapped(weights: Weights) -> Weights:
    """Return the tensors without the prefixes that wrappers put before every name."""
    while weights and all(WRAPPERS.match(name) for name in weights):
        weights = {WRAPPERS.sub("", name): tensor for name, tensor in weights.items()}
    return weights


def read_as(kind: Format, foreign: Weights) -> Weights:
    """Convert tensors of another project to ours.

    Args:
        kind: Their layout, see `layout_of`.
        foreign: Tensors by name.

    Raises:
        InputError: A tensor has no place in our model, or our model misses one.
    """
    weights = unwrapped(dict(foreign))
    if kind == "timm":
        check_embedding(weights, "the checkpoint")
    stage_1, several = False, False
    if kind == "ppma":
        stage_1 = any(name.startswith(("trunk.decoder.", "trunk.mask_token")) for name in weights)
        weights, several = _plain_ppma(weights, stage_1=stage_1)
    elif kind == "huggingface":
        bare = not any(name.startswith("videomae.") for name in weights)
        weights = {f"videomae.{name}" if bare else name: tensor for name, tensor in weights.items()}
        first_token = "classifier.weight" in weights and "fc_norm.weight" not in weights
        require(not first_token, FIRST_TOKEN)
    elif kind == "videomae":
        stage_1 = any(name.startswith("encoder.") for name in weights)
    _drop_tables(weights)
    _join_attention(weights)
    names = names_of(kind, stage_1=stage_1, several_heads=several)
    mask_token = weights.pop(MASK_TOKEN.get(kind, ""), None)
    out = _rename(weights, {theirs: ours for ours, theirs in names.items()})
    require(not ("head.weight" in out and "norm.weight" in out), FIRST_TOKEN)
    _check_complete(out, names)
    if mask_token is not None:
        out["decoder.mask_token"] = mask_token.flatten()
    elif any(name.startswith("decoder.") for name in out):
        raise InputError(f"the checkpoint has no tensor {MASK_TOKEN.get(kind, 'mask_token')}")
    return out


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
        ours: Our tensors by name. Of all layouts only ppma has a place for several heads, timm has none for a decoder, and
            the others take a decoder with their own place of the positions (mae.decoder_positions); the rest is left out.

    Raises:
        InputError: A tensor has no place in that project's model.
    """
    mask_token = ours.get("decoder.mask_token")
    before = "decoder.embed.bias" in ours
    if "decoder.embed.weight" not in ours:
        before = mask_token is None or len(mask_token) == len(ours["patch_embed.proj.bias"])
    left = () if kind == "ppma" else ("heads.",)
    left = (*left, "decoder.") if kind == "timm" or before != (kind == "ppma") else left
    weights = {name: tensor for name, tensor in ours.items() if not name.startswith(left)}
    if len(weights) < len(ours):
        log.info("left out: %d tensors of decoder or heads, for which %s has no place", len(ours) - len(weights), kind)
    stage_1, mask_token = "norm.weight" in weights, weights.pop("decoder.mask_token", None)
    _check_complete(weights, {})
    found = {name.split(".")[1] for name in weights if name.startswith("heads.")}
    spaces = sorted(found, key=lambda space: (len(space), space))
    for number, space in enumerate(spaces):
        for part in ("weight", "bias"):
            weights[f"heads.space{number}.{part}"] = weights.pop(f"heads.{space}.{part}")
    out = _rename(weights, names_of(kind, stage_1=stage_1, several_heads=bool(spaces)))
    if mask_token is not None:
        out[MASK_TOKEN[kind]] = mask_token[None] if kind == "ppma" else mask_token[None, None]
    if kind in ("videomae", "huggingface"):
        _split_attention(out, kind)
    return out


def check_embedding(weights: Weights, what: str) -> None:
    """Raise InputError unless the model of these tensors embeds clips as ours does."""
    name = "patch_embed.proj.weight"
    require(name in weights, f"{what} is not a vision transformer of timm: it has no {name}")
    shape = tuple(weights[name].shape)
    message = (
        f"{what} embeds single pictures ({name} has shape {shape}), and our encoder clips (five axes, one of them time): "
        "its weights do not fit; use a video model, such as VideoMAE"
    )
    require(len(shape) == 5, message)
