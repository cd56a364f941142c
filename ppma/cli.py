"""`ppma <command>`: one table line per command, whose module is imported when it is called."""

import difflib
import sys
from typing import NamedTuple

from ppma import __version__
from ppma.config.command import DONE, WRONG_INPUT, run


class Command(NamedTuple):
    """A command of `ppma`."""

    module: str
    """Module with `main(argv: list[str]) -> int`."""
    purpose: str
    """One line for `ppma --help`."""
    shards: bool = False
    """True if an array of jobs can run it: it takes --part I/N, --merge N and --dry-run, and `--engine slurm`."""


COMMANDS = {
    "demo": Command("ppma.study.demo", "run the whole method in minutes on virtual people, without a download"),
    "index": Command(
        "ppma.data.index", "write a manifest of videos or of a data set, and add it to data.toml", shards=True
    ),
    "datasets": Command("ppma.data.datasets_command", "list the data sets known by name: splits, license, terms"),
    "pack": Command("ppma.data.pack", "store a source as JPEG frames at the training size, for speed", shards=True),
    "synthesize": Command("ppma.synthetic.production", "render labeled clips of virtual people", shards=True),
    "privacy": Command("ppma.privacy.fetch_command", "download the small person detectors, and list their licenses"),
    "remove-humans": Command("ppma.privacy.removal.command", "remove people from videos", shards=True),
    "audit": Command("ppma.privacy.audit.command", "detect residual people in cleaned clips, with bounds", shards=True),
    "plant": Command("ppma.privacy.plant.command", "measure removal and audit on clips with planted virtual people"),
    "train": Command("ppma.phases", "run a recipe: stage 1, stage 2, fine-tuning, a probe"),
    "evaluate": Command("ppma.transfer.evaluate", "test a checkpoint: 2 x 3 views, top-1 and top-5 with intervals"),
    "average": Command("ppma.transfer.average", "average the weights of two or more encoders"),
    "study": Command("ppma.study.work", "run a matrix of pre-training x protocol x data set x seed, resumably"),
    "report": Command("ppma.study.report", "tabulate the results of a study from the sealed files of its runs"),
    "features": Command("ppma.inference.embeddings", "write the embeddings of clips as npz or Parquet"),
    "inspect": Command("ppma.inference.inspect", "show what a run saw and learned, on one HTML page"),
    "predict": Command("ppma.inference.predict", "name the action in a video, overall and over time"),
    "convert": Command("ppma.inference.convert", "convert checkpoints of PPMA, VideoMAE and Hugging Face, both ways"),
    "export": Command("ppma.inference.export", "export an encoder as safetensors, torch.export and ONNX"),
    "doctor": Command("ppma.doctor.command", "report this machine's hardware, fast paths and problems"),
}


def _show_help() -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"ppma {__version__}: pre-train action-recognition models on video without any real human.\n")
    console.print("usage: ppma COMMAND [FLAGS]      ppma COMMAND --help      ppma --version\n", markup=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, command in COMMANDS.items():
        table.add_row(f"  {name}", command.purpose)
    console.print(table)
    console.print("\nStart with: ppma doctor")


def _for_slurm(flags: list[str]) -> list[str] | None:
    """Return flags without `--engine slurm`, None if they do not have it."""
    words = [word for flag in flags for word in (flag.split("=") if flag.startswith("--engine=") else [flag])]
    found = [i for i in range(len(words)) if words[i : i + 2] == ["--engine", "slurm"]]
    return words[: found[0]] + words[found[0] + 2 :] if found else None


def main(argv: list[str] | None = None) -> int:
    """Run `ppma ARGV` and return its exit code (see ppma.config.command)."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        _show_help()
        return DONE
    if name == "--version":
        sys.stdout.write(f"{__version__}\n")
        return DONE
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        sys.stderr.write(f"ppma: there is no command {name!r}; {hint}Commands: {', '.join(COMMANDS)}\n")
        return WRONG_INPUT
    if COMMANDS[name].shards and (flags := _for_slurm(rest)) is not None:
        return run("ppma.slurm.launch", [name, *flags], prog=f"ppma {name}")
    return run(COMMANDS[name].module, rest, prog=f"ppma {name}")
