"""`ppma index`: write the manifest of a folder tree, a list, or a data set as its owners ship it.

    SOURCE           ->  rows                                      ->  every file probed  ->  FILE.csv, FILE.rejected.csv, data.toml
    --dataset NAME   ->  rows of its official splits, found on disk ->  every file probed once, large ones resized  ->  a manifest per split

No manifest is written before every file was probed, so an interrupted run leaves earlier files as they were. Its answers are kept in
.FILE.csv.ppma-parts until the manifest is written, and the tasks of an array (--part I/N) share the files there until --merge N. A second
official split becomes a separate source, `ucf101-2`, with train and val.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from ppma.common import engines
from ppma.common.files import remove_leftovers, write_csv
from ppma.common.frames import FRAME_FOLDER_FPS
from ppma.common.progress import Progress
from ppma.common.shares import FOLDER, Share, SharedWork
from ppma.config.command import DONE, OutFile, parse
from ppma.config.errors import InputError, counted, first_few
from ppma.data.dataset import Dataset, Download, Splits, find, read_splits
from ppma.data.probing import Answer, Probing
from ppma.data.resize import resize
from ppma.loaders.sources import catalog, formats
from ppma.loaders.sources.formats import ABSENT, Listed, Root
from ppma.loaders.sources.manifest import HEADER, Clip, Manifest, nfc
from ppma.loaders.sources.probe import MAX_PIXELS, VideoMetadata, probe_each

Report = Callable[[str], None]
SHOWN = 10
"""Rows that a report lists; the files hold the rest."""
SHOWN_MISSING = 5
FILMED = ("real", "human-removed")
REJECTED = ("path", "label", "class_name", "line", "reason")
MISSING = ("split", "path", "label", "class_name")


@dataclass(frozen=True, kw_only=True)
class IndexConfig(SharedWork):
    """Write a manifest: open every video once and record what it holds.

    A data set that `ppma datasets` lists needs no SOURCE; all its official splits are read from its owners' own files.

    For example:
      ppma index videos/virtual --out virtual.csv --name synapt --domain synthetic
      ppma index --dataset hmdb51 --root data/hmdb51
    """

    source: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE]")] = None
    """A folder <class>/<video> (or <class>/<folder of frames>, or <split>/<class>/<video>, of which --split is read), a manifest,
    or a list with `path;label`, `path,label`, `path label` or `path frames label` on each line."""
    dataset: str | None = None
    """Instead of SOURCE: the name of a data set, unpacked in --root as its owners ship it."""
    out: Path | None = None
    """Manifest to write, FILE.csv; FILE.rejected.csv gets the reason for each refused file.

    With --dataset: the folder for the manifests (default: the current one)."""
    root: Path | None = None
    """Folder that paths are relative to; required for a list and a data set (default: SOURCE, if it is a folder)."""
    format: Literal["auto", "tree", "semicolon", "comma", "space", "manifest"] = "auto"
    """Layout of SOURCE; auto detects it."""
    classes: Path | None = None
    """Class names in the order of their labels: one per line, or a list `<class>/<clip>;label` whose numbers to take, as the
    authors' train.csv (default: a tree's or data set's names, sorted; the numbers of a list)."""
    name: str | None = None
    """Add the manifest to data.toml under this source name (with --dataset: its own name by default)."""
    split: str = "train"
    """Split to add it under, and to read of a folder <split>/<class>/<video>; a data set has its own."""
    data: OutFile | None = None
    """The data.toml (default: $PPMA_DATA, else ./data.toml)."""
    missing: Literal["auto", "stop", "skip"] = "auto"
    """With --dataset, if listed files are missing: stop or skip them; auto skips only where clips vanish from the web."""
    follow_links: bool = False
    """Read links that lead out of the root too: linked class folders, snapshots of Hugging Face."""
    frames_prefix: str | None = None
    """Frames of a folder that holds several series of pictures, by what comes before the number: img_ for img_00001.jpg."""
    resize: int | None = None
    """With --dataset: re-encode clips whose short side has more pixels than this, into a new folder (256 for training at 224)."""
    domain: Literal["real", "human-removed", "synthetic"] | None = None
    """Kind of footage (default: that of a manifest or data set, else empty)."""
    licence: str = ""
    """License or terms of use of the footage, written in every row (default: those of a manifest or data set)."""
    check: Literal["quick", "full"] = "quick"
    """quick: read all packets and decode up to 8 key frames; full: decode every frame (10 to 20 times slower), refuse damaged files."""
    max_pixels: int = MAX_PIXELS
    """Refuse larger frames by their header (default: 4096 x 2304)."""
    timeout_seconds: float = 60.0
    """Refuse a file that takes longer to probe."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_pixels", "timeout_seconds", "resize"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be above 0")
        if "/" in (self.frames_prefix or ""):
            raise InputError(
                f"--frames-prefix is {self.frames_prefix}; give the start of a file's name, without a folder"
            )
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
            raise InputError(f"--out {self.out}: there is no folder {self.out.parent}; create it first")
        if self.data is not None and self.name is None:
            raise InputError("--data is given without --name; give the source's name, or leave --data out")
        if self.missing != "auto" or self.resize is not None:
            raise InputError("--missing and --resize require --dataset; leave them out")
        _check_overwrites({self.out: HEADER, _rejected(self.out): REJECTED}, self.source)

    def _check_dataset(self) -> None:
        if self.source is not None or self.format != "auto" or self.split != "train":
            raise InputError("--dataset has its own lists; leave SOURCE, --format and --split out")
        if self.root is None:
            raise InputError(f"--root is missing; give the folder that {self.dataset} was unpacked into")
        if self.out is not None and not self.out.is_dir():
            raise InputError(f"--out {self.out} is not a folder; with --dataset give the folder for the manifests")
        if self.resize is not None and self.resize % 2:
            raise InputError(f"--resize is {self.resize}; give an even number of pixels")


def main(argv: list[str]) -> int:
    """Run `ppma index ARGV`."""
    config = parse(IndexConfig, argv, prog="ppma index")
    report = partial(Console(highlight=False, soft_wrap=True).print, markup=False)
    (_index_source if config.dataset is None else _index_dataset)(config, report)
    return DONE


def _probing(root: Path, paths: Sequence[str], config: IndexConfig, share: Share) -> Probing:
    """Return what is to be probed. If the share's folder has answers to other questions, start over; InputError if parts gave them."""
    how = {name: getattr(config, name) for name in ("timeout_seconds", "max_pixels", "check")}
    probe = partial(probe_each, workers=config.workers, engine=engines.find(config.engine), **how)
    probing = Probing(root=root, paths=paths, share=share, probe=probe)
    if config.merge is not None and not share.shared:
        return probing  # there is nothing to merge
    files = hashlib.sha256("\n".join([str(root), *paths]).encode(errors="surrogateescape")).hexdigest()
    settings = {"files": f"{len(paths)} ({files[:12]})"} | how
    try:
        share.claim(settings)
    except InputError:
        if config.part is not None or config.merge is not None:
            raise
        share.clear()
        share.claim(settings)
    return probing


