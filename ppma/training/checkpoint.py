"""Checkpoints: folders that are written atomically and never overwritten.

    checkpoints/step_00001000/{model.safetensors, training.pt, state.json, lineage.json}    latest -> step_00001000
                excluded_steps.json, if a run went back and left steps out

A checkpoint is written to a temporary folder and renamed when it is complete; then the link `latest` moves, and only
then are old checkpoints deleted. `Writer` does all that in a thread, while the training continues. A resume compares the
newest files with the hashes in lineage.json, and falls back to the checkpoint before if they differ. Weights are
safetensors under timm's names, and always finite. `training.pt` (optimizer, scaler, random state) is read with
weights_only=True, so a file cannot run code.
"""

import contextlib
import errno
import json
import logging
import math
import os
import pickle
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ppma.common.files import write_text
from ppma.config.errors import InputError, first_few, reading
from ppma.models.vit import TRUNK
from ppma.training import parallel
from ppma.training.lineage import Lineage
from ppma.training.lineage import damage as lineage_damage
from ppma.training.lineage import write as write_lineage
from ppma.training.seal import MODEL, locate_model

log = logging.getLogger(__name__)

TRAINING, STATE, CONFIG, LATEST = "training.pt", "state.json", "config.json", "latest"
EXCLUDED = "excluded_steps.json"
_STEP_FOLDER = re.compile(r"step_(\d{8,})")
_PICKLE_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error,
)  # fmt: skip
"""Raised by the restricted unpickler for bytes that are not a checkpoint."""
FAILURES_PER_NODE_DAY = 6.5e-3
"""Failures of a node of eight GPUs, measured over 11 months on 16,000 A100 (cluster RSC-1 of arXiv 2410.21680)."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A complete checkpoint on disk."""

    folder: Path
    step: int
    state: dict[str, Any]
    """The `state` given to `save`."""


def save(
    folder: Path, *, step: int, model: dict[str, Tensor], training: dict[str, Any], state: dict[str, Any], keep: int = 2,
    lineage: Lineage | None = None,
) -> Path:  # fmt: skip
    """Write a checkpoint, move `latest` to it and delete all but the newest.

    Args:
        folder: Folder of the checkpoints.
        step: Step after which the state was taken.
        model: Weights.
        training: State of optimizer, scaler and random generators.
        state: What state.json holds.
        keep: Number of checkpoints to keep.
        lineage: What the weights were trained on; None: unknown.

    Returns:
        The new folder, step_XXXXXXXX.

    Raises:
        OSError: The disk is full, or there is a checkpoint of this step or a later one, from which the run should have
            resumed. All checkpoints are intact.
        FloatingPointError: The weights are not finite.
    """
    target = folder / f"step_{step:08d}"
    if bad := _not_finite(model):
        raise FloatingPointError(f"the weights of step {step} are not finite ({first_few(bad, 3)}) and were not saved")
    if later := [path for number, path in _steps(folder) if number >= step]:
        reason = (
            f"exists although the run is only at step {step}: it was not visible at the start; resume the run again"
        )
        raise OSError(errno.ESTALE, reason, str(later[-1]))
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as temp_folder:
        _write_weights(temp_folder, model, {"step": step, **state})
        save_pickle(temp_folder / TRAINING, training)
        if lineage is not None:
            write_lineage(temp_folder, lineage)
    _point_latest_to(target)
    oldest_kept, _ = _complete(folder)[-keep:][0]
    for number, old in _steps(folder):
        if number < oldest_kept:  # also one whose deletion was killed
            shutil.rmtree(old)
    return target


def save_weights(
    folder: Path, weights: dict[str, Tensor], state: dict[str, Any], *, config: str = "", lineage: Lineage | None = None
) -> None:
    """Write weights that come from no run as a new folder that `load_encoder` reads, and `open_run` if it has a config.

    Args:
        folder: The folder to make.
        weights: Tensors by name.
        state: What state.json holds.
        config: What config.json holds; empty: none is written.
        lineage: What the weights were trained on; None: unknown.

    Raises:
        InputError: The weights are not finite.
    """
    check_finite(weights, folder)
    with atomic_folder(folder) as temp_folder:
        _write_weights(temp_folder, weights, state)
        if config:
            (temp_folder / CONFIG).write_text(config)
        if lineage is not None:
            write_lineage(temp_folder, lineage)


