"""IkeaFA: people who assemble a small table; what they do with its legs."""

import re
from collections.abc import Sequence

from ppma.data.adapter import Dataset, Download, Labels, Splits

CLASSES: Sequence[str] = (
    *(f"{verb}_leg_{leg}" for verb in ("attach", "detach") for leg in (1, 2, 3, 4)),
    *("flip_over", "pick_leg", "spin_in", "spin_out"),
)
TEST = ("09", "11", "13")
"""Endings of the names in the published list of test clips; none of them is in the training list."""
NAME = re.compile(r"GOPR\d+_\d+_\d+_(\d\d)\.mp4", re.IGNORECASE)


def read(download: Download) -> Splits:
    """The names say it all: GOPR<recording>_<first frame>_<last frame>_<group>.MP4 in a folder of its class."""
    labels, clips = Labels(CLASSES), {"train": [], "val": []}  # type: ignore[var-annotated]
    top = "videos" if download.has("videos/*/GOPR*") else ""
    for path in download.clips(top):
        *_, name, file = f"/{path}".split("/")
        if match := NAME.fullmatch(file):
            clips["val" if match[1] in TEST else "train"].append((path, labels[name]))
    return Splits(classes=CLASSES, clips=clips)


DATASET = Dataset(
    name="ikea-fa",
    title="IkeaFA: assembling furniture, seen from one camera",
    classes=12,
    published={"train": 1781, "val": 163},
    splits="the paper's lists: clips whose names end in 09, 11 and 13 test",
    layout=("videos/*/GOPR*.MP4 | */GOPR*.MP4 | videos/*/GOPR*.mp4 | */GOPR*.mp4",),
    files="videos/spin_in/GOPR0022_04144_05129_09.MP4 (recording, first and last frame, group); large frames: use --resize 256",
    licence="not confirmed; ask the owners",
    terms="",
    home="https://tengdahan.github.io/ikea.html",
    citation="Toyer, Cherian, Han, Gould: Human Pose Forecasting via Deep Markov Models, DICTA 2017",
    read=read,
    unconfirmed=(
        "the licence and the form of the owners' own archive: the layout is that of the paper's lists, cut into clips",
        "what the two digits at the end stand for",
    ),
)
