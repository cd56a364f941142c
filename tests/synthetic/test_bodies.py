"""Baked bodies are small, licensed and split in two; skinning follows the plain formula; people stand on the floor."""

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
    licenses = (ASSETS / "LICENSES.md").read_text()
    assert not [path.name for path in files if path.name != "LICENSES.md" and path.name not in licenses]


def test_no_body_is_in_both_splits():
    meshes = bodies.load()
    train, test = set(meshes.split("train")), set(meshes.split("test"))
    assert not train & test and len(train | test) == len(meshes.vertices_NV3)
    assert min(len(train), len(test)) >= 8
    heights = meshes.vertices_NV3[:, :, 2].max(1)
    assert heights.min() > 1.4 and heights.max() < 2.1 and heights.std() > 0.05


def test_skin_is_the_weighted_sum_of_bone_motions():
    meshes = bodies.load()
    motion = actions.play("lunge", TIMES, np.random.default_rng(0))
    rest_V3, matrices_B34 = meshes.vertices_NV3[3], bodies.pose(meshes, 3, motion)[7]
    homogeneous_V4 = np.concatenate([rest_V3, np.ones((len(rest_V3), 1))], 1)
    each_VK3 = np.einsum("vkij,vj->vki", matrices_B34.astype(np.float64)[meshes.bones_VK], homogeneous_V4)
    skinned_V3 = np.empty_like(rest_V3)
    lowest = bodies.skin(rest_V3, matrices_B34, meshes.bones_VK, meshes.weights_VK, skinned_V3)
    expected_V3 = (each_VK3 * meshes.weights_VK[..., None]).sum(1)
    np.testing.assert_allclose(skinned_V3, expected_V3, atol=1e-5)  # float32 sums of four products of meters
    assert lowest == skinned_V3[:, 2].min()


@pytest.mark.parametrize("name", actions.CLASSES)
def test_people_stand_on_the_floor(name):
    """Nothing is below it in any frame, and something touches it unless the action leaves the floor."""
    meshes, rng = bodies.load(), np.random.default_rng(1)
    motion = actions.play(name, TIMES, rng)
    body = int(rng.integers(len(meshes.vertices_NV3)))
    lowest_T = bodies.animate(meshes, body, motion)[:, :, 2].min(1)
    np.testing.assert_allclose(lowest_T, meshes.leg_length(body) * motion.clearance_T, atol=1e-5)
    assert (motion.clearance_T >= 0).all() and (motion.clearance_T < 0.02).any()


@pytest.mark.parametrize("name", ["squat", "bow", "clap", "wave", "side_bend", "drink"])
def test_planted_feet_do_not_slide(name):
    """In keyframed actions without steps each sole stays in place, on any body."""
    meshes = bodies.load()
    feet = [np.flatnonzero(meshes.main_bone_V() == meshes.names_B.index(f"foot.{side}")) for side in "LR"]
    for body in (0, 20, 60):
        vertices_TV3 = bodies.animate(meshes, body, actions.play(name, TIMES, np.random.default_rng(body)))
        for vertices in feet:
            sole_T3 = vertices_TV3[:, vertices].mean(1)
            # legs are solved for a mean leg, and a body's proportions differ by some percent
            assert np.linalg.norm(sole_T3 - sole_T3.mean(0), axis=1).max() < 0.09