class Writer:
    """Runs one write at a time in a thread, so that the training goes on meanwhile."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._write: Future[object] | None = None

    def start(self, write: Callable[[], object]) -> None:
        """Start a write; `wait` comes first."""
        self._write = self._pool.submit(write)

    @property
    def busy(self) -> bool:
        """True while a write goes on."""
        return self._write is not None and not self._write.done()

    @property
    def failed(self) -> bool:
        """True if a write ended with an error that `wait` has not raised yet."""
        return self._write is not None and self._write.done() and self._write.exception() is not None

    def wait(self) -> None:
        """Wait for the end of the last write and raise its error."""
        write, self._write = self._write, None
        if write is not None:
            write.result()

    def settle(self) -> None:
        """Wait for the end of the last write, whose error is only logged, because another one ends the run."""
        try:
            self.wait()
        except (OSError, FloatingPointError) as error:
            log.error("the last checkpoint was not written: %s", error)


def young_seconds(save_seconds: float, nodes: int) -> float:
    """Return the time between checkpoints that loses least to saving and to failures, by Young's formula.

    Args:
        save_seconds: Time that the training waits for a save.
        nodes: Machines of the run; the failure of one ends it.
    """
    seconds_between_failures = 86_400 / (FAILURES_PER_NODE_DAY * nodes)
    return math.sqrt(2 * save_seconds * seconds_between_failures)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder; flush and rename it to `target` when the block ends, delete it after an error."""
    temp_folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temp_folder
        for path in temp_folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        temp_folder.chmod(0o755)
        temp_folder.rename(target)
    except BaseException:
        shutil.rmtree(temp_folder, ignore_errors=True)
        raise


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; a full disk is an OSError with its number, which safetensors only names in a text."""
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt"})  # transformers 4 reads no file without it
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, f"cannot write {path}: {error}") from error


def save_pickle(path: Path, content: object) -> None:
    """Write with torch.save; through a file of ours, because with a path torch hides a full disk behind a RuntimeError."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch ends its archive although a write failed, and complains of that instead
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def _write_weights(folder: Path, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
    save_tensors(folder / MODEL, weights)
    (folder / STATE).write_text(json.dumps(state, indent=2) + "\n")


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of all checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    named = ((_STEP_FOLDER.fullmatch(entry.name), entry) for entry in folder.iterdir())
    return sorted((int(match[1]), entry) for match, entry in named if match)


def _complete(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of the checkpoints that have a state, oldest first."""
    return [(step, path) for step, path in _steps(folder) if (path / STATE).is_file()]


def _point_latest_to(target: Path) -> None:
    link = target.with_name(f".{LATEST}.{os.getpid()}")
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    link.replace(target.with_name(LATEST))


def recover(folder: Path) -> Saved | None:
    """Prepare the checkpoints of a run for a resume and return the newest; only the owner of the run folder may call it.

    What killed saves left behind is deleted. Checkpoints newer than the newest one whose files have their recorded hashes
    are renamed to step_XXXXXXXX.damaged.

    Args:
        folder: Folder of the checkpoints.

    Raises:
        InputError: All checkpoints are damaged.
    """
    for left in folder.glob(f".{LATEST}.*"):
        left.unlink()
    for left in folder.glob(".step_*"):
        shutil.rmtree(left)
    damaged: dict[Path, str] = {}
    for _, path in reversed(_steps(folder)):
        if not (damage := _damage(path)):
            break
        damaged[path] = damage
    else:
        if damaged:
            listed = "; ".join(f"{path}: {damage}" for path, damage in damaged.items())
            raise InputError(
                f"no checkpoint is intact ({listed}); restore one, or delete {folder} to start from step 0"
            )
        return None
    _point_latest_to(path)
    for bad, damage in damaged.items():
        aside = bad.with_name(f"{bad.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        bad.rename(aside)
        log.warning("%s is damaged (%s) and was renamed to %s; %s is used instead", bad, damage, aside.name, path.name)
    return newest(folder)


def _damage(folder: Path) -> str:
    """Return what is wrong with the files of a checkpoint; empty if nothing is."""
    missing = [name for name in (MODEL, TRAINING, STATE) if not (folder / name).is_file()]
    return f"{missing[0]} is missing" if missing else lineage_damage(folder)


def newest(folder: Path) -> Saved | None:
    """Return the newest complete checkpoint in a folder, whatever `latest` points to; None if there is none."""
    complete = _complete(folder)
    if not complete:
        return None
    step, path = complete[-1]
    return Saved(folder=path, step=step, state=json.loads((path / STATE).read_text()))


def excluded_steps(folder: Path) -> set[int]:
    """Return the steps, counted from 0, that a run leaves out since it went back to a checkpoint before them."""
    file = folder / EXCLUDED
    if not file.exists():
        return set()
    with reading(file, "the steps that a run leaves out"):
        return {int(step) for step in json.loads(file.read_text())}


def exclude_steps(folder: Path, steps: Iterable[int]) -> None:
    """Add steps to those that the run of these checkpoints leaves out, now and after every resume."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / EXCLUDED, json.dumps(sorted(excluded_steps(folder).union(steps))) + "\n")


def read_pickle(path: Path) -> Any:
    """Return the contents of a file of torch.save: tensors and plain containers only, so that the file cannot run code.

    Raises:
        InputError: The file is damaged, or holds anything else.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is refused: it is damaged, or was not written by torch.save of torch 1.6 or later")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _PICKLE_ERRORS as error:
        # torch's own text advises to load such a file without the restriction.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = found[1] if found else type(error).__name__
        raise InputError(f"{path} is refused: it is damaged, or holds more than tensors ({what})") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint or run folder; InputError if they are missing or not safetensors."""
    with open_weights(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def open_weights(path: Path) -> safe_open:
    """Open the weights of a checkpoint as a mapped file, to read single tensors. Raises as `read_weights` does."""
    file = locate_model(path)
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        hint = "" if file.suffix == ".safetensors" else f"; `ppma convert {file} DIR` converts other formats"
        raise InputError(f"{file} is not a readable safetensors file: {error}{hint}") from None


def load_model(module: nn.Module, path: Path, *, without: tuple[str, ...] = ()) -> None:
    """Load a checkpoint into a module, sharded or not.

    Args:
        module: Model.
        path: Checkpoint or run folder, or .safetensors file.
        without: Prefixes of tensors in the file that the module does not need.

    Raises:
        InputError: A tensor is missing, is not part of the model, or has another shape.
    """
    weights = {name: tensor for name, tensor in read_weights(path).items() if not name.startswith(without)}
    check_fits(module.state_dict(), weights, path)
    parallel.load_model(module, weights)


def load_encoder(module: nn.Module, path: Path, *, keep_norm: bool = True) -> list[str]:
    """Initialize the encoder of a module from a checkpoint of any phase, without decoder, mask token and heads.

    Args:
        module: Model.
        path: Checkpoint or run folder, or .safetensors file.
        keep_norm: Also load the final LayerNorm of a classifier into a classifier, `fc_norm`. That of stage 1 is never
            loaded: it normalizes tokens for the decoder, and `fc_norm` their mean. (As published, Q7.)

    Returns:
        Names of the tensors that were not loaded.

    Raises:
        InputError: A tensor of the encoder is missing or has another shape.
    """
    weights, own = read_weights(path), module.state_dict()
    both_normed = "fc_norm.weight" in own and "fc_norm.weight" in weights
    prefixes = (*TRUNK, "fc_norm.") if keep_norm and both_normed else TRUNK
    chosen, wanted = ({n: t for n, t in found.items() if n.startswith(prefixes)} for found in (weights, own))
    check_fits(wanted, chosen, path)
    module.load_state_dict(chosen, strict=False)
    return sorted(weights.keys() - chosen.keys())


def check_finite(weights: dict[str, Tensor], path: Path) -> None:
    """Raise InputError if a weight is NaN or infinite; `path` is for the message."""
    if bad := _not_finite(weights):
        raise InputError(f"{path}: holds weights that are NaN or infinite ({first_few(bad, 3)}); use other weights")


def _not_finite(weights: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in weights.items() if not tensor.isfinite().all()]


def check_fits(wanted: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    """Raise InputError unless `given` has exactly the names and shapes of `wanted`; `path` is for the message."""
    problems = [f"{name} is missing" for name in wanted.keys() - given.keys()]
    problems += [f"{name} is not part of this model" for name in given.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, the model's has {tuple(wanted[name].shape)}"
        for name in wanted.keys() & given.keys()
        if given[name].shape != wanted[name].shape
    ]
    if problems:
        shown = first_few(sorted(problems), 6)
        raise InputError(f"{path} does not fit this model (check --model, --size, --frames): {shown}")
