"""Folder trees and list files: awkward names, missing suffixes, and a reason for each row that is refused."""

import unicodedata
from pathlib import Path

import pytest

from ppma.config.errors import InputError
from ppma.loaders.sources.formats import detect, list_frames, read_classes, read_source

AWKWARD = ["tai chi", "opening bottle (not wine)", "a, b; c [d]", "größer als", '100% "cotton" #1']


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def write(file: Path, text: str) -> Path:
    file.write_bytes(text.encode())
    return file


def test_frames_in_natural_order(tmp_path):
    names = [f"img_{i}.jpg" for i in (1, 2, 9, 10, 100)]
    touch(tmp_path, *names, "notes.txt", ".hidden.jpg")
    assert [path.name for path in list_frames(tmp_path)] == names
    touch(tmp_path, "img_3.png")
    with pytest.raises(InputError, match="both JPEG and PNG"):
        list_frames(tmp_path)
    with pytest.raises(InputError, match="holds no frames"):
        list_frames(touch(tmp_path / "other", "a.txt"))


def test_tree(tmp_path):
    for name in AWKWARD:
        touch(tmp_path, f"{name}/b.MP4", f"{name}/a, (1).webm", f"{name}/frames [1]/000001.jpg", f"{name}/.hidden.mp4")
    rows = read_source(tmp_path, root=tmp_path)
    assert [row.path for row in rows if row.label == 0] == [
        f"{sorted(AWKWARD)[0]}/{name}" for name in ("a, (1).webm", "b.MP4", "frames [1]")
    ]
    assert {row.label: row.class_name for row in rows} == dict(enumerate(sorted(AWKWARD)))
    assert len(rows) == 15 and not any(row.reason for row in rows)


def test_tree_below_the_root(tmp_path):
    touch(tmp_path, "val/walk/a.mp4")
    [row] = read_source(tmp_path / "val", root=tmp_path)
    assert (row.path, row.label, row.class_name) == ("val/walk/a.mp4", 0, "walk")
    with pytest.raises(InputError, match="leaves the root"):
        read_source(tmp_path / "val", root=tmp_path / "val" / "walk")


def test_refused_files_of_a_tree_have_reasons(tmp_path):
    touch(tmp_path / "tree", "a/notes.txt", "a/000001.jpg", "a/good.mp4", "b/clip.mp4", "loose.mp4", "README.md")
    touch(tmp_path, "elsewhere/clip.mp4")
    (tmp_path / "tree/a/link.mp4").symlink_to(tmp_path / "elsewhere/clip.mp4")
    (tmp_path / "tree/a/broken.mp4").symlink_to(tmp_path / "tree/none.mp4")
    (tmp_path / "tree/a/alias.mp4").symlink_to(tmp_path / "tree/a/good.mp4")
    touch(tmp_path / "tree", "a/two\nlines.mp4")
    rows = read_source(tmp_path / "tree", root=tmp_path / "tree", classes=["x", "a"])
    reasons = {row.path: row.reason for row in rows}
    for path, reason in {
        "loose.mp4": "outside of any class folder",
        "a/notes.txt": "suffix '.txt'",
        "a/000001.jpg": "is a picture",
        "a/link.mp4": "leads out of the root",
        "a/broken.mp4": "is a link to nothing",
        "a/two\nlines.mp4": "has a line break",
        "b/clip.mp4": "the class 'b' is not in the file given as --classes",
    }.items():
        assert reason in reasons.pop(path)
    assert reasons == {"a/good.mp4": "", "a/alias.mp4": ""}, "a link within the root is fine"
    assert {row.label for row in rows if row.class_name == "a"} == {1}, "labels are those of --classes"


def test_a_class_folder_that_is_a_link_out_of_the_root(tmp_path):
    touch(tmp_path, "elsewhere/clip.mp4")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").symlink_to(tmp_path / "elsewhere")
    [row] = read_source(tmp_path / "tree", root=tmp_path / "tree")
    assert "leads out of the root" in row.reason


