"""Flags of `ppma train RECIPE`: every spelling of every boolean, --set, help on one screen, and wrong flags in one line."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from ppma.config.errors import InputError
from ppma.config.flags import OWN_HELP, resolve
from ppma.config.recipes import RECIPES
from ppma.config.run import ENCODED_ONCE, RunConfig, flat


def booleans(config):
    """Dotted names of the boolean fields that this config may have on or off."""
    names = [name for name, value in flat(json.loads(config.to_json())).items() if isinstance(value, bool)]
    return [name for name in names if name != "shard" or (config.phase in ("mae", "classify") and not config.average)]


def negated(name):
    group, dot, field = name.rpartition(".")
    return f"--{group}{dot}no-{field}"


SPELLINGS = {
    "bare": lambda name, on: [f"--{name}" if on else negated(name)],
    "equals": lambda name, on: [f"--{name}={'true' if on else 'false'}"],
    "Equals": lambda name, on: [f"--{name}={on}"],
    "underscores": lambda name, on: [f"--{name.replace('-', '_')}={on}"],
    "set": lambda name, on: ["--set", f"{name.replace('-', '_')}={'true' if on else 'false'}"],
}


@pytest.mark.parametrize(("turn", "name"), list(enumerate(RECIPES)), ids=RECIPES)
def test_every_boolean_in_every_spelling(turn, name):
    """Neighboring fields are spelled differently, and each of them differently from recipe to recipe."""
    more = ["--average", "a", "b"] if name == "adaptive_average" else []
    fields, spells = booleans(resolve(name, more)), [*SPELLINGS.values()]
    for on in (True, False):
        spelled = [spells[i % len(spells)](field.replace("_", "-"), on) for i, field in enumerate(fields, turn)]
        values = flat(json.loads(resolve(name, more + [word for words in spelled for word in words]).to_json()))
        assert {field: values[field] for field in fields} == dict.fromkeys(fields, on)


@pytest.mark.parametrize("spelling", ["bare", "equals", "Equals", "underscores"])
def test_a_boolean_of_a_recipe_s_own_can_be_switched_off(spelling):
    """A boolean's =false once switched it on."""
    for on in (True, False):
        config = resolve("align_nohuman_synthetic", SPELLINGS[spelling]("published", on))
        assert (config.classifier.shared_head, config.loader.mix) == ((True, "batch") if on else (False, "sample"))


def test_flags_change_a_recipe():
    config = resolve("finetune", ["--dataset", "hmdb51", "--model=tiny", "--optim.epochs", "3", "--batch", "16"])
    assert (config.sources, config.vit.width, config.optim.epochs, config.batch) == (("hmdb51",), 192, 3, 16)
    assert config.run_dir == Path("runs/finetune-hmdb51") and type(config) is RunConfig
    assert resolve("probe", ["--size", "32", "--vit.patch", "2", "8", "8", "--data", "x"]).data == Path("x")
    assert resolve("mae_nohuman") == RECIPES["mae_nohuman"]()


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("optim.betas=(0.9,0.95)", "optim.betas", [0.9, 0.95]),
        ("optim.epochs=3", "optim.epochs", 3),
        ("optim.peak_lr=1e-3", "optim.peak_lr", 1e-3),
        ("optim.layer_decay=None", "optim.layer_decay", None),
        ("optim.decay-head=True", "optim.decay_head", True),
        ("vit.patch=(2, 8, 8)", "vit.patch", [2, 8, 8]),
        ("grid.rates=()", "grid.rates", []),
        ("loader.crop=center", "loader.crop", "center"),
        ("run_dir=runs/a b", "run_dir", "runs/a b"),
        ("sources=('a', 'b')", "sources", ["a", "b"]),
    ],
)
def test_set_takes_every_field(setting, field, value):
    for flags in (["--set", setting], [f"--set={setting}"], ["--batch", "64", "--set", "seed=3", "--set", setting]):
        assert flat(json.loads(resolve("finetune", flags).to_json()))[field] == value


@pytest.mark.parametrize("name", RECIPES)
def test_help_fits_one_screen_and_help_all_lists_every_field(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            resolve(name, ["--model", "tiny", flag] if name != "demo" else [flag])
        assert not stop.value.code
        shown[flag] = capsys.readouterr().out
    flags = {which: set(re.findall(r"^  (--[a-z][\w.-]+)", text, re.MULTILINE)) for which, text in shown.items()}
    assert 10 <= len(flags["--help"]) <= 20 and shown["--help"].count("\n") <= 50
    assert {"--dry-run", "--set", "--run-dir"} <= flags["--help"]
    assert RECIPES[name].__doc__.splitlines()[0] in " ".join(shown["--help"].split())
    fields = {f"--{field.replace('_', '-')}" for field in flat(json.loads(RECIPES[name]().to_json()))}
    assert fields <= flags["--help-all"]


def test_no_argument_of_a_recipe_is_a_field_of_the_run():
    assert not OWN_HELP.keys() & {field.name for field in dataclasses.fields(RunConfig)}


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("mae_nohumans", [], ["'mae_nohumans'", "mae_nohuman"]),
        ("mae_nohuman", ["--model", "giant"], ["'giant'", "tiny"]),
        ("mae_nohuman", ["--modle", "tiny"], ["--modle", "did you mean --model?"]),
        ("mae_nohuman", ["--optim.epoch", "3"], ["--optim.epoch", "did you mean --optim.epochs?"]),
        ("mae_nohuman", ["--set", "optim.epoch=3"], ["--optim.epoch", "did you mean --optim.epochs?"]),
        ("mae_nohuman", ["--set", "optim.epochs"], ["optim.epochs", "FIELD=VALUE"]),
        ("mae_nohuman", ["--size", "big"], ["--size", "'big'"]),
        ("mae_nohuman", ["--resume", "false"], ["false"]),
        ("mae_kinetics", ["--people", "hidden"], ["'hidden'", "blur-faces"]),
        ("mae_nohuman", ["--nope", "1"], ["--nope"]),
        ("mae_nohuman", ["--dry-run"], ["--dry-run"]),
        ("mae_nohuman", ["--batch", "10"], ["batch 10"]),
        ("mae_nohuman", ["--mae.decoder-share", "0"], ["mae.decoder_share", "0.0"]),
        ("finetune", ["--classifier.token-drop", "1"], ["classifier.token_drop", "1.0"]),
        ("probe", ["--classifier.token-drop", "0.5"], ["classifier.token_drop"]),
        ("mae_nohuman", ["--loader.size", "112"], ["--frames", "--size"]),
        ("mae_nohuman", ["--weights", "1", "2"], ["weights (1.0, 2.0)", "1 sources"]),
        ("mae_nohuman", ["--optim.cosine-start", "0"], ["optim.cosine_start", "0.0"]),
        *(
            (name, ["--published"], [name, "probe_published"])
            for name in (*ENCODED_ONCE, "demo", "probe_grid")
            if name in RECIPES
        ),
    ],
)
def test_wrong_flags_are_one_line(name, flags, words):
    with pytest.raises(InputError) as caught:
        resolve(name, flags)
    assert all(word in str(caught.value) for word in words)
