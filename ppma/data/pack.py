"""`ppma pack`: write the clips of a manifest into a packed store.

    manifest  ->  size and time estimated  ->  shards, in parallel  ->  index.json, rows.npy, rejected.csv, data.toml

Shards are written atomically, and each has a record in STORE/.ppma-parts until all are there, so an interrupted run resumes. The tasks of
an array (--part I/N) share the shards (ppma.common.shares) until --merge N.
"""

import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import tyro
from rich.console import Console

from ppma.common import engines
from ppma.common.files import removing_leftovers, write_bytes, write_csv, write_text
from ppma.common.progress import Progress
from ppma.common.shares import FOLDER, Share, SharedWork
from ppma.common.workers import Engine, Lost, Queue
from ppma.config.command import DONE, OutFile, OutFolder, parse
from ppma.config.errors import BadClip, DiskFullError, InputError, KilledError, counted, require
from ppma.config.loader import LoaderConfig
from ppma.config.records import restore
from ppma.data.encoders import BLOCK, DEFAULT_GOP, MOST_GOP, QUALITY, check_encoder
from ppma.data.frame_rates import decoded_per_frame, kept_frames, kept_rates, losses
from ppma.data.shard_writer import PackRow, ShardJob, encode_clip, shard_bounds, shard_name, write_rows, write_shard
from ppma.loaders.sources import catalog, store
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.remote import Url
from ppma.loaders.sources.store import PackParameters, Shard, Store, StoreIndex, read_index

Report = Callable[[str], None]
SAMPLED_CLIPS, SAMPLED_SECONDS = 8, 2.0
"""What the estimate packs on trial and throws away."""
MOST_KILLS = 10
"""How often the process of one shard may be killed."""


