"""Compute the cells of the table: means over seeds, paired differences, gaps to training with humans, cost.

Collection  ->  a Cell per (method, protocol, data set)  ->  Findings
"""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from ppma.common.statistics import Accuracy, Difference, difference, holm, mean_over_seeds
from ppma.config.errors import require
from ppma.study.results import Collection, Result

Groups = dict[tuple[str, str, str], dict[int, Result]]
"""(method, protocol, data set): result by seed."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method, tested by one protocol on one data set."""

    method: str
    protocol: str
    dataset: str
    top1: Accuracy
    top5: Accuracy
    of_seeds: dict[int, float]
    """Top-1 by seed."""
    videos: int
    behind: Difference | None = None
    """How much better the method of comparison is; None for itself, and without shared videos."""
    p_holm: float | None = None
    """p-value of `behind`, adjusted for all methods of this column."""
    gap: Difference | None = None
    """How much better training with humans is."""
    test_seconds: float
    pretrain_seconds: float | None
    """Wall time of pre-training, mean over seeds."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All numbers of a report."""

    collection: Collection
    cells: dict[tuple[str, str, str], Cell]
    """(method, protocol, data set): cell, for every cell with a result."""

    def cell(self, method: str, protocol: str, dataset: str) -> Cell | None:
        """Return a cell of the table, None without a result."""
        return self.cells.get((method, protocol, dataset))

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(protocol, data set) pairs with any result, in the order of the study."""
        found = {(protocol, dataset) for _, protocol, dataset in self.cells}
        names = self.collection
        return [(p, d) for p in names.protocols for d in names.datasets if (p, d) in found]


def summarize(collection: Collection) -> Findings:
    """Compute every cell.

    Raises:
        InputError: Two runs are one cell and seed, or seeds were tested on different videos.
    """
    groups: Groups = defaultdict(dict)
    for result in sorted(collection.results, key=lambda result: result.seed):
        group = groups[result.method, result.protocol, result.dataset]
        other = group.setdefault(result.seed, result)
        both = f"{other.folder} and {result.folder} are the same method, protocol, data set and seed"
        require(other is result, f"{both}; move one of them away")
    keys = dict.fromkeys((result.method, result.protocol, result.dataset) for result in collection.results)
    cells = {key: _cell(key, groups, collection) for key in keys}
    return Findings(collection=collection, cells=_with_adjusted_p(cells))


def _cell(key: tuple[str, str, str], groups: Groups, collection: Collection) -> Cell:
    method, protocol, dataset = key
    results = list(groups[key].values())
    other = f"{results[0].folder} and another seed of it were tested on different videos; test both on the same list"
    require(len({result.videos for result in results}) == 1, other)
    costs = [result.pretrain_seconds for result in results if result.pretrain_seconds is not None]
    return Cell(
        method=method, protocol=protocol, dataset=dataset,
        top1=mean_over_seeds(np.concatenate([result.right_DV for result in results])),
        top5=mean_over_seeds(np.concatenate([result.right5_DV for result in results])),
        of_seeds={result.seed: float(result.right_DV.mean()) for result in results}, videos=results[0].right_DV.shape[1],
        behind=_difference(collection.compare, key, groups), gap=_difference(collection.humans, key, groups),
        test_seconds=float(np.mean([result.seal.seconds for result in results])),
        pretrain_seconds=float(np.mean(costs)) if len(costs) == len(results) else None,
    )  # fmt: skip


def _difference(other: str, key: tuple[str, str, str], groups: Groups) -> Difference | None:
    """Return how much better the method `other` is, on the seeds and videos that both have."""
    method, protocol, dataset = key
    theirs, own = groups.get((other, protocol, dataset), {}), groups[key]
    shared = [seed for seed in own if seed in theirs and theirs[seed].tested == own[seed].tested]
    if other in ("", method) or not shared:
        return None
    first, second = (np.concatenate([runs[seed].right_DV for seed in shared]) for runs in (theirs, own))
    return difference(first, second)


def _with_adjusted_p(cells: dict[tuple[str, str, str], Cell]) -> dict[tuple[str, str, str], Cell]:
    columns = defaultdict[tuple[str, str], list[tuple[Cell, float]]](list)
    for cell in cells.values():
        if cell.behind is not None:
            columns[cell.protocol, cell.dataset].append((cell, cell.behind.p))
    adjusted = dict(cells)
    for column in columns.values():
        for (cell, _), p in zip(column, holm([p for _, p in column])):
            adjusted[cell.method, cell.protocol, cell.dataset] = replace(cell, p_holm=p)
    return adjusted
