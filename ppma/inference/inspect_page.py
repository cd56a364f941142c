"""The HTML page of `ppma inspect`: one file with its pictures inside.

Section(title, note, groups of pictures, a table, a list or an SVG)  ->  HTML
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from markupsafe import Markup, escape

from ppma.common.pages import render
from ppma.common.plots import STYLE

QUALITY = 88
"""JPEG quality of the pictures."""
MAX_SIDE = 1500
"""Longest side of a picture in pixels; larger ones are scaled down, small ones up by a whole factor, which keeps the pixels sharp."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An RGB picture with its caption."""

    pixels_HWC: np.ndarray
    caption: str = ""
    kind: str = ""
    """CSS class."""

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        pixels_HWC = self.pixels_HWC
        side = max(pixels_HWC.shape[:2])
        if side > MAX_SIDE:
            scale = MAX_SIDE / side
            pixels_HWC = cv2.resize(pixels_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        times = min(4, max(1, MAX_SIDE // side))
        pixels_HWC = pixels_HWC.repeat(times, axis=0).repeat(times, axis=1)
        options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        jpeg = cv2.imencode(".jpg", cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2BGR), options)[1]
        return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pictures with an optional heading."""

    pictures: Sequence[Picture]
    heading: str = ""
    small: bool = False
    """Show them as a row of small pictures."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page."""

    title: str
    note: str
    """What is shown and how it was made, in plain words."""
    groups: Sequence[Group] = ()
    rows: Sequence[tuple[str, str]] = ()
    """A table of two columns."""
    markdown: str = ""
    """A Markdown list of one level with `code` and **bold**, under the heading `list_heading`."""
    list_heading: str = ""
    svg: str = ""

    @property
    def items(self) -> list[Markup]:
        """The items of the Markdown list as HTML."""
        lines = [str(escape(line.removeprefix("- "))) for line in self.markdown.splitlines() if line]
        lines = [re.sub(r"`(.*?)`", r"<code>\1</code>", line) for line in lines]
        return [Markup(re.sub(r"\*\*(.*?)\*\*", r"<b>\1</b>", line)) for line in lines]


def html(title: str, sections: Sequence[Section]) -> str:
    """Return the page; all texts are escaped."""
    return render(__package__, "inspect.html", title=title, sections=sections, style=STYLE)
