"""Labels by name: the classes of a head, and the labels of any other manifest in the numbering of that head.

    training manifest             ->  class_names  ->  names by label, kept with the head
    manifest, names of a head     ->  by_name      ->  the same rows with the labels of the head, or the classes that it lacks

A label is a number in one list only. Wherever two lists meet (training and test, a checkpoint and the data that it
resumes on, a head and another data set), the names decide, and nothing else.
"""

import hashlib
import logging
from collections.abc import Sequence

import numpy as np

from ppma.config.errors import InputError, first_few, require
from ppma.loaders.sources.manifest import Manifest, nfc

log = logging.getLogger(__name__)

SHOWN = 5
"""Classes that a message names."""
PUBLISHED_ORDERS = {
    "9e08701b24c723ff": "e5d9d95b0f07147d",  # Kinetics-150, with or without its people
    "29cb052a958d3ca9": "37ef8e4e54bc8771",  # SynAPT-150
}
"""Hash of the class names in alphabetical order -> in the order of the lists of PPMA's authors, whose shared head joins classes
by their numbers."""


def class_names(source: Manifest) -> tuple[str, ...]:
    """Return the name of each class by label, "" for one without a name.

    Raises:
        InputError: A row has no label, or two labels have the same name.
    """
    where = str(source.path or source.name)
    require(source.n_classes > 0, f"{where} has no labels; index a source with classes")
    unlabeled = np.flatnonzero(source.labels < 0)
    if len(unlabeled):
        raise InputError(
            f"{where}: {len(unlabeled)} of {len(source)} rows have no label, the first in line {unlabeled[0] + 2}; "
            "give them one, or leave them out"
        )
    names = tuple(source.class_names.get(label, "") for label in range(source.n_classes))
    first: dict[str, int] = {}
    for label, name in enumerate(names):
        if name and first.setdefault(nfc(name), label) != label:
            raise InputError(
                f"{where}: labels {first[nfc(name)]} and {label} are both called {name!r}; give each class a different name"
            )
    return names


def by_name(
    source: Manifest, classes: Sequence[str], *, head: str, remedy: str, mark_unknown: bool = False
) -> Manifest:
    """Return the rows of a manifest with the labels of a head, matched by class name.

    Numbers are compared only where there is no name: all of them for a head without names (of an older version), a
    single one for a class that has no name on either side.

    Args:
        source: The manifest.
        classes: The head's class names by label, "" for a class without a name.
        head: What the head belongs to, for messages.
        remedy: What to do about a class that the head lacks.
        mark_unknown: Give the classes that the head lacks the labels behind its own instead of refusing them.

    Raises:
        InputError: The manifest has a class that the head lacks, or cannot be matched by name.
    """
    own, where = class_names(source), str(source.path or source.name)
    if any(classes) and not any(own):
        raise InputError(
            f"{where} has no class names to find in {head}; index it again with --classes FILE, one name per line"
        )
    if any(own) and not any(classes):
        log.warning("%s has no class names: the labels of %s are taken as its numbers", head, where)
    place, used = _places(own, classes), np.unique(source.labels).tolist()
    unknown = [label for label in used if label not in place]
    present = {place.get(label) for label in used}
    absent = [name for label, name in enumerate(classes) if label not in present]
    names = first_few([own[label] or f"number {label}" for label in unknown], SHOWN)
    lacking = f"{head} lacks {len(unknown)} of the {len(used)} classes of {where}: {names}"
    if unknown and not mark_unknown:
        hint = f" (no clip shows its {first_few(absent, SHOWN)})" if any(absent) else ""
        raise InputError(f"{lacking}{hint}; {remedy}")
    if absent:
        shown = first_few([name for name in absent if name], SHOWN)
        log.warning("%s has no clip of %d of the %d classes of %s: %s", where, len(absent), len(classes), head, shown)
    if unknown:
        log.warning("%s; their clips count as wrong", lacking)
    place |= {label: len(classes) + extra for extra, label in enumerate(unknown)}
    table = np.array([place.get(label, -1) for label in range(len(own))], dtype=np.int64)
    same = np.array_equal(table, np.arange(len(table)))
    labels = source.labels if same else table[source.labels]  # of a large manifest they are mapped: no copy
    return source.with_labels(labels, dict(enumerate([*classes, *(own[label] for label in unknown)])))


def check_published_order(source: Manifest) -> None:
    """Raise InputError if a source of the paper numbers its classes otherwise than the authors' lists."""
    names = class_names(source)
    if PUBLISHED_ORDERS.get(_hash(sorted(names)), _hash(names)) != _hash(names):
        raise InputError(
            f"{source.path or source.name}: its classes have other numbers than in the authors' lists, so a shared head would join "
            "other pairs; index it with --classes LIST, their train.csv, or train a head for each source"
        )


def _hash(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(map(nfc, names)).encode()).hexdigest()[:16]


def renumbered(source: Manifest, classes: Sequence[str]) -> list[str]:
    """Return in words which classes of a manifest have other labels than in a list of names, or are not in it."""
    own = class_names(source)
    place = _places(own, classes)
    return [
        f"{own[label] or 'without a name'} is class {label}"
        + (f", not {place[label]}" if label in place else ", and new")
        for label in np.unique(source.labels).tolist()
        if place.get(label) != label
    ]


def _places(own: Sequence[str], classes: Sequence[str]) -> dict[int, int]:
    """Return {own label: label of the head} of the classes that the head has."""
    if not any(classes):
        return {label: label for label in range(min(len(own), len(classes)))}
    heads = {nfc(name): label for label, name in enumerate(classes) if name}
    found = {label: heads[nfc(name)] for label, name in enumerate(own) if name and nfc(name) in heads}
    unnamed = {label for label, name in enumerate(own) if not name and label < len(classes) and not classes[label]}
    return found | {label: label for label in unnamed}