def _probe(report: Report, probing: Probing, config: IndexConfig) -> list[Answer] | None:
    """Return the metadata of each file, or why it is refused; None for a part, whose answers the merge reads."""
    if config.merge is not None:
        probing.share.require_all(probing.chunks)
    if config.part is None:
        probing.forget_changed()
    with Progress("files") as progress:
        probed = probing.run(progress)
    if config.part is None:
        return probing.answers()
    report(f"part {config.part} is done, it probed {probed} of {counted(len(probing.paths), 'file')}")
    return None


def _merged(report: Report, config: IndexConfig, share: Share, outs: Sequence[Path]) -> bool:
    """True if the parts are merged already."""
    merged = config.merge is not None and not share.shared and all(out.is_file() for out in outs)
    if merged:
        report(f"{outs[0].parent if len(outs) > 1 else outs[0]}: the parts are merged already")
    return merged


# ----------------------------------------------------------------------------------------------------- a tree or a list


def _index_source(config: IndexConfig, report: Report) -> None:
    assert config.source is not None and config.out is not None  # IndexConfig checked both

    # 1. all that can be wrong with the flags, before the long work
    if not config.source.is_dir() and not config.source.is_file():  # a pipe can be read only once
        what = "is neither a file nor a folder" if config.source.exists() else "no such file or folder"
        raise InputError(f"{config.source}: {what}; give a folder <class>/<video>, or a list of files")
    if config.name is not None:
        catalog.check_name(config.name, "name")
        catalog.check_name(config.split, "split")
        catalog.read(catalog.locate(config.data))
    if config.root is None and not config.source.is_dir():
        raise InputError(f"--root is missing; give the folder that the paths in {config.source} are relative to")
    root = (config.root or config.source).absolute()
    source, classes = _one_split(config.source, config.split, report)
    classes = formats.read_classes(config.classes) if config.classes else classes
    rows = formats.read_source(
        source, root=root, format=config.format, classes=classes, follow_links=config.follow_links
    )
    filmed = next((row for row in rows if row.domain in FILMED), None)
    if config.domain == "synthetic" and filmed is not None:
        where = f"{source}, line {filmed.line}: domain is {filmed.domain}"
        raise InputError(f"{where}, and a filmed clip never becomes synthetic; leave --domain out")
    if config.frames_prefix is not None:
        rows = formats.with_prefix(rows, root, config.frames_prefix)
    if config.dry_run:
        style = formats.detect(source) if config.format == "auto" else config.format
        labels, refused = {row.label for row in rows} - {None}, [row for row in rows if row.reason]
        counts = f"{counted(len(rows), 'clip')} of {counted(len(labels), 'class', 'classes')}"
        report(f"{source} ({style}): {counts}, {len(refused)} refused by name alone")
        for row in [*refused[:SHOWN], *(row for row in rows if not row.reason)][:SHOWN]:
            report(f"  {row.label} {row.class_name!r}: {row.path}" + (f": {row.reason}" if row.reason else ""))
        report(f"would write {config.out}")
        return

    # 2. probe, write, add to data.toml
    share = config.share(config.out.with_name(f".{config.out.name}{FOLDER}"))
    if _merged(report, config, share, [config.out]):
        return
    found = _probe(report, _probing(root, [row.path for row in rows if not row.reason], config, share), config)
    if found is None:
        return
    each = iter(found)
    answers = [row.reason or next(each) for row in rows]
    with share.clearing():
        _write(report, config, config.out, rows, answers, root=root, source=config.source.absolute().stem)
        if config.name is not None:
            path = catalog.locate(config.data)
            catalog.add(path, name=config.name, split=config.split, manifest=config.out, root=root)
            report(f"entered as {config.name}.{config.split} in {path}")


