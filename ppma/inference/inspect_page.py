"""The page of `ppma inspect`: one HTML file with its pictures inside.

Section(title, what one sees, pictures or drawings)  ->  HTML
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import cv2
import numpy as np

from ppma.common.plots import STYLE

QUALITY = 88
"""Of JPEG: what a run makes of pixels is coarser than that."""
LARGEST = 1500
"""Pixels of a picture's long side; larger ones are scaled down, small ones up in whole steps, so that pixels stay what they are."""
MORE_STYLE = """
img { max-width: 100%; image-rendering: auto; display: block; margin: .3rem 0 } figure { margin: .4rem 0 1.2rem }
figcaption { font-size: 13px; color: #55626f } .row { display: flex; gap: 10px; flex-wrap: wrap; align-items: flex-start; margin: .4rem 0 }
.row figure { margin: 0; width: 116px } .row img { width: 112px } .row figure.query img { outline: 3px solid #1f6fb2 }
.row figcaption { font-size: 11px; line-height: 1.3; overflow-wrap: anywhere }
"""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page."""

    title: str
    note: str
    """What is shown and how it came about, in plain words."""
    body: str
    """HTML."""


def picture(pixels_HWC: np.ndarray, caption: str = "", kind: str = "") -> str:
    """An RGB picture as a figure with its file inside."""
    height, width = pixels_HWC.shape[:2]
    scale = min(1.0, LARGEST / max(height, width))
    if scale < 1:
        pixels_HWC = cv2.resize(pixels_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    elif max(height, width) * 2 <= LARGEST:
        times = min(4, LARGEST // max(height, width))
        pixels_HWC = pixels_HWC.repeat(times, axis=0).repeat(times, axis=1)
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    data = base64.b64encode(cv2.imencode(".jpg", cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2BGR), options)[1].tobytes())
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    css = f' class="{kind}"' if kind else ""
    return f'<figure{css}><img alt="{escape(caption)}" src="data:image/jpeg;base64,{data.decode()}">{words}</figure>\n'


def row(figures: Sequence[str]) -> str:
    """Small figures side by side."""
    return f'<div class="row">{"".join(figures)}</div>\n'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Words in columns."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>\n" for cells in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>\n'


def items(markdown: str) -> str:
    """A Markdown list of one level, with its `code` and **bold**."""
    lines = [escape(line.removeprefix("- ")) for line in markdown.splitlines() if line]
    for mark, tag in (("`", "code"), ("**", "b")):
        lines = [_between(line, mark, tag) for line in lines]
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>\n"


def _between(line: str, mark: str, tag: str) -> str:
    parts = line.split(mark)
    return "".join(f"<{tag}>{part}</{tag}>" if i % 2 else part for i, part in enumerate(parts))


def html(title: str, sections: Sequence[Section]) -> str:
    """The page."""
    contents = " · ".join(f'<a href="#s{i}">{escape(section.title)}</a>' for i, section in enumerate(sections))
    body = "".join(
        f'<h2 id="s{i}">{escape(section.title)}</h2>\n<p class="note">{escape(section.note)}</p>\n{section.body}'
        for i, section in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{MORE_STYLE}</style>\n<h1>{escape(title)}</h1>\n"
        f'<p class="note">{contents}</p>\n{body}</html>\n'
    )
