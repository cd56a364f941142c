"""`ppma average`: average the weights of several encoders into one (paper baseline).

    A, B, ...  ->  sum of weight x tensor, one tensor at a time in float64  ->  model.safetensors, state.json with the parents

Averages the trunk and, where all parents have it, the final LayerNorm. Heads and decoders belong to one task and are left out, so `--init`
and `ppma export` take the result as they take any run. Parents are memory-mapped: memory holds the result and one tensor more.
"""

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from safetensors import safe_open
from torch import Tensor

from ppma.common.files import file_sha256
from ppma.config.command import DONE, NewPath, parse
from ppma.config.errors import InputError
from ppma.config.run import read_config
from ppma.models.vit import TRUNK
from ppma.training import checkpoint
from ppma.training.lineage import Lineage, read
from ppma.training.run import find_run

log = logging.getLogger(__name__)

NORMS = ("norm.", "fc_norm.")
"""The encoder's final LayerNorm, after stage 1 and in a classifier."""


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """Average the weights of two or more encoders of one shape; `--init` takes the result.

    For example:
      ppma average runs/align_nohuman runs/align_synthetic --weights 0.5 0.5 --out runs/averaged
    """

    models: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODELS ...")]
    """Run folders, checkpoint folders or .safetensors files."""
    out: NewPath
    """New folder for model.safetensors and state.json, which names the parents, their weights and their hashes."""
    weights: tuple[float, ...] = ()
    """Weight of each model; they are divided by their sum (default: equal weights)."""


def shares(weights: Sequence[float], models: int) -> list[float]:
    """Return weights that sum to 1, one for each model.

    Args:
        weights: Numbers of at least 0, one for each model, or none for equal weights.
        models: Number of models.

    Raises:
        InputError: There are fewer than two models, or the weights do not fit.
    """
    if models < 2:
        raise InputError(f"an average takes two models or more, not {models}")
    given = list(weights) or [1.0] * models
    if len(given) != models:
        raise InputError(f"--weights has {len(given)} numbers for {models} models; give one for each, or none")
    if not all(math.isfinite(weight) and weight >= 0 for weight in given) or not sum(given):
        raise InputError(
            f"--weights {' '.join(map(str, given))}: give numbers of at least 0, at least one of them above 0"
        )
    return [weight / sum(given) for weight in given]


def encoder_tensors(files: Sequence[safe_open], models: Sequence[Path]) -> list[str]:
    """Return the names of the tensors that are averaged; InputError names the first differences between the models."""
    shapes = [{name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} for file in files]  # noqa: SIM118
    trunks = [{name: shape for name, shape in known.items() if name.startswith(TRUNK)} for known in shapes]
    for model, trunk in zip(models, trunks):
        if not trunk:
            raise InputError(f"{model}: holds no encoder (no tensor {TRUNK[0]}* or {TRUNK[1]}*)")
        differ = f"{models[0]} and {model} are different encoders"
        if apart := sorted(trunk.keys() ^ trunks[0].keys()):
            raise InputError(f"{differ}: {len(apart)} tensors are in only one of them ({', '.join(apart[:3])})")
        for name, shape in sorted(trunk.items()):
            if shape != trunks[0][name]:
                raise InputError(f"{differ}: {name} has shapes {trunks[0][name]} and {shape}")
    norms = [norm + part for norm in NORMS for part in ("weight", "bias")]
    return sorted(trunks[0]) + [name for name in norms if all(name in known for known in shapes)]


def average(models: Sequence[Path], weights: Sequence[float] = ()) -> dict[str, Tensor]:
    """Return the weighted mean of every tensor of the trunk and, where all models have it, of the final norm.

    Args:
        models: Two or more run folders, checkpoint folders or .safetensors files.
        weights: As in `shares`.

    Raises:
        InputError: The models are not encoders of one shape, or the weights do not fit.
    """
    parts = shares(weights, len(models))
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(checkpoint.open_weights(model)) for model in models]
        check_configs(models)
        return {name: mean_tensor(name, files, parts) for name in encoder_tensors(files, models)}


def mean_tensor(name: str, files: Sequence[safe_open], parts: Sequence[float]) -> Tensor:
    """Return the weighted mean of one tensor of several files, computed in float64, in the type of the first."""
    first = files[0].get_tensor(name)
    total = torch.zeros(first.shape, dtype=torch.float64)
    for file, part in zip(files, parts):
        total += part * file.get_tensor(name).double()
    return total.to(first.dtype)


def check_configs(models: Sequence[Path]) -> None:
    """Raise InputError where runs differ in what the shapes of tensors do not show, such as the number of heads."""
    vits = {model: read_config(folder).vit for model in models if (folder := find_run(model))}
    for model, vit in vits.items():
        first, expected = next(iter(vits.items()))
        for name in ("heads", "patch", "frames", "size"):
            if getattr(vit, name) != getattr(expected, name):
                raise InputError(
                    f"{first} and {model} are different encoders: vit.{name} is {getattr(expected, name)} and {getattr(vit, name)}"
                )


def main(argv: list[str]) -> int:
    """Run `ppma average`."""
    options = parse(AverageOptions, argv, prog="ppma average")
    averaged = average(options.models, options.weights)
    files = [checkpoint.locate_model(model).resolve() for model in options.models]
    parts = shares(options.weights, len(options.models))
    parents: list[dict[str, Any]] = [
        {"path": str(model), "file": str(file), "sha256": file_sha256(file), "weight": part}
        for model, file, part in zip(options.models, files, parts)
    ]
    options.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    state = {"made_by": "ppma average", "parents": parents}
    lineage = Lineage(origin="averaged", parents=tuple(map(read, files)))
    checkpoint.save_weights(options.out, averaged, state, lineage=lineage)
    for parent in parents:
        log.info("%.4f of %s", parent["weight"], parent["path"])
    norm = "with" if any(norm + "weight" in averaged for norm in NORMS) else "without"
    log.info(
        "%s: %d tensors, %s the final norm; start from it with --init %s", options.out, len(averaged), norm, options.out
    )
    return DONE
