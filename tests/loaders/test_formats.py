"""Folder trees and list files: awkward names, missing suffixes, and a reason for each row that is refused."""

import unicodedata
from pathlib import Path

import pytest

from ppma.config.errors import InputError
from ppma.loaders.sources.formats import detect, read_classes, read_source, splits_below

AWKWARD = ["tai chi", "opening bottle (not wine)", "a, b; c [d]", "größer als", '100% "cotton" #1']


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def write(file: Path, text: str) -> Path:
    file.write_bytes(text.encode())
    return file


def test_tree(tmp_path):
    for name in AWKWARD:
        touch(tmp_path, f"{name}/b.MP4", f"{name}/a, (1).webm", f"{name}/frames [1]/000001.jpg", f"{name}/.DS_Store")
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
    touch(
        tmp_path / "tree/a",
        "two\nlines.mp4",
        "._good.mp4",
        *["more/clip.mp4", "clip*/1.jpg", "shard-00000.beton#3/1.jpg"],
    )
    rows = read_source(tmp_path / "tree", root=tmp_path / "tree", classes=["x", "a"])
    reasons = {row.path: row.reason for row in rows}
    for path, reason in {
        "loose.mp4": "outside of any class folder",
        "a/notes.txt": "suffix '.txt'",
        "a/000001.jpg": "is a picture",
        "a/link.mp4": "leads out of the root",
        "a/broken.mp4": "is a link to nothing",
        "a/two\nlines.mp4": "has a line break",
        "a/._good.mp4": "starts with a dot",
        "a/more": "is a folder of videos",
        "a/clip*": "a series of frames",
        "a/shard-00000.beton#3": "a packed clip",
        "b/clip.mp4": "the class 'b' is not in the file given as --classes",
    }.items():
        assert reason in reasons.pop(path)
    assert reasons == {"a/good.mp4": "", "a/alias.mp4": ""}, "a link within the root is fine"
    assert {row.label for row in rows if row.class_name == "a"} == {1}, "labels are those of --classes"


@pytest.mark.parametrize(
    "name",
    [
        "3.15.10\u202fPM",
        "nbsp\u00a0x",
        "\u00a0",
        "\U0001f468\u200d\U0001f469",
        "\u0645\u06cc\u200c\u062e",
        "\uf022",
        "12:30",
    ],
)
def test_a_name_may_hold_what_macos_and_people_write(tmp_path, name):
    touch(tmp_path / "videos", f"{name}/{name}.mp4")
    [row] = read_source(tmp_path / "videos", root=tmp_path / "videos")
    assert (row.path, row.class_name, row.reason) == (f"{name}/{name}.mp4", name, "")
    for separator in ";, ":
        [row] = read_source(write(tmp_path / "list.txt", f"{name}/{name}{separator}3\n"), root=tmp_path / "videos")
        assert (row.path, row.label, row.reason) == (f"{name}/{name}.mp4", 3, "")


@pytest.mark.parametrize("name", ["a\x07", "a\x1b[2J", "a\r", "a\u2028b", "a\x85b", "a\udcff"])
def test_a_name_may_not_hold_control_characters_or_bytes_that_are_no_text(tmp_path, name):
    touch(tmp_path, f"a/{name}.mp4", "a/good.mp4")
    rows = read_source(tmp_path, root=tmp_path)
    assert {row.path: bool(row.reason) for row in rows} == {f"a/{name}.mp4": True, "a/good.mp4": False}


def test_links_are_followed_on_demand(tmp_path):
    """As in a folder of linked classes, and in a snapshot of Hugging Face, whose files are links to blobs without a suffix."""
    touch(tmp_path, "elsewhere/class/1.mp4", "blobs/0a1b")
    (tmp_path / "tree/b").mkdir(parents=True)
    (tmp_path / "tree/a").symlink_to(tmp_path / "elsewhere/class")
    (tmp_path / "tree/b/2.mp4").symlink_to("../../blobs/0a1b")
    (tmp_path / "tree/b/3.mp4").symlink_to("../../blobs/none")
    (tmp_path / "tree/b/loop").symlink_to(tmp_path / "tree")
    refused = {row.path: row.reason for row in read_source(tmp_path / "tree", root=tmp_path / "tree")}
    assert all("--follow-links" in refused[path] for path in ("a/1.mp4", "b/2.mp4"))
    rows = {row.path: row.reason for row in read_source(tmp_path / "tree", root=tmp_path / "tree", follow_links=True)}
    assert rows == refused | {"a/1.mp4": "", "b/2.mp4": ""} and "link to nothing" in rows["b/3.mp4"]
    source = write(tmp_path / "list.txt", "a/1;0\nb/2.mp4;1\n")
    assert not any(row.reason for row in read_source(source, root=tmp_path / "tree", follow_links=True))