def _one_split(source: Path, split: str, report: Report) -> tuple[Path, list[str] | None]:
    """Return the folder of a split and the class names of all splits, for a tree <split>/<class>/<video>; else `source`."""
    splits = formats.splits_below(source)
    if not splits:
        return source, None
    if split not in splits:
        raise InputError(f"{source} holds the splits {', '.join(splits)}, not {split}; choose one with --split")
    classes = sorted(set().union(*splits.values()))
    report(f"{source} holds the splits {', '.join(splits)}: {split} is read, with labels by the classes of all")
    return source / split, classes


def _check_overwrites(files: Mapping[Path, Sequence[str]], source: Path | None = None) -> None:
    """Raise an InputError if one of these files exists and is SOURCE, or does not begin with its header: it is the user's own."""
    for file, header in files.items():
        if not file.is_file():
            continue
        if source is not None and source.exists() and file.samefile(source):
            raise InputError(f"{file} is SOURCE and would be overwritten; give another --out")
        with file.open("rb") as content:
            first = content.readline(4096).decode("utf-8-sig", errors="replace").rstrip("\r\n")
        if first and first != ",".join(header):
            raise InputError(f"{file} would be overwritten, and `ppma index` did not write it; give another --out")


def _rejected(out: Path) -> Path:
    return out.with_suffix(".rejected.csv")


# ------------------------------------------------------------------------------------------------------------ a data set


@dataclass(frozen=True, kw_only=True)
class _Split:
    key: str
    """As in Splits.clips."""
    source: str
    split: str
    rows: list[Listed]
    out: Path
    """Its manifest."""

    @property
    def name(self) -> str:
        return f"{self.source}.{self.split}"

    @property
    def missing(self) -> list[Listed]:
        return [row for row in self.rows if row.reason.startswith(ABSENT)]


