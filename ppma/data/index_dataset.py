"""`ppma index --dataset NAME`: all official splits of a data set, from a download as its owners ship it.

    root  ->  shape checked, lists read (ppma.data.datasets)  ->  missing files counted: stop or go on  ->  each file looked into once
          ->  over-large ones encoded anew (ppma.data.resize)  ->  a manifest a split, entered into data.toml under the data set's name

A second official split becomes a source of its own, `ucf101-2`, with train and val. No manifest is written before every file was looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from ppma.common.files import write_csv
from ppma.config.command import DONE
from ppma.config.errors import InputError
from ppma.data import datasets
from ppma.data.adapter import Dataset, Download, Splits
from ppma.data.indexing import SHOWN, IndexConfig, look_into, tell_result, write
from ppma.data.resize import Place, resize
from ppma.loaders.sources import catalog
from ppma.loaders.sources.formats import ABSENT, Listed, refuse_repeats
from ppma.loaders.sources.probe import VideoMetadata

FIRST = 5
"""Missing files that the message names; the list beside it has all."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split: what its manifest is called, and its rows."""

    key: str
    """As in Splits.clips."""
    source: str
    split: str
    out: Path
    rows: list[Listed]

    @property
    def missing(self) -> list[Listed]:
        """Rows whose file is not there."""
        return [row for row in self.rows if row.reason.startswith(ABSENT)]


def index_dataset(config: IndexConfig, report: Console) -> int:
    """Run `ppma index --dataset`."""
    assert config.dataset is not None and config.root is not None
    dataset = datasets.find(config.dataset)
    name = config.name or dataset.source or dataset.name
    catalog.check_name(name, "name")
    catalog.read(catalog.locate(config.data))
    download = Download(config.root.absolute(), dataset)
    parts = list(_parts(dataset.read(download), download, name, config.out or Path()))
    if not parts:
        raise InputError(f"--root {config.root}: holds lists of {dataset.name}, but no clip that is named as they say")
    if config.dry_run:
        _tell_plan(report, dataset, parts, config)
        return DONE
    _settle_missing(dataset, name, parts, config)
    root, parts, answers = _look(download.root, parts, config)
    settings = replace(config, domain=config.domain or dataset.domain, licence=config.licence or dataset.licence)
    for part in parts:
        found = [row.reason or answers[row.path] for row in part.rows]
        clips, refused = write(part.out, part.rows, found, root=root, source=part.source, config=settings)
        path = catalog.locate(config.data)
        catalog.add(path, name=part.source, split=part.split, manifest=part.out, root=root)
        tell_result(report, part.out, clips, refused, found)
        _compare(report, dataset, part, usable=len(clips))
    report.print(f"entered as {_names(parts)} in {catalog.locate(config.data)}", markup=False)
    return DONE


def _parts(splits: Splits, download: Download, name: str, folder: Path) -> Iterator[Part]:
    """The rows of each split, looked up on the disk."""
    for key, clips in splits.clips.items():
        number, _, split = key.rpartition(".")
        source = f"{name}-{number}" if number else name
        rows = []
        for line, (wanted, label) in enumerate(clips, 1):
            path, reason = download.tree.find(wanted)
            class_name = splits.classes[label] if label < len(splits.classes) else ""
            rows.append(Listed(path=path, label=label, class_name=class_name, line=line, reason=reason))
        if rows:
            yield Part(
                key=key, source=source, split=split, out=folder / f"{source}_{split}.csv", rows=refuse_repeats(rows)
            )


def _settle_missing(dataset: Dataset, name: str, parts: Sequence[Part], config: IndexConfig) -> None:
    """Files that a list names and nobody finds: list them and stop, or leave them to the .rejected.csv of their split."""
    out = (config.out or Path()) / f"{name}.missing.csv"
    out.unlink(missing_ok=True)  # of a run before
    missing = [(part, row) for part in parts for row in part.missing]
    if config.missing == "skip" or (config.missing == "auto" and dataset.vanishing) or not missing:
        return
    lines = [("split", "path", "label", "class_name")]
    lines += [(f"{part.source}.{part.split}", row.path, f"{row.label}", row.class_name) for part, row in missing]
    write_csv(out, lines)
    counts = [(part, len(part.missing)) for part in parts if part.missing]
    told = ", ".join(f"{count} of {len(part.rows)} in {part.source}.{part.split}" for part, count in counts)
    first = "; ".join(list(dict.fromkeys(row.path for _, row in missing))[:FIRST])
    raise InputError(
        f"{dataset.name}: of the listed clips {told} are not below {config.root}, first {first}; {out} lists all. "
        f"Unpack them, or go on without them with --missing skip"
    )


def _look(
    root: Path, parts: list[Part], config: IndexConfig
) -> tuple[Path, list[Part], dict[str, VideoMetadata | str]]:
    """What is in each file, which several splits may share; after --resize of the smaller ones, whose root and paths are returned."""
    paths = sorted({row.path for part in parts for row in part.rows if not row.reason})
    answers = dict(zip(paths, look_into([root / path for path in paths], config)))
    if config.resize is None:
        return root, parts, answers
    facts = {path: answer for path, answer in answers.items() if isinstance(answer, VideoMetadata)}
    small_root, moved = resize(root, facts, short_side=config.resize, workers=config.workers)
    again = [path for path in moved if not moved[path].reason and moved[path].encoded]
    found = dict(zip(again, look_into([small_root / moved[path].path for path in again], config)))
    for path, place in moved.items():
        answers[place.path] = place.reason or found.get(path, answers[path])
    return small_root, [replace(part, rows=[_moved(row, moved) for row in part.rows]) for part in parts], answers


def _moved(row: Listed, places: Mapping[str, Place]) -> Listed:
    """The row at its new path; one that was refused before keeps its own."""
    return replace(row, path=places[row.path].path) if row.path in places else row


def _compare(report: Console, dataset: Dataset, part: Part, *, usable: int) -> None:
    """Say where the counts differ from the published ones."""
    published = dataset.published.get(part.key)
    there = len(part.rows) - len(part.missing)
    told = f"{part.source}.{part.split}: {len(part.rows)} listed"
    if part.missing:
        told += f", {len(part.missing)} not there ({len(part.missing) / len(part.rows):.1%})"
    if published is None:
        report.print(f"  {told}; no published count is known", markup=False)
    elif published != len(part.rows):
        report.print(
            f"  warning: {told}, {published} were published; results do not compare with published ones", markup=False
        )
    elif usable != published:
        report.print(f"  warning: {told} as published, {usable} of {there} found ones can be used", markup=False)
    else:
        report.print(f"  {told}, as published", markup=False)
    unused = dataset.classes - len({row.label for row in part.rows})
    if unused > 0:
        report.print(f"  classes without a clip: {unused} of {dataset.classes}", markup=False)


def _tell_plan(report: Console, dataset: Dataset, parts: Sequence[Part], config: IndexConfig) -> None:
    report.print(f"{dataset.name} in {config.root}:", markup=False)
    for part in parts:
        _compare(report, dataset, part, usable=len(part.rows) - sum(bool(row.reason) for row in part.rows))
        for row in [row for row in part.rows if row.reason][:SHOWN]:
            report.print(f"    {row.path}: {row.reason}", markup=False)
        report.print(f"    would write {part.out}", markup=False)


def _names(parts: Sequence[Part]) -> str:
    return ", ".join(f"{part.source}.{part.split}" for part in parts)
