"""Diving48: competition dives; the class is take-off, somersaults, twists and position. Version 2 of the labels."""

from ppma.config.errors import InputError
from ppma.data.adapter import Dataset, Download, Splits

LISTS = "{0} | annotations/{0}"


def read(download: Download) -> Splits:
    """The lists are JSON: {"vid_name": "-mmq0PT-u8k_00155", "label": 0, ...}; the vocabulary is a list of four words a class."""
    classes = [" ".join(filter(None, words)) for words in download.json(LISTS.format("Diving48_vocab.json"))]
    clips = {}
    for split, kind in (("train", "train"), ("val", "test")):
        name = LISTS.format(f"Diving48_V2_{kind}.json")
        rows = download.records(name, "vid_name", "label")
        if wrong := [row for row in rows if row["label"] not in range(len(classes))]:
            raise InputError(
                f"{download.path(name)}: label {wrong[0]['label']!r} is not in 0..{len(classes) - 1}; unpack it again"
            )
        clips[split] = [(_video(download, row["vid_name"]), row["label"]) for row in rows]
    return Splits(classes=classes, clips=clips)


def _video(download: Download, name: str) -> str:
    return download.find(f"rgb/{name}.mp4", f"videos/{name}.mp4", f"{name}.mp4")


DATASET = Dataset(
    name="diving48",
    title="Diving48: competition dives that differ in motion only",
    classes=48,
    published={"train": 15027, "val": 1970},
    splits="Diving48_V2_train.json and Diving48_V2_test.json; label 30 has no clip",
    layout=(
        *(LISTS.format(f"Diving48_{name}.json") for name in ("V2_train", "V2_test", "vocab")),
        "rgb/*.mp4 | videos/*.mp4 | *.mp4",
    ),
    files="rgb/-mmq0PT-u8k_00155.mp4 (competition, number of the dive)",
    licence="none stated; web videos, research use",
    terms="",
    home="http://www.svcl.ucsd.edu/projects/resound/dataset.html",
    citation="Li, Li, Vasconcelos: RESOUND: Towards Action Recognition without Representation Bias, ECCV 2018",
    read=read,
    unconfirmed=("the licence: no page of the owners that states one was found",),
)
