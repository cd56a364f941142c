"""How long a run will take: clips to compute, and the rate of the newest benchmark of such a run on this kind of machine.

RunConfig, benchmarks/results/train_step.jsonl  ->  "2.6 h (...)", or why that is not known
"""

import json
from pathlib import Path
from typing import Any

from ppma.config.model import PRESETS
from ppma.config.run import RunConfig
from ppma.loaders.sources import catalog
from ppma.slurm.snapshot import source_root

RESULTS = Path("benchmarks") / "results" / "train_step.jsonl"
GPU = "NVIDIA"
"""How torch's names of GPUs begin; benchmarks name the machine by its GPU where it has one."""


def _rows(file: Path) -> list[dict[str, Any]]:
    """All rows, oldest first."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def clips_per_s(config: RunConfig, *, on_gpu: bool) -> tuple[float, str] | None:
    """Rows a second of one process in the newest row of `train_step` for this phase and encoder, and the machine it was measured on."""
    sizes = {(vit.width, vit.depth): name for name, vit in PRESETS.items()}
    model = sizes.get((config.vit.width, config.vit.depth))
    wanted = {"phase": "mae" if config.phase == "mae" else "align", "implementation": "ours", "model": model}
    for row in reversed(_rows(source_root() / RESULTS)):
        if on_gpu == str(row.get("machine")).startswith(GPU) and all(
            row.get(name) == value for name, value in wanted.items()
        ):
            return float(row["clips_per_s"]), str(row["machine"])
    return None


def views(config: RunConfig) -> int | None:
    """Views that the run computes; None where a manifest is not there to be counted."""
    entries = catalog.read(catalog.locate(config.data)).entries
    files = [entries[name, "train"].manifest for name in config.sources if (name, "train") in entries]
    if len(files) < len(config.sources) or not all(file.is_file() for file in files):
        return None
    rows = sum(
        file.read_bytes().count(b"\n") - 1 for file in files
    )  # a quoted line end would count twice: it is an estimate
    return rows * config.optim.epochs


def hours_left(config: RunConfig, ranks: int, *, on_gpu: bool) -> str:
    """The estimate in words, for so many processes."""
    rate, work = clips_per_s(config, on_gpu=on_gpu), views(config)
    if rate is None:
        where = "a GPU" if on_gpu else "CPUs"
        return f"not known: benchmarks/train_step.py was not run for it on {where}"
    if work is None:
        return "not known: no manifest to count"
    return f"{work / (rate[0] * ranks) / 3600:.1f} h at {rate[0]:.0f} clips/s a process ({rate[1]}), no loss over the network counted"
