"""Pictures are files inside the page, words are escaped."""

import base64
import re

import cv2
import numpy as np

from ppma.inference.inspect_page import Section, html, items, picture, table


def test_a_picture_is_a_file_inside_the_page():
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15, 0] = 255
    text = picture(pixels, "a <b> & c")
    data = np.frombuffer(base64.b64decode(re.search(r"base64,([^\"]+)", text)[1]), np.uint8)
    shown = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert shown.shape == (80, 120, 3)  # whole steps
    assert shown[40, 10, 0] > 240 and shown[40, 110].max() < 15
    assert "a &lt;b&gt; &amp; c" in text and "<b>" not in text


def test_a_large_picture_is_scaled_down():
    text = picture(np.zeros((100, 6000, 3), np.uint8))
    data = np.frombuffer(base64.b64decode(re.search(r"base64,([^\"]+)", text)[1]), np.uint8)
    assert cv2.imdecode(data, cv2.IMREAD_COLOR).shape[:2] == (25, 1500)


def test_words_are_escaped_everywhere():
    page = html(
        "<run>", [Section(title="A & B", note="1 < 2", body=table(["x"], [["<y>"]]) + items("- `<code>` **x<y**"))]
    )
    assert "<run>" not in page and "A &amp; B" in page and "1 &lt; 2" in page and "&lt;y&gt;" in page
    assert "<code>&lt;code&gt;</code> <b>x&lt;y</b>" in page
