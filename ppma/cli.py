"""`ppma <command>`: one table line per command, whose module is imported when it is called."""

import contextlib
import difflib
import importlib
import io
import re
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
    "features": Command(
        "ppma.inference.embeddings", "write the embeddings of videos or their windows as npz or Parquet"
    ),
    "inspect": Command("ppma.inference.inspect", "show what a run saw and learned, on one HTML page"),
    "predict": Command("ppma.inference.predict", "name the actions in videos, overall and over time"),
    "convert": Command("ppma.inference.convert", "make a run of a checkpoint of PPMA, VideoMAE, Hugging Face or timm"),
    "export": Command("ppma.inference.export", "write a model for Hugging Face, timm, ONNX and torch.export"),
    "doctor": Command("ppma.doctor.command", "report this machine's hardware, fast paths and problems"),
}

GROUPS = {
    "Start": ("demo", "doctor"),
    "Data": ("datasets", "index", "pack", "synthesize"),
    "Privacy": ("privacy", "remove-humans", "audit", "plant"),
    "Train": ("train", "evaluate", "average"),
    "Use": ("features", "predict", "inspect", "convert", "export"),
    "Study": ("study", "report"),
}
"""The commands by what one wants, in the order of `ppma --help`."""

BASH = """# Completion of ppma: commands, recipes, flags and files.
_ppma() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands} --help --version --completion"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
        [ "${{COMP_WORDS[1]}}" = train ] && [ "$COMP_CWORD" -eq 2 ] && words="{recipes}"
        [ "${{COMP_WORDS[1]}}" = --completion ] && words="bash zsh"
        [[ "$current" != -* ]] && [ "$COMP_CWORD" -ne 2 ] && words=""
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _ppma ppma
"""
SHELLS = {"bash": BASH, "zsh": "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n" + BASH}


def completion(shell: str) -> str:
    """Return the completion script of a shell: bash or zsh. Imports every command."""
    from ppma.config.recipes import RECIPES

    def flags(name: str) -> str:
        text = io.StringIO()
        argv = ["finetune", "--help-all"] if name == "train" else ["--help"]
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            importlib.import_module(COMMANDS[name].module).main(argv)
        listed = re.findall(r"^\W*((?:-\w, )?--[\w.-]+(?:, --[\w.-]+)*)", text.getvalue(), flags=re.MULTILINE)
        return " ".join(word for line in listed for word in line.split(", ") if word.startswith("--"))

    cases = "\n".join(f'            {name}) words="{flags(name)}" ;;' for name in COMMANDS)
    return SHELLS[shell].format(commands=" ".join(COMMANDS), recipes=" ".join(RECIPES), cases=cases)


def _show_help() -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"ppma {__version__}: pre-train action-recognition models on videos whose humans were removed.\n")
    console.print("usage: ppma COMMAND [FLAGS]      ppma COMMAND --help      ppma --version\n", markup=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for group, names in GROUPS.items():
        table.add_row(f"[bold]{group}[/bold]")
        for name in names:
            table.add_row(f"  {name}", COMMANDS[name].purpose)
    console.print(table)
    console.print("\nStart with: ppma doctor\nIn Python: import ppma (docs/python.md)")
    console.print("Completion: source <(ppma --completion bash)      or zsh", markup=False)


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
    if name == "--completion" and rest in ([shell] for shell in SHELLS):
        sys.stdout.write(completion(*rest))
        return DONE
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        sys.stderr.write(f"ppma: there is no command {name!r}; {hint}Commands: {', '.join(COMMANDS)}\n")
        return WRONG_INPUT
    if COMMANDS[name].shards and (flags := _for_slurm(rest)) is not None:
        return run("ppma.slurm.launch", [name, *flags], prog=f"ppma {name}")
    return run(COMMANDS[name].module, rest, prog=f"ppma {name}")
