"""`ppma datasets`: list the data sets that `ppma index --dataset` reads, or show one of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from ppma.config.command import DONE, parse
from ppma.data.dataset import Dataset, find, known
from ppma.loaders.sources import catalog

WIDTH = 132
"""Columns where the output is not a terminal."""


@dataclass(frozen=True, kw_only=True)
class DatasetsConfig:
    """List the data sets that can be indexed by name, or show one: its splits, license, terms and files.

    For example:
      ppma datasets ucf101
    """

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None
    """The data set to show (default: list all)."""
    data: Path | None = None
    """The data.toml that says which are indexed (default: $PPMA_DATA, else ./data.toml)."""


def main(argv: list[str]) -> int:
    """Run `ppma datasets ARGV`."""
    config = parse(DatasetsConfig, argv, prog="ppma datasets")
    console = Console(highlight=False, width=None if Console().is_terminal else WIDTH)
    indexed = {name for name, _ in catalog.read(catalog.locate(config.data)).entries}
    if config.name is not None:
        _show(console, find(config.name), indexed)
    else:
        _list(console, list(known().values()), indexed)
    return DONE


def _list(console: Console, datasets: Sequence[Dataset], indexed: set[str]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("name", "classes", "train", "val"):
        table.add_column(header, justify="left" if header == "name" else "right", no_wrap=True)
    for header in ("what it shows", "license", "to sign"):
        table.add_column(header)
    table.add_column("indexed", no_wrap=True)
    for one in datasets:
        counts = [f"{one.published[key]:,}" if key in one.published else "?" for key in ("train", "val")]
        mark = "yes" if (one.source or one.name) in indexed else ""
        shows = one.title.partition(": ")[2] + ("" if one.domain == "real" else f" ({one.domain})")
        table.add_row(one.name, f"{one.classes}", *counts, shows, one.license, "yes" if one.terms else "", mark)
    console.print(table)
    console.print("ppma datasets NAME shows one: where to get it, what to sign, how its files are named", markup=False)
    console.print("ppma index --dataset NAME --root DIR writes its manifests; nothing is downloaded", markup=False)


def _show(console: Console, one: Dataset, indexed: set[str]) -> None:
    source = one.source or one.name
    counts = [f"{source}{'-' if '.' in key else '.'}{key} {count:,}" for key, count in one.published.items()]
    skipped = "reported and skipped: its clips vanish from the web (--missing stop to stop)" if one.vanishing else ""
    lines = {
        "name": one.name if source == one.name else f"{one.name} (recipes call it {source})",
        "what it shows": one.title,
        "pictures": one.domain,
        "classes": f"{one.classes}",
        "splits": one.splits,
        "labels follow": one.numbering,
        "published": ", ".join(counts),
        "license": one.license,
        "to sign": one.terms or "nothing known",
        "get it": one.home,
        "expected": "\n".join(one.layout),
        "files": one.files,
        "missing files": skipped,
        "cite": one.citation,
        "not confirmed": "\n".join(one.unconfirmed) or "nothing",
        "indexed": "yes" if source in indexed else "no",
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for key, text in lines.items():
        if text:
            table.add_row(key, text)
    console.print(table, markup=False)
    console.print(f"\nppma index --dataset {one.name} --root DIR", markup=False)
    if one.domain == "real":
        console.print(f"ppma train finetune --dataset {source} --init RUN", markup=False)
