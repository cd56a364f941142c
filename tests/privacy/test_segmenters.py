"""The segmenter on a drawn person: more of them than of what is around."""

from ppma.privacy.detectors.opencv_models import Selfie
from ppma.privacy.detectors.weights import find
from ppma.synthetic.clip import ClipSpec, render, sample_clip


def test_a_drawn_person_is_told_from_the_room(person_weights):
    address = ClipSpec(seed=3, split="train", class_name="walk", number=0, size=224, frames=2, fps=8.0, people=1)
    frame = next(iter(render(sample_clip(address))))
    probability_HW = Selfie(find("selfie", person_weights))(frame.picture_PP3)
    assert probability_HW.shape == frame.mask_PP.shape and 0 <= probability_HW.min() <= probability_HW.max() <= 1
    assert probability_HW[frame.mask_PP].mean() > 2 * probability_HW[~frame.mask_PP].mean()
