"""Following the remedy that `ppma index` names helps: what was refused is in the manifest afterwards."""

import csv
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from dataset_trees import TREES

from ppma.cli import main as ppma
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import HEADER, Manifest

Case = Callable[[Path], Iterator[str]]
"""Yields flags of `ppma index` that are refused, or name a file that is; between two of them it follows the remedy in MESSAGE."""
MESSAGE = Path("message.txt")
TREE, LIST = "tree --out m.csv", "list.txt --root tree --out m.csv"


pytestmark = pytest.mark.usefixtures("probe_here")


def put(clip: Path, *paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        os.link(clip, path)


def move(source: str, target: str) -> None:
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(source).rename(target)


def pictures(folder: str, *names: str, size: tuple[int, int] = (48, 64)) -> None:
    for name in names:
        (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(Path(folder) / name), np.full((*size, 3), 90, np.uint8))


def named(pattern: str) -> str:
    """Return what the message names."""
    found = re.search(pattern, MESSAGE.read_text())
    assert found is not None, MESSAGE.read_text()
    return found[1]


def encode(path: str, codec: str, pixels: str) -> None:
    """Write a video of odd size, as people's GIFs are."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 63, 47, pixels
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((47, 63, 3), 40 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=pixels)))
        container.mux(stream.encode(None))


def convert(path: str, codec: str, pixels: str) -> Case:
    """A file that is no video by its suffix: run the command that the message names."""

    def case(clip: Path) -> Iterator[str]:
        if shutil.which("ffmpeg") is None:
            pytest.skip("needs ffmpeg")
        encode(path, codec, pixels)
        yield TREE
        words = {"IN": path, "OUT.mp4": f"{path}.mp4", "ffmpeg": "ffmpeg"}
        command = shlex.split(named(r"convert it: (ffmpeg .*OUT\.mp4)"))
        subprocess.run([words.get(word, word) for word in command], check=True, capture_output=True)
        Path(path).unlink()
        yield TREE

    return case


def rename(path: str, other: str = "tree/a/renamed.mp4") -> Case:
    def case(clip: Path) -> Iterator[str]:
        put(clip, path) if path.endswith(".mp4") else pictures(path, "1.jpg", "2.jpg")
        yield TREE
        assert "rename" in MESSAGE.read_text()
        move(path, other if path.endswith(".mp4") else "tree/a/renamed")
        yield TREE

    return case


def moved(path: str, other: str) -> Case:
    def case(clip: Path) -> Iterator[str]:
        put(clip, path, "tree/a/0.mp4") if path.endswith(".mp4") else pictures(".", path)
        yield TREE
        move(path, other)
        if not any(Path(path).parent.iterdir()):
            Path(path).parent.rmdir()
        yield TREE

    return case


def flags(*makes: str, before: str, after: str) -> Case:
    """Wrong flags, and those that the message names."""

    def case(clip: Path) -> Iterator[str]:
        put(clip, *(makes or ["tree/a/1.mp4"]))
        Path("list.txt").write_text("a/1.mp4;0\n")
        Path("taken.csv").write_text("mine\n")
        yield before
        yield after

    return case


def listed(text: str, better: str, *, before: str = LIST, after: str = "") -> Case:
    """A list with a wrong line, and the same corrected."""

    def case(clip: Path) -> Iterator[str]:
        put(clip, "tree/a/1.mp4", "tree/a/2.mp4", "tree/b/2.mp4")
        os.link(clip, "tree/a/2.mkv")
        Path("classes.txt").write_text("walk\nrun\n")
        Path("list.txt").write_text(text)
        yield before
        Path("list.txt").write_text(better)
        yield after or before

    return case


def links(remedy: str) -> Case:
    def case(clip: Path) -> Iterator[str]:
        put(clip, "elsewhere/1.mp4")
        Path("tree").mkdir()
        Path("tree/a").symlink_to(Path("elsewhere").absolute())
        yield TREE
        assert remedy.split()[0] in MESSAGE.read_text()
        yield f"{TREE} {remedy}"

    return case


def series(clip: Path) -> Iterator[str]:
    pictures("tree/a/0", "img_1.jpg", "img_2.jpg", "mask_1.jpg", "mask_2.jpg")
    yield TREE
    prefix = named(r"prefix '(\w+)'")
    yield f"{TREE} --frames-prefix other_"
    assert named(rf"prefix '({prefix})'") == prefix
    yield f"{TREE} --frames-prefix {prefix}"


def delete(picture: str, *others: str) -> Case:
    def case(clip: Path) -> Iterator[str]:
        pictures("tree/a/0", picture, *others)
        yield TREE
        assert "keep one" in MESSAGE.read_text()
        Path("tree/a/0", picture).unlink()
        yield TREE

    return case


def number_frames(clip: Path) -> Iterator[str]:
    pictures("tree/a/0", "first.jpg", "second.jpg")
    yield TREE
    for name, number in zip(("first.jpg", "second.jpg"), re.findall(r"\d{6}\.jpg", MESSAGE.read_text())):
        Path("tree/a/0", name).rename(Path("tree/a/0", number))
    yield TREE


def classes(*texts: str) -> Case:
    def case(clip: Path) -> Iterator[str]:
        put(clip, "tree/a/1.mp4", "tree/b/1.mp4")
        for text in texts:
            Path("classes.txt").write_text(text)
            yield f"{TREE} --classes classes.txt"

    return case


def web_page(clip: Path) -> Iterator[str]:
    put(clip, "tree/a/0.mp4")
    Path("tree/a/1.mp4").write_text("<html>429 Too Many Requests")
    yield TREE
    assert "download it again" in MESSAGE.read_text()
    Path("tree/a/1.mp4").write_bytes(clip.read_bytes())
    yield TREE


def too_large(clip: Path) -> Iterator[str]:
    put(clip, "tree/a/1.mp4")
    pictures("tree/a/2", "1.jpg", size=(96, 128))
    yield f"{TREE} --max-pixels 3072"
    yield f"{TREE} {named(r'(--max-pixels)')} {128 * 96}"


def missing_clips(remedy: str) -> Case:
    def case(clip: Path) -> Iterator[str]:
        TREES["ucf101"](Path("root"), clip)
        gone = "root/UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.avi"
        Path(gone).unlink()
        yield "--dataset ucf101 --root root"
        assert remedy in MESSAGE.read_text()
        if remedy == "Unpack":
            put(clip, gone)
        yield f"--dataset ucf101 --root root {remedy if remedy != 'Unpack' else ''}"

    return case


def two_names(clip: Path) -> Iterator[str]:
    """Two manifests were joined."""
    put(clip, "tree/a/1.mp4", "other/b/1.mp4")
    Path("classes.txt").write_text("a\nb\n")
    for extra in ("", "--classes classes.txt"):
        for name in ("tree", "other"):
            assert ppma(shlex.split(f"index {name} --root . --out {name}.csv {extra}")) == 0
        rows = [line for name in ("tree", "other") for line in Path(f"{name}.csv").read_text().splitlines()[1:]]
        Path("joined.csv").write_text("\n".join([",".join(HEADER), *rows]) + "\n")
        if extra:
            assert named(r"(--classes) FILE") in extra
        yield "joined.csv --root . --out m.csv"


def row(clip: Path) -> Iterator[str]:
    """A window behind the file's end: the message names the line."""
    put(clip, "tree/a/1.mp4", "tree/a/2.mp4")
    assert ppma(["index", "tree", "--out", "first.csv"]) == 0
    lines = Path("first.csv").read_text().splitlines()
    lines[2] = re.sub(",tree,,,", ",tree,9,11,", lines[2])
    Path("late.csv").write_text("\n".join(lines) + "\n")
    yield "late.csv --root tree --out m.csv"
    del lines[int(named(r"line (\d+)")) - 1]
    Path("late.csv").write_text("\n".join(lines) + "\n")
    yield "late.csv --root tree --out m.csv"


def catalog_table(clip: Path) -> Iterator[str]:
    put(clip, "tree/a/1.mp4")
    for text in (
        'made = "m.csv"\n',
        '[made.train]\nmanifest = "m.csv"\n',
        '[made.train]\nmanifest = "m.csv"\nroot = "tree"\n',
    ):
        Path("data.toml").write_text(text)
        yield f"{TREE} --name made"


CASES: dict[str, Case] = {
    "GIF": convert("tree/a/x y.gif", "gif", "rgb8"),
    "raw YUV": convert("tree/a/x.y4m", "wrapped_avframe", "yuv420p"),
    "NUT": convert("tree/a/x.nut", "ffv1", "yuv420p"),
    "control character": rename("tree/a/a\x07.mp4"),
    "hidden": rename("tree/a/._1.mp4"),
    "called like a series": rename("tree/a/clip*"),
    "called like a packed clip": rename("tree/a/shard-00000.beton#3"),
    "outside of any class": moved("tree/1.mp4", "tree/a/1.mp4"),
    "class folder too few": moved("tree/a/1.jpg", "tree/a/clip/000001.jpg"),
    "class folder too many": moved("tree/a/b/1.mp4", "tree/a/1.mp4"),
    "link, followed": links("--follow-links"),
    "link, with a wider root": links("--root ."),
    "two series of pictures": series,
    "JPEG and PNG": delete("1.png", "1.jpg", "2.jpg"),
    "number twice": delete("01.jpg", "1.jpg", "2.jpg"),
    "pictures without numbers": number_frames,
    "class missing in --classes": classes("a\n", "a\nb\n"),
    "class twice in --classes": classes("a\nb\na\n", "a\nb\n"),
    "empty --classes": classes("\n", "a\nb\n"),
    "web page": web_page,
    "--max-pixels": too_large,
    "label that is a name": listed("a/1.mp4,walk\n", "a/1.mp4,0\n", after=f"{LIST} --classes classes.txt"),
    "label without an output": listed("a/1.mp4;9999999\nb/2;0\n", "a/1.mp4;1\nb/2;0\n"),
    "no label": listed("a/1.mp4\n", "a/1.mp4;0\n"),
    "no suffix": listed("a/2;0\n", "a/2.mkv;0\n"),
    "outside of the root": listed(
        "../a/1.mp4;0\n", "a/1.mp4;0\n", before="list.txt --root tree/b --out m.csv", after=LIST
    ),
    "--format": flags(before=f"{LIST} --format tree", after=f"{LIST} --format auto"),
    "--format of a tree": flags(before=f"{TREE} --format space", after=f"{TREE} --format tree"),
    "--root of a list": flags(before="list.txt --out m.csv", after=LIST),
    "--out exists": flags(before="list.txt --root tree --out taken.csv", after=LIST),
    "--split": flags(
        "tree/train/a/1.mp4", "tree/val/a/1.mp4", before=f"{TREE} --split test", after=f"{TREE} --split val"
    ),
    "--domain of a known set": flags(before="--dataset ucf101 --root tree --domain synthetic", after=TREE),
    "clips to skip": missing_clips("--missing skip"),
    "clips to unpack": missing_clips("Unpack"),
    "label with two names": two_names,
    "window behind the end": row,
    "wrong catalog": catalog_table,
}  # fmt: skip - a case a line


def refused() -> dict[str, str]:
    found = {}
    for file in Path().glob("*.rejected.csv"):
        with file.open(newline="") as lines:
            found |= {line["path"]: line["reason"] for line in csv.DictReader(lines)}
    return found


@pytest.mark.promise("R27")
@pytest.mark.parametrize("name", CASES)
def test_following_the_remedy_helps(name, tmp_path, write_clip, capsys):
    clip = write_clip(tmp_path / "made/clip.mp4", frames=8)
    code, answers = 0, []
    for argv in CASES[name](clip):
        for file in Path().glob("*.rejected.csv"):
            file.unlink()
        code = ppma(["index", *shlex.split(argv), "--workers", "1"])
        answers.append(bool(code or refused()))
        MESSAGE.write_text(capsys.readouterr().err + "".join(refused().values()))
    assert answers == [True] * (len(answers) - 1) + [name == "clips to skip"] and code == 0


@pytest.mark.promise("R27")
def test_the_commands_that_make_what_is_missing(tmp_path, write_clip):
    """Of a source that the catalog lacks, a catalog that $PPMA_DATA names, and a manifest."""
    put(write_clip(tmp_path / "made/clip.mp4", frames=8), "tree/a/1.mp4")

    def follow(error: BaseException, pattern: str) -> None:
        command = re.search(pattern, str(error))
        assert command is not None, str(error)
        words = {"SOURCE": "tree", "DIR": "tree", "NAME": "made", "...": "tree --out made.csv"}
        assert ppma(shlex.split(" ".join(words.get(word, word) for word in shlex.split(command[1])))) == 0

    with pytest.raises(ValueError, match="no source") as missing:
        catalog.find().entry("made", "val")
    follow(missing.value, r"make it: `ppma (.+?)`")
    assert catalog.find().manifest("made", "val").file(0).is_file()
    with pytest.raises(ValueError, match="no such file") as missing:
        catalog.find(tmp_path / "other.toml")
    follow(missing.value, r"`ppma (.+?)` makes")
    assert len(catalog.find(tmp_path / "other.toml").manifest("made")) == 1
    with pytest.raises(ValueError, match=r"none\.csv") as missing:
        Manifest.read("none.csv")
    follow(missing.value, r"`ppma (.+?)` makes")
    assert len(Manifest.read("none.csv")) == 1


@pytest.mark.promise("R27")
def test_packing_again_mends_a_store(tmp_path, write_clip, capsys):
    put(write_clip(tmp_path / "made/clip.mp4", frames=8), "tree/a/1.mp4", "tree/a/2.mp4")
    assert ppma(["index", "tree", "--out", "m.csv", "--name", "made"]) == 0
    pack = ["pack", "made", "--workers", "1", "--out"]
    assert ppma([*pack, "s.beton"]) == 0

    def broken() -> str:
        with pytest.raises(ValueError, match=r"s\.beton") as error:
            catalog.find().manifest("made")
        return str(error.value)

    (tmp_path / "s.beton/rows.npy").write_bytes(b"damaged")
    assert "run ppma pack again" in broken()
    assert ppma([*pack, "s.beton"]) == 0
    assert len(catalog.find().manifest("made")) == 2
    Path("m.csv").write_text("".join(Path("m.csv").read_text().splitlines(keepends=True)[:2]))
    assert "--out" in broken()
    assert ppma([*pack, "new.beton"]) == 0
    assert len(catalog.find().manifest("made")) == 1
