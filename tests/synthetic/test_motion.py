"""Motions are proper rotations, joints bend the right way, and the thirty classes differ by how people move."""

import numpy as np
import pytest

from ppma.config.errors import InputError
from ppma.synthetic.motion import actions
from ppma.synthetic.motion.motion import JOINTS, PARENTS, SIDES
from ppma.synthetic.render import bodies

TIMES = np.arange(36) / 12
DOWN = np.array([0.0, 0, -1])


def play(name, seed, times=TIMES):
    return actions.play(name, times, np.random.default_rng(seed))


def test_there_are_thirty_classes_and_half_of_them_are_recorded():
    assert len(actions.CLASSES) == len(set(actions.CLASSES)) == 30 and len(actions.RECORDED) == 15
    assert {"squat", "clap", "wave", "sit_down", "point", "walk", "cartwheel"} <= set(actions.CLASSES)


def test_joints_come_after_their_parents():
    assert len(JOINTS) == len(PARENTS) and all(parent < joint for joint, parent in enumerate(PARENTS))
    for joint, parent in zip(JOINTS, PARENTS):
        side, _, part = joint.partition("_")
        assert part not in ("knee", "ankle", "elbow", "wrist") or JOINTS[parent].startswith(side)


@pytest.mark.parametrize("name", actions.CLASSES)
def test_turns_are_rotations(name):
    motion = play(name, 2)
    turns = motion.turns_TJ33
    assert turns.shape == (36, len(JOINTS), 3, 3) and motion.path_T2.shape == (36, 2)
    np.testing.assert_allclose(turns @ turns.swapaxes(-1, -2), np.broadcast_to(np.eye(3), turns.shape), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(turns), 1, atol=1e-6)


@pytest.mark.parametrize("name", actions.CLASSES)
def test_knees_bend_backwards_and_elbows_forwards(name):
    """In the frame of the upper segment the lower one never points the wrong way by more than 20 degrees."""
    for seed in range(4):
        turns = dict(zip(JOINTS, play(name, seed).turns_TJ33.swapaxes(0, 1)))
        for side in SIDES:
            for upper, lower, back in (("hip", "knee", 1), ("shoulder", "elbow", -1)):
                along_T3 = turns[f"{side}_{upper}"].swapaxes(-1, -2) @ turns[f"{side}_{lower}"] @ DOWN
                assert (back * along_T3[:, 1]).min() > -np.sin(np.deg2rad(20)), f"{side} {lower} bends the wrong way"


def test_keyframed_actions_move_smoothly():
    """No joint rotates faster than 5000 degrees/s; a pitcher's shoulder reaches 7000, a jump in a blend 10,000."""
    for name in set(actions.CLASSES) - set(actions.RECORDED):
        turns = play(name, 3, np.arange(120) / 60).turns_TJ33
        cosine = (np.trace(turns[1:] @ turns[:-1].swapaxes(-1, -2), axis1=-2, axis2=-1) - 1) / 2
        speed = np.rad2deg(np.arccos(np.clip(cosine, -1, 1))) * 60
        assert speed.max() < 5000, f"{name}: {JOINTS[speed.max(0).argmax()]} rotates {speed.max():.0f} degrees/s"


def test_mirroring_twice_gives_the_same_motion():
    motion = play("throw", 4)
    once = motion.mirrored()
    np.testing.assert_array_equal(once.mirrored().turns_TJ33, motion.turns_TJ33)
    right, left = JOINTS.index("right_shoulder"), JOINTS.index("left_shoulder")
    assert np.abs(once.turns_TJ33[:, right] - motion.turns_TJ33[:, right]).max() > 0.5
    expected_T3 = motion.turns_TJ33[:, right] @ DOWN * [-1, 1, 1]
    np.testing.assert_allclose(once.turns_TJ33[:, left] @ DOWN, expected_T3, atol=1e-12)


def test_a_turned_person_walks_that_way():
    motion = play("walk", 5)
    traveled = motion.path_T2[-1] - motion.path_T2[0]
    assert traveled[1] < -1.5 and abs(traveled[0]) < 0.3, "at rest people face -y"
    turned = motion.turned(90).path_T2
    np.testing.assert_allclose(turned[-1] - turned[0], [-traveled[1], traveled[0]], atol=1e-12)


@pytest.mark.parametrize("name", ["get_up_from_back", "kick", "sit_down", "stand_up"])
def test_actions_that_do_not_repeat_end_still(name):
    moved_T = np.abs(np.diff(play(name, 6, np.arange(100) / 10).turns_TJ33, axis=0)).max((1, 2, 3))
    assert moved_T[-5:].max() < 0.06 and moved_T.max() > 0.1  # 0.06: breathing and sway continue


def test_the_seed_decides_the_motion():
    a, b, c = (play("wave", seed).turns_TJ33 for seed in (7, 7, 8))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.1


BONES = (
    *("root", "spine02", "head"),
    *(f"{bone}.{side}" for side in "LR" for bone in ("upperarm01", "lowerarm01", "wrist", "lowerleg01", "foot")),
)


def joint_positions(name, split, rng):
    """Positions of joints relative to the root, (T, J * 3), in meters, with a random heading."""
    meshes, times_T = bodies.load(), np.arange(27) / 10
    body = int(rng.choice(list(meshes.split(split))))
    motion = actions.play(name, times_T, rng).turned(rng.uniform(-40, 40))
    index = [meshes.names_B.index(bone) for bone in BONES]
    matrices_TJ34 = bodies.pose(meshes, body, motion)[:, index]
    positions_TJ3 = np.einsum("tjik,jk->tji", matrices_TJ34[..., :3], meshes.heads_NB3[body][index])
    return (positions_TJ3 + matrices_TJ34[..., 3]).reshape(len(times_T), -1)


def probe_accuracy(train_x, train_y, test_x, test_y):
    """Top-1 of ridge regression on one-hot labels."""
    mean, scale = train_x.mean(0), train_x.std(0) + 1e-6
    train_x, test_x = (np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], 1) for x in (train_x, test_x))
    gram = train_x.T @ train_x + 10 * np.eye(train_x.shape[1])
    weights = np.linalg.solve(gram, train_x.T @ np.eye(30)[train_y])
    return float(((test_x @ weights).argmax(1) == test_y).mean())


def test_motion_tells_more_about_the_class_than_one_frame():
    """A linear probe on how a clip moves is far more accurate than one on a single frame, for people never seen."""
    sets = {}
    for split, count in (("train", 8), ("test", 3)):
        rng = np.random.default_rng([1, split == "test"])
        frames, clips, labels = [], [], []
        for label, name in enumerate(actions.CLASSES):
            for _ in range(count):
                at_TC = joint_positions(name, split, rng)
                frames.append(at_TC[rng.integers(len(at_TC))])
                speed_C = np.abs(np.diff(at_TC, axis=0)).mean(0)
                clips.append(np.concatenate([at_TC.mean(0), at_TC.std(0), speed_C, at_TC[-1] - at_TC[0]]))
                labels.append(label)
        sets[split] = (np.array(frames), np.array(clips), np.array(labels))
    one_frame, clip = (probe_accuracy(*(sets[s][i] for s in ("train", "test") for i in (k, 2))) for k in (0, 1))
    assert clip > 0.6, f"clips: {clip:.2f}"
    assert one_frame < clip - 0.25, f"one frame: {one_frame:.2f}, clips: {clip:.2f}"


def test_unusable_bvh_folders_are_refused(tmp_path):
    assert actions.bvh_classes(None) == {}
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match="--bvh"):
            actions.bvh_classes(folder)
