"""config.json: what `to_json` writes, `from_json` reads back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ppma.config.errors import InputError
from ppma.config.recipes import RECIPES
from ppma.config.run import RunConfig, check_clips, check_ranks, read_config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_read_back_as_it_was(name):
    config = RECIPES[name]()
    assert RunConfig.from_json(config.to_json()) == config


def test_paths_and_tuples_are_read_back_as_what_they_were():
    average = replace(RECIPES["adaptive_average"](), average=(Path("a"), Path("b")), weights=(1.0,))
    start = replace(RECIPES["probe"](), init=Path("runs/x"), data=Path("data.toml"))
    assert [RunConfig.from_json(c.to_json()) for c in (average, start)] == [average, start]


def test_settings_that_an_older_version_did_not_know_get_their_defaults():
    old = json.loads(RECIPES["finetune"]().to_json())
    del old["privacy"], old["loader"]["flip_probability"], old["attentive"]
    assert RunConfig.from_json(json.dumps(old)) == RECIPES["finetune"]()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '"x"',
        "{}",
        '{"recipe": "x", "phase": "mae", "sources": ["a"], "vit": {"widht": 1}}',
        '{"recipe": "x", "phase": "gone", "sources": ["a"]}',
    ],
)
def test_what_is_no_config_is_refused_with_the_file(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        read_config(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        read_config(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "why"), [("mae_nohuman", "views of a clip"), ("align_nohuman", r"mix\.group 4")])
def test_a_batch_divides_among_as_many_ranks_as_it_has_rows(name, why):
    """Up to 32 ranks have whole clips of four views, or groups of four rows; beyond, two or four ranks share one."""
    config = RECIPES[name]()
    for ranks in (1, 8, 32, 64, 128):
        check_ranks(config, ranks)
    with pytest.raises(InputError, match=rf"7 ranks.*{why}.*4 or 8 ranks"):
        check_ranks(config, 7)
    for ranks in (96, 256):
        with pytest.raises(InputError, match="128 ranks"):
            check_ranks(config, ranks)
    with pytest.raises(InputError, match="16 ranks"):
        check_ranks(replace(config, accumulate=2), 64)
    check_ranks(replace(config, batch=256), 64)
    check_ranks(RECIPES["probe"](), 77)


def test_a_batch_needs_as_many_clips():
    mae = RECIPES["mae_nohuman"]()
    check_clips(mae, 128)
    with pytest.raises(InputError, match="--batch 124 or less"):
        check_clips(mae, 127)
    check_clips(RECIPES["demo"](stage="probe"), 64)
    check_clips(replace(RECIPES["probe"](), phase="knn"), 1)
