"""Follow each person of the original into the cleaned clip: is their place masked, and has it changed?

    boxes of all auditors in one frame of the original  ->  people_of()  ->  Person: masked share, kept share

This needs no detector on inpainted pixels. A person counts whether one auditor finds them or all do. The measure is not
the remover's own (`removal.figures`): that compares colors, this one compares detail.
Legend: H height, W width of a frame in pixels, N boxes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from ppma.privacy.detectors.boxes import overlaps
from ppma.privacy.removal.figures import draw_ellipses

CHANGED_LEVELS = 12
"""Smallest change (of 255) that encoding alone does not explain."""
CORE_WIDTH, CORE_HEIGHT = 0.6, 0.9
"""Axes of the ellipse in a box that a body fills, as shares of the box's sides."""
LEAST_MASKED, MOST_KEPT = 0.5, 0.5
"""Shares of the core: less masked, the person was missed; more kept of what is masked, they were painted back."""
DETAIL = 12.0
"""Gradient in levels per pixel from which on a pixel shows detail: a plain place looks the same with and without people."""
LEAST_DETAIL = 20
"""Pixels of detail that tell whether a place changed; with fewer, all of its pixels do."""
AGREED = 0.5
"""Overlap from which on two auditors' boxes are one person's."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """A person whom an auditor finds in one frame of the original."""

    frame: int
    box: list[float]
    """x0, y0, x1, y1 in pixels."""
    found_by: list[str]
    """Auditors; empty between inspected frames."""
    masked: float
    """Share of the body's core that is masked."""
    kept: float | None
    """Share of what is masked that still looks as it did; None if nothing is masked."""

    @property
    def missed(self) -> bool:
        """True if they are not hidden: the mask leaves them out, or between inspected frames nothing changed."""
        return self.masked < LEAST_MASKED

    @property
    def painted_back(self) -> bool:
        """True if inpainting shows them again."""
        return not self.missed and self.kept is not None and self.kept > MOST_KEPT


def uncovered(frame: int, box_4: np.ndarray) -> Person:
    """Return a person who was followed through a frame in which nothing in their place is masked and changed."""
    return Person(frame=frame, box=box_4.round(1).tolist(), found_by=[], masked=0.0, kept=None)


def people_of(
    boxes: Mapping[str, np.ndarray], before_HWC: np.ndarray, after_HWC: np.ndarray, hidden_HW: np.ndarray, frame: int
) -> list[Person]:
    """Return what became of each person in one frame.

    Args:
        boxes: Detections of each auditor in the original, boxes_N5.
        before_HWC: Frame of the original, uint8 RGB.
        after_HWC: The cleaned frame.
        hidden_HW: The mask, bool.
        frame: Number of the frame.
    """
    people: list[tuple[list[float], list[str]]] = []
    for name, boxes_N5 in boxes.items():
        for box in boxes_N5[:, :4].tolist():
            same = next((by for other, by in people if overlaps(_row(box), _row(other)) >= AGREED), None)
            if same is None:
                people.append((box, [name]))
            elif name not in same:
                same.append(name)
    alike_HW = alike(before_HWC, after_HWC)
    detail_HW = _gradient(before_HWC) >= DETAIL
    found = list[Person]()
    for box, names in people:
        core_HW = np.zeros(hidden_HW.shape, np.uint8)
        draw_ellipses(core_HW, _row(box), CORE_WIDTH / 2, CORE_HEIGHT / 2)
        core = core_HW.astype(bool)
        inside = core & hidden_HW
        detail = inside & detail_HW
        shows = detail if detail.sum() >= LEAST_DETAIL else inside
        found.append(
            Person(
                frame=frame, box=[round(value, 1) for value in box], found_by=names,
                masked=round(float(hidden_HW[core].mean()) if core.any() else 1.0, 3),
                kept=round(float(alike_HW[shows].mean()), 3) if shows.any() else None,
            )
        )  # fmt: skip  # one field after the other
    return found


def alike(before_HWC: np.ndarray, after_HWC: np.ndarray) -> np.ndarray:
    """Return True where two frames differ by less than CHANGED_LEVELS in each color."""
    difference_HWC = cv2.absdiff(before_HWC, after_HWC)
    return cv2.inRange(difference_HWC, np.zeros(3), np.full(3, CHANGED_LEVELS - 1.0)) > 0


def _row(box: list[float]) -> np.ndarray:
    return np.array([box], np.float32)


def _gradient(frame_HWC: np.ndarray) -> np.ndarray:
    gray_HW = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY)
    across, down = cv2.Sobel(gray_HW, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(gray_HW, cv2.CV_32F, 0, 1, scale=1 / 8)
    return np.hypot(across, down)
