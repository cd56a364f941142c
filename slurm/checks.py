"""What the launcher checks before a submission: whatever would fail hours later, when the job leaves the queue.

    RunConfig, this process  ->  InputError; a submission stops at the first one, a dry run reports all

What flags alone show, as a batch that does not divide among the ranks, `plan` refuses. sbatch checks the rest.
"""

import sys
from dataclasses import replace
from pathlib import Path

from ppma.config.errors import require
from ppma.config.run import UNTRAINED, RunConfig, check_clips
from ppma.loaders.sources import catalog
from ppma.loaders.sources.catalog import Entry
from ppma.loaders.sources.manifest import Manifest
from ppma.slurm.snapshot import source_root

PROBED = 16
"""Clips of a source, evenly spaced, whose files must exist: a wrong root shows at once, a lost file in training."""


def check_checkout() -> None:
    """Raise InputError if the script that was started belongs to another checkout than the package that it imports."""
    script, root = Path(sys.argv[0]).resolve(), source_root()
    ours = script.parts[-2:] != ("slurm", "launch.py") or script.parents[1] == root
    fix = f"activate the environment of that checkout, or set PYTHONPATH={script.parents[1]}"
    require(ours, f"{script} would run the code in {root}, where its Python finds ppma; {fix}")


def sources_of(config: RunConfig) -> list[Manifest]:
    """Return the manifests that a run trains on; InputError if one is missing or wrong."""
    data = catalog.find(config.data)
    return [data.manifest(name) for name in config.sources]


def check_data(config: RunConfig) -> None:
    """Raise InputError unless the data of a run exist, the split of its test too, and hold a whole batch."""
    data = catalog.find(config.data)
    splits = [(name, "train") for name in config.sources]
    splits += [(config.sources[0], config.evaluation.split)] if config.evaluation.at_end else []
    for name, split in splits:
        check_entry(data.path, data.entry(name, split))
        source = data.manifest(name, split)
        for row in range(0, len(source), max(1, len(source) // PROBED)):
            file = Path(str(source.file(row)).rpartition("#")[0] or source.file(row))
            require(file.exists(), f"{data.path}, [{name}.{split}]: {file} does not exist; is its root right?")
    check_clips(config, sum(len(source) for source in sources_of(config)))


def check_entry(data: Path, entry: Entry) -> None:
    """Raise InputError unless manifest, root and store of an entry of the data catalog exist."""
    for what, path in (("manifest", entry.manifest), ("root", entry.root), ("store", entry.store)):
        there = path is None or path.exists()
        require(there, f"{data}, [{entry.name}.{entry.split}]: {what} {path} does not exist")


def check_rate(config: RunConfig) -> None:
    """Raise InputError if a new run scales the learning rate up, to a batch larger than the one it was tried with."""
    optim, batch = config.optim, config.batch
    settled = config.phase in UNTRAINED or (config.run_dir / "config.json").exists()
    times = 1.0 if settled else batch / optim.reference_batch
    scaled = f"{config.recipe}: batch {batch} scales the peak learning rate to {optim.peak_lr * times:.3g}, {times:.3g} times"
    fix = f"give the rate for this batch: --optim.reference-batch {batch} --optim.peak-lr RATE"
    require(times <= 1, f"{scaled} the tested {optim.peak_lr:g} of batch {optim.reference_batch}; {fix}")


def check_starts(config: RunConfig, coming: set[Path]) -> None:
    """Raise InputError unless the weights that a run starts from exist, or are in a folder that is `coming`."""
    for start in config.starts:
        there = start.exists() or any(start.is_relative_to(folder) for folder in coming)
        require(there, f"{'--average' if config.average else '--init'} {start}: there is no such run or checkpoint")


def check_privacy(config: RunConfig, coming: set[Path]) -> None:
    """Raise InputError for what `--privacy strict` would refuse on the nodes, except weights to come. Imports torch then."""
    if config.privacy != "strict":
        return
    from ppma.privacy import strict
    from ppma.training.tasks import newest

    not_yet = config.init is not None and any(config.init.is_relative_to(folder) for folder in coming)
    saved = newest(config)
    checked = replace(config, init=None) if not_yet else config
    strict.precheck(checked, sources_of(config), saved.folder if saved else None)
