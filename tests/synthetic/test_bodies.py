"""Baked bodies: small, licensed, split in two, skinned as the plain formula says, and standing on the floor."""

import numpy as np
import pytest

from ppma.synthetic.motion import actions
from ppma.synthetic.motion.motion import ASSETS
from ppma.synthetic.render import bodies

MAX_ASSET_BYTES = 5 * 10**6
TIMES = np.arange(12) / 4


def test_assets_are_small_and_licensed():
    files = [path for path in ASSETS.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_ASSET_BYTES
    told = (ASSETS / "LICENSES.md").read_text()
    for path in files:
        assert path.name == "LICENSES.md" or path.name in told, f"LICENSES.md does not mention {path.name}"


def test_no_body_is_in_both_splits():
    everybody = bodies.load()
    train, test = set(everybody.split("train")), set(everybody.split("test"))
    assert not train & test and len(train | test) == len(everybody.vertices_NV3)
    assert min(len(train), len(test)) >= 8
    heights = everybody.vertices_NV3[:, :, 2].max(1)
    assert heights.min() > 1.4 and heights.max() < 2.1 and heights.std() > 0.05


def test_skin_is_the_weighted_sum_of_bone_motions():
    everybody, rng = bodies.load(), np.random.default_rng(0)
    motion = actions.play("lunge", TIMES, rng)
    matrices_B34 = bodies.pose(everybody, 3, motion)[7].astype(np.float64)
    homogeneous_V4 = np.concatenate([everybody.vertices_NV3[3], np.ones((everybody.vertices_NV3.shape[1], 1))], 1)
    each_VK3 = np.einsum("vkij,vj->vki", matrices_B34[everybody.bones_VK], homogeneous_V4)
    expected_V3 = (each_VK3 * everybody.weights_VK[..., None]).sum(1)
    skinned_V3 = np.empty_like(everybody.vertices_NV3[3])
    lowest = bodies.skin(
        everybody.vertices_NV3[3], matrices_B34.astype(np.float32), everybody.bones_VK, everybody.weights_VK, skinned_V3
    )
    np.testing.assert_allclose(skinned_V3, expected_V3, atol=1e-5)  # float32 sums of four products of meters
    assert lowest == skinned_V3[:, 2].min()


@pytest.mark.parametrize("name", actions.CLASSES)
def test_everybody_stands_on_the_floor(name):
    """Nothing below it in any frame, and something on it whenever the action does not leave it."""
    everybody, rng = bodies.load(), np.random.default_rng(1)
    motion = actions.play(name, TIMES, rng)
    body = int(rng.integers(len(everybody.vertices_NV3)))
    lowest_T = bodies.stand(everybody, body, motion)[:, :, 2].min(1)
    expected_T = everybody.leg_length(body) * motion.clearance_T
    np.testing.assert_allclose(lowest_T, expected_T, atol=1e-5)
    assert (motion.clearance_T >= 0).all()
    assert (motion.clearance_T < 0.02).any(), "nobody flies all the time"


@pytest.mark.parametrize("name", ["squat", "bow", "clap", "wave", "side_bend", "drink"])
def test_planted_feet_stay_where_they_are(name):
    """KeyedAction actions whose feet do not step: on any body, each sole keeps its place on the floor."""
    everybody = bodies.load()
    feet = {side: np.flatnonzero(everybody.main_bone_V() == everybody.names_B.index(f"foot.{side}")) for side in "LR"}
    for body in (0, 20, 60):
        vertices_TV3 = bodies.stand(everybody, body, actions.play(name, TIMES, np.random.default_rng(body)))
        for vertices in feet.values():
            place_T3 = vertices_TV3[:, vertices].mean(1)
            slide = np.linalg.norm(place_T3 - place_T3.mean(0), axis=1).max()
            # legs are solved for a mean leg; a real one differs by some percent in its proportions, and wide stances draw the feet apart
            assert slide < 0.09, f"{name}: a foot slides {slide:.3f} m"
