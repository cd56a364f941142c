"""A study as its author writes it: a short TOML file in which recipes stand by name, with the flags that change them.

name = "small"
title = "What each part is worth"
seeds = [0, 1, 2]
datasets = ["ucf101", "hmdb51"]
compare = "full"                                # the method that the others are held against
humans = "kinetics"                             # the method trained with humans, for the gap; optional

[pretrain.random]                               # nothing but a title: random weights
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
checkpoint = "converted/videomae"               # weights from elsewhere

[protocol.probe]
title = "Linear probe"
recipe = "probe --model small"
"""

import re
import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ppma.config.errors import InputError
from ppma.config.recipes import recipe

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """How an encoder comes about. With a title it is a row of the table."""

    name: str
    title: str = ""
    recipe: str = ""
    """Recipe and its flags; empty: no training of its own."""
    init: str = ""
    """Name of the pre-training it starts from; empty: from scratch."""
    average: tuple[str, ...] = ()
    """Names of pre-trainings whose weights are averaged."""
    weights: tuple[float, ...] = ()
    """Share of each of them; empty: equal shares."""
    adaptive: tuple[str, ...] = ()
    """Names of pre-trainings whose mixture is learned with the head: `recipe`, adaptive_average, takes the place of the protocol's."""
    protocols: tuple[str, ...] = ()
    """Names of the protocols that test it; empty: all."""
    checkpoint: str = ""
    """Run folder, checkpoint or .safetensors file from elsewhere, relative to the spec."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the pre-trainings that have to be there first."""
        return self.adaptive or self.average or ((self.init,) if self.init else ())


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How an encoder is tested: a recipe that ends with a test, such as finetune or probe."""

    name: str
    title: str
    recipe: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """The whole matrix."""

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
    """The data catalog, relative to the spec; empty: $PPMA_DATA, else ./data.toml."""
    draw: dict[str, Any] | None = None
    """Draw the data of `ppma demo` first; its fields learned, new, learned_clips, probe_clips and test_clips may be changed."""
    folder: Path = Path()
    """Where the spec lies."""

    @property
    def methods(self) -> list[Pretrain]:
        """Rows of the table, in the spec's order."""
        return [pretrain for pretrain in self.pretrain.values() if pretrain.title]


