"""From results to the cells of the table: means over seeds, paired differences, gaps, cost.

Collection  ->  Cell of each (method, protocol, data set)  ->  Findings, which table, figures and page show
"""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from ppma.common.statistics import Accuracy, Difference, difference, holm, mean_over_seeds
from ppma.config.errors import InputError
from ppma.study.results import Collection, Result


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method, tested by one protocol on one data set."""

    method: str
    protocol: str
    dataset: str
    top1: Accuracy
    top5: Accuracy
    of_seeds: dict[int, float]
    """Seed: top-1."""
    videos: int
    behind: Difference | None = None
    """How much better the method of comparison is; None for itself, and where nothing can be paired."""
    p_holm: float | None = None
    """Its p corrected for all methods in this column."""
    gap: Difference | None = None
    """How much better training with humans is."""
    test_seconds: float
    pretrain_seconds: float | None
    """Wall time of the pre-training, mean over seeds."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a report says."""

    collection: Collection
    cells: dict[tuple[str, str, str], Cell]
    """(method, protocol, data set) of every cell that has a result."""

    def cell(self, method: str, protocol: str, dataset: str) -> Cell | None:
        """A cell of the table, None where nothing was run."""
        return self.cells.get((method, protocol, dataset))

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(protocol, data set) of which there is any result."""
        there = {(protocol, dataset) for _, protocol, dataset in self.cells}
        names = self.collection
        return [(p, d) for p in names.protocols for d in names.datasets if (p, d) in there]


def find(collection: Collection) -> Findings:
    """Compute every cell. InputError when two runs claim the same place."""
    groups: dict[tuple[str, str, str], dict[int, Result]] = defaultdict(dict)
    for result in collection.results:
        place = groups[result.method, result.protocol, result.dataset]
        if result.seed in place:
            both = f"{place[result.seed].folder} and {result.folder}"
            raise InputError(f"{both} are the same method, protocol, data set and seed; move one of them away")
        place[result.seed] = result
    cells = {key: _cell(key, groups, collection) for key in groups}
    return Findings(collection=collection, cells=_corrected(cells))


Groups = dict[tuple[str, str, str], dict[int, Result]]


def _cell(key: tuple[str, str, str], groups: Groups, collection: Collection) -> Cell:
    method, protocol, dataset = key
    by_seed = dict(sorted(groups[key].items()))
    results = list(by_seed.values())
    same = [result for result in results if result.videos == results[0].videos]
    if len(same) < len(results):
        raise InputError(
            f"{results[0].folder} and another seed of it were tested on different videos; test both on the same list"
        )
    costs = [result.pretrain_seconds for result in results]
    return Cell(
        method=method, protocol=protocol, dataset=dataset,
        top1=mean_over_seeds(np.concatenate([r.right_DV for r in results])),
        top5=mean_over_seeds(np.concatenate([r.right5_DV for r in results])),
        of_seeds={seed: float(result.right_DV.mean()) for seed, result in by_seed.items()}, videos=results[0].right_DV.shape[1],
        behind=_against(collection.compare, key, groups), gap=_against(collection.humans, key, groups),
        test_seconds=float(np.mean([r.seal.seconds for r in results])),
        pretrain_seconds=None if None in costs else float(np.mean([cost for cost in costs if cost is not None])),
    )  # fmt: skip


def _against(other: str, key: tuple[str, str, str], groups: Groups) -> Difference | None:
    """How much better the method `other` is on the seeds and videos that both have."""
    method, protocol, dataset = key
    theirs, own = groups.get((other, protocol, dataset), {}), groups[key]
    shared = [seed for seed in sorted(own) if seed in theirs and _pair(theirs[seed], own[seed])]
    if other in ("", method) or not shared:
        return None
    both = ([runs[seed].right_DV for seed in shared] for runs in (theirs, own))
    return difference(*map(np.concatenate, both))


def _pair(one: Result, other: Result) -> bool:
    return one.videos == other.videos and one.right_DV.shape == other.right_DV.shape


def _corrected(cells: dict[tuple[str, str, str], Cell]) -> dict[tuple[str, str, str], Cell]:
    columns: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells.values():
        columns[cell.protocol, cell.dataset].append(cell)
    for column in columns.values():
        compared = [cell for cell in column if cell.behind is not None]
        for cell, p in zip(compared, holm([cell.behind.p for cell in compared if cell.behind is not None])):
            cells[cell.method, cell.protocol, cell.dataset] = replace(cell, p_holm=p)
    return cells
