"""Every data set is read from a small tree with its owners' layout and names; a wrong tree is refused."""

import json
import shutil
from pathlib import Path

import pytest
from dataset_trees import GONE, TREES

from ppma.config.errors import InputError
from ppma.data.dataset import Download, Splits, find, known, read_splits
from ppma.loaders.sources.formats import VIDEO_SUFFIXES, without_suffix


@pytest.fixture
def download(tmp_path):
    """Return a function that makes the small download of a data set."""

    def make(name: str) -> Path:
        (tmp_path / "clip").write_text("not opened here")
        TREES[name](tmp_path / name, tmp_path / "clip")
        return tmp_path / name

    return make


def read(root: Path, name: str) -> Splits:
    return read_splits(Download(root, find(name)))


def named(splits: Splits, key: str) -> list[tuple[str, str]]:
    """Return the (path, class name) of each clip of a split."""
    return [(path, splits.classes[label]) for path, label in splits.clips[key]]


@pytest.mark.parametrize("name", TREES)
def test_every_clip_is_in_one_split_of_each_pair(download, name):
    root = download(name)
    splits, dataset = read(root, name), find(name)
    assert set(dataset.published) <= set(splits.clips) and {"train", "val"} <= set(splits.clips)
    listed = [path for clips in splits.clips.values() for path, _ in clips]
    missing = [path for path in listed if not (root / path).exists()]
    assert len(missing) == GONE.get(name, 0)
    for number in {key.rpartition(".")[0] for key in splits.clips}:
        prefix = f"{number}." if number else ""
        train, val = ({path for path, _ in splits.clips[f"{prefix}{part}"]} for part in ("train", "val"))
        assert train and val and not train & val
    labels = {label for clips in splits.clips.values() for _, label in clips}
    assert labels <= set(range(dataset.classes)) and len(splits.classes) <= dataset.classes


@pytest.mark.parametrize("name", TREES)
def test_a_download_whose_videos_were_encoded_again(download, name):
    root = download(name)
    before = read(root, name)
    for path in [p for p in root.rglob("*") if p.name.lower().endswith(VIDEO_SUFFIXES) and p.is_file()]:
        path.rename(path.with_suffix(".mkv" if path.suffix.lower() == ".mp4" else ".mp4"))
    again = read(root, name)
    assert again.classes == before.classes
    listed = [path for clips in again.clips.values() for path, _ in clips]
    assert sum(not (root / path).exists() for path in listed) == GONE.get(name, 0)
    for split, clips in before.clips.items():
        assert [(without_suffix(p), n) for p, n in again.clips[split]] == [(without_suffix(p), n) for p, n in clips]


def test_what_is_left_out_is_noted(download):
    root = download("ikea-fa")
    (root / "videos/spin_in/cut.mp4").touch()
    (root / "videos/spin_in/loop").symlink_to(root / "videos")
    (root / "videos/spin_in/circle").symlink_to(root / "videos/spin_in/circle")
    assert read(root, "ikea-fa").notes == {"clips that no split names, left out": ["videos/spin_in/cut.mp4"]}
    root = download("mini-ssv2")
    (root / "mini_ssv2/train.csv").unlink()
    shutil.rmtree(root / "labels")
    (root / "20bn-something-something-v2/74225.webm").rename(root / "20bn-something-something-v2/74225.mp4")
    assert read(root, "mini-ssv2").notes == {
        "splits without a list, not indexed": ["train (mini_ssv2/train.csv)"],
        "labels without a class name": ["0", "1"],
        "clips with another suffix than in their list": ["20bn-something-something-v2/74225.mp4"],
    }


def test_the_tables_are_complete():
    assert set(known()) == set(TREES) and list(known()) == sorted(known())
    for name, dataset in known().items():
        assert dataset.license and dataset.home.startswith("http") and dataset.citation and dataset.files, name
        assert "confirmed" not in dataset.license or dataset.unconfirmed, name
        assert {key.rpartition(".")[2] for key in dataset.published} <= {"train", "val"}, name


