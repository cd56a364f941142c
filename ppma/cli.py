"""`ppma <command>`: one table line per command; the command itself lives in its own module and is imported when it is called."""

import difflib
import importlib
import sys

from rich.console import Console
from rich.table import Table

from ppma import __version__
from ppma.config.command import DONE, WRONG_INPUT, run

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("ppma.study.demo", "the paper's idea in ten minutes, on virtual people: nothing to download"),
    "index": (
        "ppma.data.index",
        "make a manifest from a folder of videos, a published list or a data set, and enter it into the data catalog",
    ),
    "datasets": (
        "ppma.data.datasets_command",
        "list the data sets that can be indexed by name, with splits, licence and terms",
    ),
    "pack": (
        "ppma.data.pack",
        "write a source's clips as JPEG frames at the training size: ten times as many clips a second",
    ),
    "synthesize": ("ppma.synthetic.command", "draw labelled clips of virtual people, and scenes without them"),
    "privacy": (
        "ppma.privacy.fetch_command",
        "fetch the small models that find people, and list them with their licences",
    ),
    "remove-humans": (
        "ppma.privacy.removal.command",
        "paint over the people in your own videos; drops sound and metadata",
    ),
    "audit": ("ppma.privacy.audit.command", "say what is left of the people in cleaned clips, and how sure one can be"),
    "plant": (
        "ppma.privacy.plant.command",
        "draw people into places without people, remove and audit them: what do remover and auditor see?",
    ),
    "train": ("ppma.train", "run a recipe: stage 1, stage 2, fine-tuning, probes and other tests of an encoder"),
    "evaluate": ("ppma.transfer.evaluate", "test a checkpoint: 2 x 3 views, top-1 and top-5 with 95 % intervals"),
    "average": ("ppma.transfer.average", "average the weights of two or more encoders into one that --init takes"),
    "study": ("ppma.study.work", "run a matrix of pre-training x protocol x data set x seed; goes on where it was"),
    "report": ("ppma.study.report", "make the table of a study from its runs' own files; edited runs are refused"),
    "features": ("ppma.inference.embeddings", "write the embeddings of clips as npz or Parquet"),
    "inspect": (
        "ppma.inference.inspect",
        "one page on a run: clips as it saw them, reconstructions, attention, neighbours, confusions",
    ),
    "predict": ("ppma.inference.predict", "name the action in a video, over all of it and from moment to moment"),
    "convert": (
        "ppma.inference.convert",
        "bring a checkpoint of PPMA, VideoMAE or Hugging Face here, or one of ours there",
    ),
    "export": ("ppma.inference.export", "write an encoder as safetensors, torch.export and ONNX, with a model card"),
    "doctor": ("ppma.doctor.command", "say what this machine has, which fast paths it will use, and what to mend"),
}
"""command: (module with `main(argv: list[str]) -> int`, what it does)."""

EXAMPLE = "ppma doctor"


def _show_help() -> None:
    console = Console()
    console.print(
        f"ppma {__version__}: pre-train action-recognition models on video without showing them a single real human.\n"
    )
    console.print(
        "usage: ppma COMMAND [FLAGS]      ppma COMMAND --help      ppma --version\n", markup=False, highlight=False
    )
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, (_, purpose) in COMMANDS.items():
        table.add_row(f"  {name}", purpose)
    console.print(table)
    console.print(f"\nStart with: {EXAMPLE}", highlight=False)


def _unknown(name: str) -> int:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    sys.stderr.write(f"ppma: there is no command {name!r}; {hint}Commands: {', '.join(COMMANDS)}\n")
    return WRONG_INPUT


def main(argv: list[str] | None = None) -> int:
    """Run `ppma ARGV` and return its exit code (see ppma.config.command)."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        _show_help()
        return DONE
    if name == "--version":
        Console().print(__version__, highlight=False)
        return DONE
    if name not in COMMANDS:
        return _unknown(name)
    module = importlib.import_module(COMMANDS[name][0])
    return run(module.main, rest, prog=f"ppma {name}")
