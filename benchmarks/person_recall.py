"""Measure which labeled people the detectors of `ppma remove-humans` and `ppma audit` find in real frames.

    labels + clips (found by hash)  ->  boxes of each detector from FLOOR  ->  score of each person, stray score of each frame
        ->  points chosen on one half of the clips  ->  recall by visible height and false alarms on the other half

    python benchmarks/person_recall.py --videos /data/clips --plot roc.png

The labels (tests/privacy/data/labeled_people.json) hold numbers only and assign each clip to a half; no clip is in both.
A body box detects the person with the highest intersection over union (IoU), if that is at least LEAST_IOU; a face box
the person whose box holds its center. One box detects one person, the best box first. A box is stray if less than a
tenth of it is on labels. A point is chosen as the lowest at which at most MOST_STRAY of the frames have a stray box.
Legend: H height, W width, N boxes, L labels of a frame, P people and F frames of all clips.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from json import loads
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import rows
from ppma.common.files import content_sha256
from ppma.common.statistics import wilson
from ppma.config.command import DONE, parse, run
from ppma.config.errors import InputError, reading
from ppma.loaders.decode.fetch import all_frames
from ppma.privacy.detectors import auditors
from ppma.privacy.detectors.weights import default_folder
from ppma.privacy.removal import plugins

LABELS = Path(__file__).resolve().parents[1] / "tests/privacy/data/labeled_people.json"
FLOOR = 0.1
"""Least score that is kept; curves end there."""
POINTS = np.arange(FLOOR, 2.0, 0.05).round(2)
"""Candidate points; scores of hog exceed 1."""
LEAST_IOU = 0.3
"""Labels end at the visible part of a body, boxes of detectors often at the whole one."""
MOST_STRAY = 0.01
"""Budget of one detector, so that several together stay at some percent."""
HEIGHTS = {"<24": (0, 24), "24-48": (24, 48), "48-96": (48, 96), "96+": (96, np.inf), "48+": (48, np.inf)}
"""Classes of visible height in pixels: from, below."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(rows.ReportConfig):
    """Measure recall and false alarms of all person and face detectors on labeled frames."""

    videos: Path
    """Folder that holds the labeled clips, under any names."""
    weights: Path = field(default_factory=default_folder)
    """Folder of the models (`ppma privacy fetch` fills it)."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A detector, who uses it, and its operating point in the product."""

    user: str
    finds: str
    detect: Callable[[np.ndarray], np.ndarray]
    point: float


@dataclass(frozen=True, kw_only=True)
class Results:
    """People and frames of all clips, and what each detector found in them: 0 stands for nothing from FLOOR up."""

    height_P: np.ndarray
    report_P: np.ndarray
    report_F: np.ndarray
    """True in the half on which recall is reported, False in the half on which points are chosen."""
    empty_F: np.ndarray
    people: dict[str, np.ndarray]
    """Score of the box that detects each person."""
    stray: dict[str, np.ndarray]
    """Highest score of a stray box in each frame."""


def read_labels(path: Path = LABELS) -> dict[str, Any]:
    """Return the labeled clips by the SHA-256 of their content."""
    with reading(path, "labels"):
        return dict(loads(path.read_text(encoding="utf-8"))["clips"])


def find_clips(folder: Path, wanted: dict[str, Any]) -> dict[str, Path]:
    """Return the path of each labeled clip, a video or a folder of JPEG frames.

    Raises:
        InputError: The folder is missing or lacks a clip.
    """
    if not folder.is_dir():
        raise InputError(f"--videos {folder} is not a folder; give the one that holds the labeled clips")
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".jpg"]
    found = {content_sha256(path): path for path in files + sorted({p.parent for p in folder.rglob("*.jpg")})}
    if missing := [clip["name"] for sha256, clip in wanted.items() if sha256 not in found]:
        raise InputError(f"--videos {folder} lacks the labeled clips {', '.join(missing)}; add them, under any names")
    return {sha256: found[sha256] for sha256 in wanted}


