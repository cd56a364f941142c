"""`ppma pack`: write the clips of a manifest into a packed store.

    manifest  ->  what it will take  ->  shards, in parallel (loaders.packing_pool)  ->  index.json, rows.npy, rejected.csv, data.toml

A shard appears whole or not at all, and index.json is written anew after each: an interrupted run goes on where it stopped. The tasks
of an array (--part I/N) write every N-th shard into the same folder, each with an index of its own, part-I-of-N.json, until --merge N.
"""

import dataclasses
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ppma.common.files import write_csv, write_text
from ppma.common.workers import parse_shard
from ppma.config.command import DONE, parse
from ppma.config.errors import InputError
from ppma.data.shard_pool import Job, pack_all
from ppma.data.shard_writer import PackRow, damaged_shards, encode_clip, shard_bounds, write_rows
from ppma.loaders.decode.fetch import BadClip
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import INDEX, REJECTED, PackParameters, Shard, Store, StoreIndex, read_index

LINE_EVERY_SECONDS = 10.0
"""Between progress lines where the output is no terminal."""
SAMPLED_CLIPS, SAMPLED_SECONDS = 8, 2.0
"""What is packed on trial, and thrown away, for the estimate."""


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Write a source's clips as JPEG frames at the training size; training then reads them without decoding video.

    ppma pack no-human-kinetics --out no-human-kinetics.beton

    Run it again after an interruption: it goes on where it stopped.
    """

    source: Annotated[str, tyro.conf.Positional]
    """A name in data.toml, or a manifest FILE.csv."""
    out: Path
    """Folder of the store (STORE.beton); about 11 times the size of H.264."""
    short_side: int = 256
    """Pixels that a frame's short side is scaled down to (loader.short_side); smaller frames keep their size."""
    fps: float | None = None
    """Frames kept a second, the first one due each; all of them when not given. A window of 2.7 s has 16 from 6 a second on."""
    quality: int = 90
    """Of JPEG, 1 to 100. 80 takes two thirds of the space and 1.5 dB."""
    name: str | None = None
    """Enter the store into data.toml under this source name (default: SOURCE, when that is a name)."""
    split: str = "train"
    """Split of the source."""
    data: Path | None = None
    """The data.toml (default: $PPMA_DATA, else ./data.toml)."""
    root: Path | None = None
    """Folder that the paths of a manifest FILE.csv are relative to (default: its own)."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes (default: one a core)."""
    verify: bool = False
    """First compare the checksums of the shards that are there; damaged ones are packed again."""
    part: str | None = None
    """I/N: write every N-th shard from the I-th, 0 to N - 1, and enter nothing into data.toml: a task of an array."""
    merge: int | None = None
    """N: make one store of N parts that are finished."""
    dry_run: bool = False
    """Only tell what it will take."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality is {self.quality}; it must be between 1 and 100")
        for name in ("workers", "short_side", "fps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"--{name.replace('_', '-')} is {value}; it must be above 0")
        if not self.out.parent.is_dir():
            raise InputError(f"--out {self.out}: there is no folder {self.out.parent}; make it first")
        if self.name is not None:
            catalog.check_name(self.name, "name")
            catalog.check_name(self.split, "split")
        parse_shard(self.part, self.merge)

    @property
    def index(self) -> str:
        """Name of the file that tells of the shards of this part, or of the whole store."""
        return INDEX if self.part is None else part_index(*parse_shard(self.part))

    @property
    def parameters(self) -> PackParameters:
        """What decides the bytes."""
        return PackParameters(short_side=self.short_side, fps=self.fps, quality=self.quality)


def part_index(number: int, of: int) -> str:
    """Name of the index of one part, which goes when the parts are merged."""
    return f"part-{number}-of-{of}.json"


@dataclass(frozen=True)
class _Source:
    manifest: Manifest
    name: str | None
    """Under which the store is entered into data.toml; None: not at all."""


def main(argv: list[str]) -> int:
    """Run `ppma pack ARGV`."""
    config = parse(PackConfig, argv, prog="ppma pack")
    report = Console(highlight=False, soft_wrap=True)
    source = _find(config)
    frames = _frames(source.manifest, config.fps)
    numbered = list(enumerate(shard_bounds(np.maximum(frames, 1).astype(int).tolist())))
    if config.merge is not None:
        return _keep(report, source, config, _merged(source.manifest, config, len(numbered)))
    first, step = parse_shard(config.part)
    mine = dict(numbered[first::step])
    done = {i: shard for i, shard in _finished_shards(source.manifest, config, report).items() if i in mine}
    left = sum(float(frames[begin:end].sum()) for i, (begin, end) in mine.items() if i not in done)
    if left:
        _tell_estimate(report, source.manifest, config, left)
    if config.dry_run:
        report.print(f"would write {len(mine) - len(done)} of {len(mine)} shards into {config.out}", markup=False)
        return DONE
    config.out.mkdir(exist_ok=True)
    shards = _pack(source.manifest, config, mine, done, left)
    if config.part is None:
        return _keep(report, source, config, shards)
    _write_index(source.manifest, config, shards, complete=True)
    report.print(f"{config.out}: part {config.part} is done, {len(shards)} of {len(numbered)} shards", markup=False)
    return DONE


def _keep(report: Console, source: _Source, config: PackConfig, shards: Sequence[Shard]) -> int:
    """Make a store of the shards, now that all are there."""
    _finish(source, config, shards)
    for number in range(config.merge or 0):
        (config.out / part_index(number, config.merge or 0)).unlink(missing_ok=True)
    _tell_result(report, source, config, shards)
    return DONE


def _merged(manifest: Manifest, config: PackConfig, wanted: int) -> list[Shard]:
    """The shards of all parts; InputError names the part that is not finished. Merged before: those of the store."""
    of = config.merge or 0
    if (config.out / INDEX).exists() and _index(manifest, config, INDEX).complete:
        return list(_index(manifest, config, INDEX).shards)
    shards: list[Shard] = []
    for number in range(of):
        name = part_index(number, of)
        if not (config.out / name).exists() or not (index := _index(manifest, config, name)).complete:
            raise InputError(f"{config.out}: part {number} of {of} is not finished; run it with --part {number}/{of}")
        shards += index.shards
    assert len(shards) == wanted
    return sorted(shards, key=_number)


def _find(config: PackConfig) -> _Source:
    """The manifest to pack, from a file or from data.toml."""
    if config.source.endswith(".csv"):
        return _Source(Manifest.read(config.source, root=config.root, name=config.name or ""), config.name)
    entry = catalog.find(config.data).entry(config.source, config.split)
    return _Source(Manifest.read(entry.manifest, root=entry.root, name=entry.name), config.name or entry.name)


def _frames(manifest: Manifest, fps: float | None) -> np.ndarray:
    """Frames that each row will give, about."""
    seconds = np.clip(manifest.ends - manifest.starts, 0, manifest.durations)
    own = manifest.frames * seconds / manifest.durations
    return own if fps is None else np.minimum(own, seconds * fps + 1)


def _rows(manifest: Manifest, first: int, stop: int) -> list[PackRow]:
    return [
        PackRow(
            row=row,
            path=str(manifest.file(row)),
            label=int(manifest.labels[row]),
            start_seconds=float(manifest.starts[row]),
            end_seconds=float(manifest.ends[row]),
        )
        for row in range(first, stop)
    ]


def _index(manifest: Manifest, config: PackConfig, name: str) -> StoreIndex:
    """An index of the store; InputError when it is of another manifest or other parameters."""
    index = read_index(config.out, name)
    if index.manifest_sha256 != manifest.sha256:
        raise InputError(f"{config.out} was packed from another manifest; give a new --out, or remove it")
    if index.parameters != config.parameters:
        raise InputError(f"{config.out} was packed with {index.parameters}; use the same, or give a new --out")
    return index


def _is_foreign(folder: Path) -> bool:
    """Whether something lies there that no run of this command made; it begins with an index, and other parts may be at work."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        return True
    names = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    return bool(names) and not any(name == INDEX or re.fullmatch(r"part-\d+-of-\d+\.json", name) for name in names)


