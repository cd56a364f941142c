"""BVH files: the pose they describe, joints under common names, and damaged files."""

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
"""A T pose, y up, facing +z, in centimeters; the right side mirrors the left."""
LIMBS = {"root": ("chest", "left_hip", "right_hip"), "chest": ("head", "left_shoulder", "right_shoulder")}
for _side in ("left", "right"):
    for _a, _b in (("hip", "knee"), ("knee", "ankle"), ("shoulder", "elbow"), ("elbow", "wrist")):
        LIMBS[f"{_side}_{_a}"] = (f"{_side}_{_b}",)
FRAMES, FPS = 40, 20


def other_side(name):
    """Return the file's name of a right joint, from that of the left one."""
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
        lines.extend([f"{pad}{'JOINT' if depth else 'ROOT'} {name}", pad + "{"])
        channels = f"{'3' if depth else '6 Xposition Yposition Zposition'} Zrotation Xrotation Yrotation"
        lines.extend([f"{pad}\tOFFSET {x if left == joint else -x} {y} {z}", f"{pad}\tCHANNELS {channels}"])
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


def motion_of(path):
    return bvh.retarget(bvh.read(path), path, np.arange(FRAMES))


def pointing(motion, joint, frame=0):
    return motion.turns_TJ33[frame, JOINTS.index(joint)] @ np.array([0.0, 0, -1])


@pytest.mark.parametrize("names", [MIXAMO, CMU], ids=["Mixamo", "CMU"])
def test_a_t_pose_is_a_t_pose(tmp_path, names):
    path = write(tmp_path / "t.bvh", names)
    motion = motion_of(path)
    for joint, direction in (("left_shoulder", [1, 0, 0]), ("right_elbow", [-1, 0, 0]), ("left_knee", [0, 0, -1])):
        np.testing.assert_allclose(pointing(motion, joint), direction, atol=1e-9)  # left is +x, ahead -y, up z
    assert motion.path_T2[-1, 1] == pytest.approx(-2.0 * (FRAMES - 1) / 82), "+z is ahead; a leg is 82 long"
    assert (motion.clearance_T == 0).all() and bvh.read(path).fps == pytest.approx(FPS)


def test_joints_rotate_as_the_file_says(tmp_path):
    """The left arm comes down by 90 degrees (about z), the left knee bends by 60 (about x)."""
    share = np.linspace(0, 1, FRAMES)[:, None]
    turns = {"left_shoulder": share * [-90.0, 0, 0], "left_knee": share * [0.0, 60, 0]}
    motion = motion_of(write(tmp_path / "arm.bvh", MIXAMO, turns))
    bent = [0, np.sin(np.pi / 3), -0.5]
    for joint, direction in (
        ("left_shoulder", [0, 0, -1]), ("left_elbow", [0, 0, -1]), ("left_knee", bent), ("right_shoulder", [-1, 0, 0]),
    ):  # fmt: skip
        np.testing.assert_allclose(pointing(motion, joint, -1), direction, atol=1e-6)


def test_joints_rotate_about_their_channels_in_order(tmp_path):
    """Three angles at once: Z, X, Y in the file's axes, multiplied in that order."""
    angles = [20.0, 30.0, 40.0]
    motion = motion_of(write(tmp_path / "arm.bvh", MIXAMO, {"left_shoulder": np.tile(angles, (FRAMES, 1))}))
    (cz, cx, cy), (sz, sx, sy) = np.cos(np.deg2rad(angles)), np.sin(np.deg2rad(angles))
    z, x = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]), np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    np.testing.assert_allclose(pointing(motion, "left_shoulder"), bvh.FROM_Y_UP @ z @ x @ y @ [1, 0, 0], atol=1e-9)


def test_a_jump_leaves_the_floor_and_a_dip_does_not(tmp_path):
    up, down = np.full(FRAMES, 90.0), np.full(FRAMES, 90.0)
    up[20:24] += 41
    down[20:24] += 3
    clearance_T = motion_of(write(tmp_path / "jump.bvh", CMU, heights=up)).clearance_T
    assert clearance_T[22] == pytest.approx(41 / 82 - bvh.FLIGHT_MARGIN) and clearance_T[:20].max() == 0
    assert motion_of(write(tmp_path / "sway.bvh", CMU, heights=down)).clearance_T.max() == 0


def test_the_motion_starts_facing_the_front(tmp_path):
    motion = motion_of(write(tmp_path / "turned.bvh", MIXAMO, {"root": np.tile([0.0, 0, 120], (FRAMES, 1))}))
    np.testing.assert_allclose(motion.turns_TJ33[0, 0], np.eye(3), atol=1e-6)


def test_folders_are_classes_and_bodies_stand(tmp_path):
    write(tmp_path / "my dance" / "one.bvh", MIXAMO)
    write(tmp_path / "my dance" / "two.BVH", CMU)
    found = actions.bvh_classes(tmp_path)
    assert {name: len(files) for name, files in found.items()} == {"my dance": 2}
    motion = actions.play("my dance", np.arange(30) / 10, np.random.default_rng(0), found["my dance"])
    np.testing.assert_allclose(bodies.animate(bodies.load(), 0, motion)[:, :, 2].min(1), 0, atol=1e-5)


def test_a_built_in_class_cannot_be_replaced(tmp_path):
    write(tmp_path / "walk" / "one.bvh", MIXAMO)
    with pytest.raises(InputError, match="walk"):
        actions.bvh_classes(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("MOTION", ""),
        lambda text: text[: len(text) - 200],
        lambda text: text.replace("90.000000", "nan", 1),
        lambda text: "",
        lambda text: text.replace("Frame Time: 0.05", "Frame Time: 0"),
        lambda text: text.replace("Xrotation Yrotation", "Zrotation Zrotation", 1),
    ],
)
def test_damaged_files_are_named(tmp_path, damage):
    path = write(tmp_path / "dance" / "bad.bvh", MIXAMO)
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError) as caught:
        actions.bvh_classes(tmp_path)
    assert str(path) in str(caught.value)


def test_a_missing_joint_is_named(tmp_path):
    write(tmp_path / "dance" / "armless.bvh", MIXAMO, drop="left_elbow")
    with pytest.raises(InputError, match="left elbow"):
        actions.bvh_classes(tmp_path)


def test_own_motion_becomes_clips(tmp_path):
    """A folder named like one of the output's is refused."""
    write(tmp_path / "bvh" / "my dance" / "one.bvh", MIXAMO)
    shape = {"clips": 1, "size": 32, "seconds": 1.0, "fps": 8.0, "workers": 1, "bvh": tmp_path / "bvh"}
    config = SynthesisConfig(out=tmp_path / "out", classes=("my dance", "wave"), **shape)
    manifest = Manifest.read(generate(config))
    assert manifest.class_names == {0: "my dance", 1: "wave"} and manifest.file(0).is_file()
    write(tmp_path / "bvh" / "masks" / "one.bvh", MIXAMO)
    with pytest.raises(InputError, match="masks"):
        generate(config)
