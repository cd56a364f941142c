"""`ppma index`: make a manifest from a folder tree or a list.

    SOURCE  ->  rows (loaders.formats)  ->  every file looked into, in parallel (loaders.probe_pool)  ->  FILE.csv and FILE.rejected.csv

Nothing is written before every file was looked at; an interrupted run leaves what was there.
With --name the manifest is entered into data.toml.
"""

import csv
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ppma.command import DONE, parse
from ppma.loaders import catalogue
from ppma.loaders.errors import InputError
from ppma.loaders.formats import FRAME_FOLDER_FPS, Listed, detect, read_classes, read_source
from ppma.loaders.manifest import Clip, Manifest, write_atomically
from ppma.loaders.probe import MAX_PIXELS, Facts, Job
from ppma.loaders.probe_pool import probe_all

LINE_EVERY_SECONDS = 10.0
"""Between progress lines where the output is no terminal."""
SHOWN = 10
"""Refused files and class names that are shown; the rest is in the files."""


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Make a manifest: look into every video once and write down what is there.

    ppma index /data/ucf101/videos --root /data/ucf101/videos --out ucf101.csv --name ucf101
    """

    source: Annotated[Path, tyro.conf.Positional]
    """A folder <class>/<video> (or <class>/<folder of frames>), or a list with `path;label` or `path label` a line."""
    out: Path
    """Manifest to write, FILE.csv; FILE.rejected.csv beside it gets a reason for each file that was refused."""
    root: Path | None = None
    """Folder that the paths are relative to; needed for a list (a tree is its own root)."""
    format: Literal["auto", "tree", "semicolon", "space"] = "auto"
    """Layout of the source; auto looks at it."""
    classes: Path | None = None
    """Class names, one a line, in the order of their labels, so that train and val agree; without it a tree's are sorted."""
    name: str | None = None
    """Enter the manifest into data.toml under this source name."""
    split: str = "train"
    """Split that it is entered under."""
    data: Path | None = None
    """The data.toml to enter it into (default: $PPMA_DATA, else ./data.toml)."""
    domain: Literal["real", "human-removed", "synthetic"] | None = None
    """Where the pictures come from; left empty when not given."""
    licence: str = ""
    """Terms under which the footage is used, noted in every row."""
    check: Literal["quick", "full"] = "quick"
    """quick: all packets and up to 8 key frames; full: decode every frame (10 to 20 times as long), refuse files with a damaged one."""
    max_pixels: int = MAX_PIXELS
    """Frames with more pixels are refused, by their header (default: 4096 x 2304)."""
    timeout_seconds: float = 60.0
    """A file that takes longer than this is given up and refused."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes that look into files (default: one a core)."""
    dry_run: bool = False
    """Only say what would be looked into."""

    def __post_init__(self) -> None:
        if self.out.suffix.lower() != ".csv" or self.out.is_dir():
            raise InputError(f"--out is {self.out}; give a file that ends in .csv")
        if not self.out.parent.is_dir():
            raise InputError(f"--out {self.out}: there is no folder {self.out.parent}; make it first")
        for name in ("workers", "max_pixels", "timeout_seconds"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be above 0")
        if self.data is not None and self.name is None:
            raise InputError("--data is given without --name; give the source's name, or leave --data away")


def main(argv: list[str]) -> int:
    """Run `ppma index ARGV`."""
    config = parse(IndexConfig, argv, prog="ppma index")
    report = Console(highlight=False, soft_wrap=True)
    root, rows = _read(config)
    if config.dry_run:
        _tell_plan(report, config, rows)
        return DONE
    answers = _look_into(root, rows, config)
    clips = [_clip(row, facts, config) for row, facts in zip(rows, answers) if isinstance(facts, Facts)]
    refused = [(row, answer) for row, answer in zip(rows, answers) if isinstance(answer, str)]
    rejected = config.out.with_suffix(".rejected.csv")
    write_atomically(rejected, lambda file: csv.writer(file, lineterminator="\n").writerows(_rejected_rows(refused)))
    if not clips:
        raise InputError(f"{config.source}: none of {len(rows)} clips can be used{_most(refused)}; see {rejected}")
    Manifest.write(config.out, clips)
    Manifest.read(config.out, root=root)  # what a training run will read, checked now
    if config.name is not None:
        path = catalogue.locate(config.data)
        catalogue.add(path, name=config.name, split=config.split, manifest=config.out, root=root)
    _tell_result(report, config, clips, refused, answers)
    return DONE


def _read(config: IndexConfig) -> tuple[Path, list[Listed]]:
    """The root and the rows of the source; everything that can be wrong with the flags is found here, before the long work."""
    if not config.source.exists():
        raise InputError(f"{config.source}: no such file or folder; give a folder <class>/<video>, or a list of files")
    if config.name is not None:
        catalogue.check_name(config.name, "name")
        catalogue.check_name(config.split, "split")
        catalogue.read(catalogue.locate(config.data))
    if config.root is None and not config.source.is_dir():
        raise InputError(f"--root is missing; give the folder that the paths in {config.source} are relative to")
    root = (config.root or config.source).absolute()
    classes = read_classes(config.classes) if config.classes else None
    return root, read_source(config.source, root=root, format=config.format, classes=classes)


def _look_into(root: Path, rows: Sequence[Listed], config: IndexConfig) -> list[Facts | str]:
    """Facts or reason for each row; rows that are refused already are not opened."""
    answers: list[Facts | str] = [row.reason for row in rows]
    where = [i for i, row in enumerate(rows) if not row.reason]
    jobs = [Job(path=str(root / rows[i].path), max_pixels=config.max_pixels, check=config.check) for i in where]
    with closing(probe_all(jobs, workers=config.workers, timeout_seconds=config.timeout_seconds)) as results:
        for position, answer in _with_progress(results, len(jobs)):
            answers[where[position]] = answer
    return answers


def _with_progress(results: Iterable[tuple[int, Facts | str]], total: int) -> Iterator[tuple[int, Facts | str]]:
    """Pass `results` on, with a bar on a terminal and a line now and then elsewhere."""
    console = Console(stderr=True)
    began, refused = time.monotonic(), 0
    said = began
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total, note="")
        for done, result in enumerate(results, 1):
            yield result
            refused += isinstance(result[1], str)
            now = time.monotonic()
            rate = done / max(now - began, 1e-3)
            bar.update(task, completed=done, note=f"{rate:.0f} files/s, {refused} refused, left:")
            if not console.is_terminal and now - said >= LINE_EVERY_SECONDS:
                said = now
                left = timedelta(seconds=int((total - done) / rate))
                sys.stderr.write(f"{done} of {total} files, {rate:.0f}/s, {refused} refused, {left} left\n")


