"""`ppma inspect` makes one page with everything in it, of runs of every phase; what it needs and does not find, it tells."""

import re
import shutil
from html.parser import HTMLParser

import pytest

from ppma.cli import main as ppma
from ppma.loaders.sources import catalog


class Page(HTMLParser):
    """Headings, pictures and links of a page."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.pictures, self.outside = [], 0, []
        self._in = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self._in = tag == "h2"
        self.pictures += tag == "img" and known["src"].startswith("data:image/jpeg;base64,")
        self.outside += [v for k, v in known.items() if k in ("src", "href") and not re.match(r"data:|#", v)]

    def handle_data(self, data):
        if self._in:
            self.headings.append(data)
            self._in = False


def inspect(folder, run, out, *flags):
    few = ["--device", "cpu", "--workers", "1", "--examples", "2", "--clips", "4"]
    return ppma(["inspect", f"{folder}/runs/{run}", "--out", str(out), "--data", f"{folder}/data.toml", *few, *flags])


@pytest.mark.parametrize(
    ("run", "flags", "headings"),
    [
        ("mae", [], ["Reconstructions"]),
        ("finetune", ["--sources", "other"], ["Most confused pairs: made"]),
    ],
)
def test_the_page_holds_everything_and_refers_to_nothing_outside(tiny_runs, tmp_path, run, flags, headings):
    assert inspect(tiny_runs, run, tmp_path / "page.html", *flags) == 0
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    common = [
        "The run",
        "Clips as the model saw them",
        "Attention",
        "Nearest neighbors across sources",
        "Map of embeddings",
    ]
    assert set(common + headings) == set(page.headings)
    assert page.pictures >= 2 * 2 * 7 and not page.outside  # two queries of each of two sources, with six neighbors
    assert "<svg" in text and "by class" in text and "größer fallend" in text
    assert "trained on 12 clips of made" in text and "license made here (12)" in text


def test_another_data_set_of_the_name_is_refused(tiny_runs, tmp_path, capfd):
    for name in ("data.toml", "made_train.csv", "made_val.csv"):
        shutil.copy(tiny_runs / name, tmp_path / name)
    lines = (tmp_path / "made_val.csv").read_text().splitlines(keepends=True)
    (tmp_path / "made_val.csv").write_text("".join(lines[:-1]))
    for split in ("train", "val"):
        root = catalog.read(tiny_runs / "data.toml").entry("made", split).root
        manifest = tmp_path / f"made_{split}.csv"
        catalog.add(tmp_path / "data.toml", name="made", split=split, manifest=manifest, root=root)
    out = tmp_path / "page.html"
    assert inspect(tiny_runs, "finetune", out, "--data", str(tmp_path / "data.toml")) == 2
    assert "another made val" in capfd.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [(["--examples", "0"], "--examples"), (["--sources", "gone"], "gone"), (["--out", "nowhere/page.html"], "nowhere")],
)
def test_wrong_input(tiny_runs, tmp_path, capfd, flags, problem):
    assert inspect(tiny_runs, "mae", tmp_path / "page.html", *flags) == 2
    assert problem in capfd.readouterr().err and not list(tmp_path.iterdir())