def tools(folder: Path) -> dict[str, Tool]:
    """Return the detectors of the remover's default set and all auditors, at FLOOR."""
    found = {}
    for name in plugins.SETS["default"].detectors:
        detect = plugins.load(name, folder)
        found[name] = Tool(user="remover", finds=plugins.PLUGINS[name].finds, detect=detect, point=detect.threshold)
        detect.threshold = FLOOR
    for name, kind in auditors.AUDITORS.items():
        detect = auditors.load(name, folder, FLOOR)
        found[name] = Tool(user="auditor", finds=kind.finds, detect=detect, point=kind.threshold)
    return found


def match(boxes_N5: np.ndarray, labels_L4: np.ndarray, finds: str) -> tuple[np.ndarray, float]:
    """Match boxes with labels, the best box first.

    Args:
        boxes_N5: x0, y0, x1, y1, score, within the frame.
        labels_L4: Boxes of the visible parts of people.
        finds: person or face.

    Returns:
        scores_L, the score of the box that detects each label (0: none), and the highest score of a stray box.
    """
    scores_L, stray = np.zeros(len(labels_L4)), 0.0
    areas_L = np.prod(labels_L4[:, 2:] - labels_L4[:, :2], axis=1)
    for x0, y0, x1, y1, score in boxes_N5[np.argsort(-boxes_N5[:, 4])].tolist():
        area, center = max((x1 - x0) * (y1 - y0), 1e-6), [(x0 + x1) / 2, (y0 + y1) / 2]
        sides_L2 = np.minimum(labels_L4[:, 2:], [x1, y1]) - np.maximum(labels_L4[:, :2], [x0, y0])
        shared_L = np.prod(np.clip(sides_L2, 0, None), axis=1)
        iou_L = np.where(scores_L > 0, 0, shared_L / (areas_L + area - shared_L))
        if finds == "face":
            iou_L *= ((labels_L4[:, :2] <= center) & (labels_L4[:, 2:] >= center)).all(1)
        if iou_L.max(initial=0) >= (LEAST_IOU if finds == "person" else 1e-9):
            scores_L[iou_L.argmax()] = score
        elif shared_L.max(initial=0) < area / 10:
            stray = max(stray, score)
    return scores_L, stray


def labeled_frames(clips: dict[str, Any], paths: dict[str, Path]) -> Iterator[tuple[str, np.ndarray, list[Any]]]:
    """Yield (half, frame_HWC, labels) of every labeled frame."""
    for sha256, clip in clips.items():
        frames = all_frames(paths[sha256], 0.0, float("inf"))
        for number, (_, frame_HWC) in zip(range(max(map(int, clip["frames"])) + 1), frames):
            if (labels := clip["frames"].get(str(number))) is not None:
                yield clip["half"], frame_HWC, labels


def detect_all(clips: dict[str, Any], paths: dict[str, Path], used: dict[str, Tool]) -> Results:
    """Run every detector on every labeled frame."""
    people: list[list[float]] = []
    frames: list[list[float]] = []
    for half, frame_HWC, labels in labeled_frames(clips, paths):
        labels_L4 = np.array([label[:4] for label in labels], np.float64).reshape(-1, 4)
        matched = []
        for tool in used.values():
            boxes_N5 = tool.detect(frame_HWC).astype(np.float64)
            boxes_N5[:, :4] = np.clip(boxes_N5[:, :4], 0, [*frame_HWC.shape[1::-1]] * 2)
            matched.append(match(boxes_N5, labels_L4, tool.finds))
        report = half == "report"
        frames.append([report, not labels, *(stray for _, stray in matched)])
        for number, (_, y0, _, y1, _, flags) in enumerate(labels):
            if not set("crp") & set(flags):
                people.append([y1 - y0, report, *(scores_L[number] for scores_L, _ in matched)])
    height_P, report_P, *scores = np.array(people).T
    report_F, empty_F, *stray = np.array(frames).T
    return Results(
        height_P=height_P, report_P=report_P > 0, report_F=report_F > 0, empty_F=empty_F > 0,
        people=dict(zip(used, scores)), stray=dict(zip(used, stray)),
    )  # fmt: skip


