"""Measure which labeled people the detectors of `ppma remove-humans` and `ppma audit` find in real frames.

    labels + clips (found by hash)  ->  boxes of each detector from FLOOR  ->  score of each person, stray score of each frame
        ->  points chosen on one half of the clips  ->  recall by visible height and false alarms on the other half

    labels + masks of `ppma remove-humans` (--cleaned)  ->  share of each person's core that is hidden

    python benchmarks/person_recall.py --videos /data/clips --cleaned /data/removed --plot roc.png

The labels (tests/privacy/data/labeled_people.json) hold numbers only and assign each clip to a half; no clip is in both.
A body box detects the person with the highest intersection over union (IoU), if that is at least LEAST_IOU; a face box
the person whose box holds its center. One box detects one person, the best box first. A box is stray if less than a
tenth of it is on labels. A point is chosen as the lowest at which at most MOST_STRAY of the frames have a stray box.
A person is hidden if the mask covers HIDDEN of the ellipse that the audit takes for a body's core. False alarms are
counted in all labeled frames, and in stretches without people: their frames look alike, so the stretch is the unit.
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
from ppma.privacy.audit.follow import Follower, keep_detections
from ppma.privacy.audit.people import CORE_HEIGHT, CORE_WIDTH
from ppma.privacy.detectors import auditors
from ppma.privacy.detectors.boxes import NONE_05
from ppma.privacy.detectors.weights import default_folder
from ppma.privacy.removal import plugins
from ppma.privacy.removal.figures import draw_ellipses
from ppma.privacy.removal.writing import target

LABELS = Path(__file__).resolve().parents[1] / "tests/privacy/data/labeled_people.json"
FLOOR = 0.1
"""Least score that is kept; curves end there."""
POINTS = np.arange(FLOOR, 2.0, 0.05).round(2)
"""Candidate points; scores of hog exceed 1."""
LEAST_IOU = 0.3
"""Labels end at the visible part of a body, boxes of detectors often at the whole one."""
MOST_STRAY = 0.01
"""Budget of one detector, so that several together stay at some percent."""
FOLLOWING = "any auditor, people followed"
"""As `ppma audit` takes people of the original: at the product's points, or followed from another labeled frame."""
HIDDEN = 0.9
"""Share of a body's core under the mask from which on a person is hidden."""
HEIGHTS = {"<24": (0, 24), "24-48": (24, 48), "48-96": (48, 96), "96+": (96, np.inf), "48+": (48, np.inf)}
"""Classes of visible height in pixels: from, below."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(rows.ReportConfig):
    """Measure recall and false alarms of all person and face detectors on labeled frames."""

    videos: Path
    """Folder that holds the labeled clips, under any names."""
    cleaned: Path | None = None
    """Folder that `ppma remove-humans` wrote from these clips: adds what its masks hide, with all tracking."""
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
    hidden_P: np.ndarray
    """Share of the core under the mask; NaN without a mask."""
    report_F: np.ndarray
    """True in the half on which recall is reported, False in the half on which points are chosen."""
    labeled_F: np.ndarray
    """False in a frame of a stretch without people that is not among the evenly spaced ones."""
    stretch_F: np.ndarray
    """Number of the stretch without people, 0 outside."""
    people: dict[str, np.ndarray]
    """Score of the box that detects each person, by detector, and for FOLLOWING."""
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
    """Return the detectors of the remover's default set and the auditors whose weights are bundled, at FLOOR."""
    found = {}
    for name in plugins.SETS["default"].detectors:
        detect = plugins.PLUGINS[name].load(folder)
        found[name] = Tool(user="remover", finds=plugins.PLUGINS[name].finds, detect=detect, point=detect.threshold)
        detect.threshold = FLOOR
    for name in auditors.BUNDLED:
        kind, detect = auditors.AUDITORS[name], auditors.load(name, folder, FLOOR)
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


