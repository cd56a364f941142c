"""Specs as they are written, and what is said of those that cannot be."""

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
    ("old", "new", "message"),
    [
        ('title = "Made"', 'title = "Made"\nseed = 3', r"there is no key 'seed'; the keys are name, title, seeds,"),
        ("seeds = [0, 1]", "seeds = 3", r"seeds = 3; it must be a list of whole numbers"),
        ("seeds = [0, 1]", 'seeds = ["0"]', r"seeds = \['0'\]; it must be a list of whole numbers"),
        ("seeds = [0, 1]", "seeds = []", "seeds and datasets need one entry each"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "may name nothing twice"),
        ('title = "Made"\n', "", "'title' must be given"),
        ('"ucf101"', '"ucf 101"', "'ucf 101' is no name"),
        ('compare = "full"', 'compare = "stage1"', "compare = 'stage1'; pre-trainings with a title are random, full, mean"),
        ('recipe = "mae_nohuman', 'recipe = "mae_nobody', "no recipe 'mae_nobody'; there are mae_nohuman"),
        ('init = "stage1"', 'init = "stage2"', r"\[pretrain.full\]: there is no pre-training 'stage2'"),
        ('init = "stage1"', 'init = "random"', "random is random weights; leave init out"),
        ('init = "stage1"', 'init = "full"', "full <- full goes round in a circle"),
        ('title = "Random weights"', "", "it is random weights, which need a title"),
        ('title = "Random weights"', 'title = "x"\ninit = "stage1"', "init is for a recipe"),
        ('average = ["full", "other"]', 'average = ["full"]', "average takes two names or more"),
        ("weights = [1, 3.5]", "weights = [1]", "average takes two names or more, and as many weights"),
        ('average = ["full", "other"]\nweights = [1, 3.5]', 'adaptive = ["full", "other"]', "adaptive takes two names or more, a title"),
        ('title = "Random weights"', 'title = "x"\nprotocols = ["knn"]', "there is no protocol 'knn'; there are probe"),
        ('checkpoint = "w', 'recipe = "demo"\ncheckpoint = "w', "give one of recipe, average and checkpoint"),
        ('[protocol.probe]\ntitle = "Linear probe"\nrecipe = "probe --model tiny"', "", r"\[protocol.NAME\]: there must be one"),
        ("seeds = [0, 1]", "seeds = [0, 1", "cannot be read as TOML"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(read, old, new, message):
    with pytest.raises(InputError, match=message):
        read(old, new)


def test_no_spec_is_one_line(tmp_path, capsys):
    assert ppma(["study", str(tmp_path / "no.toml"), "--out", str(tmp_path / "out")]) == WRONG_INPUT
    error = capsys.readouterr().err
    assert "no.toml: no such file; docs/study.md shows one" in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "runs").exists()


def test_the_small_study_is_the_eight_runs_that_the_claim_needs():
    study = spec.read(Path(__file__).parents[2] / "docs/small-study/spec.toml")
    assert len(study.methods) == 8 and study.seeds == (0, 1, 2) and study.compare == "full" and study.draw == {}
    ways = {method.name: (method.recipe.split()[:3], method.init, method.average) for method in study.methods}
    assert ways["random"] == ([], "", ()) and ways["average"] == ([], "", ("actions", "places"))
    assert ways["stage2"][1] == "" and ways["full"] == (ways["stage2"][0], "stage1", ())
