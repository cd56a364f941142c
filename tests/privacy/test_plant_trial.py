"""The control of a planted clip: the place in which nobody ever was, painted over with the masks of the clip."""

from dataclasses import replace

import numpy as np
from privacy_stand_ins import RED

from ppma.privacy.plant.clip import plant
from ppma.privacy.plant.trial import _try
from ppma.privacy.removal.clip import Pipeline, Settings
from tests.privacy.test_audit_judge import findings
from tests.privacy.test_plant import wanted

RED_BLOCK = np.s_[:, 40:80, 20:40]


class Witness:
    """An inspector that keeps what it is shown."""

    def __init__(self):
        self.shown = []

    def inspect(self, pair, sha256):
        return replace(findings(), detectors={}, outside_db=50.0)

    def best(self, frames):
        self.shown.append(np.stack(frames).astype(int))
        return {}


def test_the_control_shows_neither_who_was_found_nor_who_was_missed(stand_ins, tmp_path):
    """The stand-in finds what is red and misses the drawn people, who stay in the cleaned clip."""
    planted = plant(wanted(size=128, frames=4))
    planted.frames_TPP3[RED_BLOCK] = RED
    witness = Witness()
    trial = _try(planted, Pipeline(Settings(**stand_ins), tmp_path), witness, tmp_path, 2)
    place, control = witness.shown
    assert len(place) == len(control) == 2 and (place == planted.empty_TPP3[[0, 3]]).all()
    hidden = np.zeros((128, 128), bool)
    hidden[RED_BLOCK[1:]] = True
    beside = np.abs(control - place)[:, :, 50:]  # far from the mask: only encoding changes anything
    painted = np.abs(control - place)[:, hidden].mean()
    assert beside.mean() < 4 and painted > 1.5 * beside.mean(), "painted where the mask is, and nowhere else"
    people = planted.people_NTPP.any(0)[[0, 3]] & ~hidden
    assert people.sum() > 100 and np.abs(control - place)[people].mean() < 5
    assert np.abs(planted.frames_TPP3[[0, 3]].astype(int) - place)[people].mean() > 20
    assert not ((control[..., 0] > 180) & (control[..., 1] < 90)).any() and trial.people == len(planted.people_NTPP)
