"""Pictures are files inside the page; texts are escaped."""

import base64
import re

import cv2
import numpy as np

from ppma.inference.inspect_page import Group, Picture, Section, html


def page(**section):
    return html("<run>", [Section(**{"title": "A & B", "note": "1 < 2", **section})])


def pixels_of(text):
    data = np.frombuffer(base64.b64decode(re.search(r"base64,([^\"]+)", text)[1]), np.uint8)
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_a_picture_is_a_file_inside_the_page():
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15, 0] = 255
    text = page(groups=[Group(pictures=[Picture(pixels_HWC=pixels, caption="a <b> & c")])])
    shown = pixels_of(text)
    assert shown.shape == (80, 120, 3)  # scaled by a whole factor
    assert shown[40, 10, 0] > 240 and shown[40, 110].max() < 15
    assert "a &lt;b&gt; &amp; c" in text and "<b>" not in text


def test_a_large_picture_is_scaled_down():
    assert pixels_of(Picture(pixels_HWC=np.zeros((100, 6000, 3), np.uint8)).source + '"').shape == (25, 1500, 3)


def test_texts_are_escaped_everywhere():
    group = Group(pictures=[], heading="<h>")
    text = page(
        rows=[("<y>", "<z>")], markdown="- `<code>` **x<y**", list_heading="<l>", groups=[group], svg="<svg></svg>"
    )
    assert not re.search(r"<(run|y|z|h|l)>", text)
    assert "A &amp; B" in text and "1 &lt; 2" in text and "&lt;y&gt;" in text and "<svg></svg>" in text
    assert "<code>&lt;code&gt;</code> <b>x&lt;y</b>" in text
