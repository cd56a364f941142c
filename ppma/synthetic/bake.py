"""Bake bodies and motions once into `assets/`, so that rendering people needs neither anny nor pybullet.

    anny (parametric human mesh)        -> assets/bodies.npz    rest shapes that share faces, weights and skeleton
    pybullet_data (DeepMimic motions)   -> assets/motions.npz   local joint rotations, root path, height above the floor

Run it in a throwaway environment; nothing else in the project imports it:

    pip install anny==0.6.2 pybullet==3.2.7 fast-simplification==0.2.0
    python -m ppma.synthetic.bake

anny takes minutes to start the first time (it writes a cache). One seed gives identical arrays. 13,718 vertices are
thinned to about 3,000: a person 100 pixels tall covers fewer pixels than that.
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ppma.synthetic.motion import rotations
from ppma.synthetic.motion.actions import STORED_FPS, world_turns
from ppma.synthetic.motion.motion import ASSETS, JOINTS, PARENTS

N_BODIES = 64
N_TEST_BODIES = 16
"""The last ones; only the test split uses them."""
KEPT_SHARE = 0.22
"""Share of the triangles kept by thinning."""
WEIGHTS_PER_VERTEX = 4
MOVING = (
    *("root", "pelvis", "upperleg", "lowerleg", "foot", "spine", "clavicle"),
    *("shoulder", "upperarm", "lowerarm", "wrist", "neck", "head"),
)
"""Prefixes of the bones that motions rotate; fingers, toes and eyes follow their parents."""
FROM_Y_UP = np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]])
LEG_METERS = 0.831
"""Hip to ankle of the recorded humanoid (humanoid.urdf, 0.25 x (1.686 + 1.639))."""
FLIGHT_METERS = 0.03
"""The recordings hover by about this much; jumps rise far above it."""
OFFSETS: dict[str, tuple[float, float, float]] = {"chest": (0, 0.236, 0), "neck": (0, 0.224, 0)}
"""Meters from each joint's parent, y up and x ahead (humanoid.urdf)."""
for _side, _z in (("right", 1), ("left", -1)):
    OFFSETS |= {
        f"{_side}_hip": (0, 0, 0.085 * _z), f"{_side}_knee": (0, -0.4215, 0), f"{_side}_ankle": (0, -0.41, 0),
        f"{_side}_shoulder": (-0.024, 0.2435, 0.183 * _z), f"{_side}_elbow": (0, -0.275, 0), f"{_side}_wrist": (0, -0.259, 0),
    }  # fmt: skip  # a table
HUMANOID_POINTS = [
    ("root", (0, 0.07, 0), 0.09), ("chest", (0, 0.12, 0), 0.11), ("neck", (0, 0.175, 0), 0.103),
    *((f"{side}_ankle", (x, -0.05, z), 0.0) for side in ("right", "left") for x in (-0.044, 0.134) for z in (-0.045, 0.045)),
    *((f"{side}_{joint}", (0, 0, 0), 0.045) for side in ("right", "left") for joint in ("knee", "elbow", "wrist")),
]  # fmt: skip  # a table
"""Parts of the humanoid that can touch the floor: joint, position, radius (its foot boxes and spheres)."""
JOINT_SIZES = (4, 4, 4, 1, 4, 4, 1, 4, 1, 4, 4, 1)
"""Numbers per joint in a DeepMimic row, after the root: a quaternion (w, x, y, z) or the angle of a hinge."""
RENAMED = {
    "dance_a": "dance_swaying",
    "dance_b": "dance_stepping",
    "getup_facedown": "get_up_from_belly",
    "getup_faceup": "get_up_from_back",
    "spinkick": "spin_kick",
}
MOTIONS = (*("backflip", "cartwheel", "crawl", "jump", "kick", "punch", "roll", "run", "spin", "walk"), *RENAMED)
"""Files humanoid3d_<name>.txt of pybullet_data; the class has the same name unless renamed."""


def shapes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, object]:
    """Return rest vertices (N, V, 3) and bone heads (N, B, 3) of random adults in meters, and anny's model."""
    import anny
    import torch

    model = anny.Anny(rig="anny", local_changes="none")
    rest_pose = torch.eye(4, dtype=model.dtype)[None, None].repeat(1, model.bone_count, 1, 1)
    rng = np.random.default_rng(seed)
    vertices, heads = [], []
    for _ in range(count):
        shape = {label: float(rng.uniform(0.1, 0.9)) for label in model.phenotype_labels}
        shape["gender"] = 0.05 + 0.9 * float(rng.random() > 0.5)
        shape["age"] = float(rng.uniform(0.5, 0.9))  # adult to old: no children
        shape["height"] = float(rng.uniform(0.3, 0.65))  # the ends of anny's range are unrealistic
        with torch.no_grad():
            made = model(pose_parameters=rest_pose, phenotype_kwargs=shape)
        vertices.append(made["rest_vertices"][0].double().numpy())
        heads.append(made["rest_bone_heads"][0].double().numpy())
    return np.array(vertices), np.array(heads), model


