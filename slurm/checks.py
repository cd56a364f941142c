"""What the launcher checks before a submission: whatever would fail hours later, when the job leaves the queue.

    RunConfig, this process  ->  InputError; a submission stops at the first one, a dry run reports all

What flags alone show, as a batch that does not divide among the ranks, `plan` refuses. sbatch checks the rest.
"""

import sys
from dataclasses import replace
from pathlib import Path

from ppma.config.errors import require
from ppma.config.run import UNTRAINED, RunConfig
from ppma.slurm.snapshot import source_root
from ppma.training import inputs


def check_checkout() -> None:
    """Raise InputError if the script that was started belongs to another checkout than the package that it imports."""
    script, root = Path(sys.argv[0]).resolve(), source_root()
    ours = script.parts[-2:] != ("slurm", "launch.py") or script.parents[1] == root
    fix = f"activate the environment of that checkout, or set PYTHONPATH={script.parents[1]}"
    require(ours, f"{script} would run the code in {root}, where its Python finds ppma; {fix}")


def check_rate(config: RunConfig) -> None:
    """Raise InputError if a new run scales the learning rate up, to a batch larger than the one it was tried with."""
    optim, batch = config.optim, config.batch
    settled = config.phase in UNTRAINED or (config.run_dir / "config.json").exists()
    times = 1.0 if settled else batch / optim.reference_batch
    scaled = f"{config.recipe}: batch {batch} scales the peak learning rate to {optim.peak_lr * times:.3g}, {times:.3g} times"
    fix = f"give the rate for this batch: --optim.reference-batch {batch} --optim.peak-lr RATE"
    require(times <= 1, f"{scaled} the tested {optim.peak_lr:g} of batch {optim.reference_batch}; {fix}")


def check_privacy(config: RunConfig, coming: set[Path]) -> None:
    """Raise InputError for what `--privacy strict` would refuse on the nodes, except weights to come. Imports torch then."""
    if config.privacy != "strict":
        return
    from ppma.privacy import strict
    from ppma.training.tasks import newest

    not_yet = config.init is not None and any(config.init.is_relative_to(folder) for folder in coming)
    saved = newest(config)
    checked = replace(config, init=None) if not_yet else config
    strict.precheck(checked, inputs.read_sources(config), saved.folder if saved else None)
