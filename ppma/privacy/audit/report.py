"""The audit as audit.json, and as one HTML page that needs nothing beside it.

findings and judgements  ->  content(): per clip, class and detector, with bounds  ->  html(): words, plots, tables, frames to be signed
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from html import escape
from typing import Any

from ppma import __version__
from ppma.common import statistics
from ppma.common.plots import STYLE, svg
from ppma.privacy.audit import audit_figures
from ppma.privacy.audit.clip import COLORS, NEAR_MISS, Findings
from ppma.privacy.audit.judge import SIGHTED, Judgement, by_class, summarize
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.verdict import CANNOT_TELL, FAILED, FORMAT, PASSED, VERDICTS

Judged = Sequence[tuple[Findings, Judgement]]

SHEET = 48
"""Frames on the contact sheet: of clips that failed, of those nobody can tell of, then of the others; the nearest to a hit first."""
WORDS = {PASSED: "ok", FAILED: "bad", CANNOT_TELL: "dim"}
OWN_STYLE = """
.cards { display: flex; gap: .8rem; flex-wrap: wrap; margin: 1rem 0 }
.card { border: 1px solid #d5dce3; border-radius: 6px; padding: .6rem 1rem; min-width: 8rem }
.card b { display: block; font-size: 1.6rem; line-height: 1.2 } .ok { color: #1d7a46 } .bad { color: #b3261e } .dim { color: #8a6100 }
td.says, th.says { text-align: left; white-space: normal; min-width: 16rem } ul { padding-left: 1.2rem }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: .7rem }
.sheet figure { margin: 0; break-inside: avoid } .sheet img { width: 100%; border: 1px solid #d5dce3; display: block }
figcaption { font-size: 11.5px; line-height: 1.35; overflow-wrap: anywhere }
.sign { border: 1px solid #9aa5b1; padding: .8rem 1rem; margin: 1rem 0; line-height: 2.2; break-inside: avoid }
.key span { margin-right: 1.2rem }
.key i { display: inline-block; width: .9rem; height: .6rem; margin-right: .3rem; border: 2px solid }
@media print { body { max-width: none; margin: 0 } details { display: none } }
"""


def content(
    judged: Judged, makers: Sequence[str], auditors: Sequence[str], frames: int, now: datetime
) -> dict[str, Any]:
    """What audit.json holds."""
    counts = Counter(judgement.verdict for _, judgement in judged)
    return {
        "format": FORMAT,
        "version": f"ppma {__version__}",
        "date": now.strftime("%Y-%m-%d"),
        "makers": list(makers),
        "auditors": list(auditors),
        "operating_points": {name: AUDITORS[name].threshold for name in auditors},
        "licences": {name: AUDITORS[name].license for name in auditors},
        "frames": frames,
        "confidence": statistics.CONFIDENCE,
        "verdicts": {name: counts[name] for name in VERDICTS},
        "rates": {name: asdict(rate) for name, rate in summarize(judged).items()},
        "classes": {
            name: {
                "verdicts": dict(Counter(judgement.verdict for _, judgement in clips)),
                "rates": {detector: asdict(rate) for detector, rate in summarize(clips).items()},
            }
            for name, clips in by_class(judged).items()
        },
        "clips": [_clip(findings, judgement) for findings, judgement in judged],
    }


def _clip(findings: Findings, judgement: Judgement) -> dict[str, Any]:
    detectors = {}
    for name, opinion in judgement.opinions.items():
        upper = statistics.upper_bound(opinion.hits_after, opinion.frames)
        scores = findings.detectors[name]
        detectors[name] = {
            **asdict(opinion), "upper_of_its_frames": upper, "best_before": max(scores.before, default=None),
            "best_after": max(scores.after, default=None),
        }  # fmt: skip
    return {
        "path": findings.path, "name": findings.name, "class_name": findings.class_name, "sha256": findings.sha256,
        "verdict": judgement.verdict, "says": judgement.says, "frames": findings.frames, "looked_at": findings.looked_at,
        "original": findings.original, "makers": findings.makers, "outside_db": findings.outside_db,
        "inside_change": findings.inside_change, "detectors": detectors,
        "checks": {name: asdict(check) for name, check in findings.checks.items()},
    }  # fmt: skip


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], last_is_words: bool = False) -> str:
    """Cells are HTML; the last column is prose when told so."""
    place = len(heads) - 1 if last_is_words else -1
    head = "".join(f"<th{' class=says' if i == place else ''}>{escape(cell)}</th>" for i, cell in enumerate(heads))
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=says' if i == place else ''}>{cell}</td>" for i, cell in enumerate(row))
        + "</tr>\n"
        for row in rows
    )
    return f"<div class=wide><table><tr>{head}</tr>\n{body}</table></div>\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _rates(rates: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, rate in rates.items():
        frames = (
            f"{_percent(rate['after'])} ({_percent(rate['low'])} to {_percent(rate['high'])})"
            if rate["frames"]
            else "-"
        )
        before = _percent(rate["before"]) if rate["frames"] else "-"
        what = "any of them" if name == "any" else f"{name} ({AUDITORS[name].finds}, {AUDITORS[name].threshold:g})"
        rows.append([escape(what), f"{rate['sighted']} of {rate['clips']}", before, frames, escape(rate["says"])])
    heads = ("detector (operating point)", "clips it can tell of", "frames hit before", "after (95 %)", "so")
    return _table(heads, rows, last_is_words=True)


def _classes(classes: dict[str, Any]) -> str:
    rows = []
    for name, found in classes.items():
        rate, counts = found["rates"]["any"], found["verdicts"]
        rows.append(
            [escape(name), *(str(counts.get(v, 0)) for v in VERDICTS), _percent(rate["upper"]), escape(rate["says"])]
        )
    return _table(("class", *VERDICTS, "at most", "by any detector"), rows, last_is_words=True)


def _checks(clips: Sequence[dict[str, Any]]) -> str:
    rows = []
    for name in clips[0]["checks"]:
        held = Counter(clip["checks"][name]["held"] for clip in clips)
        broken = [clip for clip in clips if clip["checks"][name]["held"] is False]
        says = (
            f"{broken[0]['name']}: {broken[0]['checks'][name]['says']}" if broken else clips[0]["checks"][name]["says"]
        )
        color = "bad" if held[False] else "ok" if held[True] else "dim"
        rows.append(
            [escape(name), str(held[True]), f"<span class={color}>{held[False]}</span>", str(held[None]), escape(says)]
        )
    return _table(("check", "holds", "broken", "not checked", "for instance"), rows, last_is_words=True)


def _clips(clips: Sequence[dict[str, Any]]) -> str:
    order = {FAILED: 0, CANNOT_TELL: 1, PASSED: 2}
    rows = [
        [
            escape(clip["name"]),
            f"<span class={WORDS[clip['verdict']]}>{clip['verdict']}</span>",
            *(f"{d['hits_before']} / {d['hits_after']} of {d['frames']}" for d in clip["detectors"].values()),
            "-" if clip["outside_db"] is None else f"{clip['outside_db']:.1f}",
            escape(clip["says"]),
        ]
        for clip in sorted(clips, key=lambda clip: (order[clip["verdict"]], clip["name"]))
    ]
    heads = ("clip", "verdict", *clips[0]["detectors"], "dB outside", "why")
    return f"<details open><summary>{len(clips)} clips: hits before / after</summary>{_table(heads, rows, last_is_words=True)}</details>\n"


def _nearness(findings: Findings) -> float:
    return max((max(s.after, default=0.0) / AUDITORS[n].threshold for n, s in findings.detectors.items()), default=0.0)


def _sheet(judged: Judged) -> str:
    order = {FAILED: 0, CANNOT_TELL: 1, PASSED: 2}
    worst = sorted(judged, key=lambda one: (order[one[1].verdict], -_nearness(one[0]), one[0].name))[:SHEET]
    figures = "".join(
        f'<figure><img alt="" src="data:image/jpeg;base64,{findings.picture}"><figcaption><b class={WORDS[judgement.verdict]}>'
        f"{judgement.verdict}</b> {escape(findings.name)}, frame {findings.worst_frame + 1}</figcaption></figure>\n"
        for findings, judgement in worst
    )
    keys = "".join(
        f'<span><i style="border-color:rgb{COLORS[name]}"></i>{escape(name)}</span>' for name in judged[0][0].detectors
    )
    return (
        f"<p class=note>The frame of each clip that most needs an eye, {len(worst)} of {len(judged)} clips. Boxes reach down to"
        f" {NEAR_MISS:.0%} of the operating point, so a box here need not be a hit. Originals are not shown.</p>\n"
        f"<p class='note key'>{keys}</p>\n"
        f"<div class=sheet>{figures}</div>\n<div class=sign>I have looked at these frames.<br>People, or parts of people, that I see: "
        "______________________________________________<br>Name: ______________________ Date: ______________ Signature: "
        "______________________</div>\n"
    )


def _limits(audit: dict[str, Any]) -> str:
    return (
        "<ul><li>It counts what detectors detect, at the operating points above. People whom none of them detects are not counted,"
        " and nothing here says that somebody cannot be recognised.</li>"
        f"<li>Detectors looked at {audit['frames'] or 'all'} frames of each clip, evenly spread; pixels were compared in all of them.</li>"
        "<li>Bounds are for clips like these. They say nothing about clips of another kind.</li>"
        f"<li>A detector that hits fewer than {_percent(SIGHTED)} of the original's frames cannot tell anything of that clip.</li>"
        "<li>Shadows, reflections, number plates, places, possessions and voices elsewhere are not looked for.</li></ul>\n"
    )


def html(judged: Judged, audit: dict[str, Any]) -> str:
    """The page."""
    cards = "".join(
        f"<div class=card><b class={WORDS[name]}>{audit['verdicts'][name]}</b>{name}</div>" for name in VERDICTS
    )
    frames = f"{audit['frames']} frames" if audit["frames"] else "all frames"
    lead = (
        f"{len(judged)} clips, {frames} of each looked at. Masks by {', '.join(audit['makers'])}; judged by"
        f" {', '.join(audit['auditors'])}, which took no part in them."
    )
    if not any(findings.original for findings, _ in judged):
        lead += (
            " There were no originals, so no clip can pass: nobody knows whether the detectors can see anything here."
        )
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
        f"<title>Privacy audit</title>\n<style>{STYLE}{OWN_STYLE}</style>\n<h1>Privacy audit, {audit['date']}</h1>\n"
        f"<p>{escape(lead)}</p>\n<div class=cards>{cards}</div>\n<p><b>{escape(audit['rates']['any']['says'])}.</b></p>\n"
        f"<h2>Before and after</h2>\n{svg(audit_figures.paired(audit['rates']))}\n{_rates(audit['rates'])}"
        f"<h2>Classes</h2>\n{svg(audit_figures.classes(audit['classes']))}\n{_classes(audit['classes'])}"
        f"<h2>Pixels and files</h2>\n{_checks(audit['clips'])}"
        f"<h2>Contact sheet</h2>\n{_sheet(judged)}<h2>Every clip</h2>\n{_clips(audit['clips'])}"
        f"<h2>What this cannot say</h2>\n{_limits(audit)}</html>\n"
    )