def test_a_tree_of_splits(tmp_path):
    files = "train/a/1.mp4 train/b/2.mp4 val/b/000/1.jpg val/c/3.mp4 notes/readme.txt x.csv"
    touch(tmp_path / "data", *files.split())
    assert splits_below(tmp_path / "data") == {"train": ["a", "b"], "val": ["b", "c"]}
    assert splits_below(tmp_path / "data/train") == {}
    touch(tmp_path / "vehicles", "train/1.mp4", "train/frames/1.jpg", "test/2.mp4")
    assert splits_below(tmp_path / "vehicles") == {}, "these are classes"
    touch(tmp_path / "data", "more/4.mp4")
    assert splits_below(tmp_path / "data") == {}, "a class besides"


@pytest.mark.parametrize("separator", [" ", "\t", ";", ",", ", "])
def test_a_list_of_paths_frames_and_labels(tmp_path, separator):
    """`clip 1` and `clip 2` are folders of frames; what is on disk decides where the path ends."""
    touch(tmp_path, "a/clip/1.jpg", "a/clip 2/1.jpg", "a/v.mp4", "a/12:30 clip.mp4", "a/x.beton#3.mp4")
    lines = ["a/clip", "a/clip 2", "a/v", "a/12:30 clip.mp4", "a/x.beton#3.mp4"]
    source = write(
        tmp_path / "list.txt", "".join(f"{path}{separator}{120 + i}{separator}{i}\n" for i, path in enumerate(lines))
    )
    rows = read_source(source, root=tmp_path)
    assert [(row.path, row.frames, row.label, row.reason) for row in rows] == [
        ("a/clip", 120, 0, ""), ("a/clip 2", 121, 1, ""), ("a/v.mp4", 122, 2, ""),
        ("a/12:30 clip.mp4", 123, 3, ""), ("a/x.beton#3.mp4", 124, 4, ""),
    ]  # fmt: skip
    source = write(tmp_path / "list.txt", f"a/clip 2{separator}0\na/none 7{separator}0\n")
    found, absent = read_source(source, root=tmp_path)
    assert (found.path, found.frames, absent.path) == ("a/clip 2", None, "a/none 7") and absent.reason


def test_a_spreadsheet_with_a_header(tmp_path):
    touch(tmp_path, "a/1.mp4", "a/one, two.mp4", 'a/"quoted", three.mp4')
    text = 'path,label\r\na/1.mp4,4\r\n"a/one, two.mp4",5\r\n"a/""quoted"", three.mp4",6\r\na/one, two.mp4,5\r\n'
    source = write(tmp_path / "list.csv", text)
    assert detect(source) == "comma"
    header, *rows = read_source(source, root=tmp_path)
    assert header.line == 1 and "header" in header.reason
    found = [("a/1.mp4", 4, ""), ("a/one, two.mp4", 5, ""), ('a/"quoted", three.mp4', 6, "")]
    assert [(row.path, row.label, row.reason) for row in rows[:3]] == found
    assert "listed before" in rows[3].reason


def test_a_video_that_was_encoded_again(tmp_path):
    touch(tmp_path, "a/1.mp4", "a/2.mkv", "a/2.avi", "a/3.mp4", "a/3.webm")
    source = write(tmp_path / "list.txt", "a/1.avi;0\na/2.avi;0\na/3.avi;0\n")
    again, same, unclear = read_source(source, root=tmp_path)
    assert (again.path, again.reason) == ("a/1.mp4", "") and "another suffix" in again.remark
    assert (same.path, same.reason, same.remark) == ("a/2.avi", "", "")
    assert "may be any of 3.mp4, 3.webm" in unclear.reason