def _finished_shards(manifest: Manifest, config: PackConfig, report: Console) -> dict[int, Shard]:
    """Shards of an earlier run with the same manifest and parameters, by number; InputError when they differ."""
    if _is_foreign(config.out):
        raise InputError(f"--out {config.out} exists and is no packed store; give a new name")
    names = [name for name in dict.fromkeys((INDEX, config.index)) if (config.out / name).exists()]
    there = [shard for name in names for shard in _index(manifest, config, name).shards]
    found = {_number(shard): shard for shard in there if (config.out / shard.file).exists()}
    if not names:
        return {}
    if config.verify:
        for shard, wrong in damaged_shards(config.out, list(found.values())):
            if wrong:
                report.print(f"{config.out / shard.file} {wrong}: it is packed again", markup=False)
                del found[_number(shard)]
        report.print(f"{len(found)} shards are as they were written")
    return found


def _number(shard: Shard) -> int:
    return int(shard.file.removesuffix(".beton").rpartition("-")[2])


def _tell_estimate(report: Console, manifest: Manifest, config: PackConfig, frames: float) -> None:
    """Pack a few clips on trial, tell size and time, and refuse a disk that cannot hold the result."""
    spread = np.unique(np.linspace(0, len(manifest) - 1, SAMPLED_CLIPS).astype(int)).tolist()
    began, size, packed, reason = time.process_time(), 0, 0, ""
    for row in (row for i in spread for row in _rows(manifest, i, i + 1)):
        end = min(row.end_seconds, row.start_seconds + SAMPLED_SECONDS)
        try:
            clip = encode_clip(dataclasses.replace(row, end_seconds=end), config.parameters)
        except BadClip as error:
            reason = f"{row.path}: {error}"
            continue
        size, packed = size + len(clip.blob), packed + clip.frames
    if not packed:
        raise InputError(f"none of {len(spread)} clips tried can be decoded; the last: {reason}")
    seconds = (time.process_time() - began) / packed * frames / config.workers
    total, free = size / packed * frames, shutil.disk_usage(config.out.parent).free
    report.print(
        f"{len(manifest)} clips, {frames:.0f} frames to pack: about {total / 1e9:.3g} GB ({free / 1e9:.0f} GB are free) "
        f"and {timedelta(seconds=round(seconds))} with {config.workers} workers",
        markup=False,
    )
    if total > free:
        raise InputError(
            f"{config.out}: {total / 1e9:.0f} GB are needed and {free / 1e9:.0f} GB are free; lower --quality, --fps or --short-side"
        )


