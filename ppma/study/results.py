"""Read the results of tested runs from their sealed files, the only source of numbers in a report.

RUNS/NAME.study.json, or any folder of runs  ->  seals checked, scores read  ->  a Result per run, and the missing runs

Accuracies are recomputed from `scores.npz`. A run is refused if it was edited, if its `result.json` disagrees with
its scores, if it is not the run that the study means, or if it started from other weights than those of the run it
names.
"""

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from ppma.common.statistics import top_k_correct
from ppma.config.errors import reading, require
from ppma.config.run import RunConfig, read_config
from ppma.training import seal
from ppma.training.seal import Seal

LISTING = "*.study.json"
_PARSER = threading.Lock()
"""The head of an array is a Python literal, and CPython 3.11 may fail when a second thread parses one meanwhile ("SystemError:
AST constructor recursion depth mismatch")."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One tested run."""

    method: str
    protocol: str
    dataset: str
    seed: int
    folder: Path
    seal: Seal
    right_DV: np.ndarray
    """bool: whether each video is correct at top-1, with a row for each few-shot draw of training clips."""
    right5_DV: np.ndarray
    """The same at top-5."""
    videos: str
    """Hash of the list of videos and labels; equal for runs that can be paired."""
    pretrain_seconds: float | None
    """Wall time of all runs that the encoder derives from; None if one of them is missing."""
    device: str
    command: tuple[str, ...]

    @property
    def tested(self) -> tuple[object, ...]:
        """What must be equal for runs to be paired."""
        return self.videos, self.right_DV.shape


@dataclass(frozen=True, kw_only=True)
class Collection:
    """All results of a study and its author's titles."""

    title: str
    methods: dict[str, str]
    """name: title, in the order of the table."""
    protocols: dict[str, str]
    """name: title."""
    datasets: tuple[str, ...]
    results: tuple[Result, ...]
    missing: tuple[str, ...] = ()
    """Folder names of planned runs without a result."""
    compare: str = ""
    """Method that the others are compared with."""
    humans: str = ""
    """Method trained with humans."""
    commands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Run folder: the command that does it."""


def collect(runs: Path) -> Collection:
    """Read the results of a study, or of every finished run below a folder.

    Args:
        runs: The listing of a study (NAME.study.json), a folder with one, or any folder of runs.

    Raises:
        InputError: A file was edited, or there is nothing to read.
    """
    if runs.is_file():
        return _study(runs)
    require(runs.is_dir(), f"{runs}: there is no such folder; give the --out of `ppma study`, or a folder of runs")
    listings = sorted(runs.glob(LISTING))
    require(len(listings) < 2, f"{runs} holds {len(listings)} studies; give one: {', '.join(map(str, listings))}")
    return _study(listings[0]) if listings else _unplanned(runs)


def _study(file: Path) -> Collection:
    listing, base = seal.verified(file), file.parent
    commands = {folder: tuple(command) for folder, command in listing["commands"].items()}
    finished = [row for row in listing["rows"] if (base / row["folder"] / seal.SEAL).is_file()]
    missing = tuple(Path(row["folder"]).name for row in listing["rows"] if row not in finished)
    ancestors, results = _Ancestors(), []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # hashing and unpacking release the GIL
        read = pool.map(lambda row: _read(base / row["folder"], commands.get(row["folder"], ())), finished)
        for row, found in zip(finished, read):
            folder = base / row["folder"]
            meant = {found["seed"], read_config(folder).seed} == {row["seed"]} and found["dataset"] == row["dataset"]
            tested = f"{folder} tested {found['dataset']}, seed {found['seed']}"
            require(meant, f"{tested}; {file.name} means another run")
            chain, starts = ([base / name for name in row[key]] for key in ("chain", "starts"))
            seconds = ancestors.seconds(chain, starts, found["seal"], folder)
            results.append(Result(**found, method=row["method"], protocol=row["protocol"], pretrain_seconds=seconds))
    return Collection(
        title=listing["title"], methods=listing["methods"], protocols=listing["protocols"], datasets=tuple(listing["datasets"]),
        results=tuple(results), missing=missing, compare=listing["compare"], humans=listing["humans"], commands=commands,
    )  # fmt: skip


class _Ancestors:
    """The runs that encoders derive from; each seal is read once, though many tests share it."""

    def __init__(self) -> None:
        self._seals: dict[Path, Seal | None] = {}

    def _seal(self, folder: Path) -> Seal | None:
        if folder not in self._seals:
            self._seals[folder] = seal.read(folder) if (folder / seal.SEAL).is_file() else None
        return self._seals[folder]

    def seconds(self, chain: Sequence[Path], starts: Sequence[Path], tested: Seal, folder: Path) -> float | None:
        """Return the wall time of a chain, None if a run of it is missing.

        Args:
            chain: All runs that the encoder derives from.
            starts: Those that the test in `folder` starts from.
            tested: The seal of the test.
            folder: Its folder.

        Raises:
            InputError: The test started from other weights than those of `starts`.
        """
        weights = [found.weights for found in map(self._seal, starts) if found and found.weights]
        same = not starts or len(weights) < len(starts) or seal.starts_hash(weights) == tested.init
        named = ", ".join(map(str, starts))
        require(same, f"{folder} did not start from the weights of {named}: their hashes differ; run the study again")
        seals = [self._seal(other) for other in chain]
        return sum(found.seconds for found in seals if found) if None not in seals else None


def _read(folder: Path, command: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of a Result that a folder holds, after checking its seal."""
    sealed = seal.read(folder)
    result = seal.read_result(folder / "result.json")
    with ZipFile(folder / "scores.npz") as scores:
        scores_VC, label_V, video_V = (_array(scores, name) for name in ("scores", "label", "video"))
    right_V, right5_V = (top_k_correct(scores_VC, label_V, k) for k in (1, 5))
    for name, counted in (("top1", right_V.mean()), ("top5", right5_V.mean())):
        same = abs(result[name] - counted) <= 1e-9 and result["n_videos"] == len(label_V)
        require(same, f"{folder / 'result.json'} has {name} {result[name]}, its scores {counted}: not of one run")
    draws = result.get("draws", 1)
    videos = len(label_V) // draws
    names = "\0".join([*video_V[:videos].tolist(), *map(str, label_V[:videos].tolist())])
    environment = _last_start(folder)
    return {
        "dataset": result["dataset"], "seed": result["seed"], "folder": folder, "seal": sealed, "command": command,
        "videos": hashlib.sha256(names.encode()).hexdigest(),
        "right_DV": right_V.reshape(draws, videos), "right5_DV": right5_V.reshape(draws, videos),
        "device": f"{environment['world_size']} x {environment['device']}" if "device" in environment else "not recorded",
    }  # fmt: skip