@dataclass(frozen=True, kw_only=True)
class PackConfig(SharedWork):
    """Write a source's clips at the training size: as JPEG frames for CPUs, or as short-GOP video for NVDEC.

    After an interruption, run the same command again to resume.

    For example:
      ppma pack no-human-kinetics --out no-human-kinetics.beton
      ppma pack no-human-kinetics --out nvdec.beton --codec hevc --fps auto
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A name in data.toml, or a manifest FILE.csv."""
    out: OutFolder
    """Folder of the store (STORE.beton); with all frames as JPEG, about 11 times the size of H.264 videos."""
    codec: Annotated[str | None, tyro.conf.arg(metavar="{jpeg,hevc,h264}")] = None
    """jpeg: fastest on CPUs; hevc, h264: a third of the size, for NVDEC (default: jpeg, or hevc with --gop)."""
    gop: int | None = None
    """Pictures from one key frame of video to the next (default: 8, which decodes 1.2 for each of a window)."""
    short_side: int = 256
    """Scale frames down to this short side in pixels (loader.short_side); smaller frames keep their size. The sides of video
    are rounded to multiples of 16."""
    fps: Annotated[str | None, tyro.conf.arg(metavar="{FLOAT,auto}")] = None
    """Frames per second to keep (default: all). auto: the fewest that leave --frames different ones in every window of the
    recipes, 6 per second."""
    frames: int = 16
    """Different frames that --fps auto leaves in a window (loader.frames)."""
    quality: int | None = None
    """JPEG quality, 1 to 100 (default: 90; 80 saves a third of the space and loses 2.5 dB), or CRF of video, 1 (best) to 51
    (default: 14)."""
    shard_gb: float | None = None
    """Largest size of a file of the store in GB, for file systems and object stores with a limit (default: 2)."""
    name: str | None = None
    """Source name of the store in data.toml (default: SOURCE, if that is a name)."""
    split: str = "train"
    """Split of the source."""
    data: OutFile | None = None
    """The data.toml (default: $PPMA_DATA, else ./data.toml)."""
    root: Path | None = None
    """Folder that the paths of a manifest FILE.csv are relative to (default: the folder of the manifest)."""
    verify: bool = False
    """Compare the checksums of existing shards first, and pack damaged ones again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codec not in (None, *QUALITY):
            raise InputError(f"--codec is {self.codec!r}; it must be one of {', '.join(QUALITY)}")
        codec, most = self.parameters.codec, QUALITY[self.parameters.codec][1]
        if self.quality is not None and not 1 <= self.quality <= most:
            raise InputError(f"--quality is {self.quality}; for {codec} it must be between 1 and {most}")
        if self.gop is not None and not 1 <= self.gop <= MOST_GOP:
            raise InputError(f"--gop is {self.gop}; it must be between 1 and {MOST_GOP}")
        for name in ("short_side", "frames", "shard_gb"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"--{name.replace('_', '-')} is {value}; it must be above 0")
        if codec == "jpeg" and self.gop is not None:
            raise InputError(f"--gop {self.gop} is of video; add --codec hevc or --codec h264, or leave it out")
        if codec != "jpeg" and self.short_side % BLOCK:
            near = BLOCK * max(1, round(self.short_side / BLOCK))
            raise InputError(f"--short-side {self.short_side}: {codec} is packed in multiples of {BLOCK}; give {near}")
        check_encoder(codec)
        if not self.out.parent.is_dir():
            raise InputError(f"--out {self.out}: there is no folder {self.out.parent}; create it first")
        if self.name is not None:
            catalog.check_name(self.name, "name")
            catalog.check_name(self.split, "split")

    @property
    def parameters(self) -> PackParameters:
        """The settings that decide the bytes of a shard."""
        codec = cast(store.Codec, self.codec or ("hevc" if self.gop is not None else "jpeg"))
        return PackParameters(
            short_side=self.short_side,
            fps=_rate(self.fps),
            quality=QUALITY[codec][0] if self.quality is None else self.quality,
            shard_gb=self.shard_gb,
            codec=codec,
            gop=1 if codec == "jpeg" else DEFAULT_GOP if self.gop is None else self.gop,
            window=(self.frames, LoaderConfig.window_seconds) if self.fps == "auto" else None,
        )


def _rate(fps: str | None) -> float | None:
    """Return --fps as a number; None for all frames, and for auto."""
    if fps in (None, "auto"):
        return None
    with suppress(ValueError):
        if 0 < (rate := float(fps)) < np.inf:
            return rate
    raise InputError(f"--fps is {fps!r}; give a number above 0, or auto")


def main(argv: list[str]) -> int:
    """Run `ppma pack ARGV`."""
    config = parse(PackConfig, argv, prog="ppma pack")
    report = partial(Console(highlight=False, soft_wrap=True).print, markup=False)
    manifest, name = _source(config)

    # 1. which rows go into which shard, and which shards earlier runs and other tasks have written
    rates = kept_rates(manifest, config.parameters)
    frames = kept_frames(manifest, rates)
    bounds = dict(enumerate(shard_bounds(np.maximum(frames, 1).astype(int).tolist(), config.parameters)))
    share = config.share(config.out / FOLDER)
    done = _written_shards(report, config, manifest, share, bounds)
    left = {number: bound for number, bound in bounds.items() if number not in done}
    if config.merge is not None:
        share.require_all(map(shard_name, left))

    # 2. what the others will take
    first, step = share.part
    mine = {number: bound for number, bound in left.items() if number % step == first}
    if mine:
        _estimate(report, config, manifest, rates, sum(float(frames[begin:end].sum()) for begin, end in mine.values()))
        if config.fps is not None:
            report(f"--fps {config.fps}: different frames in each window: {losses(manifest, rates, config.frames)}")
        if config.parameters.codec != "jpeg":
            decoded = decoded_per_frame(manifest, rates, config.parameters)
            better = "" if config.fps == "auto" else "; --fps auto needs fewest"
            report(f"--gop {config.parameters.gop}: {decoded:.2f} pictures are decoded for each of a window{better}")
    if config.dry_run:
        report(f"would write {len(mine)} of {counted(len(bounds), 'shard')} into {config.out}")
        return DONE

    # 3. write them
    config.out.mkdir(exist_ok=True)
    if left:
        share.claim({"manifest": manifest.sha256, **asdict(config.parameters)})
        _write_index(config, manifest, done.values(), complete=False)
    names = [store.INDEX, store.ROWS, store.REJECTED, store.MANIFEST, *map(shard_name, bounds)]
    with removing_leftovers(config.out / name for name in names if config.part is None):
        wrote = _write_shards(config, manifest, rates, left, share)
    if config.part is not None:
        report(f"{config.out}: part {config.part} is done, it wrote {wrote} of {counted(len(left), 'shard')}")
        return DONE
    done |= _recorded(share, bounds)
    return _finish(report, config, manifest, name, [done[number] for number in sorted(done)], share)


def _source(config: PackConfig) -> tuple[Manifest, str | None]:
    """Return the manifest, from a file or from data.toml, and the name to enter the store under (None: not at all)."""
    if config.source.endswith(".csv"):
        manifest, name = Manifest.read(config.source, root=config.root, name=config.name or ""), config.name
    else:
        entry = catalog.find(config.data).entry(config.source, config.split)
        manifest = Manifest.read(entry.manifest, root=entry.root, name=entry.name)
        name = config.name or entry.name
    require(
        not isinstance(manifest.root, Url), f"{manifest.root} is a URL; copy the videos: `ppma pack` reads local ones"
    )
    return manifest, name


def _rows(manifest: Manifest, rates: np.ndarray, first: int, stop: int) -> list[PackRow]:
    return [
        PackRow(
            row=row, path=str(manifest.file(row)), label=int(manifest.labels[row]),
            start_seconds=float(manifest.starts[row]), end_seconds=float(manifest.ends[row]),
            fps=None if np.isinf(rates[row]) else float(rates[row]),
        )
        for row in range(first, stop)
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- earlier runs


def _written_shards(
    report: Report, config: PackConfig, manifest: Manifest, share: Share, numbers: Iterable[int]
) -> dict[int, Shard]:
    """Return the shards of earlier runs by number; InputError if the folder is not a store of this manifest and these parameters."""
    names = [path.name for path in config.out.iterdir() if path.name[0] != "."] if config.out.exists() else []
    if store.INDEX not in names:
        if names:
            raise InputError(f"--out {config.out} exists and is not a packed store; give a new name")
        return {}
    index = read_index(config.out)
    if index.manifest_sha256 != manifest.sha256:
        raise InputError(f"{config.out} was packed from another manifest; give a new --out, or remove it")
    if index.parameters != config.parameters:
        raise InputError(f"{config.out} was packed with {index.parameters}; use the same, or give a new --out")
    listed = {_number(shard): shard for shard in index.shards}
    listed |= _recorded(share, numbers)
    found = {number: shard for number, shard in listed.items() if (config.out / shard.file).exists()}
    if config.verify:
        for shard, damage in store.damaged_shards(config.out, list(found.values())):
            if damage:
                report(f"{config.out / shard.file} {damage}: it will be packed again")
                del found[_number(shard)]
        report(f"checksums match: {counted(len(found), 'shard')}")
    for number in listed.keys() - found.keys():
        share.forget(shard_name(number))
    return found


def _recorded(share: Share, numbers: Iterable[int]) -> dict[int, Shard]:
    """Return the shards that have a record, by number."""
    records = share.records(map(shard_name, numbers)).values()
    return {_number(shard): shard for shard in (restore(Shard, record) for record in records)}


def _number(shard: Shard) -> int:
    return int(shard.file.removesuffix(".beton").rpartition("-")[2])


# ------------------------------------------------------------------------------------------------------------------ work


def _estimate(report: Report, config: PackConfig, manifest: Manifest, rates: np.ndarray, frames: float) -> None:
    """Report size and time from a few clips packed on trial; DiskFullError if the disk cannot hold the result."""
    spread = np.unique(np.linspace(0, len(manifest) - 1, SAMPLED_CLIPS).astype(int)).tolist()
    began, size, packed, reason = time.process_time(), 0, 0, ""
    for row in (row for i in spread for row in _rows(manifest, rates, i, i + 1)):
        end = min(row.end_seconds, row.start_seconds + SAMPLED_SECONDS)
        try:
            clip = encode_clip(replace(row, end_seconds=end), config.parameters)
        except BadClip as error:
            reason = f"{row.path}: {error}"
            continue
        size, packed = size + len(clip.blob), packed + clip.frames
    if not packed:
        raise InputError(f"none of {len(spread)} sampled clips can be decoded; the last: {reason}")
    duration = timedelta(seconds=round((time.process_time() - began) / packed * frames / config.workers))
    needed, free = size / packed * frames, shutil.disk_usage(config.out.parent).free
    report(
        f"{counted(len(manifest), 'clip')}, {frames:.0f} frames to pack: about {needed / 1e9:.3g} GB ({free / 1e9:.0f} GB are free) "
        f"and {duration} with {counted(config.workers, 'worker')}"
    )
    if needed > free:
        sizes = f"{needed / 1e9:.3g} GB are needed and {free / 1e9:.3g} GB are free"
        raise DiskFullError(f"{config.out}: {sizes} (a lower --quality, --fps or --short-side needs less)")


def _write_shards(
    config: PackConfig, manifest: Manifest, rates: np.ndarray, left: Mapping[int, tuple[int, int]], share: Share
) -> int:
    """Write the shards that this task gets of those that are left, and a record of each; return how many."""
    numbers = {shard_name(number): number for number in left}
    own = list(left.values())[share.part[0] :: share.part[1]]
    engine = engines.find(config.engine)
    wrote, started, total = 0, 0, sum(stop - first for first, stop in own)

    def job(name: str) -> ShardJob:
        rows = _rows(manifest, rates, *left[numbers[name]])
        return ShardJob(folder=config.out, number=numbers[name], rows=rows, parameters=config.parameters)

    with Progress("clips") as progress:
        progress(0, total)
        for names in share.rounds(list(numbers)):
            for event in _events(map(job, names), config.workers, engine):
                if isinstance(event, PackRow):
                    started += 1
                    progress(min(started, total), total)
                else:
                    share.finish(event.file, asdict(event))
                    wrote += 1
    return wrote


def _events(jobs: Iterable[ShardJob], workers: int, engine: Engine) -> Iterator[PackRow | Shard]:
    """Yield each row that is started and each shard that is written; a shard whose worker was killed is repeated."""
    row, kills, alone = dict[int, PackRow](), Counter[int](), deque[ShardJob]()
    with closing(engine(write_shard, Queue(jobs), alone, workers)) as events:
        for job, event in events:
            if isinstance(event, Lost):
                kills[job.number] += 1
                alone.append(_again(job, event, row.get(job.number), kills[job.number]))
                continue
            if isinstance(event, PackRow):
                row[job.number] = event
            yield event


def _again(job: ShardJob, lost: Lost, row: PackRow | None, kills: int) -> ShardJob:
    """Return the job that retries a shard after its worker was killed: first with the current row as the suspect, then without it."""
    if kills > MOST_KILLS + 2 * len(job.refused):
        raise KilledError(f"{job.folder}: {kills} processes of shard {job.number} were killed ({lost.reason})")
    if job.suspect is not None and lost.events == 1:
        reason = f"killed the process that decoded it ({lost.reason})"
        return replace(job, refused={**job.refused, job.suspect.row: reason}, suspect=None)
    return replace(job, suspect=row if lost.events else None)


def _write_index(config: PackConfig, manifest: Manifest, shards: Iterable[Shard], *, complete: bool) -> None:
    """Write index.json; before the work it has the shards of earlier runs, and says what the store is packed from."""
    index = StoreIndex(
        manifest_sha256=manifest.sha256, rows=len(manifest), parameters=config.parameters,
        shards=tuple(sorted(shards, key=_number)), complete=complete,
    )  # fmt: skip
    write_text(config.out / store.INDEX, index.dump())


def _finish(
    report: Report, config: PackConfig, manifest: Manifest, name: str | None, shards: Sequence[Shard], share: Share
) -> int:
    """Make a store of all shards, enter it into data.toml, and report what it holds."""
    rejected = [row for shard in shards for row in shard.rejected]
    clips, frames, size = (sum(getattr(shard, what) for shard in shards) for what in ("clips", "frames", "bytes"))
    if not clips:
        raise InputError(f"{config.out}: none of {len(manifest)} clips can be packed; the first: {rejected[0][1:]}")
    write_rows(config.out, shards, len(manifest))
    write_csv(config.out / store.REJECTED, [("row", "path", "reason"), *rejected])
    assert manifest.path is not None  # it was read from a file
    # The manifest too, so that the store can be moved, or put on a server.
    write_bytes(config.out / store.MANIFEST, manifest.path.read_bytes())
    _write_index(config, manifest, shards, complete=True)
    Store(config.out, manifest_sha256=manifest.sha256)  # what training opens, checked now
    per_frame = f"{counted(frames, 'frame')} of {size / max(frames, 1) / 1e3:.1f} kB"
    report(
        f"{config.out}: {counted(clips, 'clip')}, {per_frame}, {size / 1e9:.3g} GB in {counted(len(shards), 'shard')}"
    )
    if rejected:
        report(f"{config.out / store.REJECTED}: {len(rejected)} could not be packed")
        for _, path, reason in rejected[:10]:
            report(f"  {path}: {reason}")
    if name is not None:
        toml, root = catalog.locate(config.data), manifest.root.absolute()
        catalog.add(toml, name=name, split=config.split, manifest=manifest.path, root=root, store=config.out)
        report(f"entered as {name}.{config.split} in {toml}")
    share.clear()
    return DONE
