"""Every data set read from a small tree of its owners' shape and names: what each split holds, and what a wrong tree is told."""

import importlib
import inspect
import json
import shutil
from pathlib import Path

import pytest
from dataset_trees import GONE, TREES

from ppma.config.errors import InputError
from ppma.data import datasets
from ppma.data.adapter import Download, Splits

CLIP = "a clip; nothing opens it here"
MOST_LINES = 60
"""Of a data set's file."""


@pytest.fixture
def download(tmp_path):
    """A function from a data set's name to its small download, or to the split lists read from it."""

    def make(name: str) -> Path:
        (tmp_path / "clip").write_text(CLIP)
        TREES[name](tmp_path / name, tmp_path / "clip")
        return tmp_path / name

    return make


def read(root: Path, name: str) -> Splits:
    dataset = datasets.find(name)
    return dataset.read(Download(root, dataset))


def named(splits: Splits, key: str) -> list[tuple[str, str]]:
    """(path, class name) of a split."""
    return [(path, splits.classes[label]) for path, label in splits.clips[key]]


@pytest.mark.parametrize("name", TREES)
def test_every_clip_is_found_once_in_each_pair_of_splits(download, name):
    root = download(name)
    splits, dataset = read(root, name), datasets.find(name)
    assert set(dataset.published) <= set(splits.clips) and {"train", "val"} <= set(splits.clips)
    listed = [path for clips in splits.clips.values() for path, _ in clips]
    missing = [path for path in listed if not (root / path).exists()]
    assert len(missing) == GONE.get(name, 0)
    for number in {key.rpartition(".")[0] for key in splits.clips}:
        prefix = f"{number}." if number else ""
        train, val = ({path for path, _ in splits.clips[f"{prefix}{part}"]} for part in ("train", "val"))
        assert train and val and not train & val, "nothing that trains tests"
    labels = {label for clips in splits.clips.values() for _, label in clips}
    assert labels <= set(range(dataset.classes)) and len(splits.classes) <= dataset.classes


def test_all_data_sets_are_tested_and_short():
    known = datasets.known()
    assert set(known) == set(TREES) and list(known) == sorted(known)
    for module in (path.stem for path in Path(datasets.__path__[0]).glob("*.py") if path.stem != "__init__"):
        source = inspect.getsource(importlib.import_module(f"ppma.data.datasets.{module}"))
        assert len(source.splitlines()) <= MOST_LINES, module


def test_facts_are_complete():
    for name, dataset in datasets.known().items():
        assert dataset.licence and dataset.home.startswith("http") and dataset.citation and dataset.files, name
        assert "confirmed" not in dataset.licence or dataset.unconfirmed, name
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
    assert people == {
        "train": ["000", "002"],
        "val": ["001", "003"],
        "2.train": ["000", "003"],
        "2.val": ["001", "002"],
    }
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
    assert len(read(root, "kinetics150").clips["train"]) == 1, "the list of SynAPT's authors goes before the CSV"


def test_no_human_kinetics150(download):
    splits = read(download("no-human-kinetics150"), "no-human-kinetics150")
    game = "passing American football (not in game)"
    assert named(splits, "val") == [
        (f"val/inp/{game}/erjpP2MAlOQ_111111_111111", game),
        ("val/inp/peeling apples/erjpP2MAlOQ_000001_000011", "peeling apples"),
    ], "the folders of frames, not the frames; seg and ori are left alone"
    assert len(splits.clips["train"]) == 2


def test_synapt150(download):
    splits = read(download("synapt150"), "synapt150")
    assert splits.classes == ["a27", "clapping", "reading", "smoking"]
    assert [(path.split("/")[0], name) for path, name in named(splits, "train")] == [
        ("surreact", "a27"),
        ("eldersim", "smoking"),
        ("phav", "clapping"),
    ], "the total list without the test clips; PRE_ is taken off"
    assert splits.clips["val"][1] == ("surreact/S017C003P016R001A011_v225_r00.mp4", 2)
    assert splits.clips["train"][0][0].endswith("/a27_d1_p066_c1_color.avi_v225_r00.mp4")


def test_an_unknown_data_set_gets_the_list():
    with pytest.raises(InputError, match=r"no 'ucf102'; did you mean ucf101\? They are diving48, hmdb51, .*ucf101"):
        datasets.find("ucf102")


def test_a_root_of_the_wrong_shape(tmp_path):
    for name in ("b", "a", "c", "d", "e", "f"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError) as error:
        Download(tmp_path, datasets.find("ucf101"))
    said = str(error.value)
    assert "is not ucf101 as its owners ship it: 8 of 8 expected things are missing" in said
    assert said.count("list0") == 5 and "and 3 more. It holds a; b; c; d; e and 1 more" in said
    with pytest.raises(InputError, match="is not a folder; give the one that ucf101 was unpacked into"):
        Download(tmp_path / "none", datasets.find("ucf101"))


@pytest.mark.parametrize(
    ("name", "file", "content", "says"),
    [
        (
            "ucf101",
            "ucfTrainTestlist/testlist02.txt",
            "Archery/v_Archery_g01_c01.avi\n",
            "'Archery', which is none of the 2 classes",
        ),
        ("ucf101", "ucfTrainTestlist/classInd.txt", "1 A\nB\n", r"classInd.txt, entry 2: has no two parts"),
        ("ssv2", "labels/something-something-v2-train.json", "[{", r"v2-train.json, line 1: is not JSON"),
        ("ssv2", "labels/something-something-v2-train.json", '[{"id": "1"}]', r"entry 1: it must have id, template"),
        ("ssv2", "labels/something-something-v2-train.json", "{}", r"holds no list"),
        ("diving48", "Diving48_V2_test.json", json.dumps([{"vid_name": "a", "label": 3}]), r"label 3 is not in 0\.\.2"),
        ("mini-ssv2", "mini_ssv2/val.csv", "a/1.webm;x\n", "label 'x' of a/1.webm is no number"),
        (
            "kinetics150",
            "annotations/train.csv",
            "a,b\n1,2\n",
            "entry 1: it must have label, youtube_id, time_start, time_end",
        ),
        ("synapt150", "sim150_val.txt", "smoking\n", "entry 1: 'smoking' is not <class>/<clip>"),
    ],
)
def test_a_list_that_is_wrong(download, name, file, content, says):
    root = download(name)
    (root / file).write_text(content)
    with pytest.raises(InputError, match=says):
        read(root, name)
