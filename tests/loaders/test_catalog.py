"""data.toml: entries come back with absolute paths, additions keep the rest of the file."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ppma.config.errors import InputError
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Clip, Manifest

PROBED = {"frames": 1, "fps": 25.0, "width": 8, "height": 8, "codec": "h264"}
CLIP = Clip(path="a.mp4", key_frame_spacing=1, duration_seconds=1.0, **PROBED)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPMA_DATA", raising=False)


def test_what_is_added_is_found(tmp_path):
    Manifest.write(tmp_path / "m.csv", [CLIP])
    root = Path('/somewhere/else "quoted" \\ é')
    catalog.add(tmp_path / "data.toml", name="ucf101", split="train", manifest=tmp_path / "m.csv", root=root)
    entry = catalog.find().entry("ucf101")
    assert (entry.manifest, entry.root, entry.store) == (tmp_path / "m.csv", root, None)
    manifest = catalog.find().manifest("ucf101")
    assert manifest.clip(0) == CLIP and manifest.name == "ucf101" and manifest.root == root
    assert 'manifest = "m.csv"' in (tmp_path / "data.toml").read_text(), "relative, so that the folder can be moved"


def test_order_of_places(tmp_path, monkeypatch):
    for name in ("given", "environment", "data"):
        catalog.add(tmp_path / f"{name}.toml", name=name, split="train", manifest=tmp_path / "m", root=tmp_path)
    assert catalog.find().entry("data")
    monkeypatch.setenv("PPMA_DATA", str(tmp_path / "environment.toml"))
    assert catalog.find().entry("environment")
    assert catalog.find(tmp_path / "given.toml").entry("given")


def test_a_missing_entry_gives_the_command_that_makes_it(tmp_path):
    with pytest.raises(InputError, match=r"has no source synapt\.val .*--name synapt --split val"):
        catalog.find().entry("synapt", "val")
    with pytest.raises(InputError, match=r"no such file"):
        catalog.find(tmp_path / "none.toml")


def test_an_addition_keeps_the_rest(tmp_path):
    file = tmp_path / "data.toml"
    file.write_text(
        "# mine\n[a.train]  # first\nmanifest = 'a.csv'\nroot = '/a'\nstore = 'a.store'\n\n# about b\n"
        "[ 'b' . \"val\" ]\nmanifest = 'b.csv'\nroot = '/b'"
    )
    catalog.add(file, name="a", split="train", manifest=tmp_path / "new.csv", root=Path("/new"))
    catalog.add(file, name="a", split="val", manifest=tmp_path / "v.csv", root=Path("/a"), store=tmp_path / "v.store")
    catalog.add(file, name="b", split="val", manifest=tmp_path / "b2.csv", root=Path("/b"))
    entries = catalog.find().entries
    assert set(entries) == {("a", "train"), ("a", "val"), ("b", "val")}
    assert entries["a", "train"].root == Path("/new") and entries["a", "train"].store is None
    assert entries["a", "val"].store == tmp_path / "v.store"
    assert entries["b", "val"].manifest == tmp_path / "b2.csv"
    assert file.read_text().startswith("# mine\n[a.train]  # first\n") and "\n# about b\n" in file.read_text()


def test_inline_tables_are_edited_too(tmp_path):
    file = tmp_path / "data.toml"
    file.write_text("a = {train = {manifest = 'a.csv', root = '/a'}}  # mine\n")
    for split in ("train", "val"):
        catalog.add(file, name="a", split=split, manifest=tmp_path / "new.csv", root=Path("/new"))
    assert {entry.root for entry in catalog.find().entries.values()} == {Path("/new")}
    assert len(catalog.find().entries) == 2 and "# mine" in file.read_text()


def test_a_file_that_cannot_be_written_or_read_is_named(tmp_path):
    (tmp_path / "data.toml").write_text("[a\n")
    for path, kind in ((tmp_path / "data.toml", InputError), (tmp_path / "data.toml" / "below.toml", OSError)):
        with pytest.raises(kind, match=r"data\.toml"):
            catalog.add(path, name="a", split="train", manifest=tmp_path, root=tmp_path)
    assert (tmp_path / "data.toml").read_text() == "[a\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a.train]\nroot = '/a'\n", "manifest is missing"),
        ("[a.train]\nmanifest = 'a.csv'\nroot = 3\n", "root = 3; the keys are"),
        ("[a.train]\nmanifest = 'a.csv'\nroot = '/a'\npacked = 'x'\n", "packed = 'x'; the keys are"),
        ("[a]\nmanifest = 'a.csv'\n", r"\[a\] must be split into tables"),
        ("[a\n", "TOML"),
    ],
)
def test_wrong_entries(tmp_path, text, says):
    (tmp_path / "data.toml").write_text(text)
    with pytest.raises(InputError, match=says):
        catalog.find()


def test_names_that_toml_would_split(tmp_path):
    with pytest.raises(InputError, match=r"--name is 'a\.b'"):
        catalog.add(tmp_path / "data.toml", name="a.b", split="train", manifest=tmp_path, root=tmp_path)


def test_two_writers_lose_nothing(tmp_path):
    def add(i):
        catalog.add(tmp_path / "data.toml", name=f"s{i}", split="train", manifest=tmp_path / "m", root=tmp_path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    assert len(catalog.find().entries) == 24
