"""Motions: captured and written alike give proper turns, joints bend the way joints bend, and mirrors are mirrors."""

import numpy as np
import pytest

from ppma.synthetic.motion import actions
from ppma.synthetic.motion.motion import JOINTS, PARENTS, SIDES, captured_names, mirrored

TIMES = np.arange(36) / 12


def segments(motion):
    return {joint: motion.turns_TJ33[:, i] for i, joint in enumerate(JOINTS)}


def test_joints_come_after_their_parents():
    assert len(JOINTS) == len(PARENTS) and all(parent < joint for joint, parent in enumerate(PARENTS))
    for joint, parent in zip(JOINTS, PARENTS):
        side, _, part = joint.partition("_")
        if part in ("knee", "ankle", "elbow", "wrist"):
            assert JOINTS[parent].startswith(side)


def test_fifteen_actions_are_captured():
    assert len(captured_names()) == 15


@pytest.mark.parametrize("name", actions.CLASSES)
def test_turns_are_rotations(name):
    motion = actions.play(name, TIMES, np.random.default_rng(2))
    turns = motion.turns_TJ33
    assert turns.shape == (36, len(JOINTS), 3, 3) and motion.path_T2.shape == (36, 2)
    np.testing.assert_allclose(turns @ turns.swapaxes(-1, -2), np.broadcast_to(np.eye(3), turns.shape), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(turns), 1, atol=1e-6)


@pytest.mark.parametrize("name", actions.CLASSES)
def test_knees_bend_backwards_and_elbows_forwards(name):
    """In the frame of the upper segment (down at rest, ahead is -y) the lower one never points the wrong way by more than 20 degrees."""
    too_far = np.sin(np.deg2rad(20))
    for seed in range(4):
        turns = segments(actions.play(name, TIMES, np.random.default_rng(seed)))
        for side in SIDES:
            for upper, lower, back in ((f"{side}_hip", f"{side}_knee", 1), (f"{side}_shoulder", f"{side}_elbow", -1)):
                along_T3 = (turns[upper].swapaxes(-1, -2) @ turns[lower] @ np.array([0.0, 0, -1]))[..., :]
                assert (back * along_T3[:, 1]).min() > -too_far, f"{name}: {lower} bends the wrong way"


def test_written_actions_move_smoothly():
    """No joint turns faster than 5000 degrees a second (a pitcher's shoulder does 7000; a jump in a blend makes 10,000)."""
    times = np.arange(120) / 60
    for name in set(actions.CLASSES) - set(captured_names()):
        turns = actions.play(name, times, np.random.default_rng(3)).turns_TJ33
        step = turns[1:] @ turns[:-1].swapaxes(-1, -2)
        cosine = (np.trace(step, axis1=-2, axis2=-1) - 1) / 2
        degrees_per_s = np.rad2deg(np.arccos(np.clip(cosine, -1, 1))) * 60
        assert degrees_per_s.max() < 5000, (
            f"{name}: {JOINTS[degrees_per_s.max(0).argmax()]} turns {degrees_per_s.max():.0f} degrees/s"
        )


def test_mirrored_twice_is_the_same():
    motion = actions.play("throw", TIMES, np.random.default_rng(4))
    once, twice = mirrored(motion), mirrored(mirrored(motion))
    np.testing.assert_array_equal(twice.turns_TJ33, motion.turns_TJ33)
    right, left = JOINTS.index("right_shoulder"), JOINTS.index("left_shoulder")
    assert np.abs(once.turns_TJ33[:, right] - motion.turns_TJ33[:, right]).max() > 0.5
    down = np.array([0.0, 0, -1])
    np.testing.assert_allclose(
        once.turns_TJ33[:, left] @ down, motion.turns_TJ33[:, right] @ down * [-1, 1, 1], atol=1e-12
    )


def test_a_turned_person_walks_that_way():
    motion = actions.play("walk", TIMES, np.random.default_rng(5))
    travelled = motion.path_T2[-1] - motion.path_T2[0]
    assert travelled[1] < -1.5 and abs(travelled[0]) < 0.3, "at rest people face -y"
    turned = motion.turned(90).path_T2
    np.testing.assert_allclose(turned[-1] - turned[0], [-travelled[1], travelled[0]], atol=1e-12)


@pytest.mark.parametrize("name", ["get_up_from_back", "kick", "sit_down", "stand_up"])
def test_actions_done_once_do_not_start_again(name):
    """With time to spare the person waits: the first and last frames are still."""
    turns = actions.play(name, np.arange(100) / 10, np.random.default_rng(6)).turns_TJ33
    moved_T = np.abs(np.diff(turns, axis=0)).max((1, 2, 3))
    assert moved_T[-5:].max() < 0.06 and moved_T.max() > 0.1  # 0.06: breathing and sway go on


def test_the_same_draws_give_the_same_movement_and_others_another():
    a, b, c = (actions.play("wave", TIMES, np.random.default_rng(seed)).turns_TJ33 for seed in (7, 7, 8))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.1
