"""The seal of a finished run: hashes of its files, so that a report can refuse a run that was edited afterwards.

    run folder, hashes of its manifests and initial weights, its duration  ->  seal.json  ->  Seal, or an InputError

A seal detects edits. It is not a signature: whoever can write the files can write the seal. Imports no torch, because
reports read hundreds of runs.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ppma.common.files import file_sha256 as sha256
from ppma.common.files import write_text
from ppma.config.errors import InputError, reading, require
from ppma.config.records import restore
from ppma.config.run import RunConfig
from ppma.loaders.sources import catalog
from ppma.training.lineage import FILE as LINEAGE

SEAL = "seal.json"
READ = (
    "config.json", "confusion.csv", "environment.json", LINEAGE, "metrics.jsonl", "quarantine.csv", "result.json", "scores.npz",
    "state.json",
)  # fmt: skip
"""Sealed files. One that a run does not have must not appear later either."""
MODEL = "model.safetensors"
RESULT_KEYS = ("dataset", "split", "protocol", "seed", "n_videos", "top1", "top5", "ci95", "manifest_sha256")
"""What readers of a result.json rely on."""


@dataclass(frozen=True, kw_only=True)
class Seal:
    """Hashes of a run's inputs and of the files that it wrote."""

    files: dict[str, str]
    """SHA-256 of each file of `READ`."""
    weights: str | None
    """SHA-256 of the newest weights; None if the folder holds only a result."""
    manifests: dict[str, str]
    """SHA-256 of each manifest, by `source.split`."""
    init: str | None
    """SHA-256 of the initial weights; None: trained from scratch."""
    seconds: float
    """Wall time of all starts, evaluation included; for a killed start, the time that its metrics cover."""


def locate_model(path: Path) -> Path:
    """Return the .safetensors file of a run folder, a checkpoint folder or the file itself; InputError for none."""
    candidates = [path, path / MODEL, path / "latest" / MODEL, path / "checkpoints" / "latest" / MODEL]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(f"{path}: no checkpoint here; give a run folder, a checkpoint folder or a .safetensors file")


def manifest_hashes(config: RunConfig) -> dict[str, str]:
    """Return `Manifest.sha256` of every manifest that a run reads, test splits included, by `source.split`."""
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
    """Return the hash of a file, cached, because a study asks for the same manifests hundreds of times."""
    return sha256(path)


def starts_hash(weights: Sequence[str]) -> str | None:
    """Return one hash for the hashes of a run's initial weights; None if there are none."""
    if len(weights) < 2:
        return weights[0] if weights else None
    return hashlib.sha256("".join(weights).encode()).hexdigest()


def signed(facts: dict[str, Any]) -> dict[str, Any]:
    """Return `facts` with their hash under `seal`; the inverse of `verified`."""
    return {**facts, "seal": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


def verified(file: Path) -> dict[str, Any]:
    """Return the facts in a file of `signed` ones; InputError if it is missing, invalid or was edited."""
    with reading(file, "a file with a seal"):
        read = json.loads(file.read_text(encoding="utf-8"))
        facts = {name: value for name, value in read.items() if name != "seal"}
        own = read["seal"]
    if own != signed(facts)["seal"]:
        raise InputError(f"{file} was edited: its hash differs from the sealed one; restore the file or make it again")
    return facts


def write(folder: Path, *, manifests: dict[str, str], init: str | None, seconds: float) -> Seal:
    """Seal a run folder and return its seal.

    Args:
        folder: Run folder.
        manifests: See `manifest_hashes`.
        init: See `starts_hash`.
        seconds: Wall time of the run.
    """
    files = {name: sha256(folder / name) for name in READ if (folder / name).is_file()}
    own = [path for path in (folder / "checkpoints" / "latest" / MODEL, folder / MODEL) if path.is_file()]
    weights = sha256(own[0]) if own else None
    seal = Seal(files=files, weights=weights, manifests=manifests, init=init, seconds=round(seconds, 3))
    write_text(folder / SEAL, json.dumps(signed(asdict(seal)), indent=2) + "\n")
    return seal


def read(folder: Path) -> Seal:
    """Check the files of a run folder and return its seal; InputError for one that is missing, new or edited."""
    if not (folder / SEAL).is_file():
        raise InputError(f"{folder} has no {SEAL}: the run is not finished; continue it with --resume")
    with reading(folder / SEAL, "the seal of a run of this ppma; read the run with the ppma that made it"):
        seal: Seal = restore(Seal, verified(folder / SEAL))
    for name in READ:
        found = sha256(folder / name) if (folder / name).is_file() else None
        _require_unchanged(folder / name, found == seal.files.get(name))
    return seal


def read_result(file: Path) -> dict[str, Any]:
    """Return the content of a result.json; InputError where it lacks an entry of `RESULT_KEYS`."""
    with reading(file, "the result of a test by this ppma; delete it, or test again with `ppma evaluate`"):
        result = dict(json.loads(file.read_text(encoding="utf-8")))
        missing = [name for name in RESULT_KEYS if name not in result]
        require(not missing, f"has no {', '.join(missing)}; delete it, or test again with `ppma evaluate`")
        return result


def check_weights(folder: Path, seal: Seal) -> None:
    """Raise InputError unless the weights in a folder are the sealed ones."""
    weights = locate_model(folder)
    _require_unchanged(weights, seal.weights == sha256(weights))


def _require_unchanged(file: Path, unchanged: bool) -> None:
    fix = "restore the file, or delete the run and run it again"
    require(unchanged, f"{file} was edited after the run had ended: its hash is not the one in {SEAL}; {fix}")
