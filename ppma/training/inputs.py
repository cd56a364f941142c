"""What a run reads, checked before it starts: data, test split, numbering of the labels, initial weights.

    RunConfig  ->  checks, each an InputError for one fault; a start stops at the first one, a dry run reports all

Imports no torch: login nodes check what they submit.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from ppma.config.errors import InputError, require
from ppma.config.run import RunConfig, check_clips
from ppma.loaders.sources import catalog, labels
from ppma.loaders.sources.catalog import Entry
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.remote import Url
from ppma.loaders.sources.store import is_packed
from ppma.training.seal import locate_model

PROBED = 16
"""Clips of a source, evenly spaced, whose files must exist: a wrong root shows at once, a lost file in training."""
Check = Callable[[], None]


def read_sources(config: RunConfig, split: str = "train") -> list[Manifest]:
    """Return the manifests of a run's sources, as the data catalog has them for a split."""
    data = catalog.find(config.data)
    return [data.manifest(name, split) for name in config.sources]


def data_checks(configs: Iterable[RunConfig]) -> Iterator[Check]:
    """Yield the checks of the data that runs read, each once however many runs read the same."""
    alike = {(c.data, c.sources, c.batch, c.loader.views, c.phase, c.evaluation, c.classifier): c for c in configs}
    splits: dict[tuple[Path | None, str, str], None] = {}
    for config in alike.values():
        splits |= {(config.data, name, "train"): None for name in config.sources}
        if config.evaluation.at_end:
            splits[config.data, config.sources[0], config.evaluation.split] = None
    for place in splits:
        yield partial(check_split, *place)
    for config in alike.values():
        yield partial(check_clips_and_labels, config)


def check_split(path: Path | None, name: str, split: str) -> None:
    """Raise InputError unless a split of a data catalog has its manifest, its root and, of a few clips, the files."""
    data = catalog.find(path)
    check_entry(data.path, data.entry(name, split))
    source = data.manifest(name, split)
    for row in range(0, len(source), max(1, len(source) // PROBED)):
        file = source.file(row)
        file = file.with_name(file.name.rpartition("#")[0]) if is_packed(file) else file
        require(file.exists(), f"{data.path}, [{name}.{split}]: {file} does not exist; is its root right?")


def check_entry(data: Path, entry: Entry) -> None:
    """Raise InputError unless manifest, root and store of an entry of the data catalog exist."""
    for what, path in (("manifest", entry.manifest), ("root", entry.root), ("store", entry.store)):
        there = path is None or isinstance(path, Url) or path.exists()  # a server has no folders to ask for
        require(there, f"{data}, [{entry.name}.{entry.split}]: {what} {path} does not exist")


def check_clips_and_labels(config: RunConfig) -> None:
    """Raise InputError unless the sources of a run hold a whole batch, and their classes fit its heads and its test."""
    sources = read_sources(config)
    check_clips(config, sum(map(len, sources)))
    check_labels(config, sources)
    if config.evaluation.at_end:
        tested_by_name(read_sources(config, config.evaluation.split)[0], labels.class_names(sources[0]), config)


def check_labels(config: RunConfig, sources: Sequence[Manifest]) -> None:
    """Raise InputError if several of the paper's sources share a head and number their classes otherwise than published."""
    if config.phase == "classify" and config.classifier.shared_head and len(sources) > 1:
        for source in sources:
            labels.check_published_order(source)


def tested_by_name(source: Manifest, classes: Sequence[str], config: RunConfig) -> Manifest:
    """Return the tested videos with the labels of a head, by class name.

    Args:
        source: The videos.
        classes: The head's class names by label.
        config: Says what happens to a class that the head lacks.

    Raises:
        InputError: The head lacks a class, and `evaluation.on_unknown_class` is "fail".
    """
    return labels.by_name(
        source, classes, head=f"the head for {source.name}", mark_unknown=config.evaluation.on_unknown_class == "mark",
        remedy="correct the names, or count these videos as wrong with --evaluation.on-unknown-class mark",
    )  # fmt: skip


def check_starts(config: RunConfig, coming: Collection[Path] = ()) -> None:
    """Raise InputError unless the weights that a run starts from exist, or are in a folder that is `coming`."""
    given = config.recipe != "adaptive_average" or config.average
    require(bool(given), "adaptive_average needs encoders to average: --average RUN RUN")
    for start in config.starts:
        if not any(start.is_relative_to(folder) for folder in coming):
            try:
                locate_model(start)
            except InputError as error:
                raise InputError(f"{'--average' if config.average else '--init'} {error}") from None


def refused(checks: Iterable[Check]) -> list[str]:
    """Return the messages of the checks that fail, each once."""
    lines: dict[str, None] = {}
    for check in checks:
        try:
            check()
        except InputError as error:
            lines[str(error)] = None
    return list(lines)
