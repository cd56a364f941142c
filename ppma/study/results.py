"""Tested runs as their sealed files have them: the only way for a number into a report.

RUNS/NAME.study.json, or any folder with runs in it  ->  seals checked, scores read  ->  Result of each run, and what is missing

Accuracies are counted again from `scores.npz`; a `result.json` that says something else is refused, and so is a run that was edited, is not
the run that the study means, or started from other weights than those of the run it names.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ppma.common.statistics import top_k_correct
from ppma.config.errors import InputError
from ppma.config.run import RunConfig, read_config
from ppma.training import seal
from ppma.training.seal import Seal

LISTING = "*.study.json"


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
    """bool: whether a video was named right, in each draw of a protocol that draws its training clips; one draw elsewhere."""
    right5_DV: np.ndarray
    videos: str
    """Hash of the list of videos and labels: equal for runs that can be paired."""
    pretrain_seconds: float | None
    """Wall time of all that the encoder came from; None where one of those runs is not there."""
    device: str
    command: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Collection:
    """All results of a study, with what its author calls things."""

    title: str
    methods: dict[str, str]
    """name: title, in the order of the table."""
    protocols: dict[str, str]
    datasets: tuple[str, ...]
    results: tuple[Result, ...]
    missing: tuple[str, ...] = ()
    """Runs that are planned and not there."""
    compare: str = ""
    humans: str = ""
    commands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Run folder: what one types to do it."""


def collect(runs: Path) -> Collection:
    """Read a study (its listing, or a folder with one), or every finished run below a folder.

    InputError names the first file that is not as it was.
    """
    if runs.is_file():
        return _study(runs)
    if not runs.is_dir():
        raise InputError(
            f"{runs}: there is no such folder; give the --out of `ppma study`, or a folder with runs in it"
        )
    listings = sorted(runs.glob(LISTING))
    if len(listings) > 1:
        raise InputError(f"{runs} holds {len(listings)} studies; give one: {', '.join(map(str, listings))}")
    return _study(listings[0]) if listings else _loose(runs)


def _study(file: Path) -> Collection:
    listing, base = seal.verified(file), file.parent
    commands = {folder: tuple(command) for folder, command in listing["commands"].items()}
    there = [row for row in listing["rows"] if (base / row["folder"] / seal.SEAL).is_file()]
    missing = [Path(row["folder"]).name for row in listing["rows"] if row not in there]
    chains, results = _Chains(), []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # hashing and unpacking let other threads run
        read = pool.map(lambda row: _read(base / row["folder"], commands.get(row["folder"], ())), there)
        for row, found in zip(there, read):
            results.append(_placed(row, found, base, chains, file))
    return Collection(
        title=listing["title"], methods=listing["methods"], protocols=listing["protocols"], datasets=tuple(listing["datasets"]),
        results=tuple(results), missing=tuple(missing), compare=listing["compare"], humans=listing["humans"], commands=commands,
    )  # fmt: skip


def _placed(row: dict[str, Any], found: dict[str, Any], base: Path, chains: "_Chains", listing: Path) -> Result:
    """A result in its cell, once it is known to be the run that the listing means."""
    folder = base / row["folder"]
    if (found["dataset"], found["seed"]) != (row["dataset"], row["seed"]) or read_config(folder).seed != row["seed"]:
        raise InputError(f"{folder} tested {found['dataset']}, seed {found['seed']}; {listing.name} means another run")
    chain, starts = ([base / name for name in row[key]] for key in ("chain", "starts"))
    seconds = chains.seconds(chain, starts, found["seal"], folder)
    return Result(**found, method=row["method"], protocol=row["protocol"], pretrain_seconds=seconds)


class _Chains:
    """Time of what encoders came from; each run is read once, though many start from it."""

    def __init__(self) -> None:
        self._seals: dict[Path, Seal | None] = {}

    def seal(self, folder: Path) -> Seal | None:
        """The checked seal of a run, None where it is not there."""
        if folder not in self._seals:
            self._seals[folder] = seal.read(folder) if (folder / seal.SEAL).is_file() else None
        return self._seals[folder]

    def seconds(self, chain: Sequence[Path], starts: Sequence[Path], tested: Seal, folder: Path) -> float | None:
        """Sum over the chain. Those of it that the test starts from must have made the weights that it started from."""
        weights = [found.weights for found in map(self.seal, starts) if found and found.weights]
        if starts and len(weights) == len(starts) and seal.starts_hash(weights) != tested.init:
            raise InputError(
                f"{folder} did not start from the weights of {', '.join(map(str, starts))}: their hashes differ; run the study again"
            )
        seals = [self.seal(other) for other in chain]
        return sum(found.seconds for found in seals if found) if None not in seals else None


