"""What `ppma demo` found: from the scores of four probes to a table, figures, a TensorBoard page and a paragraph in plain words.

    seed*/probe-*/scores.npz  ->  right or wrong per clip and arm  ->  intervals and paired differences  ->  report/

Clips are what is drawn again in every bootstrap; over several seeds a clip's value is its mean over them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from ppma.common.statistics import Accuracy, bootstrap, paired_bootstrap, top_k_correct
from ppma.study import demo_figures


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An encoder that the probe is put on."""

    run: str
    """Its probe's run folder."""
    title: str
    init: str | None
    """The run whose encoder it is; none: random weights."""


ARMS = (
    Arm(run="probe-random", title="random weights", init=None),
    Arm(run="probe-scenes", title="stage 1 only", init="scenes"),
    Arm(run="probe-scratch", title="stage 2 from scratch", init="scratch"),
    Arm(run="probe-full", title="stage 1, then stage 2", init="actions"),
)
FULL = ARMS[-1]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    arm: Arm
    accuracy: Accuracy
    of_seeds: tuple[float, ...]
    behind: Accuracy | None
    """How much better the full method is on the same clips; None for itself."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All figures of a demo."""

    rows: tuple[Row, ...]
    clips: int
    classes: tuple[str, ...]
    confusion_KK: np.ndarray
    """Of the full method: share of the clips of a class (row) that are taken for another (column), mean over seeds."""

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / len(self.classes)


def _scores(out: Path, seed: int, arm: Arm) -> tuple[np.ndarray, np.ndarray]:
    with np.load(out / f"seed{seed}" / arm.run / "scores.npz") as found:
        return found["scores"], found["label"]


def find(out: Path, seeds: int, classes: Sequence[str]) -> Findings:
    """Read the scores of every arm and seed."""
    right: dict[Arm, np.ndarray] = {}
    confusion_KK = np.zeros((len(classes), len(classes)))
    for arm in ARMS:
        each = [_scores(out, seed, arm) for seed in range(seeds)]
        right[arm] = np.stack([top_k_correct(scores_VC, label_V, 1) for scores_VC, label_V in each])
        if arm is FULL:
            for scores_VC, label_V in each:
                np.add.at(confusion_KK, (label_V, scores_VC.argmax(axis=1)), 1)
    full_V = right[FULL].mean(axis=0)
    rows = tuple(
        Row(
            arm=arm,
            accuracy=bootstrap(right_SV.mean(axis=0)),
            of_seeds=tuple(float(value) for value in right_SV.mean(axis=1)),
            behind=None if arm is FULL else paired_bootstrap(full_V, right_SV.mean(axis=0)),
        )
        for arm, right_SV in right.items()
    )
    share_KK = confusion_KK / confusion_KK.sum(axis=1, keepdims=True)
    return Findings(rows=rows, clips=len(full_V), classes=tuple(classes), confusion_KK=share_KK)


def _percent(value: Accuracy, *, signed: bool = False) -> str:
    form = "{:+.1f}" if signed else "{:.1f}"
    middle, low, high = (form.format(100 * number) for number in (value.value, value.low, value.high))
    return f"{middle} ({low} to {high})"


HEAD = ("encoder under the probe", "top-1, % (95 %)", "full method better by, points (95 %)")


def _cells(row: Row) -> tuple[str, str, str]:
    seeds = f" [{', '.join(f'{100 * value:.1f}' for value in row.of_seeds)}]" if len(row.of_seeds) > 1 else ""
    name = f"{row.arm.title} (full method)" if row.arm is FULL else row.arm.title
    return name, _percent(row.accuracy) + seeds, "" if row.behind is None else _percent(row.behind, signed=True)


def _lines(findings: Findings) -> list[tuple[str, str, str]]:
    chance = (f"chance, {len(findings.classes)} actions", f"{100 * findings.chance:.1f}", "")
    return [chance, *(_cells(row) for row in findings.rows)]


def markdown(findings: Findings) -> str:
    """The table as Markdown."""
    body = [HEAD, ("---", "---", "---"), *_lines(findings)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in body)


def _verdict(row: Row) -> str:
    assert row.behind is not None
    if row.behind.low > 0:
        return f"better than {row.arm.title}"
    return f"worse than {row.arm.title}" if row.behind.high < 0 else f"not significantly different from {row.arm.title}"


def closing(findings: Findings, *, own_videos: bool) -> str:
    """In plain words: what was shown, what was not, what to type next."""
    verdicts = ", ".join(_verdict(row) for row in findings.rows if row.behind is not None)
    full = findings.rows[-1].accuracy
    scenes = (
        "your clips, taken as human-removed on your word," if own_videos else "drawn scenes without anybody in them"
    )
    return (
        f"What was shown: an encoder that saw {scenes} and virtual people doing other actions, and no real human, names"
        f" {len(findings.classes)} actions that are new to it in {100 * full.value:.0f} of 100 clips, where guessing gets"
        f" {100 * findings.chance:.0f}. The clips show virtual people, cameras and backgrounds that it never saw. Over"
        f" {findings.clips} of them it is {verdicts} (95 % intervals of the paired difference). All people here are drawn:"
        " nothing was shown about real ones. That takes real footage with the humans removed, more clips, and a larger model.\n"
        "What to type next, with your own human-removed clips in DIR/<class>/:\n"
        "    make demo VIDEOS=DIR\n"
        "    ppma index DIR --out nohuman.csv --name no-human-kinetics --domain human-removed\n"
        "    ppma train mae_nohuman --model tiny --optim.epochs 20\n"
        "    python slurm/launch.py pretrain --nodes 8          (the paper's run, on a cluster)"
    )


def write_report(
    out: Path, seeds: int, classes: Sequence[str], *, own_videos: bool, console: Console | None = None
) -> Findings:
    """Write `report/` below `out`: table.md, findings.json, four figures and a TensorBoard page; print table and paragraph."""
    findings = find(out, seeds, classes)
    folder = out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    words = closing(findings, own_videos=own_videos)
    (folder / "table.md").write_text(markdown(findings))
    (folder / "closing.txt").write_text(words + "\n")
    facts = {"clips": findings.clips, "seeds": seeds, "classes": findings.classes, "chance": findings.chance}
    rows = [asdict(row) for row in findings.rows]
    (folder / "findings.json").write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")
    bars = [(row.arm.title, row.accuracy) for row in findings.rows]
    figures = {
        "accuracy": demo_figures.accuracy(bars, findings.chance, findings.clips),
        "confusion": demo_figures.confusion(findings.confusion_KK, findings.classes),
        "clips": demo_figures.clips(out, own_videos=own_videos),
        "reconstructions": demo_figures.reconstructions(out),
    }
    with SummaryWriter(str(folder)) as writer:
        for name, figure in figures.items():
            writer.add_image(name, demo_figures.save(figure, folder / f"{name}.png"), dataformats="HWC")
        for row in findings.rows:
            writer.add_scalar(f"transfer/{row.arm.title}", row.accuracy.value)
        writer.add_text("table", markdown(findings))
        writer.add_text("closing", words)
    _show(findings, words, console or Console(highlight=False))
    return findings


def _show(findings: Findings, words: str, console: Console) -> None:
    table = Table(title=f"Linear probe on {findings.clips} clips of unseen people")
    for number, title in enumerate(HEAD):
        table.add_column(title, justify="left" if number == 0 else "right")
    for cells in _lines(findings):
        table.add_row(*cells)
    console.print(table)
    console.print("\n" + words + "\n", soft_wrap=True, markup=False)
