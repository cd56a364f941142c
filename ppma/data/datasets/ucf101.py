"""UCF101: actions in web videos, three splits by the group of scenes that a clip was cut from."""

from ppma.data.adapter import Dataset, Download, Labels, Splits

LISTS = "ucfTrainTestlist/{0} | {0}"


def read(download: Download) -> Splits:
    """`classInd.txt` has `1 ApplyEyeMakeup`; `trainlist01.txt` has `Class/file.avi 1`, `testlist01.txt` the path alone."""
    classes = [name for _, name in download.pairs(LISTS.format("classInd.txt"))]
    labels, clips = Labels(classes), {}
    for number in (1, 2, 3):
        for split, kind in (("train", "train"), ("val", "test")):
            lines = download.lines(LISTS.format(f"{kind}list0{number}.txt"))
            paths = [line.split(".avi")[0] + ".avi" for line in lines]
            clips[split if number == 1 else f"{number}.{split}"] = [
                (download.find(f"UCF-101/{path}", path, f"videos/{path}"), labels[path.split("/")[0]]) for path in paths
            ]
    return Splits(classes=classes, clips=clips)


DATASET = Dataset(
    name="ucf101",
    title="UCF101: sports, music and everyday actions from the web",
    classes=101,
    published={"train": 9537, "val": 3783, "2.train": 9586, "2.val": 3734, "3.train": 9624, "3.val": 3696},
    splits="ucfTrainTestlist: three splits; groups of one scene stay together",
    layout=(
        *(LISTS.format(f"{kind}list0{number}.txt") for number in (1, 2, 3) for kind in ("train", "test")),
        LISTS.format("classInd.txt"),
        "UCF-101/*/*.avi | */*.avi",
    ),
    files="UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi (class, group g, clip c); XviD, 320 x 240",
    licence="none stated; web videos, research use",
    terms="",
    home="https://www.crcv.ucf.edu/data/UCF101.php",
    citation="Soomro, Zamir, Shah: UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild, CRCV-TR-12-01, 2012",
    read=read,
    unconfirmed=("the licence: no page of the owners that states one was found",),
)
