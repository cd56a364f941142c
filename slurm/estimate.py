"""How long a run will take: clips to compute, and the rate of the newest benchmark of such a run on this kind of machine.

RunConfig, benchmarks/results/*.jsonl  ->  "2.6 h (...)", or why that is not known
"""

import json
from pathlib import Path
from typing import Any

from ppma.config import RunConfig
from ppma.loaders import catalogue
from ppma.slurm.snapshot import source_root

RESULTS = Path("benchmarks") / "results"


def _rows(folder: Path) -> list[dict[str, Any]]:
    """All benchmark rows, oldest first."""
    rows = [
        json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines() if line
    ]
    return sorted(rows, key=lambda row: str(row.get("date", "")))


def clips_per_s(config: RunConfig, folder: Path | None = None) -> tuple[float, str] | None:
    """Views a second of one rank in the newest row of a training step of this phase and encoder, and where it was measured."""
    wanted = {"phase": config.phase, "width": config.vit.width, "depth": config.vit.depth, "size": config.vit.size}
    for row in reversed(_rows(folder or source_root() / RESULTS)):
        if "clips_per_s" in row and all(row.get(name) == value for name, value in wanted.items()):
            return float(row["clips_per_s"]), str(row.get("device") or row.get("machine") or "another machine")
    return None


def views(config: RunConfig) -> int | None:
    """Views that the run computes; None where a manifest is not there to be counted."""
    entries = catalogue.read(catalogue.locate(config.data)).entries
    files = [entries[name, "train"].manifest for name in config.sources if (name, "train") in entries]
    if len(files) < len(config.sources) or not all(file.is_file() for file in files):
        return None
    rows = sum(
        file.read_bytes().count(b"\n") - 1 for file in files
    )  # a quoted line end would count twice: it is an estimate
    return rows * config.optim.epochs


def hours_left(config: RunConfig, ranks: int) -> str:
    """The estimate in words."""
    rate, work = clips_per_s(config), views(config)
    if rate is None:
        return "not known: no benchmark of such a model in benchmarks/results"
    if work is None:
        return "not known: no manifest to count"
    return f"{work / (rate[0] * ranks) / 3600:.1f} h at {rate[0]:.0f} clips/s a process ({rate[1]}), no loss over the network counted"
