"""BVH: a tiny file written here comes out as the pose it says, under the names in use; bad files are named."""

import numpy as np
import pytest

from ppma.config.errors import InputError
from ppma.loaders.sources.manifest import Manifest
from ppma.synthetic import SynthesisConfig, generate
from ppma.synthetic.motion import actions, bvh
from ppma.synthetic.motion.motion import JOINTS
from ppma.synthetic.render import bodies

MIXAMO = {
    "root": "mixamorig:Hips", "chest": "mixamorig:Spine2", "head": "mixamorig:Head",
    "left_hip": "mixamorig:LeftUpLeg", "left_knee": "mixamorig:LeftLeg",
    "left_ankle": "mixamorig:LeftFoot",
    "left_shoulder": "mixamorig:LeftArm", "left_elbow": "mixamorig:LeftForeArm", "left_wrist": "mixamorig:LeftHand",
}  # fmt: skip
CMU = {
    "root": "hip", "chest": "chest", "head": "head", "left_hip": "lThigh", "left_knee": "lShin", "left_ankle": "lFoot",
    "left_shoulder": "lShldr", "left_elbow": "lForeArm", "left_wrist": "lHand",
}  # fmt: skip
OFFSETS = {
    "root": (0, 0, 0), "chest": (0, 30, 0), "head": (0, 25, 0), "left_hip": (9, 0, 0), "left_knee": (0, -42, 0), "left_ankle": (0, -40, 0),
    "left_shoulder": (18, 15, 0), "left_elbow": (28, 0, 0), "left_wrist": (25, 0, 0),
}  # fmt: skip
"""A T pose, y up, facing +z, centimeters; the right side mirrors the left."""
LIMBS = {"root": ("chest", "left_hip", "right_hip"), "chest": ("head", "left_shoulder", "right_shoulder")}
for _side in ("left", "right"):
    for _a, _b in (("hip", "knee"), ("knee", "ankle"), ("shoulder", "elbow"), ("elbow", "wrist")):
        LIMBS[f"{_side}_{_a}"] = (f"{_side}_{_b}",)
FRAMES, FPS = 40, 20


def other_side(name):
    """The file's name of a right joint, from that of the left one."""
    return name.replace("Left", "Right") if "Left" in name else "r" + name[1:]


def write(path, names, turns=None, heights=None, drop=None):
    """A BVH file; `turns`: joint -> (T, 3) degrees in the order Z, X, Y; `heights`: of the root, (T,)."""
    order, lines = [], ["HIERARCHY"]

    def add(joint, depth):
        left = joint.replace("right_", "left_")
        name = names[left] if left == joint else other_side(names[left])
        if joint == drop:
            return
        x, y, z = OFFSETS[left]
        pad = "\t" * depth
        lines.extend(
            [
                f"{pad}{'JOINT' if depth else 'ROOT'} {name}",
                pad + "{",
                f"{pad}\tOFFSET {x if left == joint else -x} {y} {z}",
            ]
        )
        rotations = "Zrotation Xrotation Yrotation"
        lines.append(
            f"{pad}\tCHANNELS " + (f"3 {rotations}" if depth else f"6 Xposition Yposition Zposition {rotations}")
        )
        order.append(joint)
        for child in LIMBS.get(joint, ()):
            add(child, depth + 1)
        if joint not in LIMBS:
            lines.extend([f"{pad}\tEnd Site", pad + "\t{", f"{pad}\t\tOFFSET 0 -5 0", pad + "\t}"])
        lines.append(pad + "}")

    add("root", 0)
    turns, heights = turns or {}, np.full(FRAMES, 90.0) if heights is None else heights
    lines += ["MOTION", f"Frames: {FRAMES}", f"Frame Time: {1 / FPS}"]
    for t in range(FRAMES):
        numbers = [0.0, heights[t], 2.0 * t]
        for joint in order:
            numbers += list(turns.get(joint, np.zeros((FRAMES, 3)))[t])
        lines.append(" ".join(f"{n:.6f}" for n in numbers))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def pointing(motion, joint, frame=0):
    return motion.turns_TJ33[frame, JOINTS.index(joint)] @ np.array([0.0, 0, -1])


