"""A study as a graph of runs, each addressed by what it is made of.

    Study, data catalog  ->  Run(key, folder, config, needs), inputs before what starts from them

The key hashes the settings that change a result, the manifests' contents, and the keys of the runs it starts from. So a run that is there
already is found whatever study made it, and one whose recipe or data has changed has another folder. Imports no torch.
"""

import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ppma.config.errors import InputError
from ppma.config.flags import resolve
from ppma.config.run import FREE_ON_RESUME, RunConfig, defaults, differences, flat, read_config
from ppma.loaders.sources import catalog
from ppma.study.spec import Pretrain, Protocol, Study
from ppma.training import seal

KEY_DIGITS = 12
State = Literal["done", "started", "open"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Which cell of the table a tested run belongs to."""

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
    """Of a training; None for an average."""
    command: tuple[str, ...]
    """What one would type to do just this run."""
    needs: tuple["Run", ...] = ()
    row: Row | None = None
    """Of a run that is tested."""

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name}, seed {self.seed}"

    def state(self) -> State:
        """How far it is. InputError when its files were edited, or do not belong to what the study asks for."""
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
            folders = ", ".join(str(parent.folder) for parent in self.needs)
            other.append(f"the weights it started from: {folders} has others")
        if other:
            raise InputError(f"{self.folder} is another run than its name says ({'; '.join(other)}); delete it")


HashOf = Callable[[RunConfig], dict[str, str]]


STARTS = ("init", "average")
"""Settings that name what a run starts from; the key holds what that is instead."""


def _key(config: RunConfig, manifests: dict[str, str], starts: list[str]) -> str:
    """Settings that stand at their default are left out, so that a later version with one setting more finds the runs of this one."""
    facts = {k: v for k, v in flat(json.loads(config.to_json())).items() if v != defaults()[k]}
    free = tuple(f"{name}." for name in FREE_ON_RESUME)
    kept = {k: v for k, v in facts.items() if k not in (*FREE_ON_RESUME, *STARTS) and not k.startswith(free)}
    tested = {k: v for k, v in facts.items() if k.startswith("evaluation.") and k != "evaluation.batch_clips"}
    return _digest(
        {
            "config": kept,
            "test": tested,
            "manifests": manifests,
            "start": starts[0] if len(starts) == 1 else starts or None,
        }
    )


def _digest(facts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]


class Planner:
    """Makes the runs of one study. `add_source` maps a source to one more that is read beside it in stage 1."""

    def __init__(
        self,
        study: Study,
        runs: Path,
        data: Path,
        *,
        hash_of: HashOf = seal.manifest_hashes,
        beside: dict[str, str] | None = None,
    ) -> None:
        """`runs`: folder of the run folders; `data`: the data catalog; `hash_of`: hashes of the manifests that a config reads."""
        self.study, self.runs, self.data, self.hash_of, self.beside = study, runs, data, hash_of, beside or {}
        self._there = {path.name.rpartition("-")[2]: path for path in runs.iterdir()} if runs.is_dir() else {}
        self._made: dict[tuple[str, int], Run] = {}
        self._configs: dict[str, RunConfig] = {}

    def runs_in_order(self) -> list[Run]:
        """Every run: for each seed each method, what it needs first, its tests behind it."""
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
                for run in (*(run for start in starts for run in _ancestry(start)), *tests):
                    out.setdefault(run.folder, run)
        return list(out.values())

    def _folder(self, name: str, seed: int, key: str) -> Path:
        return self._there.get(key, self.runs / f"{name}-s{seed}-{key}")

    def _resolve(self, text: str) -> RunConfig:
        """A recipe with its flags and the study's; read once for all seeds."""
        if text not in self._configs:
            name, *flags = shlex.split(text)
            config = resolve(name, [*flags, *shlex.split(self.study.flags)], prog=f"ppma study: {self.study.name}:")
            self._configs[text] = replace(config, data=self.data, resume=True)
        return self._configs[text]

    def _starts(self, method: Pretrain, seed: int) -> "list[Run | Path]":
        """What the tests of a method start from: nothing, its encoder, or all that it mixes."""
        names = method.adaptive or (method.name,)
        found = [self._pretrained(self.study.pretrain[name], seed) for name in names]
        return [start for start in found if start is not None]

    def _pretrained(self, pretrain: Pretrain, seed: int) -> "Run | Path | None":
        """The run that gives the encoder, a path of weights from elsewhere, or None for random weights."""
        if pretrain.checkpoint:
            return seal.locate_model(self.study.folder / pretrain.checkpoint)
        if not (pretrain.recipe or pretrain.average):
            return None
        if (pretrain.name, seed) not in self._made:
            starts = [start for name in pretrain.needs for start in self._starts(self.study.pretrain[name], seed)]
            make = self._averaged if pretrain.average else self._trained
            self._made[pretrain.name, seed] = make(pretrain, starts, seed)
        return self._made[pretrain.name, seed]

    def _trained(self, pretrain: Pretrain, starts: "list[Run | Path]", seed: int) -> Run:
        config = replace(self._resolve(pretrain.recipe), seed=seed)
        if config.phase == "mae":
            more = tuple(self.beside[name] for name in config.sources if name in self.beside)
            config = replace(config, sources=(*config.sources, *more), weights=config.weights if not more else None)
        return self._run(pretrain.name, pretrain.recipe, config, starts, seed)

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
        config = replace(self._resolve(recipe), seed=seed, sources=(dataset,))
        if not (config.evaluation.at_end or config.phase in ("knn", "few_shot")):
            raise InputError(
                f"[protocol.{protocol.name}]: {recipe} does not end with a test; take finetune, probe or probe_published, "
                "or add --evaluation.at-end"
            )
        row = Row(method=method.name, protocol=protocol.name, dataset=dataset)
        return self._run(f"{method.name}.{protocol.name}.{dataset}", recipe, config, starts, seed, row)

    def _run(
        self, name: str, recipe: str, config: RunConfig, starts: "list[Run | Path]", seed: int, row: Row | None = None
    ) -> Run:
        paths = tuple(_weights(start) for start in starts)
        config = replace(config, init=paths[0]) if len(paths) == 1 else replace(config, average=paths or None)
        key = _key(config, self.hash_of(config), [_address(start) for start in starts])
        config = replace(config, run_dir=self._folder(name, seed, key))
        flags = [
            "--seed",
            str(seed),
            "--sources",
            *config.sources,
            "--data",
            str(self.data),
            "--run-dir",
            str(config.run_dir),
        ]
        flags += ["--init" if len(paths) == 1 else "--average", *map(str, paths)] if paths else []
        command = ("train", *shlex.split(recipe), *shlex.split(self.study.flags), *flags, "--resume")
        needs = tuple(start for start in starts if isinstance(start, Run))
        return Run(
            name=name, seed=seed, key=key, folder=config.run_dir, config=config, command=command, needs=needs, row=row
        )


def _weights(start: "Run | Path") -> Path:
    """What --init is: the newest checkpoint of a training, the folder of an average, a file from elsewhere."""
    if isinstance(start, Run):
        return start.folder / "checkpoints" / "latest" if start.config else start.folder
    return start


def _address(start: "Run | Path") -> str:
    return start.key if isinstance(start, Run) else seal.sha256(start)


def _ancestry(start: "Run | Path | None") -> list[Run]:
    """A run and all it needs, what is needed first."""
    if not isinstance(start, Run):
        return []
    return [*(run for parent in start.needs for run in _ancestry(parent)), start]


def catalog_of(study: Study) -> Path:
    """The data catalog that a study names, else the one in force."""
    return (study.folder / study.data).absolute() if study.data else catalog.locate()
