"""Folders of frames: links out of the root, and copies under another domain. test_strict tries files."""

import shutil

import pytest

from ppma.config.errors import InputError
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.privacy.clip_files import check_disguise, check_places, contents


def frames(folder, shade):
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i + 1:06d}.jpg").write_bytes(bytes([shade, i]))
    return folder


def manifest(root, domain):
    """Write and read a manifest of the folders of frames in `root`."""
    rows = [
        Clip(
            path=folder.name, frames=3, fps=25.0, width=8, height=8, codec="jpeg", key_frame_spacing=1,
            duration_seconds=0.12, domain=domain, licence="own",
        )
        for folder in sorted(root.iterdir())
    ]  # fmt: skip
    path = root.with_suffix(".csv")
    Manifest.write(path, rows)
    return Manifest.read(path, root=root)


def test_a_frame_linked_out_of_the_root_is_refused(tmp_path):
    frames(tmp_path / "root" / "a", 1)
    (tmp_path / "root" / "a" / "000004.jpg").symlink_to("000001.jpg")
    check_places(tmp_path / "root", ["a"])  # a link inside is harmless
    (tmp_path / "elsewhere.jpg").write_bytes(b"x")
    (tmp_path / "root" / "a" / "000005.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    with pytest.raises(InputError, match=r"000005\.jpg is a link out of the root"):
        check_places(tmp_path / "root", ["a"])
    with pytest.raises(InputError, match="b is missing"):
        check_places(tmp_path / "root", ["b"])


def test_a_root_may_be_a_link_itself(tmp_path):
    frames(tmp_path / "disk" / "a", 1)
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    check_places(tmp_path / "root", ["a"])


@pytest.mark.parametrize("listed", [True, False])
def test_a_copied_folder_is_recognized_if_a_manifest_lists_it(tmp_path, listed):
    frames(tmp_path / "people" / "original", 7)
    for name, shade in (("a", 1), ("b", 2)):
        frames(tmp_path / "drawn" / name, shade)
    shutil.copytree(tmp_path / "people" / "original", tmp_path / "drawn" / "c")
    drawn = manifest(tmp_path / "drawn", "synthetic")
    data = tmp_path / "data.toml"
    people = manifest(tmp_path / "people", "real" if listed else "")
    for source in (drawn, people):
        catalog.add(data, name=source.name, split="train", manifest=source.path, root=source.root)
    if listed:
        with pytest.raises(InputError, match=r"drawn/c is synthetic by .* and real by"):
            check_disguise(data, [drawn])
    else:
        check_disguise(data, [drawn])


def test_hashes_are_in_the_order_of_the_clips(tmp_path):
    clips = [frames(tmp_path / name, shade) for name, shade in (("a", 1), ("b", 2), ("c", 1))]
    first, second, third = contents(clips, "made")
    assert first == third != second