def read_masks(folder: Path, paths: dict[str, Path]) -> dict[str, dict[float, np.ndarray]]:
    """Return the mask of each frame that `ppma remove-humans` cleaned, as packed bits by clip and time in seconds.

    Raises:
        InputError: The folder has no record of a labeled clip.
    """
    masks: dict[str, dict[float, np.ndarray]] = {sha256: {} for sha256 in paths}
    named = {path.name: sha256 for sha256, path in paths.items()}
    for file in sorted((folder / "records").rglob("*.json")):
        with reading(file, "record"):
            record = loads(file.read_text(encoding="utf-8"))
            name, row, layout = Path(record["source"]).name, record["row"], record["settings"]["layout"]
            start, end = (row[key] for key in ("start_seconds", "end_seconds"))
        if name in named:
            window = all_frames(paths[named[name]], start or 0.0, float("inf") if end is None else end)
            hidden = all_frames(target(folder, "seg", record["name"], layout), 0.0, float("inf"))
            pairs = zip(window, hidden, strict=True)
            masks[named[name]] |= {
                time: np.packbits(mask_HWC[..., 0] > 127, axis=1) for (time, _), (_, mask_HWC) in pairs
            }
    if not any(masks.values()):
        raise InputError(f"--cleaned {folder} has no record of a labeled clip; give what `ppma remove-humans` wrote")
    return masks


def hidden_share(box: list[float], bits_Hw: np.ndarray | None, width: int) -> float:
    """Return the share of the core of a box that is under a mask (packed bits), NaN without a mask."""
    if bits_Hw is None:
        return float("nan")
    core_HW = np.zeros((len(bits_Hw), width), np.uint8)
    draw_ellipses(core_HW, np.array([box]), CORE_WIDTH / 2, CORE_HEIGHT / 2)
    return float(np.unpackbits(bits_Hw, axis=1, count=width)[core_HW > 0].mean())


def stretches(clip: dict[str, Any]) -> list[range]:
    """Return the frame numbers of each stretch without people."""
    return [range(first, last + 1, step) for first, last, step in clip.get("empty", [])]


Boxes = dict[str, np.ndarray]
"""Boxes_N5 of each detector in a frame."""


def detect_clip(clip: dict[str, Any], path: Path, used: dict[str, Tool]) -> Iterator[tuple[int, float, Boxes, Boxes]]:
    """Run every detector on the labeled frames of a clip and on its stretches without people.

    Yields:
        Number and time of a frame, boxes from FLOOR on, and those of auditors that count at the product's points if
        people are followed from one labeled frame to the next.
    """
    wanted = {int(number) for number in clip["frames"]} | {n for stretch in stretches(clip) for n in stretch}
    points = {name: tool.point for name, tool in used.items() if tool.user == "auditor" and tool.finds == "person"}
    follower, seen = Follower(points), dict[int, tuple[float, Boxes, list[np.ndarray]]]()
    last: int | None = None
    for at, (time, frame_HWC) in zip(range(max(wanted) + 1), all_frames(path, 0.0, float("inf"))):
        if at in wanted:
            found = {name: tool.detect(frame_HWC).astype(np.float64) for name, tool in used.items()}
            for boxes_N5 in found.values():
                boxes_N5[:, :4] = np.clip(boxes_N5[:, :4], 0, [*frame_HWC.shape[1::-1]] * 2)
            seen[at] = time, found, [NONE_05]
        if str(at) not in clip["frames"]:
            follower.skip(frame_HWC)
            continue
        arrived_N5, back_N5 = follower.stop(frame_HWC, seen[at][1])
        seen[at][2].append(arrived_N5)
        if last is not None:
            seen[last][2].append(back_N5)
        last = at
    for at, (time, found, followed) in seen.items():
        yield at, time, found, keep_detections(found, points, np.concatenate(followed))


