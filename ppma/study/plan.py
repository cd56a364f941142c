"""Turn a study into a graph of runs, each named by a hash of its inputs.

    Study, data catalog  ->  Run(key, folder, config, needs), inputs first

A key hashes the settings that change a result, the contents of the manifests, and the keys of the runs it starts
from. So a finished run is found by any study, and a run whose recipe or data has changed gets another folder. Imports
no torch.
"""

import hashlib
import inspect
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from ppma.config.errors import require
from ppma.config.flags import resolve
from ppma.config.recipes import RECIPES
from ppma.config.run import FREE_ON_RESUME, RunConfig, defaults, differences, flat, read_config
from ppma.loaders.sources import catalog
from ppma.study.spec import Pretrain, Protocol, Study
from ppma.training import seal

KEY_DIGITS = 12
STARTS = ("init", "average")
"""Settings that name what a run starts from; the key holds hashes of it instead."""
State = Literal["done", "started", "open"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """The cell of the table that a tested run belongs to."""

    method: str
    protocol: str
    dataset: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the study."""

    name: str
    seed: int
    key: str
    folder: Path
    config: RunConfig | None
    """The training; None for an average."""
    command: tuple[str, ...]
    """Arguments of `ppma` that do this run alone."""
    needs: tuple["Run", ...] = ()
    row: Row | None = None
    """Its cell, if the run is tested."""

    @property
    def title(self) -> str:
        """Name and seed, for people."""
        return f"{self.name}, seed {self.seed}"

    def state(self) -> State:
        """Return the state of the run.

        Raises:
            InputError: Its files were edited, or belong to another run.
        """
        if not (self.folder / seal.SEAL).is_file():
            return "started" if self.folder.is_dir() else "open"
        sealed = seal.read(self.folder)
        if self.config is not None:
            self._check(self.config, sealed)
        if self.row is None:
            seal.check_weights(self.folder, sealed)
        return "done"

    def _check(self, config: RunConfig, sealed: seal.Seal) -> None:
        other = [line for line in differences(config, read_config(self.folder)) if not line.startswith("init:")]
        if sealed.manifests != seal.manifest_hashes(config):
            other.append("its manifests")
        parents = [seal.read(parent.folder) for parent in self.needs if (parent.folder / seal.SEAL).is_file()]
        weights = [parent.weights for parent in parents if parent.weights]
        if len(weights) == len(config.starts) and seal.starts_hash(weights) != sealed.init:
            other.append(f"the weights it started from, now in {', '.join(str(run.folder) for run in self.needs)}")
        require(not other, f"{self.folder} is not the run that its name says ({'; '.join(other)}); delete it")


@cache
def _resolved(text: str, flags: str, prog: str) -> RunConfig:
    """Return the config of a recipe with its flags; cached, as all seeds share it."""
    name, *own = shlex.split(text)
    return resolve(name, [*own, *shlex.split(flags)], prog=prog)


class Planner:
    """Plan the runs of one study."""

    def __init__(
        self, study: Study, runs: Path, data: Path, *, complete: bool = True, added: Mapping[str, str] | None = None
    ) -> None:
        """Prepare a plan.

        Args:
            study: The study.
            runs: Folder of the run folders.
            data: The data catalog.
            complete: Whether the manifests exist; without them keys are provisional.
            added: Sources that stage 1 reads in addition, by the source that they are added to.
        """
        self.study, self.runs, self.data, self.complete, self.added = study, runs, data, complete, added or {}
        self._existing = {path.name.rpartition("-")[2]: path for path in runs.iterdir()} if runs.is_dir() else {}
        self._pretrainings: dict[tuple[str, int], Run] = {}

    def runs_in_order(self) -> list[Run]:
        """Return every run: for each seed and method its pre-trainings, then its tests."""
        out: dict[Path, Run] = {}
        for seed in self.study.seeds:
            for method in self.study.methods:
                starts = self._starts(method, seed)
                tests = [
                    self._tested(method, starts, protocol, dataset, seed)
                    for name, protocol in self.study.protocol.items()
                    for dataset in self.study.datasets
                    if name in (method.protocols or self.study.protocol)
                ]
                made = [run for start in starts if isinstance(start, Run) for run in ancestry(start)]
                for run in (*made, *tests):
                    out.setdefault(run.folder, run)
        return list(out.values())

    def _folder(self, name: str, seed: int, key: str) -> Path:
        return self._existing.get(key, self.runs / f"{name}-s{seed}-{key}")

    def _resolve(self, text: str) -> RunConfig:
        """Return the config of a recipe with its flags and the study's."""
        config = _resolved(text, self.study.flags, f"ppma study: {self.study.name}:")
        return replace(config, data=self.data, resume=True)

    def _starts(self, method: Pretrain, seed: int) -> "list[Run | Path]":
        """Return what the tests of a method start from: nothing, its encoder, or all that it mixes."""
        names = method.adaptive or (method.name,)
        found = [self._pretrained(self.study.pretrain[name], seed) for name in names]
        return [start for start in found if start is not None]

    def _pretrained(self, pretrain: Pretrain, seed: int) -> "Run | Path | None":
        """Return the run that makes the encoder, a path of foreign weights, or None for random weights."""
        if pretrain.checkpoint:
            return seal.locate_model(self.study.folder / pretrain.checkpoint)
        if not (pretrain.recipe or pretrain.average):
            return None
        if (pretrain.name, seed) not in self._pretrainings:
            starts = [start for name in pretrain.needs for start in self._starts(self.study.pretrain[name], seed)]
            make = self._averaged if pretrain.average else self._trained
            self._pretrainings[pretrain.name, seed] = make(pretrain, starts, seed)
        return self._pretrainings[pretrain.name, seed]

    def _trained(self, pretrain: Pretrain, starts: "list[Run | Path]", seed: int) -> Run:
        config = replace(self._resolve(pretrain.recipe), seed=seed)
        if config.phase == "mae":
            more = tuple(self.added[name] for name in config.sources if name in self.added)
            config = replace(config, sources=(*config.sources, *more), weights=None if more else config.weights)
        return self._run(pretrain.name, pretrain.recipe, config, starts, None)

    def _averaged(self, pretrain: Pretrain, starts: "list[Run | Path]", seed: int) -> Run:
        shares = pretrain.weights or (1 / len(starts),) * len(starts)
        key = _digest({"average": [_address(start) for start in starts], "weights": list(shares)})
        folder = self._folder(pretrain.name, seed, key)
        paths = [str(_weights(start)) for start in starts]
        command = ("average", *paths, "--weights", *map(str, shares), "--out", str(folder))
        needs = tuple(start for start in starts if isinstance(start, Run))
        return Run(name=pretrain.name, seed=seed, key=key, folder=folder, config=None, command=command, needs=needs)

    def _tested(self, method: Pretrain, starts: "list[Run | Path]", protocol: Protocol, dataset: str, seed: int) -> Run:
        recipe = method.recipe if method.adaptive else protocol.recipe
        if "dataset" in inspect.signature(RECIPES[shlex.split(recipe)[0]]).parameters:
            recipe = f"{recipe} --dataset {shlex.quote(dataset)}"
        config = replace(self._resolve(recipe), seed=seed, sources=(dataset,))
        tests = config.evaluation.at_end or config.phase in ("knn", "few_shot")
        fix = "use finetune or probe, or add --evaluation.at-end"
        require(tests, f"[protocol.{protocol.name}]: {recipe} does not end with a test; {fix}")
        row = Row(method=method.name, protocol=protocol.name, dataset=dataset)
        return self._run(f"{method.name}.{protocol.name}.{dataset}", recipe, config, starts, row)

    def _run(self, name: str, recipe: str, config: RunConfig, starts: "list[Run | Path]", row: Row | None) -> Run:
        paths = tuple(_weights(start) for start in starts)
        config = replace(config, init=paths[0]) if len(paths) == 1 else replace(config, average=paths or None)
        manifests = seal.manifest_hashes(config) if self.complete else {}
        key = _key(config, manifests, [_address(start) for start in starts])
        folder = self._folder(name, config.seed, key)
        flags = ["--seed", config.seed, "--sources", *config.sources, "--data", self.data, "--run-dir", folder]
        flags += ["--init" if len(paths) == 1 else "--average", *paths] if paths else []
        command = ("train", *shlex.split(f"{recipe} {self.study.flags}"), *map(str, flags), "--resume")
        needs = tuple(start for start in starts if isinstance(start, Run))
        config = replace(config, run_dir=folder)
        return Run(name=name, seed=config.seed, key=key, folder=folder, config=config, command=command, needs=needs, row=row)  # fmt: skip


def _key(config: RunConfig, manifests: dict[str, str], starts: list[str]) -> str:
    """Hash a run's inputs without settings at their default, so that versions with new settings find this run."""
    changed = {k: v for k, v in flat(json.loads(config.to_json())).items() if v != defaults()[k]}
    free = tuple(f"{name}." for name in FREE_ON_RESUME)
    kept = {k: v for k, v in changed.items() if k not in (*FREE_ON_RESUME, *STARTS) and not k.startswith(free)}
    tested = {k: v for k, v in changed.items() if k.startswith("evaluation.") and k != "evaluation.batch_clips"}
    start = starts[0] if len(starts) == 1 else starts or None
    return _digest({"config": kept, "test": tested, "manifests": manifests, "start": start})


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]


def _weights(start: "Run | Path") -> Path:
    """Return the path for --init: the newest checkpoint of a training, the folder of an average, or a foreign file."""
    if isinstance(start, Run):
        return start.folder / "checkpoints" / "latest" if start.config else start.folder
    return start


def _address(start: "Run | Path") -> str:
    return start.key if isinstance(start, Run) else seal.sha256(start)


def ancestry(run: Run) -> list[Run]:
    """Return a run and all that it derives from, inputs first, each once."""
    found = {other.folder: other for parent in run.needs for other in ancestry(parent)}
    return [*found.values(), run]


def catalog_of(study: Study) -> Path:
    """Return the data catalog that a study names, otherwise the current one."""
    return (study.folder / study.data).absolute() if study.data else catalog.locate()
