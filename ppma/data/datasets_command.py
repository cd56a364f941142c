"""`ppma datasets`: the data sets that `ppma index --dataset` knows, as a table, or one of them with all that is known of it.

ppma.data.datasets.known, data.toml  ->  table  |  ppma.data.datasets.find  ->  a page
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from ppma.config.command import DONE, parse
from ppma.data import datasets
from ppma.data.adapter import Dataset
from ppma.loaders.sources import catalog

WIDTH = 132
"""Columns where the output is no terminal, which would say how many it has."""


@dataclass(frozen=True, kw_only=True)
class DatasetsConfig:
    """List the data sets that can be indexed by name, or show one: its splits, licence, terms and files.

    ppma datasets ucf101
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """The data set to show; all are listed without it."""
    data: Path | None = None
    """The data.toml that says which are indexed (default: $PPMA_DATA, else ./data.toml)."""


def main(argv: list[str]) -> int:
    """Run `ppma datasets ARGV`."""
    config = parse(DatasetsConfig, argv, prog="ppma datasets")
    console = Console(highlight=False, width=None if Console().is_terminal else WIDTH)
    indexed = {name for name, _ in catalog.read(catalog.locate(config.data)).entries}
    if config.name is not None:
        _show(console, datasets.find(config.name), indexed)
    else:
        _list(console, list(datasets.known().values()), indexed)
    return DONE


def _list(console: Console, sets: Sequence[Dataset], indexed: set[str]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header, justify in (("name", "left"), ("classes", "right"), ("train", "right"), ("val", "right")):
        table.add_column(header, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for header in ("what it shows", "licence", "to sign"):
        table.add_column(header)
    table.add_column("indexed", no_wrap=True)
    for one in sets:
        counts = [f"{one.published[key]:,}" if key in one.published else "?" for key in ("train", "val")]
        mark = "yes" if (one.source or one.name) in indexed else ""
        shows = one.title.partition(": ")[2] + ("" if one.domain == "real" else f" ({one.domain})")
        table.add_row(one.name, f"{one.classes}", *counts, shows, one.licence, "yes" if one.terms else "", mark)
    console.print(table)
    console.print("ppma datasets NAME shows one: where to get it, what to sign, how its files lie", markup=False)
    console.print("ppma index --dataset NAME --root DIR makes its manifests; nothing is downloaded", markup=False)


def _show(console: Console, one: Dataset, indexed: set[str]) -> None:
    source = one.source or one.name
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    table.add_row("name", one.name if source == one.name else f"{one.name} (recipes call it {source})")
    table.add_row("what it shows", one.title)
    table.add_row("pictures", one.domain)
    table.add_row("classes", f"{one.classes}")
    table.add_row("splits", one.splits)
    table.add_row("published", _counts(one, source))
    table.add_row("licence", one.licence)
    table.add_row("to sign", one.terms or "nothing that is known of")
    table.add_row("get it", one.home)
    table.add_row("expected", "\n".join(one.layout))
    table.add_row("files", one.files)
    if one.vanishing:
        table.add_row(
            "missing files", "are reported and left out: its clips vanish from the web (--missing stop to stop)"
        )
    table.add_row("cite", one.citation)
    table.add_row("not confirmed", "\n".join(one.unconfirmed) or "nothing")
    table.add_row("indexed", "yes" if source in indexed else "no")
    console.print(table, markup=False)
    console.print(f"\nppma index --dataset {one.name} --root DIR", markup=False)
    if one.domain == "real":
        console.print(f"ppma train finetune --dataset {source} --init RUN", markup=False)


def _counts(one: Dataset, source: str) -> str:
    told = []
    for key, count in one.published.items():
        number, _, split = key.rpartition(".")
        told.append(f"{source}{'-' * bool(number)}{number}.{split} {count:,}")
    return ", ".join(told)
