"""Make the pictures of docs/gallery.md: python docs/gallery/make.py runs/demo

The argument is the folder of a `ppma demo`. It needs chromium, and the models of `ppma privacy fetch`. All people are virtual.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import ppma
from ppma.cli import main as command
from ppma.common.video import video_writer
from ppma.privacy.plant.clip import Planted, design, plant

HERE = Path(__file__).parent
BODIES = (4, 12)
"""Numbers of planted clips with people of 96 pixels."""
FPS, PORT, WIDTH = 5.0, 6066, 1000


def save(picture: Image.Image, name: str) -> None:
    """Write a PNG of at most 800 pixels across and 256 colors, the rare ones too, a third of its size."""
    picture = picture.convert("RGB")
    picture.thumbnail((800, 2000))
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1).save(HERE / f"{name}.png", optimize=True)


def photograph(address: str, name: str, height: int, *, top: int = 0, seconds: int = 10) -> None:
    """Write what a browser shows of a page, from `top` on."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"]
        flags += [
            f"--window-size={WIDTH},{top + height}",
            f"--virtual-time-budget={1000 * seconds}",
            f"--screenshot={shot}",
        ]
        subprocess.run(["chromium", *flags, address], check=True, capture_output=True)
        save(Image.open(shot).crop((0, top, WIDTH, top + height)), name)


def run(*words: object, codes: tuple[int, ...] = (0,)) -> None:
    """Run a command of ppma."""
    found = command(list(map(str, words)))
    if found not in codes:
        sys.exit(f"ppma {words[0]} ended with {found}")


def removal(planted: Planted) -> None:
    """Show a frame before and after the removal, and the place without people as it was rendered."""
    cleaned, middle = ppma.remove_humans(planted.frames_TPP3, fps=FPS), len(planted.frames_TPP3) // 2
    row = [frames[middle] for frames in (planted.frames_TPP3, cleaned, planted.empty_TPP3)]
    save(Image.fromarray(np.concatenate(row, axis=1)), "removal")


def audit(clips: list[Planted], folder: Path) -> None:
    """Show the report of an audit of removed virtual people."""
    for planted in clips:
        path = folder / "videos" / f"{planted.design.name}.mp4"
        with video_writer(path, fps=FPS, options={"crf": "16"}) as add:
            for frame_PP3 in planted.frames_TPP3:
                add(frame_PP3)
    run("remove-humans", folder / "videos", "--out", folder / "removed", codes=(0, 3))
    run("audit", folder / "removed", "--originals", folder / "videos", "--out", folder / "report", codes=(0, 3))
    photograph((folder / "report/report.html").as_uri(), "audit", 1500)


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Serve the curves of runs, and yield their address."""
    flags = ["--logdir", str(folder), "--port", str(PORT), "--load_fast=false"]
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *flags], stderr=subprocess.DEVNULL)
    address = f"http://localhost:{PORT}"
    try:
        for _ in range(120):
            time.sleep(1)
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/data/runs", timeout=5).close()
                break
        yield address
    finally:
        server.terminate()


def main(demo: Path) -> None:
    """Make all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        clips = [plant(design(n, seed=3, size=256, frames=12, long_frames=12, fps=FPS, plates=())) for n in BODIES]
        removal(clips[0])
        audit(clips, Path(folder))
        stage1 = next((demo / "runs").glob("scenes-s0-*"))
        page = Path(folder) / "inspect.html"
        with contextlib.chdir(demo):  # the page names paths as they were given
            found = stage1.relative_to(demo)
            run("inspect", found, "--data", "data.toml", "--sources", "actions", "--clips", "60", "--out", page)
        photograph(page.as_uri(), "inspect", 730, top=1200)
    photograph((HERE.parent / "small-study/report/report.html").as_uri(), "report", 1300)
    with tensorboard(demo / "runs") as address:
        photograph(f"{address}/#timeseries", "tensorboard", 900, seconds=40)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
