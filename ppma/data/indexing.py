"""What every way to a manifest shares: the flags, looking into files, the files that are written, and what is said about them.

rows (path, label)  ->  look_into: every file opened, in parallel  ->  write: FILE.csv and FILE.rejected.csv  ->  tell
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from ppma.common.files import write_csv
from ppma.common.progress import Progress
from ppma.config.errors import InputError, watch_disk
from ppma.loaders.sources.formats import FRAME_FOLDER_FPS, Listed
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.loaders.sources.probe import MAX_PIXELS, VideoMetadata, probe_all

SHOWN = 10
"""Refused files and class names that are shown; the rest is in the files."""


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Make a manifest: look into every video once and write down what is there.

    ppma index /data/ucf101/videos --root /data/ucf101/videos --out ucf101.csv --name ucf101

    A data set that `ppma datasets` lists needs no SOURCE; all its official splits are read from its owners' own files:

    ppma index --dataset ucf101 --root /data/ucf101
    """

    source: Annotated[Path | None, tyro.conf.Positional] = None
    """A folder <class>/<video> (or <class>/<folder of frames>), or a list with `path;label` or `path label` a line."""
    dataset: str | None = None
    """In place of SOURCE: the name of a data set, whose download lies in --root as its owners ship it."""
    out: Path | None = None
    """Manifest to write, FILE.csv; FILE.rejected.csv beside it gets a reason for each file that was refused.

    With --dataset the folder that the manifests go into (default: the current one)."""
    root: Path | None = None
    """Folder that the paths are relative to; needed for a list (a tree is its own root) and a data set."""
    format: Literal["auto", "tree", "semicolon", "space"] = "auto"
    """Layout of the source; auto looks at it."""
    classes: Path | None = None
    """Class names, one a line, in the order of their labels, so that train and val agree; without it a tree's are sorted."""
    name: str | None = None
    """Enter the manifest into data.toml under this source name (with --dataset: its own name when not given)."""
    split: str = "train"
    """Split that it is entered under; a data set brings its own."""
    data: Path | None = None
    """The data.toml to enter it into (default: $PPMA_DATA, else ./data.toml)."""
    missing: Literal["auto", "stop", "skip"] = "auto"
    """When files that a data set's lists name are not there: stop, or skip them; auto: skip only where clips vanish from the web."""
    resize: int | None = None
    """With --dataset: encode clips with a short side above this many pixels anew, into a folder beside --root (256 for training at 224)."""
    domain: Literal["real", "human-removed", "synthetic"] | None = None
    """Where the pictures come from; left empty when not given (with --dataset: what is known of it)."""
    licence: str = ""
    """Terms under which the footage is used, noted in every row (with --dataset: what is known of it)."""
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
        for name in ("workers", "max_pixels", "timeout_seconds", "resize"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be above 0")
        if self.dataset is None:
            self._check_source()
        else:
            self._check_dataset()

    def _check_source(self) -> None:
        if self.source is None:
            raise InputError("give a SOURCE (a folder or a list), or --dataset NAME (`ppma datasets` lists the names)")
        if self.out is None or self.out.suffix.lower() != ".csv" or self.out.is_dir():
            raise InputError(f"--out is {self.out or 'missing'}; give a file that ends in .csv")
        if not self.out.parent.is_dir():
            raise InputError(f"--out {self.out}: there is no folder {self.out.parent}; make it first")
        if self.data is not None and self.name is None:
            raise InputError("--data is given without --name; give the source's name, or leave --data away")
        if self.missing != "auto" or self.resize is not None:
            raise InputError("--missing and --resize go with --dataset; leave them away")

    def _check_dataset(self) -> None:
        if self.source is not None or self.classes is not None or self.format != "auto" or self.split != "train":
            raise InputError("--dataset brings its own lists; leave SOURCE, --format, --classes and --split away")
        if self.root is None:
            raise InputError(f"--root is missing; give the folder that {self.dataset} was unpacked into")
        if self.out is not None and not self.out.is_dir():
            raise InputError(f"--out {self.out}: is no folder; with --dataset give the one that the manifests go into")
        if self.resize is not None and self.resize % 2:
            raise InputError(f"--resize is {self.resize}; give an even number of pixels")


def look_into(paths: Sequence[Path | None], config: IndexConfig) -> list[VideoMetadata | str]:
    """Return the metadata of each file, or the reason why it cannot be used; "" for None, which is not opened."""
    with Progress("files") as progress:
        found = iter(
            probe_all(
                [path for path in paths if path is not None],
                workers=config.workers,
                timeout_seconds=config.timeout_seconds,
                max_pixels=config.max_pixels,
                check=config.check,
                on_progress=progress,
            )
        )
    return ["" if path is None else next(found) for path in paths]


def write(
    out: Path,
    rows: Sequence[Listed],
    answers: Sequence[VideoMetadata | str],
    *,
    root: Path,
    source: str,
    config: IndexConfig,
) -> tuple[list[Clip], list[tuple[Listed, str]]]:
    """Write the manifest `out` and its .rejected.csv; returns the clips, and the refused rows with their reasons."""
    clips = [_clip(row, facts, source, config) for row, facts in zip(rows, answers) if isinstance(facts, VideoMetadata)]
    refused = [(row, answer) for row, answer in zip(rows, answers) if isinstance(answer, str)]
    rejected = out.with_suffix(".rejected.csv")
    with watch_disk(out):
        write_csv(rejected, _rejected_rows(refused))
    if not clips:
        raise InputError(
            f"{config.source or out.stem}: none of {len(rows)} clips can be used{_most(refused)}; see {rejected}"
        )
    with watch_disk(out):
        Manifest.write(out, clips)
    Manifest.read(out, root=root)  # what a training run will read, checked now
    return clips, refused


def _clip(row: Listed, facts: VideoMetadata, source: str, config: IndexConfig) -> Clip:
    return Clip(
        path=row.path,
        label=row.label,
        class_name=row.class_name,
        source=source,
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


def tell_result(
    report: Console,
    out: Path,
    clips: Sequence[Clip],
    refused: Sequence[tuple[Listed, str]],
    answers: Sequence[VideoMetadata | str],
) -> None:
    """Say what was found, what is odd in it, and what was refused."""
    labels = {clip.label for clip in clips if clip.label is not None}
    hours = sum(clip.duration_seconds for clip in clips) / 3600
    report.print(
        f"{out}: {len(clips)} clips of {len(labels)} classes, {hours:.2f} hours, "
        f"frames of {_span([clip.width for clip in clips])} x {_span([clip.height for clip in clips])} pixels",
        markup=False,
    )
    remarks = Counter(remark for answer in answers if isinstance(answer, VideoMetadata) for remark in answer.remarks)
    folders = sum(clip.codec in ("jpeg", "png") for clip in clips)
    remarks[f"folder{'s' * (folders > 1)} of frames (counted as {FRAME_FOLDER_FPS:g} frames/s)"] = folders
    for remark, count in remarks.most_common():
        if count:
            report.print(f"  {count} {remark}", markup=False)
    if refused:
        report.print(f"{out.with_suffix('.rejected.csv')}: {len(refused)} refused", markup=False)
    for row, reason in refused[:SHOWN]:
        report.print(f"  {row.path}: {reason}", markup=False)
    if len(refused) > SHOWN:
        report.print(f"  ... and {len(refused) - SHOWN} more", markup=False)


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}..{high}"
