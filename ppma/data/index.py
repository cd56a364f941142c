"""`ppma index`: make a manifest from a folder tree, a list, or a data set as its owners ship it.

    SOURCE          ->  rows (loaders.formats)        ->  looked into and written (ppma.data.indexing)
    --dataset NAME  ->  ppma.data.index_dataset: its official splits, a manifest each

Nothing is written before every file was looked at; an interrupted run leaves what was there.
With --name the manifest is entered into data.toml.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ppma.config.command import DONE, parse
from ppma.config.errors import InputError
from ppma.data.index_dataset import index_dataset
from ppma.data.indexing import SHOWN, IndexConfig, look_into, tell_result, write
from ppma.loaders.sources import catalog
from ppma.loaders.sources.formats import Listed, detect, read_classes, read_source


def main(argv: list[str]) -> int:
    """Run `ppma index ARGV`."""
    config = parse(IndexConfig, argv, prog="ppma index")
    report = Console(highlight=False, soft_wrap=True)
    return _index(config, report) if config.dataset is None else index_dataset(config, report)


def _index(config: IndexConfig, report: Console) -> int:
    """A folder tree or a list."""
    assert config.source is not None and config.out is not None
    root, rows = _read(config, config.source)
    if config.dry_run:
        _tell_plan(report, config, config.source, rows)
        return DONE
    found = look_into([None if row.reason else root / row.path for row in rows], config)
    answers = [row.reason or answer for row, answer in zip(rows, found)]
    source = config.name or config.source.absolute().stem
    clips, refused = write(config.out, rows, answers, root=root, source=source, config=config)
    if config.name is not None:
        path = catalog.locate(config.data)
        catalog.add(path, name=config.name, split=config.split, manifest=config.out, root=root)
    tell_result(report, config.out, clips, refused, answers)
    if config.name is not None:
        report.print(f"entered as {config.name}.{config.split} in {catalog.locate(config.data)}", markup=False)
    return DONE


def _read(config: IndexConfig, source: Path) -> tuple[Path, list[Listed]]:
    """The root and the rows of the source; everything that can be wrong with the flags is found here, before the long work."""
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give a folder <class>/<video>, or a list of files")
    if config.name is not None:
        catalog.check_name(config.name, "name")
        catalog.check_name(config.split, "split")
        catalog.read(catalog.locate(config.data))
    if config.root is None and not source.is_dir():
        raise InputError(f"--root is missing; give the folder that the paths in {source} are relative to")
    root = (config.root or source).absolute()
    classes = read_classes(config.classes) if config.classes else None
    return root, read_source(source, root=root, format=config.format, classes=classes)


def _tell_plan(report: Console, config: IndexConfig, source: Path, rows: Sequence[Listed]) -> None:
    labels = {row.label for row in rows if row.label is not None}
    style = detect(source) if config.format == "auto" else config.format
    refused = sum(bool(row.reason) for row in rows)
    report.print(f"{source} ({style}): {len(rows)} clips of {len(labels)} classes, {refused} refused by name alone")
    for row in rows[:SHOWN]:
        told = f"  {row.label} {row.class_name!r}: {row.path}" + (f": {row.reason}" if row.reason else "")
        report.print(told, markup=False)
    report.print(f"would write {config.out}", markup=False)
