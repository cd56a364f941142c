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


def test_fields_by_their_older_names_are_read():
    text = RECIPES["mae_nohuman"]().to_json().replace('"normalize_targets": true', '"normalise_targets": false')
    assert not RunConfig.from_json(text).mae.normalize_targets


def test_fields_that_are_gone_are_read_past_unless_they_asked_for_something():
    old = json.loads(RECIPES["finetune"]().to_json())
    old["classifier"]["keep_norm"], old["optim"]["published_cosine"] = True, False
    assert RunConfig.from_json(json.dumps(old)) == RECIPES["finetune"]()
    old["optim"]["published_cosine"] = True
    with pytest.raises(InputError, match="published_cosine"):
        RunConfig.from_json(json.dumps(old))


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


def test_a_rank_gets_whole_clips_and_whole_mixing_groups():
    align = RECIPES["align_nohuman"]()
    for ranks in (1, 8, 32):
        check_ranks(align, ranks)
    with pytest.raises(InputError, match="7 ranks"):
        check_ranks(align, 7)
    with pytest.raises(InputError, match=r"mix\.group 4"):
        check_ranks(align, 64)  # two rows each
    check_ranks(replace(align, batch=256), 64)
    check_ranks(RECIPES["probe"](), 64)


def test_a_batch_needs_as_many_clips():
    mae = RECIPES["mae_nohuman"]()
    check_clips(mae, 128)
    with pytest.raises(InputError, match="--batch 124 or less"):
        check_clips(mae, 127)
    check_clips(RECIPES["demo"](stage="probe"), 64)
    check_clips(replace(RECIPES["probe"](), phase="knn"), 1)
