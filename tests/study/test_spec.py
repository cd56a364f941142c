"""Specs, and the refusal of wrong ones."""

from pathlib import Path

import pytest

from ppma.cli import main as ppma
from ppma.config.command import WRONG_INPUT
from ppma.config.errors import InputError
from ppma.study import spec

GOOD = """
name = "made"
title = "Made"
seeds = [0, 1]
datasets = ["ucf101", "hmdb51"]
compare = "full"

[pretrain.random]
title = "Random weights"
[pretrain.stage1]
recipe = "mae_nohuman --model tiny"
[pretrain.full]
title = "Full"
recipe = "align_nohuman_synthetic --model tiny"
init = "stage1"
[pretrain.other]
recipe = "align_nohuman --model tiny"
init = "stage1"
[pretrain.mean]
title = "Average"
average = ["full", "other"]
weights = [1, 3.5]
[pretrain.foreign]
title = "From elsewhere"
checkpoint = "weights.safetensors"

[protocol.probe]
title = "Linear probe"
recipe = "probe --model tiny"
"""


@pytest.fixture
def read(tmp_path):
    def read(old="", new=""):
        assert old in GOOD
        (tmp_path / "spec.toml").write_text(GOOD.replace(old, new, 1))
        return spec.read(tmp_path / "spec.toml")

    return read


def test_a_good_spec(read):
    study = read()
    assert [method.name for method in study.methods] == ["random", "full", "mean", "foreign"]
    assert study.seeds == (0, 1) and study.datasets == ("ucf101", "hmdb51") and study.draw is None
    assert study.pretrain["full"].needs == ("stage1",) and study.pretrain["mean"].needs == ("full", "other")
    assert study.pretrain["mean"].weights == (1, 3.5) and study.protocol["probe"].recipe == "probe --model tiny"


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('title = "Made"', 'title = "Made"\nseed = 3', "seed is unknown"),
        ("seeds = [0, 1]", "seeds = 3", "seeds is 3"),
        ("seeds = [0, 1]", 'seeds = ["0"]', "seeds is '0'"),
        ("seeds = [0, 1]", "seeds = []", "seeds"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "seeds"),
        ('title = "Made"\n', "", "title is missing"),
        ('title = "Made"', 'title = "Made"\nfolder = "x"', "folder"),
        ('title = "Full"', 'title = "Full"\nname = "x"', "name"),
        ('"ucf101"', '"ucf 101"', "'ucf 101'"),
        ('compare = "full"', 'compare = "stage1"', "compare = 'stage1'.*random, full, mean"),
        ('recipe = "mae_nohuman', 'recipe = "mae_typo', "'mae_typo'"),
        ('init = "stage1"', 'init = "stage2"', r"\[pretrain.full\].*'stage2'"),
        ('init = "stage1"', 'init = "random"', "random weights"),
        ('init = "stage1"', 'init = "full"', "full <- full"),
        ('title = "Random weights"', "", "title"),
        ('title = "Random weights"', 'title = "x"\ninit = "stage1"', "init"),
        ('average = ["full", "other"]', 'average = ["full"]', "average"),
        ("weights = [1, 3.5]", "weights = [1]", "weights"),
        ('average = ["full", "other"]\nweights = [1, 3.5]', 'adaptive = ["full", "other"]', "adaptive"),
        ('title = "Random weights"', 'title = "x"\nprotocols = ["knn"]', "knn.* probe"),
        ('checkpoint = "w', 'recipe = "demo"\ncheckpoint = "w', "checkpoint"),
        ('[protocol.probe]\ntitle = "Linear probe"\nrecipe = "probe --model tiny"', "", r"\[protocol.NAME\]"),
        ("seeds = [0, 1]", "seeds = [0, 1", "TOML"),
    ],
)
def test_a_wrong_spec_is_refused(read, old, new, word):
    with pytest.raises(InputError, match=word):
        read(old, new)


def test_a_missing_spec_is_one_line(tmp_path, capsys):
    assert ppma(["study", str(tmp_path / "no.toml"), "--out", str(tmp_path / "out")]) == WRONG_INPUT
    error = capsys.readouterr().err
    assert "no.toml" in error and error.count("\n") == 1 and not (tmp_path / "out" / "runs").exists()


def test_the_small_study_has_the_eight_methods_of_its_claim():
    study = spec.read(Path(__file__).parents[2] / "docs/small-study/spec.toml")
    assert len(study.methods) == 8 and study.seeds == (0, 1, 2) and study.compare == "full" and study.draw == {}
    ways = {method.name: (method.recipe.split()[:3], method.init, method.average) for method in study.methods}
    assert ways["random"] == ([], "", ()) and ways["average"] == ([], "", ("actions", "places"))
    assert ways["stage2"][1] == "" and ways["full"] == (ways["stage2"][0], "stage1", ())