def test_ucf101(download):
    splits = read(download("ucf101"), "ucf101")
    assert splits.classes == ["ApplyEyeMakeup", "HandstandPushups"]
    assert splits.clips["val"] == [
        ("UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", 0),
        ("UCF-101/HandstandPushups/v_HandStandPushups_g01_c01.avi", 1),
    ]
    assert len(splits.clips["3.train"]) == 4 and {"_g03_" in path for path, _ in splits.clips["3.val"]} == {True}


def test_hmdb51(download):
    splits = read(download("hmdb51"), "hmdb51")
    assert splits.classes == ["brush_hair", "climb", "wave"]
    odd = "brush_hair/Brushing_Her_Hair__[_NEW_AUDIO_]_UPDATED!!!!_brush_hair_h_cm_np1_fr_goo"
    assert named(splits, "train")[0] == (f"{odd}_0.avi", "brush_hair"), "flag 1 trains"
    assert named(splits, "val")[0] == (f"{odd}_1.avi", "brush_hair"), "flag 2 tests, 0 is left out"
    assert named(splits, "2.val")[0] == (f"{odd}_0.avi", "brush_hair")
    assert named(splits, "train")[1] == ("climb/Speed_Climbing_(CZE);_a_climb_h_cm_np1_fr_goo_0.avi", "climb")


@pytest.mark.parametrize("name", ["ssv2", "mini-ssv2"])
def test_something_something(download, name):
    splits = read(download(name), name)
    numbers = ("Holding something next to something", "Approaching something with your camera")
    held = ("20bn-something-something-v2/78687.webm", numbers[0])
    assert named(splits, "train") == [held, ("20bn-something-something-v2/42326.webm", numbers[1])]
    assert dict(splits.clips["val"])["20bn-something-something-v2/74225.webm"] == (0 if name == "ssv2" else 1)


def test_mini_ssv2_without_the_lists_of_ssv2(download):
    root = download("mini-ssv2")
    shutil.rmtree(root / "labels")
    (root / "mini_ssv2/train.csv").unlink()
    splits = read(root, "mini-ssv2")
    assert splits.classes == [] and list(splits.clips) == ["val"] and splits.clips["val"][0][1] == 1


def test_diving48(download):
    splits = read(download("diving48"), "diving48")
    assert splits.classes == ["Back 15som 05Twis FREE", "Back Dive NoTwis PIKE", "Forward Som TUCK"]
    assert splits.clips["val"] == [("rgb/8qRmKunCjtY_00016.mp4", 0), ("rgb/qD3IMtAanSg_00005.mp4", 2)]


def test_ikea_fa(download):
    splits = read(download("ikea-fa"), "ikea-fa")
    assert [splits.classes[i] for i in (0, 4, 8, 11)] == ["attach_leg_1", "detach_leg_1", "flip_over", "spin_out"]
    assert dict(splits.clips["val"])["videos/spin_in/GOPR0022_04144_05129_09.MP4"] == 10
    assert {path.rpartition("_")[2][:2] for path, _ in splits.clips["train"]} == {"05", "06"}


def test_uav_human(download):
    splits = read(download("uav-human"), "uav-human")
    people = {key: [path.split("/P")[1][:3] for path, _ in clips] for key, clips in splits.clips.items()}
    first, second = (
        {"train": ["000", "002"], "val": ["001", "003"]},
        {"2.train": ["000", "003"], "2.val": ["001", "002"]},
    )
    assert people == first | second
    assert [splits.classes[label] for _, label in splits.clips["val"]] == ["A154", "A001"]


def test_kinetics150(download):
    root = download("kinetics150")
    splits = read(root, "kinetics150")
    assert named(splits, "train") == [
        ("train/2gNphD7Zs6I_000008_000018.mp4", "peeling apples"),
        ("train/hurling (sport)/-_gone_Zs6I_000000_000010.mp4", "hurling (sport)"),
    ], "other classes of Kinetics-400 are left out"
    assert named(splits, "val")[1] == ("val/hurling (sport)/FiIUKB5hU9U_000120_000130.mp4", "hurling (sport)")
    (root / "kinetics150_train.txt").write_text("peeling apples/2gNphD7Zs6I_000008_000018\n")
    assert len(read(root, "kinetics150").clips["train"]) == 1, "the list of SynAPT's authors is preferred to the CSV"
    (root / "data/splits/kinetics150").mkdir(parents=True)
    (root / "data/splits/kinetics150/val.csv").write_text("val/peeling apples/erjpP2MAlOQ_000001_000011.mp4;0\n")
    (clip,) = named(read(root, "kinetics150"), "val")
    assert clip == ("val/peeling apples/erjpP2MAlOQ_000001_000011.mp4", "peeling apples"), "that of PPMA's is too"


