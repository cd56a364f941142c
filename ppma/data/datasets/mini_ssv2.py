"""Mini-SSv2: 87 classes of Something-Something V2, chosen by a list."""

from ppma.config.errors import InputError
from ppma.data.adapter import Dataset, Download, Splits
from ppma.data.datasets.ssv2 import LISTS, VIDEOS, template_of, video

CHOSEN = "mini_ssv2/{0}.csv | splits/mini_ssv2/{0}.csv | data/splits/mini_ssv2/{0}.csv"


def read(download: Download) -> Splits:
    """`train.csv` and `val.csv` have `path/to/169362.webm;71` a line; names come from SSv2's own lists where those are there."""
    clips, numbers = {}, {}
    for split in ("train", "val"):
        rows = []
        for path, label in download.pairs(CHOSEN.format(split)) if download.has(CHOSEN.format(split)) else ():
            if not label.isdecimal():
                raise InputError(
                    f"{download.path(CHOSEN.format(split))}: label {label!r} of {path} is no number; unpack it again"
                )
            number = path.rpartition("/")[2].removesuffix(".webm")
            numbers[number] = int(label)
            rows.append((video(download, number), int(label)))
        if rows:
            clips[split] = rows
    return Splits(classes=_names(download, numbers), clips=clips)


def _names(download: Download, numbers: dict[str, int]) -> list[str]:
    """The template that the clips of each label share; none where SSv2's lists are not there or disagree."""
    found: dict[int, str] = {}
    for kind in ("train", "validation"):
        for row in download.records(LISTS.format(kind), "id", "template") if download.has(LISTS.format(kind)) else ():
            label, name = numbers.get(row["id"], -1), template_of(row)
            if label >= 0 and found.setdefault(label, name) != name:
                return []
    return (
        [found[label] for label in range(len(found))]
        if set(found) == set(numbers.values()) == set(range(len(found)))
        else []
    )


DATASET = Dataset(
    name="mini-ssv2",
    title="Mini-SSv2: 87 of the 174 classes of Something-Something V2",
    classes=87,
    published={"val": 11799},
    splits="lists of the paper's authors: mini_ssv2/train.csv and val.csv, beside the videos of SSv2",
    layout=(CHOSEN.format("val"), " | ".join(f"{folder}/*.webm" for folder in VIDEOS)),
    files="as SSv2; a list has `something2something-v2/videos/169362.webm;71` a line, of which the number and the label count",
    licence="Qualcomm Data License Agreement - Research Use",
    terms="accept the Data License Agreement of Something-Something V2 before the download",
    home="https://github.com/howardzh01/PPMA (lists), https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
    citation="Chen et al.: Deep Analysis of CNN-based Spatio-temporal Representations for Action Recognition, CVPR 2021",
    read=read,
    unconfirmed=(
        "the training list: the authors' repository as it was seen holds val.csv only; without train.csv val alone is indexed",
        "that the cited paper is where the subset comes from",
    ),
)
