"""Something-Something V2: hands that do something with something; the class is the sentence with the objects left out."""

from ppma.data.adapter import Dataset, Download, Labels, Splits

LISTS = "{0}.json | labels/{0}.json | something-something-v2-{0}.json | labels/something-something-v2-{0}.json"
VIDEOS = ("20bn-something-something-v2", "videos", "something2something-v2/videos")


def template_of(row: dict[str, str]) -> str:
    """The template as labels.json writes it: without the brackets around `something`."""
    return row["template"].replace("[", "").replace("]", "")


def video(download: Download, number: str) -> str:
    """Where the video of this number lies."""
    return download.find(*(f"{folder}/{number}.webm" for folder in VIDEOS), f"{number}.webm")


def read(download: Download) -> Splits:
    """labels.json gives template -> number; train.json and validation.json give id and template, with the objects in brackets."""
    numbers = download.json(LISTS.format("labels"))
    classes = sorted(numbers, key=lambda name: int(numbers[name]))
    labels = Labels(classes)
    clips = {
        split: [
            (video(download, row["id"]), labels[template_of(row)])
            for row in download.records(LISTS.format(kind), "id", "template")
        ]
        for split, kind in (("train", "train"), ("val", "validation"))
    }
    return Splits(classes=classes, clips=clips)


DATASET = Dataset(
    name="ssv2",
    title="Something-Something V2: hands and everyday objects",
    classes=174,
    published={"train": 168913, "val": 24777},
    splits="train.json and validation.json; the labels of the test videos are not published",
    layout=(
        *(LISTS.format(kind) for kind in ("labels", "train", "validation")),
        " | ".join(f"{folder}/*.webm" for folder in VIDEOS),
    ),
    files="20bn-something-something-v2/78687.webm; VP9, 240 pixels high",
    licence="Qualcomm Data License Agreement - Research Use",
    terms="accept the Data License Agreement on the page of its owner before the download",
    home="https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
    citation="Goyal et al.: The 'Something Something' Video Database for Learning and Evaluating Visual Common Sense, ICCV 2017",
    read=read,
    unconfirmed=(
        "names of the lists: 20BN's and Qualcomm's are both read; the owner's current archive was not at hand",
    ),
)