@pytest.mark.parametrize("names", [MIXAMO, CMU], ids=["Mixamo", "CMU"])
def test_a_t_pose_is_a_t_pose(tmp_path, names):
    path = write(tmp_path / "t.bvh", names)
    motion = bvh.convert(bvh.read(path), path, np.arange(FRAMES))
    np.testing.assert_allclose(pointing(motion, "left_shoulder"), [1, 0, 0], atol=1e-9)  # left is +x, ahead -y, up z
    np.testing.assert_allclose(pointing(motion, "right_elbow"), [-1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(pointing(motion, "left_knee"), [0, 0, -1], atol=1e-9)
    assert motion.path_T2[-1, 1] == pytest.approx(-2.0 * (FRAMES - 1) / 82), "+z of the file is ahead; a leg is 82 long"
    assert (motion.clearance_T == 0).all()
    assert bvh.read(path).fps == pytest.approx(FPS)


def test_joints_turn_as_the_file_says(tmp_path):
    """The left arm comes down by 90 degrees (about z), the left knee bends by 60 (about x)."""
    share = np.linspace(0, 1, FRAMES)[:, None]
    turns = {"left_shoulder": share * [-90.0, 0, 0], "left_knee": share * [0.0, 60, 0]}
    path = write(tmp_path / "arm.bvh", MIXAMO, turns)
    motion = bvh.convert(bvh.read(path), path, np.arange(FRAMES))
    np.testing.assert_allclose(pointing(motion, "left_shoulder", -1), [0, 0, -1], atol=1e-6)
    np.testing.assert_allclose(pointing(motion, "left_elbow", -1), [0, 0, -1], atol=1e-6)
    np.testing.assert_allclose(pointing(motion, "left_knee", -1), [0, np.sin(np.pi / 3), -0.5], atol=1e-6)
    np.testing.assert_allclose(pointing(motion, "right_shoulder", -1), [-1, 0, 0], atol=1e-6)


def test_a_jump_leaves_the_floor_and_a_dip_does_not(tmp_path):
    up, down = np.full(FRAMES, 90.0), np.full(FRAMES, 90.0)
    up[20:24] += 41
    path = write(tmp_path / "jump.bvh", CMU, heights=up)
    clearance_T = bvh.convert(bvh.read(path), path, np.arange(FRAMES)).clearance_T
    assert clearance_T[22] == pytest.approx(41 / 82 - bvh.FLIGHT_MARGIN) and clearance_T[:20].max() == 0
    down[20:24] += 3
    path = write(tmp_path / "sway.bvh", CMU, heights=down)
    assert bvh.convert(bvh.read(path), path, np.arange(FRAMES)).clearance_T.max() == 0


def test_whoever_faces_elsewhere_is_turned_round(tmp_path):
    path = write(tmp_path / "turned.bvh", MIXAMO, {"root": np.tile([0.0, 0, 120], (FRAMES, 1))})
    motion = bvh.convert(bvh.read(path), path, np.arange(FRAMES))
    np.testing.assert_allclose(motion.turns_TJ33[0, 0], np.eye(3), atol=1e-6)


def test_folders_are_classes_and_bodies_stand(tmp_path):
    write(tmp_path / "my dance" / "one.bvh", MIXAMO)
    write(tmp_path / "my dance" / "two.BVH", CMU)
    found = actions.bvh_classes(tmp_path)
    assert {name: len(files) for name, files in found.items()} == {"my dance": 2}
    motion = actions.play("my dance", np.arange(30) / 10, np.random.default_rng(0), found["my dance"])
    lowest_T = bodies.stand(bodies.load(), 0, motion)[:, :, 2].min(1)
    np.testing.assert_allclose(lowest_T, 0, atol=1e-5)


def test_a_class_of_ours_cannot_be_replaced(tmp_path):
    write(tmp_path / "walk" / "one.bvh", MIXAMO)
    with pytest.raises(InputError, match="walk is a class already"):
        actions.bvh_classes(tmp_path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text.replace("MOTION", ""), "no BVH file"),
        (lambda text: text[: len(text) - 200], "no BVH file"),
        (lambda text: text.replace("90.000000", "nan", 1), "not finite"),
        (lambda text: "", "no BVH file"),
        (lambda text: text.replace("Frame Time: 0.05", "Frame Time: 0"), "no BVH file"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, told):
    path = write(tmp_path / "dance" / "bad.bvh", MIXAMO)
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=told) as caught:
        actions.bvh_classes(tmp_path)
    assert str(path) in str(caught.value)


def test_a_missing_joint_is_named(tmp_path):
    write(tmp_path / "dance" / "armless.bvh", MIXAMO, drop="left_elbow")
    with pytest.raises(InputError, match="no joint for the left elbow"):
        actions.bvh_classes(tmp_path)


def test_clips_are_drawn_from_own_motion(tmp_path):
    """A class of the user's beside one of ours; a folder named like one of the output's is refused."""
    write(tmp_path / "bvh" / "my dance" / "one.bvh", MIXAMO)
    config = SynthesisConfig(
        out=tmp_path / "out",
        bvh=tmp_path / "bvh",
        classes=("my dance", "wave"),
        clips=1,
        size=32,
        seconds=1.0,
        fps=8.0,
        workers=1,
    )
    manifest = Manifest.read(generate(config))
    assert manifest.class_names == {0: "my dance", 1: "wave"} and manifest.file(0).is_file()
    write(tmp_path / "bvh" / "masks" / "one.bvh", MIXAMO)
    with pytest.raises(InputError, match="cannot be called 'masks'"):
        generate(config)