def detect_all(
    clips: dict[str, Any], paths: dict[str, Path], used: dict[str, Tool], masks: dict[str, dict[float, np.ndarray]]
) -> Results:
    """Run every detector on every labeled frame."""
    people: list[list[float]] = []
    frames: list[list[float]] = []
    before = 0
    for sha256, clip in clips.items():
        report = clip["half"] == "report"
        for at, time, found, counted in detect_clip(clip, paths[sha256], used):
            labels = clip["frames"].get(str(at), [])
            stretch = next((before + n for n, numbers in enumerate(stretches(clip), 1) if at in numbers), 0)
            labels_L4 = np.array([label[:4] for label in labels], np.float64).reshape(-1, 4)
            matched = [match(found[name], labels_L4, tool.finds) for name, tool in used.items()]
            each = [match(boxes_N5, labels_L4, "person") for boxes_N5 in counted.values()]
            matched.append((np.max([scores_L for scores_L, _ in each], 0), max(stray for _, stray in each)))
            frames.append([report, str(at) in clip["frames"], stretch, *(stray for _, stray in matched)])
            bits_Hw = masks.get(sha256, {}).get(time)
            for number, (*box, _, flags) in enumerate(labels):
                if not set("crp") & set(flags):
                    hidden = hidden_share(box, bits_Hw, clip["size"][0])
                    people.append([box[3] - box[1], report, hidden, *(scores_L[number] for scores_L, _ in matched)])
        before += len(stretches(clip))
    height_P, report_P, hidden_P, *scores = np.array(people).T
    report_F, labeled_F, stretch_F, *stray = np.array(frames).T
    return Results(
        height_P=height_P, report_P=report_P > 0, hidden_P=hidden_P, report_F=report_F > 0, labeled_F=labeled_F > 0,
        stretch_F=stretch_F.astype(int), people=dict(zip((*used, FOLLOWING), scores)),
        stray=dict(zip((*used, FOLLOWING), stray)),
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


def row(
    seen: Results, report: bool, found_P: np.ndarray, counted_P: np.ndarray, stray_F: np.ndarray | None
) -> rows.Row:
    """Return recall by height, of the people of a half who count, and its shares of places with a stray box."""
    used_P = counted_P & (seen.report_P == report)
    classes = {k: used_P & (seen.height_P >= low) & (seen.height_P < high) for k, (low, high) in HEIGHTS.items()}
    cells = {"half": "report" if report else "choose"} | {k: share(found_P[c_P]) for k, c_P in classes.items()}
    if stray_F is None:
        return cells
    empty_F = (seen.stretch_F > 0) & (seen.report_F == report)
    hit = [stray_F[seen.stretch_F == number].any() for number in np.unique(seen.stretch_F[empty_F])]
    strays = {"stray_in_empty": stray_F[empty_F], "stray_in_stretches": np.array(hit)}
    strays["stray_in_all"] = stray_F[seen.labeled_F & (seen.report_F == report)]
    return cells | {name: share(hits) for name, hits in strays.items()}


def measure(seen: Results, used: dict[str, Tool]) -> list[rows.Row]:
    """Return a row for each detector and for each group of them, at the product's points and at chosen ones."""
    measured, all_P, masked_P = [], np.ones_like(seen.report_P), ~np.isnan(seen.hidden_P)
    for kind, report in (("product", False), ("product", True), ("chosen", True)):
        chosen = {n: choose(seen.stray[n][seen.labeled_F & ~seen.report_F]) for n in used}
        at = {n: tool.point if kind == "product" else chosen[n] for n, tool in used.items()}
        found, stray = ({n: scores[n] >= at[n] for n in used} for scores in (seen.people, seen.stray))
        part = {n: row(seen, report, found[n], all_P, stray[n]) | {"point": at[n]} for n in used}
        for user in ("remover", "auditor"):
            found[user], stray[user] = (np.any([b[n] for n in used if used[n].user == user], 0) for b in (found, stray))
            part[f"any {user}"] = row(seen, report, found[user], all_P, stray[user])
        part["any auditor, missed by remover"] = row(seen, report, found["auditor"], ~found["remover"], None)
        if kind == "product":
            over_P, over_F = (
                a | (b[FOLLOWING] > 0) for a, b in ((found["auditor"], seen.people), (stray["auditor"], seen.stray))
            )
            part[FOLLOWING] = row(seen, report, over_P, all_P, over_F)
            part[f"{FOLLOWING}, missed by remover"] = row(seen, report, over_P, ~found["remover"], None)
        if masked_P.any():
            hidden_P = masked_P & (seen.hidden_P >= HIDDEN)
            part["any remover, where cleaned"] = row(seen, report, found["remover"], masked_P, None)
            part["masks of the remover"] = row(seen, report, hidden_P, masked_P, None)
            part["any auditor, not under a mask"] = row(seen, report, found["auditor"], masked_P & ~hidden_P, None)
        measured += [{"detector": name, "points": kind, "point": None, **cells} for name, cells in part.items()]
    return measured


def plot(seen: Results, used: dict[str, Tool], file: Path) -> None:
    """Plot recall from 48 pixels over the share of frames with a stray box, on the reporting half."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes, large_P = figure.subplots(), seen.report_P & (seen.height_P >= 48)
    for name, tool in used.items():
        stray_F, people_P = seen.stray[name][seen.report_F & seen.labeled_F], seen.people[name][large_P]
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
    masks = read_masks(config.cleaned, paths) if config.cleaned else {}
    seen = detect_all(clips, paths, used, masks)
    rows.report(measure(seen, used), replace(config, plot=None), benchmark="person_recall", measure="point")
    if config.plot:
        plot(seen, used, config.plot)
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="benchmarks/person_recall.py"))
