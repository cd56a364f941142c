"""A lineage belongs to exactly the files it was written for, and remembers every source that a run ever had."""

import json
import tracemalloc
from dataclasses import asdict, replace

import pytest
import tiny

from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.training import lineage
from ppma.training.lineage import Lineage


@pytest.fixture
def weights(tmp_path):
    """A folder of two files with a lineage of one parent."""
    parent = Lineage(origin="trained", recipe="first", sources=(lineage.seen(tiny.source("made")),))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "training.pt").write_bytes(b"moments")
    lineage.write(tmp_path, Lineage(origin="trained", recipe="second", parents=(parent,)))
    return tmp_path / "model.safetensors"


def test_it_comes_back_as_it_was_written(weights):
    found = lineage.read(weights)
    assert [one.recipe for one in lineage.history(found)] == ["second", "first"]
    (made,) = found.parents[0].sources
    assert (made.clips, made.domains, made.licences) == (32, {"synthetic": 32}, {"": 32})
    assert Lineage.load(json.loads(json.dumps(asdict(found)))) == found


def test_it_moves_with_its_folder_and_is_found_through_a_link(weights, tmp_path):
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside/link.safetensors").symlink_to(weights)
    assert lineage.read(tmp_path / "aside/link.safetensors").recipe == "second"


@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        ("model.safetensors", lambda text: "other", "is not the file that"),
        ("training.pt", lambda text: "other", "is not the file that"),
        ("lineage.json", lambda text: text.replace('"first"', '"third"'), "was changed after"),
        ("lineage.json", lambda text: text.replace('"trained"', '"learned"'), "cannot be read"),
        ("lineage.json", lambda text: text[:-20], "cannot be read"),
        ("lineage.json", lambda text: "[]", "cannot be read"),
        ("lineage.json", lambda text: text.replace("model.safetensors", "model.pt"), "was changed after"),
    ],
)
def test_what_does_not_fit_is_unknown_and_says_why(weights, file, change, why):
    path = weights.with_name(file)
    path.write_text(change(path.read_text()))
    found = lineage.read(weights)
    assert found.origin == "unknown" and why in found.note and not found.sources


def test_a_file_that_it_does_not_name_is_unknown(weights):
    other = weights.with_name("other.safetensors")
    other.write_bytes(b"weights")
    assert "other.safetensors" in lineage.read(other).note


def test_a_resumed_run_comes_from_what_it_was(weights):
    """The same sources: the same lineage, however often; others: what was before becomes a parent, and stays one."""
    one, other = (lineage.seen(tiny.source(name)) for name in ("one", "other"))
    folder = weights.parent

    def again(source):
        found = lineage.of_run("r", "off", [source], resumed=weights if lineage.read(weights).recipe == "r" else None)
        lineage.write(folder, found)
        return found

    first = again(one)
    assert again(one) == first and not first.parents
    second = again(other)
    assert [parent.sources for parent in second.parents] == [(one,)]
    assert again(other) == second
    assert [x.sources[0].name for x in lineage.history(again(one))] == ["one", "other", "one"]


def test_the_description_names_sources_hashes_and_unknown_origins(weights):
    source = replace(lineage.seen(tiny.source("made")), audit_sha256="a" * 64)
    found = Lineage(
        origin="trained", recipe="r", privacy="strict", sources=(source,), parents=(lineage.unknown("it came by post"),)
    )
    text = lineage.describe(found)
    assert "32 clips of made train" in text and "audit `aaaaaaaaaaaaaaaa`" in text and "license not given (32)" in text
    assert "Unknown**: it came by post" in text and "checked by" in text
    assert "not checked" in lineage.describe(replace(found, privacy="off"))


def test_counting_the_values_of_a_column_makes_no_object_for_a_row():
    """Lists of the texts of ten million rows would take 790 MB and 37 s on every rank."""
    facts = {
        "fps": 30.0,
        "width": 340,
        "height": 256,
        "codec": "h264",
        "key_frame_spacing": 12,
        "duration_seconds": 1.0,
    }
    rows = [Clip(path=f"{i}.mp4", frames=30, domain=("real", "synthetic")[i % 3 // 2], **facts) for i in range(6000)]
    source = Manifest.from_clips(rows, root="/data", name="made")
    lineage.seen(source)
    tracemalloc.start()
    try:
        found = lineage.seen(source)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found.domains, found.audits) == ({"real": 4000, "synthetic": 2000}, {"": 6000}) and peak < 50_000, peak
