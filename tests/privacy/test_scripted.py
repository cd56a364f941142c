"""TorchScript models: small ones pass through each interface, and ones that do not fit are refused."""

import numpy as np
import pytest
import torch

from ppma.config.errors import InputError
from ppma.privacy.removal.camera import Reference
from ppma.privacy.removal.figures import Figures
from ppma.privacy.removal.fill import Memory
from ppma.privacy.removal.plugins import E2FGVI_SIZE
from ppma.privacy.removal.scripted import Lama, ScriptedClip, ScriptedSegmenter, median_and_lama

EYE = np.eye(3)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")  # TorchScript is what others publish


class Red(torch.nn.Module):
    """Takes what is red for people."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return picture[:, :1] * (1 - picture[:, 1:2])


class Mean(torch.nn.Module):
    """Paints the mean of the visible pixels; like LaMa it needs sides that are multiples of 8."""

    def forward(self, picture: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        assert picture.shape[2] % 8 == 0 and picture.shape[3] % 8 == 0
        seen = (picture * (1 - hidden)).sum((2, 3), keepdim=True) / (1 - hidden).sum((2, 3), keepdim=True)
        return picture * (1 - hidden) + seen * hidden


class Together(torch.nn.Module):
    """Paints each pixel with the mean of the frames in which it is seen."""

    def forward(self, frames: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        seen = 1 - hidden
        mean = (frames * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp(min=1)
        return frames * seen + mean * hidden


class Given(torch.nn.Module):
    """Returns the picture."""

    def forward(self, picture: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
        return picture


class GivenBackwards(torch.nn.Module):
    """Returns the other frames in place of the first."""

    def forward(self, frames: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return frames.flip(1)


class Wrong(torch.nn.Module):
    """Returns half of the picture."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return picture[:, :1, ::2]


def saved(module, folder):
    path = folder / "model.pt"
    torch.jit.script(module).save(str(path))
    return path


@pytest.fixture
def scene():
    """(frame with a person, their mask, the background), with odd sides."""
    rng = np.random.default_rng(0)
    place = np.repeat(np.repeat(rng.integers(60, 140, (13, 17, 3), dtype=np.uint8), 5, 0), 5, 1)
    hidden = np.zeros(place.shape[:2], bool)
    hidden[20:50, 30:50] = True
    frame = place.copy()
    frame[hidden] = (250, 0, 0)
    return frame, hidden, place


def figures(frame, hidden):
    return Figures.of(frame, hidden, hidden.astype(np.int32))


def test_a_segmenter_returns_a_probability_for_each_pixel(scene, tmp_path):
    frame, hidden, _ = scene
    segment = ScriptedSegmenter(saved(Red(), tmp_path))
    assert (segment(frame)[hidden] > 0.9).all() and (segment(frame)[~hidden] < 0.6).all()


def test_lama_fills_the_hole_and_nothing_else(scene, tmp_path):
    frame, hidden, place = scene
    picture = Lama(saved(Mean(), tmp_path))(frame, hidden)
    assert (picture[~hidden] == frame[~hidden]).all()
    assert np.abs(picture[hidden].astype(float).mean(0) - place[~hidden].mean(0)).max() < 10
    assert Lama(tmp_path / "model.pt")(frame, np.zeros_like(hidden)) is frame


def test_lama_paints_what_no_other_frame_shows(scene, tmp_path):
    frame, hidden, place = scene
    moved = np.roll(hidden, 12, axis=1)
    others = [Reference(frame_HWC=place, free_HW=(~moved).astype(np.uint8), homography_33=EYE)] * 5
    picture, seen = median_and_lama(saved(Mean(), tmp_path))(
        frame, hidden, EYE, others, Memory(), figures(frame, hidden)
    )
    assert (seen == hidden & ~moved).all() and (picture[seen] == place[seen]).all()
    assert picture[hidden & moved].max() < 200


@pytest.mark.parametrize("size", [None, E2FGVI_SIZE])
def test_a_video_inpainter_gets_the_other_frames(scene, tmp_path, size):
    frame, hidden, place = scene
    others = [Reference(frame_HWC=place, free_HW=np.ones_like(hidden, dtype=np.uint8), homography_33=EYE)] * 3
    picture, seen = ScriptedClip(saved(Together(), tmp_path), size)(
        frame, hidden, EYE, others, Memory(), figures(frame, hidden)
    )
    assert (picture[~hidden] == frame[~hidden]).all() and not seen.any()
    error = (picture[hidden].astype(float) - place[hidden]) ** 2
    assert 10 * np.log10(255**2 / error.mean()) > (24 if size is None else 30)


def test_scripts_do_not_get_hidden_pixels(scene, tmp_path):
    """A script that returns its input reveals no person."""
    frame, hidden, _ = scene
    other = np.where(hidden[..., None], np.uint8(3), frame)
    lama = Lama(saved(Given(), tmp_path))
    assert (lama(frame, hidden) == lama(other, hidden)).all() and lama(frame, hidden)[hidden].max() < 200
    references = [Reference(frame_HWC=f, free_HW=(~hidden).astype(np.uint8), homography_33=EYE) for f in (frame, other)]
    clip = ScriptedClip(saved(GivenBackwards(), tmp_path), None)
    shown = [clip(frame, hidden, EYE, [reference], Memory(), figures(frame, hidden))[0] for reference in references]
    assert (shown[0] == shown[1]).all() and shown[0][hidden].max() < 200


def test_a_script_that_does_not_fit_is_refused(scene, tmp_path):
    frame, hidden, _ = scene
    with pytest.raises(InputError, match="returns 1x1x33x85, not 1x1x65x85"):
        ScriptedSegmenter(saved(Wrong(), tmp_path))(frame)
    with pytest.raises(InputError, match="does not take tensors of 1x3x72x88, 1x1x72x88"):
        Lama(tmp_path / "model.pt")(frame, hidden)
    (tmp_path / "broken.pt").write_bytes((tmp_path / "model.pt").read_bytes()[:500])
    with pytest.raises(InputError, match=r"broken.pt: torch cannot load it as TorchScript"):
        ScriptedSegmenter(tmp_path / "broken.pt")
