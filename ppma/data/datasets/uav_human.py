"""UAV-Human: people filmed from a drone; names encode person and action, and the splits go by person."""

import re

from ppma.data.adapter import Dataset, Download, Splits

NAME = re.compile(r"P(\d+)S\d+G\d+B\d+H\d+UC\d+LC\d+A(\d+)R\d+_\d+\.avi")
CLASSES = 155


def _people(text: str) -> frozenset[int]:
    """Ranges `5-8` and single numbers."""
    ends = [[int(end) for end in part.split("-")] for part in text.split()]
    return frozenset(person for first, *last in ends for person in range(first, (last or [first])[0] + 1))


TRAIN = {
    "": "0 2 5-8 10-21 25-30 32-40 42-53 55-57 59 61-65 67-71 73 76-90 98 100 102 103 105 106 110-112 114-118",
    "2.": "0 3-6 8 10-12 14 16 18-22 24 26 29-32 35-40 43-47 49 52 54 56 57 59-64 66 67 69-75 77-81 83 84 86-89 91-97 "
    "99-104 106-115 117 118",
}
"""People of the training sets of the two cross-subject protocols; the others of the 119 test."""


def read(download: Download) -> Splits:
    """Every video of the RGB modality, by its name."""
    people = {split: _people(text) for split, text in TRAIN.items()}
    clips: dict[str, list[tuple[str, int]]] = {f"{split}{part}": [] for split in people for part in ("train", "val")}
    for path in download.clips():
        if match := NAME.fullmatch(path.rpartition("/")[2]):
            for split, training in people.items():
                clips[f"{split}{'train' if int(match[1]) in training else 'val'}"].append((path, int(match[2])))
    return Splits(classes=[f"A{action:03d}" for action in range(CLASSES)], clips=clips)


DATASET = Dataset(
    name="uav-human",
    title="UAV-Human: daily actions seen from a drone",
    classes=CLASSES,
    published={"train": 16285, "val": 6191},
    splits="cross-subject v1 (the paper's; 89 of 119 people train) and v2 (source uav-human-2), by the P in the name",
    layout=("P*A*R*.avi | */P*A*R*.avi | */*/P*A*R*.avi",),
    files="P070S01G10B00H10UC102000LC092000A031R0_09131758.avi (person, set-up, gender, backpack, hat, clothes, action, take, time); "
    "1080p: use --resize 256",
    licence="not confirmed; ask the owners",
    terms="a request form on its site",
    home="https://sutdcv.github.io/uav-human-web/, https://github.com/sutdcv/UAV-Human",
    citation="Li, Liu, Zhang, Ni, Wang, Li: UAV-Human: A Large Benchmark for Human Behavior Understanding with UAVs, CVPR 2021",
    read=read,
    unconfirmed=(
        "the licence",
        "the counts of cross-subject v2",
        "the names of the 155 actions: their numbers A000 to A154 are used",
    ),
)
