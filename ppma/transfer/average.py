"""`ppma average`: one encoder whose every tensor is the weighted mean of that tensor in several (a baseline of the paper).

    A, B, ...  ->  sum of weight x tensor, one tensor at a time in float64  ->  model.safetensors, state.json with the parents

Trunk and, where all parents have it, the final LayerNorm are averaged; heads and decoders belong to a task and are left out, so the result
is what `--init` and `ppma export` take from any run. Parents are mapped, not loaded: memory holds the result and one tensor more.
"""

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from safetensors import safe_open
from torch import Tensor

from ppma.config.command import DONE, parse
from ppma.config.errors import InputError
from ppma.models.vit import TRUNK
from ppma.training import checkpoint
from ppma.training.lineage import of_average

log = logging.getLogger(__name__)

NORMS = ("norm.", "fc_norm.")
"""The encoder's final LayerNorm, after stage 1 and in a classifier."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Average the weights of two or more encoders of one shape; the result is what --init takes.

    For example: ppma average runs/align_nohuman runs/align_synthetic --weights 0.5 0.5 --out runs/averaged
    """

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, checkpoint folders or .safetensors files."""
    out: Path
    """Folder to make: model.safetensors, and state.json that names the parents, their weights and their hashes."""
    weights: tuple[float, ...] = ()
    """Share of each model, in any unit; none: equal shares."""


def shares(weights: Sequence[float], models: int) -> list[float]:
    """Weights that sum to 1, one for each model."""
    if models < 2:
        raise InputError(f"an average takes two models or more, not {models}")
    given = list(weights) or [1.0] * models
    if len(given) != models:
        raise InputError(f"--weights has {len(given)} numbers for {models} models; give one for each, or none")
    if not all(math.isfinite(weight) and weight >= 0 for weight in given) or not sum(given):
        raise InputError(
            f"--weights {' '.join(map(str, given))}: give numbers of at least 0, one of them above; they are divided by their sum"
        )
    return [weight / sum(given) for weight in given]


def encoder_tensors(files: Sequence[safe_open], models: Sequence[Path]) -> list[str]:
    """Names of what is averaged. InputError where the models are not of one shape, naming the first differences."""
    trunks = [{name for name in file.keys() if name.startswith(TRUNK)} for file in files]  # noqa: SIM118  # no mapping
    for trunk, file, model in zip(trunks, files, models):
        if not trunk:
            raise InputError(f"{model}: holds no encoder (no tensor {TRUNK[0]}* or {TRUNK[1]}*)")
        if apart := sorted(trunk ^ trunks[0]):
            raise InputError(
                f"{models[0]} and {model} are other encoders: {len(apart)} tensors are in one of them only ({', '.join(apart[:3])})"
            )
        _check_shapes(sorted(trunk), files[0], file, (models[0], model))
    kept = []
    for norm in NORMS:
        names = [norm + "weight", norm + "bias"]
        if all(set(names) <= set(file.keys()) for file in files):
            kept += names
    return sorted(trunks[0]) + kept


def _check_shapes(names: list[str], first: safe_open, other: safe_open, models: tuple[Path, Path]) -> None:
    for name in names:
        shapes = [tuple(file.get_slice(name).get_shape()) for file in (first, other)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{models[0]} and {models[1]} are other encoders: {name} has shapes {shapes[0]} and {shapes[1]}"
            )


def average(models: Sequence[Path], weights: Sequence[float] = ()) -> dict[str, Tensor]:
    """Trunk, and the final norm where all have it, in the type of the first model's tensors."""
    parts = shares(weights, len(models))
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(checkpoint.open_weights(model)) for model in models]
        check_configs(models)
        return {name: _mean(name, files, parts) for name in encoder_tensors(files, models)}


def _mean(name: str, files: Sequence[safe_open], parts: Sequence[float]) -> Tensor:
    first = files[0].get_tensor(name)
    total = torch.zeros(first.shape, dtype=torch.float64)
    for file, part in zip(files, parts):
        total += part * file.get_tensor(name).double()
    return total.to(first.dtype)


def check_configs(models: Sequence[Path]) -> None:
    """InputError where run folders name encoders that differ in what tensors do not show, such as the number of heads."""
    known: dict[Path, dict[str, Any]] = {}
    for model in models:
        for folder in (model, *model.absolute().parents[:3]):
            if (folder / "config.json").is_file():
                known[model] = json.loads((folder / "config.json").read_text())["vit"]
                break
    for model, vit in known.items():
        first, wanted = next(iter(known.items()))
        for name in ("heads", "patch", "frames", "size"):
            if vit[name] != wanted[name]:
                raise InputError(
                    f"{first} and {model} are other encoders: vit.{name} is {wanted[name]} and {vit[name]}"
                )


def parents(models: Sequence[Path], weights: Sequence[float]) -> list[dict[str, Any]]:
    """What the result remembers of the models that it was made from."""
    files = [checkpoint.locate_model(model) for model in models]
    found = []
    for model, file, part in zip(models, files, shares(weights, len(models))):
        with file.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        found.append({"path": str(model), "file": str(file.resolve()), "sha256": sha256, "weight": part})
    return found


def main(argv: list[str]) -> int:
    """The command."""
    options = parse(Options, argv, prog="ppma average")
    if options.out.exists():
        raise InputError(f"{options.out} is there already; choose another --out")
    averaged = average(options.models, options.weights)
    record = parents(options.models, options.weights)
    options.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    state = {"made_by": "ppma average", "parents": record}
    checkpoint.save_weights(options.out, averaged, state, lineage=of_average([Path(p["file"]) for p in record]))
    for parent in record:
        log.info("%.4f of %s", parent["weight"], parent["path"])
    norm = next((norm for norm in NORMS if norm + "weight" in averaged), None)
    log.info(
        "%s: %d tensors, %s; start from it with --init %s", options.out, len(averaged),
        "final norm included" if norm else "no final norm: the models have none in common", options.out,
    )  # fmt: skip
    return DONE
