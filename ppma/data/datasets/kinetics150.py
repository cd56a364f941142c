"""Kinetics-150: the 150 classes of Kinetics-400 that the paper compares with, people and all."""

from ppma.data.adapter import Dataset, Download, Labels, Splits
from ppma.data.datasets.no_human_kinetics150 import CLASSES

CHOSEN = "{0}.txt | lists/{0}.txt"
CSV = "annotations/{0}.csv | {0}.csv | annotations/kinetics_{0}.csv | kinetics_{0}.csv"
COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def read(download: Download) -> Splits:
    """The lists of SynAPT's authors where they lie beside the videos, else the CSV of Kinetics, of which the 150 classes are taken."""
    labels, clips = Labels(CLASSES), {}
    for split, other in (("train", "train"), ("val", "validate")):
        if download.has(chosen := CHOSEN.format(f"kinetics150_{split}")):
            rows = download.classed(chosen)
        else:
            table = download.records(f"{CSV.format(split)} | {CSV.format(other)}", *COLUMNS)
            spans = ((row["label"], [row[column].zfill(6) for column in COLUMNS[1:]]) for row in table)
            rows = [(name, "_".join(span)) for name, span in spans if name in labels]
        clips[split] = [(_video(download, split, *row), labels[row[0]]) for row in rows]
    return Splits(classes=CLASSES, clips=clips)


def _video(download: Download, split: str, name: str, file: str) -> str:
    places = (f"{split}/{name}", split, f"{split}/{name.replace(' ', '_')}", name)
    return download.find(*(f"{place}/{file}.mp4" for place in places))


DATASET = Dataset(
    name="kinetics150",
    title="Kinetics-150: web videos with people",
    classes=150,
    published={"train": 89665, "val": 7423},
    splits="kinetics150_train.txt and _val.txt of SynAPT's authors (at most 990 a class); without them the CSV of Kinetics-400",
    layout=(
        f"{CHOSEN.format('kinetics150_train')} | {CSV.format('train')}",
        f"{CHOSEN.format('kinetics150_val')} | {CSV.format('val')} | {CSV.format('validate')}",
        "train/*.mp4 | train/*/*.mp4 | */*.mp4",
    ),
    files="train/<class>/<YouTube id>_000000_000010.mp4 (first and last second), or all in train/; about a tenth is gone from the web",
    licence="CC BY 4.0 (lists); the videos belong to those who uploaded them",
    terms="",
    home="https://github.com/cvdfoundation/kinetics-dataset, https://github.com/mintjohnkim/SynAPT (lists)",
    citation="Kay et al.: The Kinetics Human Action Video Dataset, 2017; Kim et al.: How Transferable ..., NeurIPS 2022",
    read=read,
    source="kinetics",
    vanishing=True,
    unconfirmed=("labels follow the alphabet here; in the authors' own lists they have another order",),
)