def _clip(row: Listed, facts: Facts, config: IndexConfig) -> Clip:
    return Clip(
        path=row.path,
        label=row.label,
        class_name=row.class_name,
        source=config.name or config.source.absolute().stem,
        start_seconds=row.start_seconds,
        end_seconds=row.end_seconds,
        frames=facts.frames,
        fps=facts.fps,
        width=facts.width,
        height=facts.height,
        codec=facts.codec,
        key_frame_spacing=facts.key_frame_spacing,
        duration_seconds=facts.duration_seconds,
        domain=config.domain or "",
        licence=config.licence,
    )


def _rejected_rows(refused: Iterable[tuple[Listed, str]]) -> Iterator[Sequence[str | int | None]]:
    yield ("path", "label", "class_name", "line", "reason")
    for row, reason in refused:
        yield (row.path, row.label, row.class_name, row.line or None, reason)


def _most(refused: Sequence[tuple[Listed, str]]) -> str:
    """The commonest reason, which often is the only one."""
    reason, count = Counter(reason for _, reason in refused).most_common(1)[0]
    return f" ({count} of them: {reason})"


def _tell_plan(report: Console, config: IndexConfig, rows: Sequence[Listed]) -> None:
    labels = {row.label for row in rows if row.label is not None}
    style = detect(config.source) if config.format == "auto" else config.format
    refused = sum(bool(row.reason) for row in rows)
    report.print(
        f"{config.source} ({style}): {len(rows)} clips of {len(labels)} classes, {refused} refused by name alone"
    )
    for row in rows[:SHOWN]:
        told = f"  {row.label} {row.class_name!r}: {row.path}" + (f": {row.reason}" if row.reason else "")
        report.print(told, markup=False)
    report.print(f"would write {config.out}", markup=False)


def _tell_result(
    report: Console,
    config: IndexConfig,
    clips: Sequence[Clip],
    refused: Sequence[tuple[Listed, str]],
    answers: Sequence[Facts | str],
) -> None:
    labels = {clip.label for clip in clips if clip.label is not None}
    hours = sum(clip.duration_seconds for clip in clips) / 3600
    report.print(
        f"{config.out}: {len(clips)} clips of {len(labels)} classes, {hours:.2f} hours, "
        f"frames of {_span([clip.width for clip in clips])} x {_span([clip.height for clip in clips])} pixels",
        markup=False,
    )
    remarks = Counter(remark for answer in answers if isinstance(answer, Facts) for remark in answer.remarks)
    folders = sum(clip.codec in ("jpeg", "png") for clip in clips)
    remarks[f"folder{'s' * (folders > 1)} of frames (counted as {FRAME_FOLDER_FPS:g} frames/s)"] = folders
    for remark, count in remarks.most_common():
        if count:
            report.print(f"  {count} {remark}", markup=False)
    if refused:
        report.print(f"{config.out.with_suffix('.rejected.csv')}: {len(refused)} refused", markup=False)
    for row, reason in refused[:SHOWN]:
        report.print(f"  {row.path}: {reason}", markup=False)
    if len(refused) > SHOWN:
        report.print(f"  ... and {len(refused) - SHOWN} more", markup=False)
    if config.name is not None:
        report.print(f"entered as {config.name}.{config.split} in {catalogue.locate(config.data)}", markup=False)


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}..{high}"
