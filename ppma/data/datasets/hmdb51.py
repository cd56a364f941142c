"""HMDB51: actions in films and web videos, three splits of 70 training and 30 test clips a class."""

from ppma.data.adapter import Dataset, Download, Labels, Splits

LISTS = "testTrainMulti_7030_splits"
FLAGS = {"1": "train", "2": "val"}
"""0 marks clips that a split leaves out."""


def read(download: Download) -> Splits:
    """`<class>_test_split<n>.txt` has `file.avi <flag>` a line."""
    folder = download.path(f"{LISTS} | test_train_splits/{LISTS}").relative_to(download.root).as_posix()
    classes = sorted(
        path.name.removesuffix("_test_split1.txt") for path in (download.root / folder).glob("*_test_split1.txt")
    )
    labels = Labels(classes)
    clips: dict[str, list[tuple[str, int]]] = {}
    for number in (1, 2, 3):
        for name in classes:
            for file, flag in download.pairs(f"{folder}/{name}_test_split{number}.txt"):
                if flag in FLAGS:
                    split = FLAGS[flag] if number == 1 else f"{number}.{FLAGS[flag]}"
                    path = download.find(f"{name}/{file}", f"hmdb51_org/{name}/{file}", f"videos/{name}/{file}")
                    clips.setdefault(split, []).append((path, labels[name]))
    return Splits(classes=classes, clips=clips)


DATASET = Dataset(
    name="hmdb51",
    title="HMDB51: human motion in films and web videos",
    classes=51,
    published={
        f"{number}{split}": count for number in ("", "2.", "3.") for split, count in (("train", 3570), ("val", 1530))
    },
    splits="testTrainMulti_7030_splits: three splits; flag 1 trains, 2 tests, 0 is left out",
    layout=(
        *(f"{LISTS}/*_test_split{n}.txt | test_train_splits/{LISTS}/*_test_split{n}.txt" for n in (1, 2, 3)),
        "*/*.avi | hmdb51_org/*/*.avi | videos/*/*.avi",
    ),
    files="brush_hair/<source film>_brush_hair_u_nm_np1_ba_med_3.avi (visible body, camera motion, people, viewpoint, quality, number); "
    "hmdb51_org.rar holds one .rar for each class, unpack those too",
    licence="CC BY 4.0",
    terms="",
    home="https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/",
    citation="Kuehne, Jhuang, Garrote, Poggio, Serre: HMDB: A Large Video Database for Human Motion Recognition, ICCV 2011",
    read=read,
)
