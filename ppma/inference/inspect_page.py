"""The HTML page of `ppma inspect`: one file with its pictures inside.

Section(title, note, groups of pictures, a table, a list or an SVG)  ->  HTML
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import jinja2
import numpy as np
from markupsafe import Markup, escape

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
    """Pictures under a heading of their own."""

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


def _items(markdown: str) -> list[Markup]:
    """Return the items of a Markdown list as HTML."""
    lines = [str(escape(line.removeprefix("- "))) for line in markdown.splitlines() if line]
    lines = [re.sub(r"`(.*?)`", r"<code>\1</code>", line) for line in lines]
    return [Markup(re.sub(r"\*\*(.*?)\*\*", r"<b>\1</b>", line)) for line in lines]


PAGE = """
{%- macro figure(picture) -%}
<figure{% if picture.kind %} class="{{ picture.kind }}"{% endif %}><img alt="{{ picture.caption }}" src="{{ picture.source }}">
{%- if picture.caption %}<figcaption>{{ picture.caption }}</figcaption>{% endif %}</figure>
{% endmacro -%}
<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>{{ style|safe }}
img { max-width: 100%; image-rendering: auto; display: block; margin: .3rem 0 } figure { margin: .4rem 0 1.2rem }
figcaption { font-size: 13px; color: #55626f } .row { display: flex; gap: 10px; flex-wrap: wrap; align-items: flex-start; margin: .4rem 0 }
.row figure { margin: 0; width: 116px } .row img { width: 112px } .row figure.query img { outline: 3px solid #1f6fb2 }
.row figcaption { font-size: 11px; line-height: 1.3; overflow-wrap: anywhere }
</style>
<h1>{{ title }}</h1>
<p class="note">
{% for section in sections %}<a href="#s{{ loop.index }}">{{ section.title }}</a>{{ "" if loop.last else " · " }}
{% endfor %}
</p>
{% for section in sections %}
<h2 id="s{{ loop.index }}">{{ section.title }}</h2>
<p class="note">{{ section.note }}</p>
{% if section.rows %}<div class="wide"><table><tr><th>what</th><th>value</th></tr>
{% for name, value in section.rows %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table></div>{% endif %}
{% if section.markdown %}<h3>{{ section.list_heading }}</h3>
<ul>{% for item in items(section.markdown) %}<li>{{ item }}</li>{% endfor %}</ul>{% endif %}
{% for group in section.groups %}
{% if group.heading %}<h3>{{ group.heading }}</h3>{% endif %}
<div{% if group.small %} class="row"{% endif %}>{% for picture in group.pictures %}{{ figure(picture) }}{% endfor %}</div>
{% endfor %}
{{ section.svg|safe }}
{% endfor %}
</html>
"""


def html(title: str, sections: Sequence[Section]) -> str:
    """Return the page; all texts are escaped."""
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    return page.render(title=title, sections=sections, style=STYLE, items=_items).lstrip()
