"""Find and read checkpoints of other projects. No code of a file runs.

    FILE.safetensors, FILE.pth | save_pretrained folder | hub cache models--ORG--NAME | name of a timm model
        ->  open_foreign  ->  Foreign: one dictionary of tensors or several, and what a config.json says about the shape

Pickles are read with weights_only=True. What training scripts store next to the weights (command-line arguments, numpy
scalars) is replaced by an empty object while it is read: not even the constructors of those classes are called.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ppma.config.errors import InputError, first_few, reading, require
from ppma.inference.layouts import KNOWN, V_JEPA, Weights, check_embedding
from ppma.training import checkpoint

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights in a folder of transformers; in shards if FILE.index.json lists them."""
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
ENSEMBLE = "ensemble_weights"
"""Key of PPMA's files of several encoders, for averaging."""


class _Skipped:
    """Stands for an object in a pickle that is no tensor; ignores all that the pickle says about it."""

    def __new__(cls, *_: object) -> "_Skipped":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Ignore the arguments."""

    def __setstate__(self, _: object) -> None:
        """Ignore the state."""


SKIPPED = (
    "argparse.Namespace", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype",
)  # fmt: skip
"""Names in the pickles of VideoMAE's training script that are read as `_Skipped`. Every other name is refused."""


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A checkpoint of another project."""

    file: Path
    """The weights, or the first shard of them."""
    models: tuple[Weights, ...]
    """Tensors by name; several for a file of an ensemble."""
    config: dict[str, Any] = field(default_factory=dict)
    """config.json of transformers; empty without one."""


def open_foreign(source: Path) -> Foreign:
    """Read a weight file, a folder of transformers (`save_pretrained`) or a folder of its hub cache.

    Raises:
        InputError: There is nothing to read, it holds more than tensors, or its architecture is another one.
    """
    if not source.exists():
        hub = len(source.parts) == 2 and not source.suffix and not source.is_absolute()
        fetch = f"; `hf download {source} --local-dir DIR` fetches a model of the Hugging Face hub" if hub else ""
        raise InputError(f"{source}: no such file or folder{fetch}")
    if source.is_file():
        return Foreign(file=source, models=read_models(source), config=_config(source.parent, required=False))
    folder = _snapshot(source)
    config = _config(folder, required=True)
    file, models = _weights_in(folder)
    return Foreign(file=file, models=models, config=config)


def _snapshot(folder: Path) -> Path:
    """Return the snapshot of a folder of the hub cache that refs/main names; any other folder as it is."""
    if not (folder / "snapshots").is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file():
        return folder / "snapshots" / Path(main.read_text(encoding="utf-8").strip()).name
    snapshots = sorted((folder / "snapshots").iterdir())
    require(len(snapshots) == 1, f"{folder} has {len(snapshots)} snapshots and no refs/main; give the folder of one")
    return snapshots[0]


def _config(folder: Path, *, required: bool) -> dict[str, Any]:
    """Return the config.json of transformers in a folder; InputError for one of another architecture."""
    file = folder / "config.json"
    if not required and not file.is_file():
        return {}
    with reading(file, "the config.json of a transformers model"):
        config = dict(json.loads(file.read_text(encoding="utf-8")))
        kind = config.get("model_type")
        if kind is None and not required:
            return {}
        require(
            kind is not None or "phase" not in config, f"{folder} is a run of ppma: every command takes it as it is"
        )
        require(kind != "vjepa2", f"{file}: {V_JEPA}")
        known = kind == "videomae" or str(kind).startswith("VideoMAEv2")
        require(known, f"{file}: model_type is {kind}; it must be videomae. {KNOWN[0].upper()}{KNOWN[1:]}")
        return config


def _weights_in(folder: Path) -> tuple[Path, tuple[Weights, ...]]:
    """Return the file, or the first shard, and the tensors of a folder of transformers."""
    for file in (folder / name for name in WEIGHT_FILES):
        index = file.with_name(f"{file.name}.index.json")
        if file.is_file():
            return file, read_models(file)
        if index.is_file():
            with reading(index, "an index of shards"):
                shards = sorted({Path(shard).name for shard in json.loads(index.read_text())["weight_map"].values()})
            parts = [read_models(folder / shard)[0] for shard in shards]
            return folder / shards[0], ({name: tensor for part in parts for name, tensor in part.items()},)
    raise InputError(f"{folder} has no {' and no '.join(WEIGHT_FILES)}; give a weight file or a folder of transformers")


def read_models(path: Path) -> tuple[Weights, ...]:
    """Return the tensors of a .safetensors file or of a pickle, whose code is not run; several dictionaries for an ensemble.

    Raises:
        InputError: There is no such file, or it holds anything else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return (load_file(path),)
        except SafetensorError as error:
            raise InputError(f"{path} is not a readable safetensors file: {error}") from None
    with torch.serialization.safe_globals([(_Skipped, name) for name in SKIPPED]):
        content = checkpoint.read_pickle(path)
    several = content.get(ENSEMBLE) if isinstance(content, dict) else None
    if isinstance(several, list) and several:
        return tuple(_tensors(one, f"{path}, {ENSEMBLE}[{number}]") for number, one in enumerate(several))
    return (_tensors(content, str(path)),)


def _tensors(content: Any, what: str) -> Weights:
    """Return the dictionary of tensors in the content of a pickle."""
    if isinstance(content, dict) and "predictor" in content:
        raise InputError(f"{what}: {V_JEPA}")
    if isinstance(content, dict):
        nested = (content.get(key) for key in ("model", "module", "state_dict"))
        content = next((inner for inner in nested if isinstance(inner, dict)), content)
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        keys = f" (its entries: {first_few([repr(key) for key in content], 5)})" if isinstance(content, dict) else ""
        places = f"at the top or under model, module, state_dict or {ENSEMBLE}"
        raise InputError(f"{what} has no dictionary of tensors, {places}{keys}; {KNOWN}")
    return {str(name): tensor for name, tensor in content.items()}


def is_name(source: Path) -> bool:
    """Return True for the name of a timm model: no existing file, no folder, no suffix of a weight file."""
    return not source.exists() and len(source.parts) == 1 and source.suffix not in SUFFIXES


def load_by_name(name: str) -> Weights:
    """Return the released weights of a timm model by its name.

    Raises:
        InputError: There is no such model, it does not fit, or it has no released weights. Nothing is downloaded before the
            shapes fit.
    """
    import ppma.models.timm_models  # noqa: F401  # registers ours
    from ppma.models.torchvision_shim import timm

    if not timm.is_model(name):
        raise InputError(f"{name}: no such file or folder, and timm has no model of that name")
    with torch.device("meta"):  # shapes only
        shapes = timm.create_model(name).state_dict()
    check_embedding(shapes, f"timm's {name}")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (RuntimeError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"timm cannot load the weights of {name}: {first}; give the path of a file") from None
