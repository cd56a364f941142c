"""The seal of a finished run: what its files hashed to when it ended, so that a report can refuse a run that was edited since.

run folder, hashes of the manifests and of the weights it started from, its seconds  ->  seal.json  ->  Seal, or an InputError

A seal tells an edited file; it is no signature: who can write the file can write the seal. Imports no torch: reports read hundreds of runs.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ppma.common.files import file_sha256 as sha256
from ppma.config.errors import InputError
from ppma.config.run import RunConfig
from ppma.loaders.sources import catalog
from ppma.training.lineage import FILE as LINEAGE

SEAL = "seal.json"
READ = (
    "config.json", "confusion.csv", "environment.json", LINEAGE, "metrics.jsonl", "quarantine.csv", "result.json", "scores.npz",
    "state.json",
)  # fmt: skip
"""Files whose contents are sealed; those of them that a run does not have must not appear later either."""
MODEL = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What a run was made of and came to."""

    files: dict[str, str]
    """SHA-256 of each file of `READ`."""
    weights: str | None
    """SHA-256 of the newest weights; None where the folder holds a result only."""
    manifests: dict[str, str]
    """SHA-256 of each manifest that was read, by `source.split`."""
    init: str | None
    """SHA-256 of the weights that the run started from; None: from scratch."""
    seconds: float
    """Wall time of all its starts, evaluation included; of a start that was killed what its log tells."""


def locate_model(path: Path) -> Path:
    """The .safetensors file meant by a run folder, a checkpoint folder or the file itself. InputError when there is none."""
    candidates = [path, path / MODEL, path / "latest" / MODEL, path / "checkpoints" / "latest" / MODEL]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(f"{path}: no checkpoint here; give a run folder, a checkpoint folder or a .safetensors file")


def manifest_hashes(config: RunConfig) -> dict[str, str]:
    """SHA-256 of every manifest that a run reads, tested ones included; equal to `Manifest.sha256`."""
    data = catalog.find(config.data)
    entries = [data.entry(name) for name in config.sources]
    if config.evaluation.at_end:
        entries.append(data.entry(config.sources[0], config.evaluation.split))
    if missing := [entry for entry in entries if not entry.manifest.is_file()]:
        raise InputError(f"{data.path}, [{missing[0].name}.{missing[0].split}]: no manifest {missing[0].manifest}")
    return {
        f"{entry.name}.{entry.split}": _manifest_hash(entry.manifest, entry.manifest.stat().st_mtime_ns)
        for entry in entries
    }


@cache
def _manifest_hash(path: Path, changed_ns: int) -> str:
    """A study asks for the same manifests hundreds of times."""
    return sha256(path)


def starts_hash(weights: Sequence[str]) -> str | None:
    """One hash for all weights that a run starts from: that of the only one, or one of them together; None: from scratch."""
    if len(weights) < 2:
        return weights[0] if weights else None
    return hashlib.sha256("".join(weights).encode()).hexdigest()


def logged_seconds(folder: Path, batch: int) -> float:
    """Seconds of training that `metrics.jsonl` accounts for: steps of each interval over its speed."""
    file, seconds, before = folder / "metrics.jsonl", 0.0, 0
    for line in file.read_text().splitlines() if file.is_file() else ():
        row = json.loads(line)
        if rate := row.get("perf/clips_per_s"):
            seconds, before = seconds + (row["step"] - before) * batch / rate, row["step"]
    return seconds


def signed(facts: dict[str, Any]) -> dict[str, Any]:
    """The same with a hash of itself under `seal`, for a file that is read by `verified`."""
    return {**facts, "seal": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


def verified(file: Path) -> dict[str, Any]:
    """What a file of `signed` facts holds. InputError when it is not there, no such file, or was edited."""
    try:
        read = json.loads(file.read_text())
        facts = {name: value for name, value in read.items() if name != "seal"}
        own = read["seal"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{file} cannot be read as the seal of something finished: {error}") from None
    if own != signed(facts)["seal"]:
        raise InputError(
            f"{file} was edited: its hash is not the one that it was written with; restore it, or make it anew"
        )
    return facts


def write(folder: Path, *, manifests: dict[str, str], init: str | None, seconds: float) -> Seal:
    """Seal a folder as it stands; the seal appears complete or not at all."""
    files = {name: sha256(folder / name) for name in READ if (folder / name).is_file()}
    own = [path for path in (folder / "checkpoints" / "latest" / MODEL, folder / MODEL) if path.is_file()]
    weights = sha256(own[0]) if own else None
    seal = Seal(files=files, weights=weights, manifests=manifests, init=init, seconds=round(seconds, 3))
    beside = folder / "seal.tmp"
    beside.write_text(json.dumps(signed(asdict(seal)), indent=2) + "\n")
    beside.replace(folder / SEAL)
    return seal


def read(folder: Path) -> Seal:
    """The seal of a folder, after every file of `READ` was found as it was. InputError names the first that was not."""
    if not (folder / SEAL).is_file():
        raise InputError(f"{folder} has no {SEAL}: the run has not ended; go on with --resume")
    facts = verified(folder / SEAL)
    try:
        seal = Seal(**facts)
    except TypeError as error:
        raise InputError(f"{folder / SEAL} is no seal: {error}") from None
    changed = [name for name in READ if _hash_or_none(folder / name) != seal.files.get(name)]
    if changed:
        raise InputError(
            f"{folder / changed[0]} was edited after the run had ended: its hash is not the one in {SEAL}; "
            "restore the file, or delete the run and run it again"
        )
    return seal


def check_weights(folder: Path, seal: Seal) -> None:
    """InputError unless the weights are those that were sealed."""
    if seal.weights != sha256(locate_model(folder)):
        raise InputError(
            f"{locate_model(folder)} was changed after the run had ended: its hash is not the one in {SEAL}; "
            "restore the file, or delete the run and run it again"
        )


def _hash_or_none(path: Path) -> str | None:
    return sha256(path) if path.is_file() else None