def test_no_human_kinetics150(download):
    splits = read(download("no-human-kinetics150"), "no-human-kinetics150")
    game = "passing American football (not in game)"
    assert named(splits, "val") == [
        (f"val/inp/{game}/erjpP2MAlOQ_111111_111111", game),
        ("val/inp/peeling apples/erjpP2MAlOQ_000001_000011", "peeling apples"),
    ], "folders of frames, not frames; seg and ori are ignored"
    assert len(splits.clips["train"]) == 2


def test_synapt150(download):
    root = download("synapt150")
    splits = read(root, "synapt150")
    assert splits.classes == ["a27", "clapping", "reading", "smoking"]
    found = [(path.split("/")[0], name) for path, name in named(splits, "train")]
    listed = [("surreact", "a27"), ("eldersim", "smoking"), ("phav", "clapping")]
    assert found == listed, "the total list without the test clips, and without PRE_"
    assert splits.clips["val"][1] == ("surreact/S017C003P016R001A011_v225_r00.mp4", 2)
    assert splits.clips["train"][0][0].endswith("/a27_d1_p066_c1_color.avi_v225_r00.mp4")
    (root / "splits/sim150").mkdir(parents=True)
    (root / "splits/sim150/train.csv").write_text("a27/PRE_a27_d1_p066_c1_color.avi_v225_r00.mp4;0\n")
    assert read(root, "synapt150").clips["train"] == splits.clips["train"][:1], (
        "the list of PPMA's authors is preferred"
    )


def test_an_unknown_data_set_is_refused_with_a_suggestion():
    with pytest.raises(InputError, match="ucf101"):
        find("ucf102")


def test_a_root_of_another_shape_is_refused(tmp_path):
    for name in ("b", "a", "c", "d", "e", "f"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"8 of 8 expected .*a, b, c, d, e and 1 more") as error:
        Download(tmp_path, find("ucf101"))
    assert str(error.value).count("list0") == 5
    with pytest.raises(InputError, match="not a folder"):
        Download(tmp_path / "none", find("ucf101"))


SSV2_TRAIN = "labels/something-something-v2-train.json"


@pytest.mark.parametrize(
    ("name", "file", "content", "noun"),
    [
        ("ucf101", "ucfTrainTestlist/testlist02.txt", "Archery/v_Archery_g01_c01.avi\n", "'Archery'"),
        ("ucf101", "ucfTrainTestlist/classInd.txt", "1 A\nB\n", "classInd.txt, entry 2"),
        ("ssv2", SSV2_TRAIN, "[{", "v2-train.json: is not .*line 1"),
        ("ssv2", SSV2_TRAIN, '[{"id": "1"}]', "v2-train.json, entry 1: .*'template'"),
        ("ssv2", SSV2_TRAIN, "[1]", "v2-train.json, entry 1"),
        ("ssv2", SSV2_TRAIN, "{}", "v2-train.json"),
        ("diving48", "Diving48_V2_test.json", json.dumps([{"vid_name": "a", "label": 3}]), r"'3'.* 0\.\.2"),
        ("diving48", "Diving48_V2_test.json", json.dumps([{"label": 1}]), "'vid_name'"),
        ("mini-ssv2", "mini_ssv2/val.csv", "a/1.webm;x\n", "val.csv, entry 1"),
        ("kinetics150", "annotations/train.csv", "a,b\n1,2\n", "train.csv, entry 1: .*'label'"),
        ("synapt150", "sim150_val.txt", "smoking\n", "sim150_val.txt, entry 1: 'smoking'"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(download, name, file, content, noun):
    root = download(name)
    (root / file).write_text(content)
    with pytest.raises(InputError, match=noun):
        read(root, name)
