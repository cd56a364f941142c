"""A finished run is taken as it ended or not at all."""

import json

import made_runs
import numpy as np
import pytest
import tiny

from ppma.config.errors import InputError
from ppma.config.run import RunConfig
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.training import seal


@pytest.fixture
def run(tmp_path):
    right_V = np.arange(40) % 3 == 0
    return made_runs.tested(tmp_path / "probe", right_V, init=made_runs.trained(tmp_path / "mae"))


def test_an_untouched_run_is_read(run):
    found = seal.read(run)
    assert set(found.files) == {"config.json", "environment.json", "metrics.jsonl", "result.json", "scores.npz"}
    assert found.seconds == 12.5 and found.weights is None and found.init == seal.read(run.parent / "mae").weights


@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.jsonl", "result.json", "scores.npz"])
def test_one_byte_more_in_any_file_is_refused(run, name):
    with (run / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(InputError, match=f"probe/{name} was edited"):
        seal.read(run)


def test_a_file_taken_away_or_put_there_later_is_refused(run):
    (run / "quarantine.csv").write_text("path\n")
    with pytest.raises(InputError, match=r"quarantine\.csv was edited"):
        seal.read(run)
    (run / "quarantine.csv").unlink()
    (run / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"metrics\.jsonl was edited"):
        seal.read(run)


def test_an_edited_seal_is_refused_and_so_is_none(run):
    facts = json.loads((run / seal.SEAL).read_text())
    (run / seal.SEAL).write_text(json.dumps(facts | {"seconds": 1.0}))
    with pytest.raises(InputError, match=r"seal\.json was edited"):
        seal.read(run)
    for text in ("", "[]", "{}", json.dumps(seal.signed({"files": {}}))):
        (run / seal.SEAL).write_text(text)
        with pytest.raises(InputError, match=r"seal\.json"):
            seal.read(run)
    (run / seal.SEAL).unlink()
    with pytest.raises(InputError, match=r"has no seal\.json"):
        seal.read(run)


def test_other_weights_are_refused(run):
    mae = run.parent / "mae"
    seal.check_weights(mae, seal.read(mae))
    (mae / "checkpoints/latest" / seal.MODEL).write_bytes(b"other")
    with pytest.raises(InputError, match=r"model\.safetensors was edited"):
        seal.check_weights(mae, seal.read(mae))


def test_hashes_of_manifests_are_those_that_results_carry(tmp_path):
    manifest, data = tmp_path / "made.csv", tmp_path / "data.toml"
    Manifest.write(manifest, [tiny.source("made", clips=3).clip(i) for i in range(3)])
    catalog.add(data, name="made", split="train", manifest=manifest, root=tmp_path)
    config = RunConfig(recipe="mae_nohuman", phase="mae", sources=("made",), data=data)
    assert seal.manifest_hashes(config) == {"made.train": Manifest.read(manifest, root=tmp_path).sha256}
    manifest.unlink()
    with pytest.raises(InputError, match=r"\[made\.train\]: no manifest"):
        seal.manifest_hashes(config)
