"""`ppma synthesize`: labelled clips of virtual people.

flags -> SynthesisConfig -> generate(), with progress -> what was written
"""

from rich.console import Console

from ppma.common.progress import Progress
from ppma.config.command import DONE, parse
from ppma.synthetic.production import SynthesisConfig, generate, plan


def main(argv: list[str]) -> int:
    """Run `ppma synthesize ARGV`."""
    config = parse(SynthesisConfig, argv, prog="ppma synthesize")
    report = Console(highlight=False, soft_wrap=True)
    if config.dry_run:
        jobs = plan(config)
        classes = len(jobs) // config.clips
        size = f"{config.frames} frames of {config.size} x {config.size} pixels at {config.fps:g}/s"
        report.print(f"{len(jobs)} clips of {classes} classes, {size}; would write {config.out}", markup=False)
        return DONE
    with Progress("clips") as progress:
        manifest = generate(config, on_progress=progress)
    if config.part is not None:
        report.print(f"{config.out}: part {config.part} is done; --merge writes the manifest", markup=False)
        return DONE
    rows = sum(1 for _ in manifest.open()) - 1
    report.print(f"{manifest}: {rows} clips, {rows * config.seconds / 3600:.2f} hours", markup=False)
    return DONE