def _index_dataset(config: IndexConfig, report: Report) -> None:
    assert config.dataset is not None and config.root is not None  # IndexConfig checked both

    # 1. the official splits, and their files on disk
    dataset, root, folder = find(config.dataset), config.root.absolute(), config.out or Path()
    name, data = config.name or dataset.source or dataset.name, catalog.locate(config.data)
    catalog.check_name(name, "name")
    catalog.read(data)
    if config.domain == "synthetic" and dataset.domain in FILMED:
        raise InputError(f"--domain synthetic: {dataset.name} was filmed (domain {dataset.domain}); leave --domain out")
    download = Download(root, dataset, follow_links=config.follow_links)
    found = read_splits(download)
    if config.classes is not None:
        found = _numbered_as(found, config.classes)
    splits = list(_find_splits(found, download.tree, name, folder))
    if config.frames_prefix is not None:
        splits = [replace(split, rows=formats.with_prefix(split.rows, root, config.frames_prefix)) for split in splits]
    if not splits:
        raise InputError(f"--root {config.root} holds lists of {dataset.name}, but no clip with a name from them")
    written = {split.out: HEADER for split in splits} | {_rejected(split.out): REJECTED for split in splits}
    _check_overwrites(written | {folder / f"{name}.missing.csv": MISSING})
    for note, names in found.notes.items():
        report(
            f"  {len(names)} {note}: {'; '.join(names[:SHOWN_MISSING])}"
            + (", ..." if len(names) > SHOWN_MISSING else "")
        )
    if config.dry_run:
        report(f"{dataset.name} in {config.root}:")
        for split in splits:
            refused = [row for row in split.rows if row.reason]
            _compare(report, dataset, split, usable=len(split.rows) - len(refused))
            for row in refused[:SHOWN]:
                report(f"    {row.path}: {row.reason}")
            report(f"    would write {split.out}")
        return
    _handle_missing(dataset, name, splits, config)

    # 2. every file once, also if several splits share it
    share = config.share(folder / f".{name}{FOLDER}")
    if _merged(report, config, share, [split.out for split in splits]):
        return
    paths = sorted({row.path for split in splits for row in split.rows if not row.reason})
    probing = _probing(root, paths, config, share)
    found_of = _probe(report, probing, config)
    if found_of is None:
        _resize_part(report, probing, config)
        return
    answers = dict(zip(paths, found_of))
    if config.resize is not None:
        root, splits, answers = _resized(probing, splits, answers, config)

    # 3. a manifest for each split
    settings = replace(config, domain=config.domain or dataset.domain, licence=config.licence or dataset.license)
    probed = {split.key: [row.reason or answers[row.path] for row in split.rows] for split in splits}
    # a split without a usable clip comes first: it stops the index before another one is written
    ordered = sorted(splits, key=lambda split: any(isinstance(one, VideoMetadata) for one in probed[split.key]))
    with share.clearing():
        for split in ordered:
            usable = _write(report, settings, split.out, split.rows, probed[split.key], root=root, source=split.source)
            catalog.add(data, name=split.source, split=split.split, manifest=split.out, root=root)
            _compare(report, dataset, split, usable=usable)
    report(f"entered as {', '.join(split.name for split in splits)} in {data}")


def _numbered_as(splits: Splits, file: Path) -> Splits:
    """Return the splits with the labels of the file given as --classes, by class name; InputError for a class that it lacks."""
    names = formats.read_classes(file)
    label_of = {nfc(name): label for label, name in enumerate(names)}
    used = {label for rows in splits.clips.values() for _, label in rows}
    lacking = [name for label, name in enumerate(splits.classes) if label in used and nfc(name) not in label_of]
    if lacking or not splits.classes:
        which = (
            f"lacks {counted(len(lacking), 'class', 'classes')}: {first_few(lacking, SHOWN_MISSING)}"
            if lacking
            else "names no class of numbers"
        )
        raise InputError(f"--classes {file} {which}; give the names of this data set, or leave --classes out")
    clips = {
        key: [(path, label_of[nfc(splits.classes[label])]) for path, label in rows]
        for key, rows in splits.clips.items()
    }
    return replace(splits, classes=names, clips=clips)


