"""The least strength of an audit: every field is compared, and a policy file is read or refused."""

import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from ppma.config.errors import InputError
from ppma.config.recipes import recipe
from ppma.privacy import policy
from ppma.privacy.detectors.auditors import AUDITORS, BUNDLED
from ppma.privacy.policy import Policy
from ppma.privacy.verdict import PASSED, Audited, policy_path
from ppma.slurm.job import Job

ROOT = Path(__file__).resolve().parents[2]
STRONG = Audited(
    verdict=PASSED, sha256="0" * 64, auditors={name: AUDITORS[name].threshold for name in BUNDLED},
    points_date=date(2026, 11, 28), method="remove", frames=100, looked_at=12, sensitivity=0.5,
)  # fmt: skip  # one field after the other


def without(*names):
    return {name: point for name, point in STRONG.auditors.items() if name not in names}


@pytest.mark.parametrize(
    ("changes", "least", "says"),
    [
        ({}, {}, ""),
        ({"auditors": without("yolov3-tiny")}, {}, ""),
        ({"auditors": without("yolov3-tiny", "centernet")}, {}, "person_auditors: 1 in the audit, 2 in"),
        ({"auditors": without(*AUDITORS) | {"mine": 0.1, "yours": 0.1}}, {}, "person_auditors: 0 in the audit, 2 in"),
        ({"auditors": without("blazeface")}, {}, "face_auditors: 0 in the audit, 1 in"),
        ({"auditors": without("yolov3-tiny")}, {"auditors": ("nanodet", "yolov3-tiny")}, "yolov3-tiny in"),
        ({"auditors": STRONG.auditors | {"nanodet": 0.9}}, {}, "operating_points: {'nanodet': 0.9} in the audit"),
        ({"auditors": STRONG.auditors | {"nanodet": 0.1}}, {}, ""),
        (
            {"auditors": STRONG.auditors | {"nanodet": float("nan")}},
            {},
            "operating_points: {'nanodet': nan} in the audit",
        ),
        ({}, {"points_since": date(2027, 1, 1)}, "points_since: 2026-11-28 in the audit, 2027-01-01 in"),
        ({"looked_at": 11}, {}, "frames: 11 in the audit, 12 in"),
        ({"looked_at": 8, "frames": 8}, {}, ""),
        ({}, {"frames": 0}, "frames: 12 in the audit, 100 in"),
        ({"sensitivity": 0.4}, {}, "sensitivity: 0.4 in the audit, 0.5 in the default policy"),
        ({}, {"reviewed": 0.01}, "reviewed: 1.0 in the audit, 0.01 in"),
        ({"reviewed": 0.0099}, {"reviewed": 0.01}, ""),
        ({"method": "blur-bodies"}, {}, "method: 'blur-bodies' in the audit, 'remove' in"),
        ({"method": ""}, {}, "method: '' in"),
        ({"method": ""}, {"method": ""}, ""),
    ],
)
def test_an_audit_is_compared_field_by_field(changes, least, says):
    found = Policy(**least).objection_to(replace(STRONG, **changes))
    assert says in found and bool(says) == bool(found)


def test_a_file_sets_what_it_names(tmp_path):
    file = tmp_path / "privacy.toml"
    file.write_text(
        'auditors = ["nanodet"]\nframes = 0\nsensitivity = 1\npoints_since = 2026-11-01\n[operating_points]\nnanodet = 0.4\n'
    )
    found = policy.read(file)
    assert (found.auditors, found.frames, found.sensitivity) == (("nanodet",), 0, 1.0)
    assert found.points_since == date(2026, 11, 1) and found.person_auditors == 2
    assert found.operating_points == STRONG.auditors | {"nanodet": 0.4} and found.source == str(file)


def test_the_documented_file_states_the_defaults(tmp_path):
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/privacy.md").read_text(), flags=re.DOTALL)
    (tmp_path / "privacy.toml").write_text(block)
    assert replace(policy.read(tmp_path / "privacy.toml"), source=Policy().source) == policy.read(None)
    assert all(key in block for key in policy.KEYS)


@pytest.mark.parametrize(
    "line",
    [
        *(
            "frame = 3",
            "source = 'me'",
            "frames = 'all'",
            "frames = -1",
            "frames = true",
            "frames =",
            "sensitivity = 1.5",
        ),
        *(
            "sensitivity = nan",
            "reviewed = -0.1",
            "person_auditors = 1.5",
            "method = ['remove']",
            "auditors = [['nanodet']]",
        ),
        *("auditors = ['hog']", "operating_points = {hog = 1}", "operating_points = {nanodet = 'low'}"),
        *(
            "operating_points = {nanodet = nan}",
            "operating_points = {nanodet = inf}",
            "operating_points = {nanodet = -1}",
        ),
        *("operating_points = {nanodet = '0.4'}", "operating_points = {nanodet = true}", "operating_points = 0.4"),
        "points_since = 2026-11-28T09:00:00Z",
    ],
)
def test_a_wrong_file_is_refused(tmp_path, line):
    file = tmp_path / "privacy.toml"
    file.write_text(line)
    with pytest.raises(InputError, match=r"privacy\.toml"):
        policy.read(file)


def test_the_policy_next_to_the_catalog_holds_also_where_the_data_is_staged(tmp_path, monkeypatch):
    run = replace(recipe("mae_nohuman")(), data=tmp_path / "data.toml")
    strict = replace(run, privacy="strict")
    assert policy_path(strict) is None
    (tmp_path / "privacy.toml").symlink_to(tmp_path / "unmounted")
    with pytest.raises(InputError, match=r"privacy\.toml"):
        policy.read(policy_path(strict))
    (tmp_path / "privacy.toml").unlink()
    (tmp_path / "privacy.toml").touch()
    assert (policy_path(strict), policy_path(run)) == (tmp_path / "privacy.toml", None)
    assert policy_path(replace(strict, policy=Path("other.toml"))) == Path("other.toml")
    monkeypatch.setattr("ppma.slurm.job.stage", lambda *_, **__: Path("node/data.toml"))
    assert Job(work=print, config=strict, stage_to=Path("node"))._staged().policy == tmp_path / "privacy.toml"
    with pytest.raises(InputError, match="--policy"):
        replace(run, policy=Path("other.toml"))