def _array(archive: ZipFile, name: str) -> np.ndarray:
    """Return an array of an .npz file, unpacked while other threads unpack theirs."""
    with archive.open(f"{name}.npy") as file:
        with _PARSER:
            np.lib.format.read_magic(file)
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran_order else "C")


def _last_start(run: Path) -> dict[str, Any]:
    """Return what a run recorded of its last start; empty without a record."""
    file = run / "environment.json"
    if not file.is_file():
        return {}
    with reading(file, "the record of a run's starts"):
        return dict(json.loads(file.read_text(encoding="utf-8"))[-1])


# --------------------------------------------------------------------------------------------------------- unplanned runs


def _unplanned(runs: Path) -> Collection:
    """Read every result below a folder; a method is named after the recipes that its encoder went through.

    A test by `ppma evaluate` with the same views as the run's own test counts once.
    """
    results: dict[tuple[object, ...], Result] = {}
    ancestors = _Ancestors()
    for file in sorted(runs.rglob("result.json"), key=lambda path: (len(path.parts), path)):
        run = _run_folder(file.parent)
        if run is not None:
            result = _unplanned_result(file, run, ancestors)
            results.setdefault((run, result.protocol, result.dataset), result)
    none = f"{runs}: no run with a result below it; finetune, probe, `ppma evaluate` and `ppma study` write one"
    require(bool(results), none)
    found = tuple(results.values())
    methods, protocols, datasets = (
        {name: name for name in sorted({getattr(result, key) for result in found})}
        for key in ("method", "protocol", "dataset")
    )
    return Collection(
        title=f"Runs in {runs}", methods=methods, protocols=protocols, datasets=tuple(datasets), results=found
    )


def _unplanned_result(file: Path, run: Path, ancestors: _Ancestors) -> Result:
    result, starts = seal.read_result(file), _starts(read_config(run))
    chain = list(dict.fromkeys(run for start in starts for run in _chain(start)))
    method = " + ".join(_lineage(start) for start in starts) or "from scratch"
    found = _read(file.parent, tuple(_last_start(run).get("command", ())))
    if result["split"] != "val":
        found["dataset"] += f" ({result['split']})"
    complete = all(_run_folder(start) for start in starts)
    seconds = ancestors.seconds(chain, starts, seal.read(run), file.parent) if complete else None
    return Result(**found, method=method, protocol=result["protocol"], pretrain_seconds=seconds)


def _run_folder(folder: Path) -> Path | None:
    """Return the run that a folder is or is directly inside of."""
    return next((path for path in (folder, folder.parent) if (path / "config.json").is_file()), None)


def _starts(config: RunConfig | None) -> list[Path]:
    """Return the run folders that a run started from, or the path itself for weights outside a run."""
    return [_run_above(path) or path for path in (config.starts if config else ())]


def _run_above(path: Path) -> Path | None:
    return next((above for above in (path, *path.parents) if (above / "config.json").is_file()), None)


def _config(run: Path) -> RunConfig | None:
    return read_config(run) if (run / "config.json").is_file() else None


def _chain(run: Path) -> list[Path]:
    """Return a run and all runs that it derives from, first to last, as far as they exist."""
    return [*(above for start in _starts(_config(run)) for above in _chain(start)), run]


def _lineage(run: Path) -> str:
    """Return the recipes that weights went through."""
    config = _config(run)
    above = " + ".join(_lineage(start) for start in _starts(config))
    name = config.recipe if config else run.name
    return f"{above} > {name}" if above else name
