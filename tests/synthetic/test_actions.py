"""The thirty classes, and that they are told by how people move."""

import numpy as np
import pytest

from ppma.config.errors import InputError
from ppma.synthetic.motion import actions
from ppma.synthetic.render import bodies

TIMES = np.arange(27) / 10
BONES = (
    "root",
    "spine02",
    "head",
    *(f"{bone}.{side}" for side in "LR" for bone in ("upperarm01", "lowerarm01", "wrist", "lowerleg01", "foot")),
)


def test_there_are_thirty_classes():
    assert len(actions.CLASSES) == len(set(actions.CLASSES)) == 30
    wanted = {
        "squat",
        "jumping_jack",
        "clap",
        "wave",
        "bow",
        "arm_circles",
        "lunge",
        "sit_down",
        "point",
        "walk",
        "cartwheel",
    }
    assert wanted <= set(actions.CLASSES)


def joint_places(name, split, rng):
    """Where joints are around the root, (T, J * 3), meters, heading drawn."""
    everybody = bodies.load()
    body = int(rng.choice(list(everybody.split(split))))
    motion = actions.play(name, TIMES, rng).turned(rng.uniform(-40, 40))
    index = [everybody.names_B.index(bone) for bone in BONES]
    matrices_TJ34 = bodies.pose(everybody, body, motion)[:, index]
    heads_J3 = everybody.heads_NB3[body][index]
    places_TJ3 = np.einsum("tjik,jk->tji", matrices_TJ34[..., :3], heads_J3) + matrices_TJ34[..., 3]
    return places_TJ3.reshape(len(TIMES), -1)


def accuracy(train_x, train_y, test_x, test_y):
    """Top-1 of a linear probe (ridge regression on one-hot labels)."""
    mean, scale = train_x.mean(0), train_x.std(0) + 1e-6
    train_x, test_x = ((x - mean) / scale for x in (train_x, test_x))
    train_x, test_x = (np.concatenate([x, np.ones((len(x), 1))], 1) for x in (train_x, test_x))
    gram = train_x.T @ train_x + 10 * np.eye(train_x.shape[1])
    weights = np.linalg.solve(gram, train_x.T @ np.eye(30)[train_y])
    return float(((test_x @ weights).argmax(1) == test_y).mean())


def test_actions_are_told_by_motion():
    """The same linear probe, on one frame of each clip and on how the clip moves: the second is far ahead, for people never seen."""
    sets = {}
    for split, count in (("train", 16), ("test", 6)):
        rng = np.random.default_rng([1, split == "test"])
        frames, clips, labels = [], [], []
        for label, name in enumerate(actions.CLASSES):
            for _ in range(count):
                places_TC = joint_places(name, split, rng)
                speed_TC = np.abs(np.diff(places_TC, axis=0))
                frames.append(places_TC[rng.integers(len(TIMES))])
                clips.append(
                    np.concatenate(
                        [places_TC.mean(0), places_TC.std(0), speed_TC.mean(0), places_TC[-1] - places_TC[0]]
                    )
                )
                labels.append(label)
        sets[split] = (np.array(frames), np.array(clips), np.array(labels))
    one_frame = accuracy(sets["train"][0], sets["train"][2], sets["test"][0], sets["test"][2])
    clip = accuracy(sets["train"][1], sets["train"][2], sets["test"][1], sets["test"][2])
    assert clip > 0.6, f"clips: {clip:.2f}"
    assert one_frame < clip - 0.25, f"one frame: {one_frame:.2f}, clips: {clip:.2f}"


def test_bvh_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        actions.bvh_classes(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no"):
        actions.bvh_classes(tmp_path)
    assert actions.bvh_classes(None) == {}