def thin(vertices_NV3: np.ndarray, faces_F3: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Collapse the same edges on all bodies; return vertices, faces, and the new index of each old vertex."""
    import fast_simplification as fs

    mean_V3 = vertices_NV3.mean(0).astype(np.float32)
    _, _, collapses = fs.simplify(mean_V3, faces_F3, target_reduction=1 - KEPT_SHARE, return_collapses=True)
    thinned, faces, moved_to = [], faces_F3, np.zeros(0)
    for body_V3 in vertices_NV3:
        points, faces, moved_to = fs.replay_simplification(body_V3.astype(np.float32), faces_F3, collapses)
        thinned.append(points)
    return np.array(thinned), faces, moved_to


def kept_bones(names: list[str], parents: list[int]) -> tuple[list[int], np.ndarray]:
    """Return the indices of the bones that move, and for every bone the kept bone that it follows."""
    kept = [i for i, name in enumerate(names) if name.startswith(MOVING)]
    carrier = np.zeros(len(names), int)
    for i, parent in enumerate(parents):  # parents come before children
        carrier[i] = kept.index(i) if i in kept else carrier[parent]
    return kept, carrier


def skin_weights(dense_VB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bones with the largest weights of each vertex (uint8) and the weights (float32, summing to 1)."""
    bones_VK = np.argsort(-dense_VB, axis=1, kind="stable")[:, :WEIGHTS_PER_VERTEX]
    weights_VK = np.take_along_axis(dense_VB, bones_VK, 1)
    return bones_VK.astype(np.uint8), (weights_VK / weights_VK.sum(1, keepdims=True)).astype(np.float32)


def bake_bodies(path: Path, seed: int = 0) -> None:
    """Write bodies.npz: vertices_NV3, heads_NB3, faces_F3, bones_VK, weights_VK, parents_B, names_B, n_test."""
    vertices_NV3, heads_NB3, model = shapes(N_BODIES, seed)
    names, parents = list(model.bone_labels), [int(p) for p in model.bone_parents]  # type: ignore[attr-defined]
    thinned_NV3, faces_F3, moved_to_V = thin(vertices_NV3, model.faces.numpy())  # type: ignore[attr-defined]
    kept, carrier = kept_bones(names, parents)
    dense_VB = np.zeros((thinned_NV3.shape[1], len(kept)))
    weights, bones = model.vertex_bone_weights.double().numpy(), model.vertex_bone_indices.numpy()  # type: ignore[attr-defined]
    np.add.at(dense_VB, (moved_to_V[:, None], carrier[bones]), weights)
    bones_VK, weights_VK = skin_weights(dense_VB)
    floor_N = thinned_NV3[:, :, 2].min(1)
    thinned_NV3[:, :, 2] -= floor_N[:, None]
    heads_NB3[:, :, 2] -= floor_N[:, None]
    np.savez_compressed(
        path,
        vertices_NV3=thinned_NV3.astype(np.float16),
        heads_NB3=heads_NB3[:, kept].astype(np.float32),
        faces_F3=faces_F3.astype(np.uint16),
        bones_VK=bones_VK,
        weights_VK=weights_VK.astype(np.float16),
        parents_B=np.array([carrier[parents[i]] if parents[i] >= 0 else -1 for i in kept], np.int8),
        names_B=np.array([names[i] for i in kept]),
        n_test=np.array(N_TEST_BODIES),
    )


def read_deepmimic(path: Path) -> tuple[np.ndarray, np.ndarray, bool, float]:
    """Return local rotations (T, J, 4), root positions (T, 3) in meters, whether it loops, and seconds per frame."""
    data = json.loads(path.read_text())
    rows = np.array(data["Frames"])
    still_T4 = np.tile([1.0, 0, 0, 0], (len(rows), 1))
    turns, at = [rows[:, 4:8]], 8
    for size in JOINT_SIZES:
        value = rows[:, at : at + size]
        at += size
        if size == 1:  # a hinge about z
            value = np.stack([np.cos(value[:, 0] / 2), 0 * value[:, 0], 0 * value[:, 0], np.sin(value[:, 0] / 2)], 1)
        turns.append(value)
    turns.insert(8, still_T4)  # wrists do not move
    turns.append(still_T4)
    w, x, y, z = np.moveaxis(np.stack(turns, 1), -1, 0)
    turns_TJ4 = rotations.unit(np.stack([w, -z, -x, y], -1))  # y up and x ahead to z up and -y ahead
    return turns_TJ4, rows[:, 1:4] @ FROM_Y_UP.T, data["Loop"] == "wrap", float(rows[0, 0])


def resample(turns_TJ4: np.ndarray, root_T3: np.ndarray, frame_seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the motion at STORED_FPS."""
    count = round((len(turns_TJ4) - 1) * frame_seconds * STORED_FPS) + 1
    at_T = np.linspace(0, len(turns_TJ4) - 1, count)
    low_T = np.minimum(at_T.astype(int), len(turns_TJ4) - 2)
    share_T1 = (at_T - low_T)[:, None]
    turns = rotations.nlerp(turns_TJ4[low_T], turns_TJ4[low_T + 1], share_T1[:, None])
    return turns, root_T3[low_T] * (1 - share_T1) + root_T3[low_T + 1] * share_T1


def close_loop(turns_TJ4: np.ndarray) -> np.ndarray:
    """Blend the last third of a loop toward its first frame, so that it repeats without a jump."""
    count = len(turns_TJ4)
    share_T = np.clip((np.arange(count) / (count - 1) - 0.67) / 0.33, 0, 1) ** 2
    first_J, last_J = (Rotation.from_quat(turns_TJ4[t], scalar_first=True) for t in (0, -1))
    error_J4 = (first_J * last_J.inv()).as_quat(scalar_first=True)
    blended_TJ4 = rotations.nlerp(np.array([1.0, 0, 0, 0]), error_J4, share_T[:, None, None])
    blended, turns = (Rotation.from_quat(q.reshape(-1, 4), scalar_first=True) for q in (blended_TJ4, turns_TJ4))
    return (blended * turns).as_quat(scalar_first=True).reshape(turns_TJ4.shape)


def clearance(turns_TJ4: np.ndarray, root_T3: np.ndarray) -> np.ndarray:
    """Return the height (T,) in meters of the humanoid's lowest point; 0 below FLIGHT_METERS, which is contact."""
    world_TJ33 = world_turns(turns_TJ4)
    at = [root_T3]
    for joint in range(1, len(PARENTS)):
        offset_3 = FROM_Y_UP @ np.array(OFFSETS[JOINTS[joint]])
        at.append(at[PARENTS[joint]] + world_TJ33[:, PARENTS[joint]] @ offset_3)
    lowest_T = np.full(len(root_T3), np.inf)
    for name, point_3, radius in HUMANOID_POINTS:
        joint = JOINTS.index(name)
        lowest_T = np.minimum(
            lowest_T, (at[joint] + world_TJ33[:, joint] @ FROM_Y_UP @ np.array(point_3))[:, 2] - radius
        )
    return np.maximum(lowest_T - FLIGHT_METERS, 0)


def bake_motions(path: Path) -> None:
    """Write motions.npz: per class NAME.turns (T, J, 4), NAME.path (T, 3: x, y, height, in leg lengths), NAME.loops."""
    import pybullet_data

    folder = Path(pybullet_data.getDataPath()) / "data" / "motions"
    arrays: dict[str, np.ndarray] = {}
    for file_name in sorted(MOTIONS):
        name = RENAMED.get(file_name, file_name)
        turns_TJ4, root_T3, loops, frame_seconds = read_deepmimic(folder / f"humanoid3d_{file_name}.txt")
        turns_TJ4, root_T3 = resample(turns_TJ4, root_T3 / LEG_METERS, frame_seconds)
        turns_TJ4 = close_loop(turns_TJ4) if loops else turns_TJ4
        floor_T1 = clearance(turns_TJ4, root_T3 * LEG_METERS)[:, None] / LEG_METERS
        arrays[f"{name}.turns"] = turns_TJ4.astype(np.float16)
        arrays[f"{name}.path"] = np.concatenate([root_T3[:, :2] - root_T3[0, :2], floor_T1], 1).astype(np.float16)
        arrays[f"{name}.loops"] = np.array(loops)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def main() -> int:
    """Write both files."""
    ASSETS.mkdir(exist_ok=True)
    bake_bodies(ASSETS / "bodies.npz")
    bake_motions(ASSETS / "motions.npz")
    return 0


if __name__ == "__main__":
    sys.exit(main())
