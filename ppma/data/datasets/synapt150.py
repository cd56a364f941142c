"""SynAPT-150: virtual people from ElderSim (SynADL), PHAV and SURREACT, chosen and named by lists."""

from ppma.data.adapter import Dataset, Download, Labels, Splits
from ppma.loaders.sources.formats import VIDEO_SUFFIXES

SOURCES = ("eldersim", "phav", "surreact")
"""In the order in which the authors look for a clip; the first that has it counts."""
LISTS = {
    "train": "sim150_train.txt | synAPT_total.txt | lists/sim150_train.txt",
    "val": "sim150_val.txt | lists/sim150_val.txt",
}


def read(download: Download) -> Splits:
    """`<class>/<clip>` a line. The authors' rule: without suffix and `PRE_`, a clip is the first file or folder of that name."""
    named = {split: download.classed(file) for split, file in LISTS.items()}
    test = set(named["val"])
    named["train"] = [row for row in named["train"] if row not in test]  # synAPT_total.txt holds both
    classes = sorted({row[0] for rows in named.values() for row in rows})
    labels = Labels(classes)
    place: dict[str, str] = {}
    for path in (path for source in SOURCES if source in download.folders("") for path in download.clips(source)):
        place.setdefault(_bare(path.rpartition("/")[2]), path)
    clips = {split: [(_path(place, name, clip), labels[name]) for name, clip in rows] for split, rows in named.items()}
    return Splits(classes=classes, clips=clips)


def _bare(name: str) -> str:
    """Without the suffix of a video; a clip of UESTC keeps the `.avi` inside its name."""
    return name.rpartition(".")[0] if name.lower().endswith(VIDEO_SUFFIXES) else name


def _path(place: dict[str, str], name: str, clip: str) -> str:
    clip = _bare(clip)
    return place.get(clip) or place.get(clip.removeprefix("PRE_")) or f"{name}/{clip}"


DATASET = Dataset(
    name="synapt150",
    title="SynAPT-150: rendered people from three simulators",
    classes=150,
    published={"val": 12547},
    splits="sim150_val.txt of the authors; sim150_train.txt or synAPT_total.txt (all clips), up to 1,000 a class",
    layout=(*LISTS.values(), "eldersim/*", "phav/*/*", "surreact/*"),
    files="eldersim/A038_P112_G016_C023.avi; phav/BrushHair/b5009-Lake-Dawn-Clear-...; surreact/S017C003P016R001A011_v225_r00.mp4 and "
    "surreact/a27_d1_p066_c1_color.avi_v225_r00.mp4, at any depth; videos or folders of frames",
    licence="three owners' terms: SynADL, PHAV, SURREAL",
    terms="SURREACT: accept the SURREAL licence at https://www.di.ens.fr/willow/research/surreal/data/ to get a password",
    home="https://github.com/mintjohnkim/SynAPT, https://ai4robot.github.io/ElderSim/, http://adas.cvc.uab.es/phav/, "
    "https://github.com/gulvarol/surreact",
    citation="Kim et al.: How Transferable are Video Representations Based on Synthetic Data?, NeurIPS Datasets and Benchmarks 2022",
    read=read,
    domain="synthetic",
    source="synapt",
    unconfirmed=(
        "the terms of SynADL and PHAV; the training list: the authors' script reads synAPT_total.txt, which their repository lacked",
        "labels follow the alphabet here; in the paper's lists they have another order",
    ),
)