def read(path: Path) -> Study:
    """Read a spec; InputError names what is wrong with it."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; docs/study.md shows one") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from None
    study = _study(table, path)
    _check(study, path)
    return study


def _study(table: dict[str, Any], path: Path) -> Study:
    pretrain = _tables(Pretrain, table.pop("pretrain", None), f"{path}, [pretrain.NAME]")
    protocol = _tables(Protocol, table.pop("protocol", None), f"{path}, [protocol.NAME]")
    made = {"pretrain": pretrain, "protocol": protocol, "folder": path.parent}
    return _fill(Study, table, made, str(path))


def _tables(kind: type, tables: object, where: str) -> dict[str, Any]:
    if not isinstance(tables, Mapping) or not tables or not all(isinstance(t, Mapping) for t in tables.values()):
        raise InputError(f"{where}: there must be one such table at least")
    return {name: _fill(kind, table, {"name": name}, where.replace("NAME", name)) for name, table in tables.items()}


def _all(*kinds: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, tuple) and all(isinstance(part, kinds) for part in value)


_FITS: dict[object, tuple[Callable[[object], bool], str]] = {
    str: (lambda value: isinstance(value, str), "text"),
    tuple[str, ...]: (_all(str), "a list of texts"),
    tuple[int, ...]: (_all(int), "a list of whole numbers"),
    tuple[float, ...]: (_all(int, float), "a list of numbers"),
    dict[str, Any] | None: (lambda value: isinstance(value, dict), "a table"),
}
"""Type of a field: (whether a value of the file fits it, what it is called)."""


def _fill(kind: type, table: Mapping[str, Any], made: dict[str, Any], where: str) -> Any:
    """An instance of `kind` from a TOML table; every key must be a field and have its type."""
    known = {field.name: field.type for field in fields(kind) if field.name not in made}
    if strange := [key for key in table if key not in known]:
        raise InputError(f"{where}: there is no key {strange[0]!r}; the keys are {', '.join(known)}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    for key, value in given.items():
        fits, what = _FITS[known[key]]
        if not fits(value):
            raise InputError(f"{where}: {key} = {table[key]!r}; it must be {what}")
    try:
        return kind(**given, **made)
    except TypeError as error:
        raise InputError(f"{where}: {str(error).rpartition(': ')[2]} must be given") from None


def _check(study: Study, path: Path) -> None:
    for name in (study.name, *study.pretrain, *study.protocol, *study.datasets):
        if not _NAME.fullmatch(name):
            raise InputError(f"{path}: {name!r} is no name; use letters, digits, - and _")
    if not study.seeds or not study.datasets:
        raise InputError(f"{path}: seeds and datasets need one entry each, at least")
    if len(set(study.seeds)) < len(study.seeds) or len(set(study.datasets)) < len(study.datasets):
        raise InputError(f"{path}: seeds and datasets may name nothing twice")
    methods = [method.name for method in study.methods]
    for key in ("compare", "humans"):
        if (value := getattr(study, key)) and value not in methods:
            raise InputError(f"{path}: {key} = {value!r}; pre-trainings with a title are {', '.join(methods)}")
    for pretrain in study.pretrain.values():
        _check_pretrain(study, pretrain, f"{path}, [pretrain.{pretrain.name}]")
    for protocol in study.protocol.values():
        recipe(_recipe_name(protocol.recipe, f"{path}, [protocol.{protocol.name}]"))


def _recipe_name(text: str, where: str) -> str:
    words = shlex.split(text)
    if not words:
        raise InputError(f"{where}: recipe is empty; name one, with its flags behind")
    return words[0]


def _check_pretrain(study: Study, pretrain: Pretrain, where: str) -> None:
    ways = [bool(pretrain.recipe), bool(pretrain.average), bool(pretrain.checkpoint)]
    if sum(ways) > 1:
        raise InputError(f"{where}: give one of recipe, average and checkpoint")
    if not any(ways) and not pretrain.title:
        raise InputError(f"{where}: without a recipe, average or checkpoint it is random weights, which need a title")
    if pretrain.init and not pretrain.recipe:
        raise InputError(f"{where}: init is for a recipe")
    if pretrain.adaptive and (not pretrain.recipe or not pretrain.title or pretrain.init or len(pretrain.adaptive) < 2):
        raise InputError(f"{where}: adaptive takes two names or more, a title, and a recipe without init")
    if strange := [name for name in pretrain.protocols if name not in study.protocol]:
        raise InputError(f"{where}: there is no protocol {strange[0]!r}; there are {', '.join(study.protocol)}")
    if len(pretrain.average) == 1 or (pretrain.weights and len(pretrain.weights) != len(pretrain.average)):
        raise InputError(f"{where}: average takes two names or more, and as many weights if any")
    if pretrain.recipe:
        recipe(_recipe_name(pretrain.recipe, where))
    _check_ancestry(study, pretrain, (pretrain.name,), where)


def _check_ancestry(study: Study, pretrain: Pretrain, below: tuple[str, ...], where: str) -> None:
    for name in pretrain.needs:
        if name not in study.pretrain:
            raise InputError(f"{where}: there is no pre-training {name!r}; there are {', '.join(study.pretrain)}")
        above = study.pretrain[name]
        if name in below:
            raise InputError(f"{where}: {' <- '.join([*below, name])} goes round in a circle")
        if above.adaptive:
            raise InputError(f"{where}: {name} is mixed anew for every test and has no weights to start from")
        if not (above.recipe or above.average or above.checkpoint):
            raise InputError(f"{where}: {name} is random weights; leave init out to start from scratch")
        _check_ancestry(study, above, (*below, name), where)