def _find_splits(splits: Splits, tree: Root, name: str, folder: Path) -> Iterator[_Split]:
    """Yield each split with its rows, whose paths are looked up on disk."""
    for key, clips in splits.clips.items():
        number, _, split = key.rpartition(".")
        rows = []
        for line, (wanted, label) in enumerate(clips, 1):
            path, reason = tree.find(wanted)
            class_name = splits.classes[label] if label < len(splits.classes) else ""
            rows.append(Listed(path=path, label=label, class_name=class_name, line=line, reason=reason))
        if rows:
            source = f"{name}-{number}" if number else name
            out = folder / f"{source}_{split}.csv"
            yield _Split(key=key, source=source, split=split, rows=formats.refuse_repeats(rows), out=out)


def _handle_missing(dataset: Dataset, name: str, splits: Sequence[_Split], config: IndexConfig) -> None:
    """Write NAME.missing.csv and raise InputError if listed files are missing, unless they are to be skipped."""
    out = (config.out or Path()) / f"{name}.missing.csv"
    out.unlink(missing_ok=True)  # of an earlier run
    missing = [(split, row) for split in splits for row in split.missing]
    if config.missing == "skip" or (config.missing == "auto" and dataset.vanishing) or not missing:
        return
    lines = [(split.name, row.path, f"{row.label}", row.class_name) for split, row in missing]
    write_csv(out, [MISSING, *lines])
    counts = ", ".join(f"{len(s.missing)} of {len(s.rows)} in {s.name}" for s in splits if s.missing)
    first = "; ".join(list(dict.fromkeys(row.path for _, row in missing))[:SHOWN_MISSING])
    raise InputError(
        f"{dataset.name}: of the listed clips {counts} are not below {config.root}, first {first}; {out} lists all. "
        f"Unpack them, or skip them with --missing skip"
    )


def _resize_share(probing: Probing, config: IndexConfig) -> Share:
    """Return a part's share of resizing: the chunks that were probed."""
    assert probing.share.folder is not None
    return Share(probing.share.folder / f"short{config.resize}", probing.share.part)


def _resize_part(report: Report, probing: Probing, config: IndexConfig) -> None:
    """Resize the clips that this part gets, of all chunks that are probed. The part that probes another one looks here after it."""
    if config.resize is None:
        return
    resized, records = 0, probing.share.records(probing.chunks)
    share = _resize_share(probing, config)
    for names in share.rounds(list(records)):
        for name in names:
            answers = zip(probing.chunks[name], probing.answers_in(records[name]))
            good = {path: answer for path, answer in answers if isinstance(answer, VideoMetadata)}
            resize(
                probing.root, good, short_side=config.resize, workers=config.workers, engine=engines.find(config.engine)
            )
            resized += len(good)
            share.finish(name, "")
    report(f"part {config.part} has resized or linked {resized} clips")


def _resized(
    probing: Probing, splits: Sequence[_Split], answers: dict[str, Answer], config: IndexConfig
) -> tuple[Path, list[_Split], dict[str, Answer]]:
    """Resize large clips; return the new root, the splits with the new paths, and the metadata by new path."""
    assert config.resize is not None and probing.share.folder is not None
    if config.merge is not None:
        _resize_share(probing, config).require_all(probing.chunks)
    good = {path: answer for path, answer in answers.items() if isinstance(answer, VideoMetadata)}
    engine = engines.find(config.engine)
    small_root, moved = resize(probing.root, good, short_side=config.resize, workers=config.workers, engine=engine)
    again = [place.path for place in moved.values() if place.encoded and not place.reason]
    share = Share(probing.share.folder / "resized")
    small = _probing(small_root, again, replace(config, merge=None), share)
    small.forget_changed()
    with Progress("files") as progress:
        small.run(progress)
    found = dict(zip(again, small.answers()))
    for path, place in moved.items():
        answers[place.path] = place.reason or found.get(place.path, answers[path])

    def move(row: Listed) -> Listed:
        return replace(row, path=moved[row.path].path) if row.path in moved else row

    return small_root, [replace(split, rows=[move(row) for row in split.rows]) for split in splits], answers