@pytest.mark.parametrize("end", ["\n", "", "\r\n", "\n\n"])
@pytest.mark.parametrize("separator", [";", ",", " "])
def test_list_with_awkward_names(tmp_path, separator, end):
    paths = [f"{name}/clip {i}.mp4" for name in AWKWARD for i in (1, 2)]
    touch(tmp_path / "videos", *paths)
    lines = [f"{path}{separator}{i // 2}" for i, path in enumerate(paths)]
    source = write(tmp_path / "list.txt", ("\r\n" if end == "\r\n" else "\n").join(lines) + end)
    assert detect(source) == {";": "semicolon", ",": "comma", " ": "space"}[separator]
    rows = read_source(source, root=tmp_path / "videos")
    assert [(row.path, row.label, row.class_name, row.line, row.reason) for row in rows] == [
        (path, i // 2, AWKWARD[i // 2], i + 1, "") for i, path in enumerate(paths)
    ]


def test_list_paths_without_suffix(tmp_path):
    root = touch(tmp_path / "videos", "a/one.mp4", "a/v.1.avi", "a/frames/000001.jpg", "a/two.mp4", "a/two.webm")
    touch(root, "a/both/000001.jpg", "a/both.mp4", "a/exact.mp4.mp4", "a/exact.mp4", "a/one.txt")
    names = ["one", "v.1", "frames", "exact.mp4", "./one.mp4", "two", "both", "none", f"{root}/a/frames/", "c/d/1"]
    source = write(tmp_path / "list.txt", "\n".join(f"a/{name};0".replace(f"a/{root}", str(root)) for name in names))
    rows = read_source(source, root=root)
    assert [row.path for row in rows[:5]] == ["a/one.mp4", "a/v.1.avi", "a/frames", "a/exact.mp4", "a/one.mp4"]
    assert not any(row.reason for row in rows[:4])
    assert rows[4].reason == "is listed before, in line 1 with label 0"
    assert rows[5].reason == "may be any of two.mp4, two.webm; write it with its suffix"
    assert rows[6].reason == "may be any of both, both.mp4; write it with its suffix"
    assert rows[7].reason.startswith("there is no such file")
    assert rows[8].path == "a/frames" and "listed before" in rows[8].reason
    assert rows[9].reason == "there is no folder 'a/c' below the root"


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


def test_mixed_up_labels_are_named(tmp_path):
    """Where folders are classes but for a few lines; labels that have nothing to do with folders are taken as they are."""
    clips = [f"{name}/{i}.mp4" for name in ("walk", "wave") for i in range(10)]
    touch(tmp_path, *clips)
    lines = [f"{path};{path.startswith('wave'):d}" for path in clips]
    for swapped, named in (([], True), ([3], None), (range(0, 20, 3), False)):
        mixed = [line[:-1] + str(1 - int(line[-1])) if i in swapped else line for i, line in enumerate(lines)]
        listed = write(tmp_path / "list.txt", "\n".join(mixed))
        if named is None:
            with pytest.raises(InputError, match=r"line 4: walk/3\.mp4 has label 1.*--classes"):
                read_source(listed, root=tmp_path)
            assert len(read_source(listed, root=tmp_path, classes=["walk", "wave"])) == 20
        else:
            assert {bool(row.class_name) for row in read_source(listed, root=tmp_path)} == {named}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a/1.mp4;walk\n", r"line 1: label 'walk' is not an integer"),
        ("a/1.mp4;0\na/1.mp4;-1\n", r"line 2: label '-1' is not an integer"),
        ("a/1.mp4 0\na/1.mp4 0.5\n", r"line 2: label '0\.5' is not an integer.*`path label`"),
        ("a/1.mp4;0\na/1.mp4\n", r"line 2: 'a/1\.mp4' has no label; a line is `path;label`"),
        ("a/1.mp4;0\n../1.mp4;0\n", r"line 2: \.\./1\.mp4 leaves the root"),
        ("a/1.mp4;0\n/etc/passwd;0\n", r"line 2: .* leaves the root"),
        ("a/1.mp4,0\na/2.mp4,walk\n", r"line 2: label 'walk' is not an integer.*--classes"),
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
