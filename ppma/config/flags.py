"""Read the flags of a recipe.

    recipe, argv  ->  the recipe's own arguments, --set  ->  defaults  ->  every other field  ->  RunConfig

tyro parses twice, because the defaults of most fields follow from the recipe's own arguments: first the recipe's
signature, then the whole RunConfig. `--help` shows the fields in SHOWN, `--help-all` every field.
"""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_type_hints

import tyro

from ppma.config.command import as_flags, parse, parse_known
from ppma.config.errors import InputError
from ppma.config.recipes import published, recipe
from ppma.config.run import RunConfig

SHOWN = ("sources", "data", "init", "run_dir", "resume", "privacy", "seed", "batch", "device", "precision")
"""Fields of RunConfig that `--help` lists for every recipe."""
SHOWN_FOR = {"adaptive_average": ("average", "mixing")}
"""Further fields that `--help` lists for one recipe."""
OWN_HELP = {
    "model": "Size of the encoder: tiny, small, base, large or huge.",
    "size": "Height and width of a view in pixels.",
    "frames": "Frames of a clip.",
    "dataset": "Data set to train and test on, a name in the data catalog.",
    "people": "How the people in Kinetics were hidden: a --method of `ppma remove-humans`.",
    "published": "Run as the authors' scripts do, quirks included (docs/published.md).",
    "stage": "What to train.",
}
"""Help text of the arguments that recipes take."""
SET = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        metavar="FIELD=VALUE",
        help="Set any other field, e.g. --set optim.epochs=2 --set optim.betas='(0.9,0.95)'. --help-all lists them.",
    ),
]
HIDDEN: Any = tyro.conf.Suppress
DRY_RUN = Annotated[bool, tyro.conf.arg(help="Report what the run would do; write nothing.")]


def resolve(name: str, overrides: Sequence[str] = (), *, prog: str = "ppma train") -> RunConfig:
    """Return the RunConfig of a recipe with flags applied, e.g. resolve("mae_nohuman", ["--model", "tiny",
    "--optim.epochs", "2"]).

    Args:
        name: Name of the recipe.
        overrides: Flags. --help and --help-all print the flags and exit with 0.
        prog: Name of the command in messages.

    Raises:
        InputError: There is no such recipe, a flag does not exist, or a value is wrong.
    """
    make, prog = recipe(name), f"{prog} {name}"
    asked = {"-h", "--help", "--help-all"} & set(overrides)
    argv = [word for flag in overrides if flag not in asked for word in _without_boolean_value(flag)]

    # 1. the recipe's own arguments, --published and --set
    hints, parameters = get_type_hints(make), inspect.signature(make).parameters
    own = [(p, Annotated[hints[p], tyro.conf.arg(help=OWN_HELP[p])], parameters[p].default) for p in parameters]
    as_published = ("published", Annotated[bool, tyro.conf.arg(help=OWN_HELP["published"])], False)
    Own = _make_class(make, [*own, as_published, ("set", SET, ())])
    parsed, rest = parse_known(Own(), argv, prog=prog)
    config = make(**{name: getattr(parsed, name) for name in parameters})
    config = published(config) if parsed.published else config

    # 2. the fields, whose defaults the recipe has chosen
    types = get_type_hints(RunConfig)
    fields = [(field, types[field], getattr(config, field)) for field in types]
    if asked:
        shown = types if "--help-all" in asked else {*SHOWN, *SHOWN_FOR.get(name, ())}
        fields = [(field, kind if field in shown else HIDDEN[kind], value) for field, kind, value in fields]
        fields.append(("dry_run", DRY_RUN, False))
        rest = ["--help"]
    for setting in parsed.set:
        rest += _as_flags(setting)
    flags = parse(_make_class(make, fields, RunConfig, Own), rest, prog=prog)
    return RunConfig(**{field: getattr(flags, field) for field in types})


def _make_class(make: Callable[..., RunConfig], fields: Sequence[tuple[str, Any, Any]], *bases: type) -> type:
    """Return a dataclass with (name, type, default) fields, the docstring of a recipe, and base classes."""
    triples = [(name, hint, dataclasses.field(default=default)) for name, hint, default in fields]
    made = dataclasses.make_dataclass(make.__name__, triples, bases=bases, frozen=True, kw_only=True)
    made.__doc__ = make.__doc__
    return made


def _as_flags(setting: str) -> list[str]:
    """Return `field=value` as words for tyro: a tuple as several values, a boolean as --field or --no-field."""
    name, equals, text = setting.partition("=")
    if not equals:
        raise InputError(f"--set {setting} has no value: write --set FIELD=VALUE, e.g. --set optim.epochs=2")
    if text.lower() in ("true", "false"):
        return as_flags({name: text.lower() == "true"})
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # a name, a path
        value = text
    return as_flags({name: value})


def _without_boolean_value(flag: str) -> list[str]:
    """Return --x=true as --x and --x=false as --no-x, the spellings of tyro; any other word as it is."""
    return _as_flags(flag[2:]) if re.fullmatch(r"--[\w.-]+=(true|false)", flag, re.IGNORECASE) else [flag]
