"""Small downloads of the true shape and names, one for each data set of ppma/data/datasets: `TREES[name](root, clip)` makes one.

Every video is a link to the one clip that is given, every folder of frames holds three tiny pictures: what is tested is where they lie.
A list names one file more than there is where `GONE` says so.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np

GONE = {"kinetics150": 1}
"""Clips that a list names and that are not there."""


def text(path: Path, lines: Iterable[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + end for line in lines), encoding="utf-8", newline="")


def put(clip: Path, *paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(clip, path)


def frames(folder: Path, name: str = "{:06d}.jpg") -> None:
    folder.mkdir(parents=True)
    for number in (1, 2, 3):
        cv2.imwrite(str(folder / name.format(number)), np.full((48, 64, 3), 40 * number, np.uint8))


def ucf101(root: Path, clip: Path) -> None:
    names = {"ApplyEyeMakeup": "ApplyEyeMakeup", "HandstandPushups": "HandStandPushups"}  # the owners' own spelling
    text(root / "ucfTrainTestlist/classInd.txt", (f"{i} {name}" for i, name in enumerate(names, 1)), "\r\n")
    for number in (1, 2, 3):
        test = {name: f"{name}/v_{file}_g0{number}_c01.avi" for name, file in names.items()}
        put(clip, *(root / "UCF-101" / path for path in test.values()))
        others = [n for n in (1, 2, 3) if n != number]
        train = [f"{n}/v_{f}_g0{o}_c01.avi {i}" for i, (n, f) in enumerate(names.items(), 1) for o in others]
        text(root / f"ucfTrainTestlist/trainlist0{number}.txt", train, "\r\n")
        text(root / f"ucfTrainTestlist/testlist0{number}.txt", test.values(), "\r\n")


def hmdb51(root: Path, clip: Path) -> None:
    odd = "Brushing_Her_Hair__[_NEW_AUDIO_]_UPDATED!!!!"
    for name, source in (("brush_hair", odd), ("climb", "Speed_Climbing_(CZE);_a"), ("wave", "50_FIRST_DATES")):
        files = [f"{source}_{name}_h_cm_np1_fr_goo_{i}.avi" for i in range(3)]
        put(clip, *(root / name / file for file in files))
        for number in (1, 2, 3):
            flags = [(i + number) % 3 for i in range(3)]
            lines = (f"{file} {flag} " for file, flag in zip(files, flags))
            text(root / f"testTrainMulti_7030_splits/{name}_test_split{number}.txt", lines)


def ssv2(root: Path, clip: Path, prefix: str = "something-something-v2-") -> None:
    templates = ["Holding [something] next to [something]", "Approaching [something] with your camera"]
    labels = {template.replace("[", "").replace("]", ""): f"{i}" for i, template in enumerate(templates)}
    (root / "labels").mkdir(parents=True)
    (root / f"labels/{prefix}labels.json").write_text(json.dumps(labels))
    for split, numbers in (("train", ("78687", "42326")), ("validation", ("74225", "116154"))):
        rows = [
            {"id": number, "label": "holding a pen next to a cup", "template": template, "placeholders": ["a", "b"]}
            for number, template in zip(numbers, templates)
        ]
        (root / f"labels/{prefix}{split}.json").write_text(json.dumps(rows))
        put(clip, *(root / f"20bn-something-something-v2/{number}.webm" for number in numbers))


def mini_ssv2(root: Path, clip: Path) -> None:
    ssv2(root, clip, prefix="")
    path = "something2something-v2/videos"
    text(root / "mini_ssv2/train.csv", [f"{path}/78687.webm;1", f"{path}/42326.webm;0"])
    text(root / "mini_ssv2/val.csv", [f"{path}/74225.webm;1", f"{path}/116154.webm;0"])


def diving48(root: Path, clip: Path) -> None:
    vocabulary = [
        ["Back", "15som", "05Twis", "FREE"],
        ["Back", "Dive", "NoTwis", "PIKE"],
        ["Forward", "Som", "", "TUCK"],
    ]
    names = {"train": ["-mmq0PT-u8k_00155", "Le6xdQ2OO8w_00067"], "test": ["8qRmKunCjtY_00016", "qD3IMtAanSg_00005"]}
    text(root / "Diving48_vocab.json", [json.dumps(vocabulary)])
    for split, files in names.items():
        rows = [{"vid_name": n, "label": 2 * i, "start_frame": 0, "end_frame": 48} for i, n in enumerate(files)]
        text(root / f"Diving48_V2_{split}.json", [json.dumps(rows)])
        put(clip, *(root / f"rgb/{name}.mp4" for name in files))


def ikea_fa(root: Path, clip: Path) -> None:
    names = ["spin_in/GOPR0022_04144_05129_09.MP4", "attach_leg_1/GOPR0121_00016_00064_13.MP4"]
    names += ["pick_leg/GOPR0098_01183_01211_05.MP4", "flip_over/GOPR0017_02484_02571_06.MP4"]
    put(clip, *(root / "videos" / name for name in names))


def uav_human(root: Path, clip: Path) -> None:
    names = ["P000S00G10B10H10UC022000LC021000A000R0_08241716", "P001S00G20B40H20UC072000LC021000A154R0_08241838"]
    names += ["P002S00G10B00H00UC072000LC021000A010R1_09242003", "P003S00G10B50H30UC012000LC021000A001R0_08251032"]
    put(clip, *(root / f"all_rgb/{name}.avi" for name in names))


def kinetics150(root: Path, clip: Path) -> None:
    rows = {
        "train": [
            ("peeling apples", "2gNphD7Zs6I", 8, 18),
            ("hurling (sport)", "-_gone_Zs6I", 0, 10),
            ("abseiling", "x", 0, 10),
        ],
        "validate": [("peeling apples", "erjpP2MAlOQ", 1, 11), ("hurling (sport)", "FiIUKB5hU9U", 120, 130)],
    }
    for split, lines in rows.items():
        path = root / f"annotations/{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
            writer.writerows([*line, split] for line in lines)
    put(clip, root / "train/2gNphD7Zs6I_000008_000018.mp4")  # flat, as one mirror has it
    put(clip, root / "val/peeling apples/erjpP2MAlOQ_000001_000011.mp4")
    put(clip, root / "val/hurling (sport)/FiIUKB5hU9U_000120_000130.mp4")


def no_human_kinetics150(root: Path, clip: Path) -> None:
    for split, name in (("train", "2gNphD7Zs6I_000008_000018"), ("val", "erjpP2MAlOQ_000001_000011")):
        for part in ("ori", "seg", "inp"):
            frames(root / split / part / "peeling apples" / name)
        frames(root / split / "inp/passing American football (not in game)" / name.replace("0", "1"))


def synapt150(root: Path, clip: Path) -> None:
    phav = "b5009-Lake-Dawn-Clear-clap_01-Civilian_Male04-Kite-w-04fe02c4786cd96946b229b74d3c1d33"
    put(clip, root / "eldersim/A038_P112_G016_C023.avi", root / "eldersim/A039_P112_G002_C009.avi")
    frames(root / "phav/Clap" / phav, "{:05d}.jpg")
    put(clip, root / "surreact/uestc/vibe/train/a27_d1_p066_c1_color.avi/a27_d1_p066_c1_color.avi_v225_r00.mp4")
    put(clip, root / "surreact/S017C003P016R001A011_v225_r00.mp4")
    total = ["a27/PRE_a27_d1_p066_c1_color.avi_v225_r00", "smoking/A038_P112_G016_C023.avi", f"clapping/{phav}"]
    test = ["clapping/A039_P112_G002_C009.mp4;100", "reading/S017C003P016R001A011_v225_r00"]
    text(root / "synAPT_total.txt", [*total, test[0].partition(";")[0], test[1]])
    text(root / "sim150_val.txt", test)


TREES: dict[str, Callable[[Path, Path], None]] = {
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "ssv2": ssv2,
    "mini-ssv2": mini_ssv2,
    "diving48": diving48,
    "ikea-fa": ikea_fa,
    "uav-human": uav_human,
    "kinetics150": kinetics150,
    "no-human-kinetics150": no_human_kinetics150,
    "synapt150": synapt150,
}
