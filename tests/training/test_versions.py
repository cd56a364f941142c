"""Files of a newer, an older or another program are refused in one line that names the file and the field, or read as before."""

import json
import shutil

import pytest

from ppma.cli import main as ppma
from ppma.training import seal
from ppma.training.lineage import read as read_lineage


@pytest.fixture
def folder(tiny_runs, tmp_path):
    shutil.copytree(tiny_runs / "runs/finetune", tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def error(capfd, *argv):
    """The line that a command refuses its input with."""
    capfd.readouterr()
    assert ppma(list(map(str, argv))) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


CONFIGS = {
    "newer": (lambda config: config["vit"].update(registers=4), "vit.registers"),
    "newer, at the top": (lambda config: config.update(fused=True), "fused"),
    "a value of another type": (lambda config: config.update(batch="8"), "batch"),
    "a text for a list": (lambda config: config.update(sources="made"), "sources"),
    "no recipe": (lambda config: config.pop("recipe"), "recipe"),
    "a newer choice": (lambda config: config.update(phase="distill"), "phase"),
    "a part that is none": (lambda config: config.update(vit=None), "vit"),
    "Hugging Face": (
        lambda config: [config.clear(), config.update(model_type="videomae", hidden_size=768, id2label={"0": "a"})],
        "ppma convert",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_of_another_version_or_program_names_the_field(name, folder, tmp_path, capfd):
    change, named = CONFIGS[name]
    edit(folder / "config.json", change)
    for argv in (["export", folder, tmp_path / "x"], ["predict", tmp_path, "--checkpoint", folder]):
        line = error(capfd, *argv)
        assert "config.json" in line and named in line
    assert not (tmp_path / "x").exists()


STATES = {
    "no label spaces": lambda state: state.pop("label_spaces"),
    "other label spaces": lambda state: state.update(label_spaces=["made"]),
    "classes that are no names": lambda state: state.update(label_spaces={"made": [1, 2, 3, 4]}),
    "too many classes": lambda state: state.update(label_spaces={"made": 10**12}),
    "another number of classes": lambda state: state.update(label_spaces={"made": 5}),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_another_version_is_refused(name, folder, tmp_path, capfd):
    edit(folder / "checkpoints/latest/state.json", STATES[name])
    assert "checkpoints" in error(capfd, "predict", tmp_path, "--checkpoint", folder)


def test_a_head_without_names_is_tested_by_number(folder, tiny_runs, tmp_path, caplog):
    """A checkpoint of an older version holds the number of classes only."""
    edit(folder / "checkpoints/latest/state.json", lambda state: state.update(label_spaces={"made": 4}))
    data = ["--dataset", "made", "--data", tiny_runs / "data.toml", "--out", tmp_path / "out", "--device", "cpu"]
    assert ppma(["evaluate", "--checkpoint", str(folder), *map(str, data)]) == 0
    tested, own = (json.loads((where / "result.json").read_text()) for where in (tmp_path / "out", folder))
    assert tested["top1"] == own["top1"] and "numbers" in caplog.text


def test_a_lineage_of_a_newer_version_is_of_unknown_origin(folder):
    file = folder / "checkpoints/latest/lineage.json"
    edit(file, lambda content: content["lineage"].update(consent="given"))
    found = read_lineage(file.with_name(seal.MODEL))
    assert found.origin == "unknown" and "consent" in found.note


def test_a_seal_of_a_newer_version_names_the_field(folder, capfd):
    sealed = seal.verified(folder / seal.SEAL) | {"notary": "x"}
    (folder / seal.SEAL).write_text(json.dumps(seal.signed(sealed)))
    assert "notary" in error(capfd, "report", folder.parent, "--out", folder.parent / "report")


def test_a_result_of_an_older_version_names_what_it_lacks(folder, tmp_path, capfd):
    edit(folder / "result.json", lambda result: result.pop("ci95"))
    assert "ci95" in error(capfd, "export", folder, tmp_path / "x", "--no-onnx") and not (tmp_path / "x").exists()
