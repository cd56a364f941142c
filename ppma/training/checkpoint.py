"""Checkpoints that survive what happens to them: written beside, renamed when complete, never written over.

    runs/x/checkpoints/step_00001000/{model.safetensors, training.pt, state.json, lineage.json}      latest -> step_00001000

A folder either is complete or has a temporary name. `latest` is a link that is replaced last; old folders go only after that.
`training.pt` (optimiser, scaler, generators) is read with weights_only=True, so no code of a foreign file is ever run; weights are
safetensors under timm's names.
"""

import json
import os
import pickle
import re
import shutil
import struct
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ppma.config.errors import InputError
from ppma.models.vit import TRUNK
from ppma.training import parallel
from ppma.training.lineage import Lineage
from ppma.training.lineage import write as write_lineage
from ppma.training.seal import MODEL, locate_model

TRAINING, STATE, LATEST = "training.pt", "state.json", "latest"
_STEP_FOLDER = re.compile(r"step_(\d{8,})")
_PICKLE_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error,
)  # fmt: skip
"""What the restricted unpickler raises on bytes that are no checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A complete checkpoint on disk."""

    folder: Path
    step: int
    state: dict[str, Any]
    """What `save` was given as `state`."""


def save(
    folder: Path, *, step: int, model: dict[str, Tensor], training: dict[str, Any], state: dict[str, Any], keep: int = 2,
    lineage: Lineage | None = None,
) -> Path:  # fmt: skip
    """Write checkpoints/step_XXXXXXXX below `folder`, move `latest`, prune to the `keep` newest. Returns the new folder.

    A full disk raises OSError and leaves everything that was there as it was. Without a lineage what the weights saw is unknown.
    """
    target = folder / f"step_{step:08d}"
    if target.exists():
        return target  # complete, or it would not have this name; the same step of the same run holds the same
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=folder))
    try:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in model.items()}, temporary / MODEL)
        torch.save(training, temporary / TRAINING)
        (temporary / STATE).write_text(json.dumps({"step": step, **state}, indent=2) + "\n")
        if lineage is not None:
            write_lineage(temporary, lineage)
        for file in temporary.iterdir():
            _to_disk(file)
        temporary.chmod(0o755)
        temporary.rename(target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, SafetensorError):  # safetensors wraps the system's error
            raise OSError(f"cannot write {temporary / MODEL}: {error}") from error
        raise
    _point_latest(folder, target)
    for _, old in _complete(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def save_weights(
    folder: Path, weights: dict[str, Tensor], state: dict[str, Any], *, lineage: Lineage | None = None
) -> None:
    """Write weights that come from no run as a folder that `load_encoder` takes; it appears complete or not at all."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}, temporary / MODEL)
        (temporary / STATE).write_text(json.dumps(state, indent=2) + "\n")
        if lineage is not None:
            write_lineage(temporary, lineage)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _point_latest(folder: Path, target: Path) -> None:
    link = folder / f".{LATEST}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    link.replace(folder / LATEST)


def _complete(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    named = ((_STEP_FOLDER.fullmatch(entry.name), entry) for entry in folder.iterdir())
    return sorted((int(match[1]), entry) for match, entry in named if match and (entry / STATE).is_file())


def newest(folder: Path) -> Saved | None:
    """The newest complete checkpoint below `folder`, found by looking, not by trusting `latest`."""
    complete = _complete(folder)
    if not complete:
        return None
    step, path = complete[-1]
    return Saved(folder=path, step=step, state=json.loads((path / STATE).read_text()))


def read_pickle(path: Path) -> Any:
    """What torch.save wrote, read with weights_only=True: tensors and plain containers only, and no code of the file is run."""
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is refused: it is damaged, or was not written by torch.save of torch 1.6 or later")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _PICKLE_ERRORS as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InputError(f"{path} is refused: it is damaged, or holds more than tensors ({lines[0]})") from None


def load_training(saved: Saved) -> dict[str, Any]:
    """The optimiser's and generators' state of a checkpoint of one's own run."""
    return read_pickle(saved.folder / TRAINING)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint. Only safetensors are read: a pickle could run code (`ppma convert` takes those, safely)."""
    file = locate_model(path)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from None


def open_weights(path: Path) -> safe_open:
    """The tensors of a checkpoint, one at a time from the mapped file: none is in memory before it is asked for. A context manager."""
    file = locate_model(path)
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> InputError:
    hint = (
        ""
        if file.suffix == ".safetensors"
        else f"; `ppma convert --from PROJECT {file} DIR` makes a folder that is taken here"
    )
    return InputError(f"{file} is no readable safetensors file: {error}{hint}")


def load_model(module: nn.Module, path: Path, *, without: tuple[str, ...] = ()) -> None:
    """Load all weights of `module`; every tensor must be there and fit, or an InputError names those that do not.

    `without` names tensors of the file that only the training needs.
    """
    weights = {name: tensor for name, tensor in read_weights(path).items() if name not in without}
    own = module.state_dict()
    check_fits(own, weights, path)
    module.load_state_dict({name: parallel.part_of(tensor, own[name]) for name, tensor in weights.items()})


def load_encoder(module: nn.Module, path: Path, *, keep_norm: bool = False) -> list[str]:
    """Start the encoder of `module` from a checkpoint of any phase; returns the names of the tensors that were left out.

    As published (Q7), decoder, mask token, heads and the encoder's final LayerNorm are left out and start anew; `keep_norm` loads
    the LayerNorm, `norm` or `fc_norm`, into `module`'s own.
    """
    weights = read_weights(path)
    chosen = {name: tensor for name, tensor in weights.items() if name.startswith(TRUNK)}
    own = module.state_dict()
    wanted = {name: tensor for name, tensor in own.items() if name.startswith(TRUNK)}
    if keep_norm:
        mine = "fc_norm." if "fc_norm.weight" in own else "norm."
        theirs = "fc_norm." if "fc_norm.weight" in weights else "norm."
        for part in ("weight", "bias"):
            wanted[mine + part] = own[mine + part]
            if theirs + part in weights:
                chosen[mine + part] = weights[theirs + part]
    check_fits(wanted, chosen, path)
    module.load_state_dict(chosen, strict=False)
    return sorted(weights.keys() - {name for name in weights if name.startswith(TRUNK)})


def check_fits(wanted: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    """InputError that lists what is missing, too much or of another shape."""
    problems = [f"{name} is missing" for name in wanted.keys() - given.keys()]
    problems += [f"{name} is not part of this model" for name in given.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, the model's has {tuple(wanted[name].shape)}"
        for name in wanted.keys() & given.keys()
        if given[name].shape != wanted[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:6])
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise InputError(f"{path} does not fit this model (check --model, --size, --frames): {shown}{more}")