def choose(stray_F: np.ndarray) -> float:
    """Return the lowest of POINTS at which at most MOST_STRAY of the frames have a stray box."""
    return float(next(point for point in POINTS if (stray_F >= point).mean() <= MOST_STRAY or point == POINTS[-1]))


def share(hit: np.ndarray) -> str:
    """Return a share with its count and 95 % interval (Wilson)."""
    if not len(hit):
        return "-"
    found = wilson(int(hit.sum()), len(hit))
    return f"{found.value:.2f} ({found.low:.2f}-{found.high:.2f}) of {len(hit)}"


def row(seen: Results, report: bool, found_P: np.ndarray, stray_F: np.ndarray, counted_P: np.ndarray) -> rows.Row:
    """Return recall by height, of the people of a half who count, and its shares of frames with a stray box."""
    used_P, used_F = counted_P & (seen.report_P == report), seen.report_F == report
    classes = {k: used_P & (seen.height_P >= low) & (seen.height_P < high) for k, (low, high) in HEIGHTS.items()}
    strays = {"stray_in_empty": share(stray_F[used_F & seen.empty_F]), "stray_in_all": share(stray_F[used_F])}
    return {"half": "report" if report else "choose"} | {k: share(found_P[c_P]) for k, c_P in classes.items()} | strays


def measure(seen: Results, used: dict[str, Tool]) -> list[rows.Row]:
    """Return a row for each detector and for each group of them, at the product's points and at chosen ones."""
    measured, all_P = [], np.ones_like(seen.report_P)
    for kind, report in (("product", False), ("product", True), ("chosen", True)):
        at = {n: tool.point if kind == "product" else choose(seen.stray[n][~seen.report_F]) for n, tool in used.items()}
        found, stray = ({n: scores[n] >= at[n] for n in used} for scores in (seen.people, seen.stray))
        part = {n: row(seen, report, found[n], stray[n], all_P) | {"point": at[n]} for n in used}
        for user in ("remover", "auditor"):
            found[user], stray[user] = (np.any([b[n] for n in used if used[n].user == user], 0) for b in (found, stray))
            part[f"any {user}"] = row(seen, report, found[user], stray[user], all_P)
        part["any auditor, missed by remover"] = row(
            seen, report, found["auditor"], stray["auditor"], ~found["remover"]
        )
        measured += [{"detector": name, "points": kind, "point": None, **cells} for name, cells in part.items()]
    return measured


def plot(seen: Results, used: dict[str, Tool], file: Path) -> None:
    """Plot recall from 48 pixels over the share of frames with a stray box, on the reporting half."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes, large_P = figure.subplots(), seen.report_P & (seen.height_P >= 48)
    for name, tool in used.items():
        stray_F, people_P = seen.stray[name][seen.report_F], seen.people[name][large_P]
        x, y = ([100 * (scores >= point).mean() for point in (*POINTS, tool.point)] for scores in (stray_F, people_P))
        (line,) = axes.plot(x[:-1], y[:-1], "-" if tool.user == "auditor" else "--", label=f"{name} ({tool.user})")
        axes.plot(x[-1], y[-1], "o", color=line.get_color())  # the product's point
    axes.set(xlabel="frames with a stray box, %", ylabel="recall of people from 48 pixels, %", xlim=(-1, 40))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=120)


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    config = parse(BenchmarkConfig, argv, prog="benchmarks/person_recall.py")
    clips = read_labels()
    paths = find_clips(config.videos, clips)
    used = tools(config.weights)
    seen = detect_all(clips, paths, used)
    rows.report(measure(seen, used), replace(config, plot=None), benchmark="person_recall", measure="point")
    if config.plot:
        plot(seen, used, config.plot)
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="benchmarks/person_recall.py"))