def _read(folder: Path, command: tuple[str, ...]) -> dict[str, Any]:
    """What a folder with a result says, after its seal vouched for it."""
    sealed = seal.read(folder)
    result = json.loads((folder / "result.json").read_text())
    with np.load(folder / "scores.npz") as scores:
        scores_VC, label_V, video_V = scores["scores"], scores["label"], scores["video"]
    right_V, right5_V = (top_k_correct(scores_VC, label_V, k) for k in (1, 5))
    for name, counted in (("top1", right_V.mean()), ("top5", right5_V.mean())):
        if abs(result[name] - counted) > 1e-9 or result["n_videos"] != len(label_V):
            raise InputError(
                f"{folder / 'result.json'} says {name} {result[name]}, its scores {counted}: they are not of one run"
            )
    draws = result.get("draws", 1)
    videos = len(label_V) // draws
    listed = hashlib.sha256(
        "\0".join([*video_V[:videos].tolist(), *map(str, label_V[:videos].tolist())]).encode()
    ).hexdigest()
    return {
        "dataset": result["dataset"], "seed": result["seed"], "folder": folder, "seal": sealed, "videos": listed,
        "right_DV": right_V.reshape(draws, videos), "right5_DV": right5_V.reshape(draws, videos),
        "device": _device(folder), "command": command,
    }  # fmt: skip


def _device(folder: Path) -> str:
    file = folder / "environment.json"
    if not file.is_file():
        return "not recorded"
    last = json.loads(file.read_text())[-1]
    return f"{last['world_size']} x {last['device']}"


# ------------------------------------------------------------------------------------------- runs that no study planned


def _loose(runs: Path) -> Collection:
    """Every result below a folder. A method is called after the recipes that its encoder went through.

    What `ppma evaluate` found where the run had tested itself already, with the same views, is not counted twice.
    """
    results: dict[tuple[object, ...], Result] = {}
    chains = _Chains()
    for file in sorted(runs.rglob("result.json"), key=lambda path: (len(path.parts), path)):
        run = _run_folder(file.parent)
        if run is not None:
            result = _loose_result(file, run, chains)
            results.setdefault((run, result.protocol, result.dataset), result)
    if not results:
        raise InputError(
            f"{runs}: no run with a result below it; finetune, probe, `ppma evaluate` and `ppma study` make some"
        )
    found = tuple(results.values())
    names = {
        key: {name: name for name in sorted({getattr(r, key) for r in found})}
        for key in ("method", "protocol", "dataset")
    }
    return Collection(
        title=f"Runs in {runs}", methods=names["method"], protocols=names["protocol"], datasets=tuple(names["dataset"]), results=found
    )  # fmt: skip


def _loose_result(file: Path, run: Path, chains: _Chains) -> Result:
    result, starts = json.loads(file.read_text()), _starts(read_config(run))
    chain = list(dict.fromkeys(run for start in starts for run in _chain(start)))
    method = " + ".join(_lineage(start) for start in starts) or "from scratch"
    found = _read(file.parent, _typed(run))
    if result["split"] != "val":
        found["dataset"] += f" ({result['split']})"
    there = all(_run_folder(start) for start in starts)
    seconds = chains.seconds(chain, starts, seal.read(run), file.parent) if there else None
    return Result(**found, method=method, protocol=result["protocol"], pretrain_seconds=seconds)


def _run_folder(folder: Path) -> Path | None:
    """The folder or the one above it that is a run."""
    return next((path for path in (folder, folder.parent) if (path / "config.json").is_file()), None)


def _starts(config: RunConfig | None) -> list[Path]:
    """Return the run folders of what a run started from; a path to something else stands for itself."""
    return [_run_above(path) or path for path in (config.starts if config else ())]


def _run_above(path: Path) -> Path | None:
    return next((above for above in (path, *path.parents) if (above / "config.json").is_file()), None)


def _config(run: Path) -> RunConfig | None:
    return read_config(run) if (run / "config.json").is_file() else None


def _chain(run: Path) -> list[Path]:
    """Return a run and all that it came from, first to last, as far as they are there."""
    return [*(above for start in _starts(_config(run)) for above in _chain(start)), run]


def _lineage(run: Path) -> str:
    """Return the recipes that weights went through."""
    config = _config(run)
    above = " + ".join(_lineage(start) for start in _starts(config))
    name = config.recipe if config else run.name
    return f"{above} > {name}" if above else name


def _typed(run: Path) -> tuple[str, ...]:
    file = run / "environment.json"
    return tuple(json.loads(file.read_text())[-1]["command"]) if file.is_file() else ()