def _compare(report: Report, dataset: Dataset, split: _Split, *, usable: int) -> None:
    """Report where the counts differ from the published ones."""
    published, listed, missing = dataset.published.get(split.key), len(split.rows), len(split.missing)
    line = f"{split.name}: {listed} listed" + (f", {missing} missing ({missing / listed:.1%})" if missing else "")
    if published is None:
        report(f"  {line}; the published count is not known")
    elif published != listed:
        report(f"  warning: {line}, {published} were published; results are not comparable with published ones")
    elif usable != published:
        report(f"  warning: {line} as published, {usable} of {listed - missing} existing ones can be used")
    else:
        report(f"  {line}, as published")
    unused = dataset.classes - len({row.label for row in split.rows})
    if unused > 0:
        report(f"  classes without a clip: {unused} of {dataset.classes}")


# ------------------------------------------------------------------------------------------------------------- manifests


def _write(
    report: Report, config: IndexConfig, out: Path, rows: Sequence[Listed], answers: Sequence[VideoMetadata | str],
    *, root: Path, source: str,
) -> int:  # fmt: skip
    """Write the manifest `out` and its .rejected.csv and report them; return the number of clips. InputError if there is none."""
    clips, refused, remarks = [], [], defaultdict[str, list[str]](list)
    for row, answer in zip(rows, answers):
        if isinstance(answer, str):
            refused.append((row, answer))
            continue
        if (row.start_seconds or 0.0) >= answer.duration_seconds:
            late = f"its window starts at {row.start_seconds} s, and the file ends at {answer.duration_seconds} s"
            refused.append((row, late))
            continue
        found = asdict(answer)
        other = row.frames not in (None, answer.frames)
        other_count = (
            f"with another number of frames than in its list ({answer.frames}, not {row.frames})" if other else ""
        )
        for remark in filter(None, (*found.pop("remarks"), row.remark, other_count)):
            kind, bracket, detail = remark.partition(" (")
            remarks[kind].append(f"{row.path}{bracket}{detail}")
        clips.append(
            Clip(
                path=row.path, label=row.label, class_name=row.class_name, source=config.name or row.source or source,
                start_seconds=row.start_seconds, end_seconds=row.end_seconds, domain=config.domain or row.domain,
                licence=config.licence or row.licence, **found,
            )
        )  # fmt: skip
    rejected = _rejected(out)
    lines = [(row.path, row.label, row.class_name, row.line or None, reason) for row, reason in refused]
    remove_leftovers([out, rejected])  # of a run that was killed while it wrote them
    write_csv(rejected, [REJECTED, *lines])
    if not clips:
        reason, count = Counter(reason for _, reason in refused).most_common(1)[0]
        most = f"none of {len(rows)} clips can be used ({count} of them: {reason})"
        raise InputError(f"{config.source or out.stem}: {most}; see {rejected}")
    Manifest.write(out, clips)
    Manifest.read(out, root=root)  # what training reads, checked now

    labels, hours = {clip.label for clip in clips} - {None}, sum(clip.duration_seconds for clip in clips) / 3600
    sizes = f"{_span([clip.width for clip in clips])} x {_span([clip.height for clip in clips])}"
    counts = f"{counted(len(clips), 'clip')} of {counted(len(labels), 'class', 'classes')}"
    report(f"{out}: {counts}, {hours:.2f} hours, frames of {sizes} pixels")
    if folders := sum(clip.codec in ("jpeg", "png") for clip in clips):
        report(f"  {counted(folders, 'folder')} of frames (counted as {FRAME_FOLDER_FPS:g} frames/s)")
    for remark, clips_of in sorted(remarks.items(), key=lambda item: -len(item[1])):
        report(f"  {len(clips_of)} {remark}: {clips_of[0]}" + (", ..." if len(clips_of) > 1 else ""))
    if refused:
        report(f"{rejected}: {len(refused)} refused")
    for row, reason in refused[:SHOWN]:
        report(f"  {row.path}: {reason}")
    if len(refused) > SHOWN:
        report(f"  ... and {len(refused) - SHOWN} more")
    return len(clips)


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}..{high}"
