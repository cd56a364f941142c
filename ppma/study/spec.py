"""Read a study from a short TOML file, in which recipes are named together with the flags that change them.

name = "small"
title = "What each part is worth"
seeds = [0, 1, 2]
datasets = ["ucf101", "hmdb51"]
compare = "full"                                # the method that the others are compared with
humans = "kinetics"                             # the method trained with humans, for the gap; optional

[pretrain.random]                               # only a title: random weights
title = "Random weights"
[pretrain.stage1]                               # no title: a run that others start from, and no row of the table
recipe = "mae_nohuman --model small"
[pretrain.full]
title = "MAE on no humans, then Align"
recipe = "align_nohuman_synthetic --model small"
init = "stage1"
[pretrain.averaged]
title = "Average of two"
average = ["full", "other"]
[pretrain.videomae]
title = "VideoMAE"
checkpoint = "converted/videomae"               # foreign weights

[protocol.probe]
title = "Linear probe"
recipe = "probe --model small"
"""

import re
import shlex
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ppma.config.errors import reading, require
from ppma.config.recipes import recipe
from ppma.config.records import restore

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """A pre-training: how an encoder is made. With a title it is a row of the table."""

    name: str
    title: str = ""
    recipe: str = ""
    """Recipe and its flags; empty: no training."""
    init: str = ""
    """Name of the pre-training it starts from; empty: from scratch."""
    average: tuple[str, ...] = ()
    """Names of pre-trainings whose weights are averaged."""
    weights: tuple[float, ...] = ()
    """Share of each of them; empty: equal shares."""
    adaptive: tuple[str, ...] = ()
    """Names of pre-trainings whose mixture is learned with the head; `recipe` replaces the protocol's."""
    protocols: tuple[str, ...] = ()
    """Names of the protocols that test it; empty: all."""
    checkpoint: str = ""
    """Foreign run folder, checkpoint or .safetensors file, relative to the spec."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the pre-trainings that it starts from."""
        return self.adaptive or self.average or ((self.init,) if self.init else ())


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How an encoder is tested: a recipe that ends with a test, such as finetune or probe."""

    name: str
    title: str
    recipe: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study, as read from its spec."""

    name: str
    title: str
    seeds: tuple[int, ...]
    datasets: tuple[str, ...]
    pretrain: dict[str, Pretrain]
    protocol: dict[str, Protocol]
    compare: str
    humans: str = ""
    flags: str = ""
    """Flags of every run."""
    data: str = ""
    """The data catalog, relative to the spec; empty: $PPMA_DATA, otherwise ./data.toml."""
    draw: dict[str, Any] | None = None
    """Render the data of `ppma demo` first; may set learned, new, learned_clips, probe_clips and test_clips."""
    folder: Path = Path()
    """Folder of the spec."""

    @property
    def methods(self) -> list[Pretrain]:
        """Rows of the table, in the spec's order."""
        return [pretrain for pretrain in self.pretrain.values() if pretrain.title]


def read(path: Path) -> Study:
    """Read a spec; InputError if anything in it is wrong."""
    with reading(path, "a study in TOML as docs/study.md shows one"):
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        require("folder" not in table, "folder is unknown")
        for group in ("pretrain", "protocol"):
            given = table.get(group) or {}
            require(isinstance(given, dict) and len(given) > 0, f"[{group}.NAME]: at least one such table is required")
            for name, inner in given.items():
                require(
                    isinstance(inner, dict) and "name" not in inner,
                    f"[{group}.{name}] is no table, or has a name twice",
                )
                inner["name"] = name
        study: Study = replace(restore(Study, table), folder=path.parent)
    _check(study, path)
    return study


def _check(study: Study, path: Path) -> None:
    for name in (study.name, *study.pretrain, *study.protocol, *study.datasets):
        is_name = _NAME.fullmatch(name) is not None
        require(is_name, f"{path}: {name!r} is not a name; use letters, digits, - and _")
    for key in ("seeds", "datasets"):
        values = getattr(study, key)
        require(bool(values), f"{path}: {key} is empty")
        require(len(set(values)) == len(values), f"{path}: {key} names one twice")
    methods = ("", *(method.name for method in study.methods))
    for key in ("compare", "humans"):
        known = f"pre-trainings with a title are {', '.join(methods[1:])}"
        require(getattr(study, key) in methods, f"{path}: {key} = {getattr(study, key)!r}; {known}")
    for pretrain in study.pretrain.values():
        _check_pretrain(study, pretrain, f"{path}, [pretrain.{pretrain.name}]")
    for protocol in study.protocol.values():
        _check_recipe(protocol.recipe, f"{path}, [protocol.{protocol.name}]")


def _check_recipe(text: str, where: str) -> None:
    words = shlex.split(text)
    require(bool(words), f"{where}: recipe is empty; name one, followed by its flags")
    recipe(words[0])


def _check_pretrain(study: Study, pretrain: Pretrain, where: str) -> None:
    ways = sum(map(bool, (pretrain.recipe, pretrain.average, pretrain.checkpoint)))
    require(ways < 2, f"{where}: give one of recipe, average and checkpoint")
    named = bool(ways or pretrain.title)
    require(named, f"{where}: random weights (no recipe, average or checkpoint) need a title")
    require(bool(pretrain.recipe or not pretrain.init), f"{where}: init requires a recipe")
    mixes = pretrain.recipe and pretrain.title and not pretrain.init and len(pretrain.adaptive) > 1
    adaptive = f"{where}: adaptive takes at least two names, a title, and a recipe without init"
    require(bool(mixes or not pretrain.adaptive), adaptive)
    for name in pretrain.protocols:
        known = f"the protocols are {', '.join(study.protocol)}"
        require(name in study.protocol, f"{where}: there is no protocol {name!r}; {known}")
    paired = len(pretrain.average) != 1 and len(pretrain.weights) in (0, len(pretrain.average))
    require(paired, f"{where}: average takes at least two names, and no weights or as many")
    if pretrain.recipe:
        _check_recipe(pretrain.recipe, where)
    _check_ancestors(study, pretrain, (pretrain.name,), where)


def _check_ancestors(study: Study, pretrain: Pretrain, below: tuple[str, ...], where: str) -> None:
    for name in pretrain.needs:
        known = f"the pre-trainings are {', '.join(study.pretrain)}"
        require(name in study.pretrain, f"{where}: there is no pre-training {name!r}; {known}")
        require(name not in below, f"{where}: {' <- '.join([*below, name])} is a cycle")
        above = study.pretrain[name]
        require(not above.adaptive, f"{where}: {name} is mixed for each test and has no weights to start from")
        made = bool(above.recipe or above.average or above.checkpoint)
        require(made, f"{where}: {name} is random weights; leave init out to start from scratch")
        _check_ancestors(study, above, (*below, name), where)