def _write_index(manifest: Manifest, config: PackConfig, shards: Sequence[Shard], *, complete: bool) -> None:
    index = StoreIndex(
        manifest_sha256=manifest.sha256,
        rows=len(manifest),
        parameters=config.parameters,
        shards=tuple(shards),
        complete=complete,
    )
    write_text(config.out / config.index, index.dump())


def _clear(config: PackConfig, mine: Mapping[int, tuple[int, int]]) -> None:
    """Remove what a run that was killed left half-written. Other parts may be writing beside."""
    for leftover in config.out.glob(".*.tmp"):
        shard = re.match(r"\.shard-(\d+)\.", leftover.name)
        if (int(shard[1]) in mine) if shard else leftover.name.startswith(f".{config.index}."):
            leftover.unlink()


def _pack(
    manifest: Manifest, config: PackConfig, mine: Mapping[int, tuple[int, int]], done: dict[int, Shard], frames: float
) -> list[Shard]:
    """Write the shards that are missing; the index tells of each as soon as it is there."""
    _clear(config, mine)
    shards = dict(done)
    _write_index(manifest, config, [shards[i] for i in sorted(shards)], complete=False)
    jobs = [Job(i, _rows(manifest, *bound)) for i, bound in mine.items() if i not in done]
    rows = sum(len(job.rows) for job in jobs)
    with (
        _Progress(rows) as progress,
        closing(pack_all(config.out, jobs, config.parameters, workers=config.workers)) as told,
    ):
        for event in told:
            if isinstance(event, PackRow):
                progress.advance()
                continue
            number, shard = event
            shards[number] = shard
            _write_index(manifest, config, [shards[i] for i in sorted(shards)], complete=False)
    return [shards[i] for i in sorted(shards)]


class _Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int) -> None:
        console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._bar.add_task("", total=total, note="")
        self._lines, self._total, self._done = not console.is_terminal, total, 0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One clip more was begun."""
        self._done += 1
        now = time.monotonic()
        rate = self._done / max(now - self._began, 1e-3)
        self._bar.update(self._task, completed=self._done, note=f"{rate:.1f} clips/s, left:")
        if self._lines and now - self._said >= LINE_EVERY_SECONDS:
            self._said = now
            left = timedelta(seconds=int(max(self._total - self._done, 0) / rate))
            sys.stderr.write(f"{self._done} of {self._total} clips, {rate:.1f}/s, {left} left\n")


def _finish(source: _Source, config: PackConfig, shards: Sequence[Shard]) -> None:
    manifest = source.manifest
    rejected = [r for shard in shards for r in shard.rejected]
    if not any(shard.clips for shard in shards):
        raise InputError(f"{config.out}: none of {len(manifest)} clips could be packed; the first: {rejected[0][1:]}")
    write_rows(config.out, shards, len(manifest))
    lines = [("row", "path", "reason"), *rejected]
    write_csv(config.out / REJECTED, lines)
    _write_index(manifest, config, shards, complete=True)
    Store(config.out, manifest_sha256=manifest.sha256)  # what a training run will open, checked now
    if source.name is not None:
        assert manifest.path is not None  # it was read from a file
        catalog.add(
            catalog.locate(config.data),
            name=source.name,
            split=config.split,
            manifest=manifest.path,
            root=manifest.root.absolute(),
            store=config.out,
        )


def _tell_result(report: Console, source: _Source, config: PackConfig, shards: Sequence[Shard]) -> None:
    size, frames = sum(shard.bytes for shard in shards), sum(shard.frames for shard in shards)
    clips = sum(shard.clips for shard in shards)
    report.print(
        f"{config.out}: {clips} clips, {frames} frames of {size / max(frames, 1) / 1e3:.1f} kB, {size / 1e9:.3g} GB "
        f"in {len(shards)} shards",
        markup=False,
    )
    rejected = [r for shard in shards for r in shard.rejected]
    if rejected:
        report.print(f"{config.out / REJECTED}: {len(rejected)} could not be packed", markup=False)
        for _, path, reason in rejected[:10]:
            report.print(f"  {path}: {reason}", markup=False)
    if source.name is not None:
        report.print(f"entered as {source.name}.{config.split} in {catalog.locate(config.data)}", markup=False)