@pytest.mark.parametrize("end", ["\n", "", "\r\n", "\n\n"])
@pytest.mark.parametrize("separator", [";", " "])
def test_list_with_awkward_names(tmp_path, separator, end):
    paths = [f"{name}/clip {i}.mp4" for name in AWKWARD for i in (1, 2)]
    touch(tmp_path / "videos", *paths)
    lines = [f"{path}{separator}{i // 2}" for i, path in enumerate(paths)]
    source = write(tmp_path / "list.txt", ("\r\n" if end == "\r\n" else "\n").join(lines) + end)
    assert detect(source) == {";": "semicolon", " ": "space"}[separator]
    rows = read_source(source, root=tmp_path / "videos")
    assert [(row.path, row.label, row.class_name, row.line, row.reason) for row in rows] == [
        (path, i // 2, AWKWARD[i // 2], i + 1, "") for i, path in enumerate(paths)
    ]


def test_list_paths_without_suffix(tmp_path):
    root = touch(tmp_path / "videos", "a/one.mp4", "a/v.1.avi", "a/frames/000001.jpg", "a/two.mp4", "a/two.webm")
    touch(root, "a/both/000001.jpg", "a/both.mp4", "a/exact.mp4.mp4", "a/exact.mp4", "a/one.txt")
    names = ["one", "v.1", "frames", "exact.mp4", "./one.mp4", "two", "both", "none", f"{root}/a/frames/"]
    source = write(tmp_path / "list.txt", "\n".join(f"a/{name};0".replace(f"a/{root}", str(root)) for name in names))
    rows = read_source(source, root=root)
    assert [row.path for row in rows[:5]] == ["a/one.mp4", "a/v.1.avi", "a/frames", "a/exact.mp4", "a/one.mp4"]
    assert not any(row.reason for row in rows[:4])
    assert rows[4].reason == "is listed before, in line 1 with label 0"
    assert rows[5].reason == "may be any of two.mp4, two.webm; write it with its suffix"
    assert rows[6].reason == "may be any of both, both.mp4; write it with its suffix"
    assert rows[7].reason.startswith("there is no such file")
    assert rows[8].path == "a/frames" and "listed before" in rows[8].reason


@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_either_unicode_form(tmp_path, written):
    on_disk = "NFD" if written == "NFC" else "NFC"
    touch(tmp_path / "videos", unicodedata.normalize(on_disk, "größer/Café.mp4"))
    source = write(tmp_path / "list.txt", unicodedata.normalize(written, "größer/Café 3\n"))
    [row] = read_source(source, root=tmp_path / "videos")
    assert not row.reason and (tmp_path / "videos" / row.path).is_file() and row.label == 3


def test_class_names_of_lists(tmp_path):
    root = touch(tmp_path / "videos", "a/1.mp4", "b/1.mp4", "b/2.mp4")
    source = write(tmp_path / "list.txt", "a/1;0\nb/1;1\nb/2;0\n")
    assert {row.class_name for row in read_source(source, root=root)} == {""}, "folders are not the classes here"
    rows = read_source(source, root=root, classes=["run"])
    assert [row.class_name for row in rows] == ["run", "", "run"]
    assert "label 1 is not among the 1 classes" in rows[1].reason
    source = write(tmp_path / "list.txt", "a/1;7\nb/1;\n")
    assert [(row.label, row.class_name) for row in read_source(source, root=root)] == [(7, "a"), (None, "")]


def test_missing_folders_are_row_reasons(tmp_path):
    touch(tmp_path, "a/1.mp4")
    source = write(tmp_path / "list.txt", "a/1;0\nc/d/1;1\n")
    assert read_source(source, root=tmp_path)[1].reason == "there is no folder 'c' below the root"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a/1.mp4;walk\n", r"line 1: label 'walk' is not an integer"),
        ("a/1.mp4;0\na/1.mp4;-1\n", r"line 2: label '-1' is not an integer"),
        ("a/1.mp4 0\na/1.mp4 0.5\n", r"line 2: label '0\.5' is not an integer.*`path label`"),
        ("a/1.mp4;0\na/1.mp4\n", r"line 2: 'a/1\.mp4' has no label; a line is `path;label`"),
        ("a/1.mp4;0\n../1.mp4;0\n", r"line 2: \.\./1\.mp4 leaves the root"),
        ("a/1.mp4;0\n/etc/passwd;0\n", r"line 2: .* leaves the root"),
        ("\n\n", "names no clip"),
        ("caf\xe9;0", None),
    ],
)
def test_wrong_lists(tmp_path, text, says):
    source = tmp_path / "list.txt"
    source.write_bytes(text.encode() if says else text.encode("latin-1"))
    with pytest.raises(InputError, match=says or "is not UTF-8"):
        read_source(source, root=touch(tmp_path / "root" / "below", "a/1.mp4"))


def test_wrong_sources(tmp_path):
    source = write(tmp_path / "list.txt", "a/1.mp4;0")
    with pytest.raises(InputError, match=r"--root .* is not a folder"):
        read_source(source, root=tmp_path / "none")
    with pytest.raises(InputError, match="is a file; --format tree does not read that"):
        read_source(source, root=tmp_path, format="tree")
    with pytest.raises(InputError, match="is a folder; --format space"):
        read_source(tmp_path, root=tmp_path, format="space")
    with pytest.raises(InputError, match="holds no class folder"):
        read_source(tmp_path, root=tmp_path)
    with pytest.raises(InputError, match="names no clip"):
        (tmp_path / "a").mkdir()
        read_source(tmp_path, root=tmp_path)


def test_class_files(tmp_path):
    assert read_classes(write(tmp_path / "c.txt", "\ufefftai chi\r\nwalk, run\n")) == ["tai chi", "walk, run"]
    with pytest.raises(InputError, match="names 'a' twice"):
        read_classes(write(tmp_path / "c.txt", "a\nb\na\n"))
    with pytest.raises(InputError, match="is empty"):
        read_classes(write(tmp_path / "c.txt", "\n"))
