"""--privacy strict accepts an honest run and refuses every way round it before anything is written."""

import json
import os
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import tiny
from privacy_stand_ins import write_audit
from processes import ppma_on_ranks
from safetensors.torch import load_file, save_file

from ppma.cli import main as ppma
from ppma.common.files import content_sha256
from ppma.config.errors import InputError
from ppma.config.flags import resolve
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.privacy import strict, verdict
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.training import checkpoint, lineage

LICENCE = "own footage, all rights held"
CLASSES, PEOPLE = ("moving left", "moving right"), ("rising, [slowly]", "größer fallend")
CLIP_BYTES = 50_000
RUN = [*tiny.FLAGS, *tiny.MAE_FLAGS, "--batch", "4", "--optim.epochs", "1", "--pictures-every", "0"]


def index(folder, name, domain, licence=LICENCE, *, file=None, root=None):
    """Index the clips in `root` as <name>.csv and add it to data.toml."""
    root = root or folder / name
    flags = ["--root", root, "--out", folder / f"{file or name}.csv", "--name", name, "--data", folder / "data.toml"]
    flags += (["--domain", domain] if domain else []) + (["--licence", licence] if licence else [])
    assert ppma(["index", str(root), *map(str, flags)]) == 0


def rewrite(manifest, **changes):
    """Change columns of the first row."""
    found = Manifest.read(manifest)
    clips = [found.clip(i) for i in range(len(found))]
    Manifest.write(manifest, [replace(clips[0], **changes), *clips[1:]])


def audit(folder, name, *, failed=()):
    write_audit(folder / f"{name}.csv", folder / name, folder / f"{name}-report" / verdict.AUDIT_FILE, failed=failed)


def train(world, run, *flags, sources=("removed", "drawn"), privacy="strict"):
    """Run `ppma train` with a tiny stage 1; return the exit code."""
    places = ["--data", world / "data.toml", "--run-dir", world / "runs" / run, "--privacy", privacy]
    return ppma(["train", "mae_nohuman", "--sources", *sources, *RUN, *map(str, [*places, *flags])])


def filled(video, number):
    """Pad an MP4 file to CLIP_BYTES with a box that decoders skip, unique by `number`."""
    room = CLIP_BYTES - len(video) - 8
    return video + (room + 8).to_bytes(4, "big") + b"free" + bytes([number]) * room


@pytest.fixture(scope="module")
def made(tmp_path_factory, clip_tree):
    """The sources removed, drawn and people, and a run of each kind."""
    folder = tmp_path_factory.mktemp("strict")
    for number, name in enumerate(("removed", "drawn", "people")):
        for place, shown in zip(CLASSES, PEOPLE if name == "people" else CLASSES):
            (folder / name / place).mkdir(parents=True)
            for i in range(2):
                clip = folder / name / place / f"{i}.mp4"
                clip.write_bytes(filled((clip_tree / shown / f"clip {i}.mp4").read_bytes(), number))
    index(folder, "removed", "human-removed")
    audit(folder, "removed")
    index(folder, "drawn", "synthetic")
    index(folder, "people", "real")
    assert train(folder, "honest") == 0
    assert train(folder, "people", sources=["people"], privacy="off") == 0
    assert train(folder, "unchecked", sources=["drawn"], privacy="off") == 0
    return folder


@pytest.fixture
def world(made, tmp_path, probe_here, monkeypatch):
    monkeypatch.setattr("ppma.inference.export.write_program", lambda *_: None)  # half of an export's time
    folder = tmp_path / "world"
    shutil.copytree(made, folder, symlinks=True)
    return folder


def weights(world, run):
    return checkpoint.locate_model(world / "runs" / run)


def test_the_lineage_of_an_honest_run_goes_with_its_weights(world, tmp_path):
    assert train(world, "child", "--init", world / "runs" / "honest") == 0
    found = lineage.read(weights(world, "child"))
    parent = found.parents[0]
    assert (found.origin, found.privacy, parent.recipe) == ("trained", "strict", "mae_nohuman")
    assert json.loads(found.policy)["frames"] == 12
    assert parent.weights_sha256 == content_sha256(weights(world, "honest"))
    removed, drawn = found.sources
    assert removed.manifest_sha256 == content_sha256(world / "removed.csv")
    assert removed.audit_sha256 == content_sha256(world / "removed-report" / "audit.json")
    assert (removed.domains, removed.audits) == ({"human-removed": 4}, {"passed": 4})
    assert (drawn.domains, drawn.licences, drawn.audit_sha256) == ({"synthetic": 4}, {LICENCE: 4}, "")
    assert json.loads((world / "runs/child/lineage.json").read_text())["lineage"]["privacy"] == "strict"
    assert ppma(["export", str(world / "runs/child"), str(tmp_path / "exported"), "--no-onnx"]) == 0
    card = (tmp_path / "exported/README.md").read_text()
    assert removed.audit_sha256[:16] in card and removed.manifest_sha256[:16] in card and LICENCE in card
    assert card.count("trained on 4 clips of removed") == 2  # by itself and by what it started from
    assert train(world, "grandchild", "--init", tmp_path / "exported") == 0
    (tmp_path / "exported/README.md").write_text("a card in better words")
    assert train(world, "another", "--init", tmp_path / "exported") == 0


def test_a_strict_run_resumes_and_a_packed_store_counts_as_its_clips(world):
    assert train(world, "honest", "--resume", "--optim.epochs", "1") == 0
    assert ppma(["pack", "removed", "--out", str(world / "removed.beton"), "--data", str(world / "data.toml")]) == 0
    assert train(world, "packed", "--optim.epochs", "1") == 0
    packed, plain = (lineage.read(weights(world, run)) for run in ("packed", "honest"))
    assert packed == replace(plain, weights_sha256=packed.weights_sha256)


def test_the_manifest_of_passed_rows_is_accepted(world, capfd):
    audit(world, "removed", failed=[1])
    verdict.write_passed(world / "removed.csv", world / "removed-report" / verdict.AUDIT_FILE)
    assert train(world, "refused") == 2
    assert "removed-passed.csv" in capfd.readouterr().err
    point(world, "removed", manifest=world / "removed-passed.csv")
    assert train(world, "passed") == 0
    assert lineage.read(weights(world, "passed")).sources[0].audits == {"passed": 3}


# ------------------------------------------------------------------------------------------------------------- ways round


def run(*argv):
    assert ppma([str(word) for word in argv]) == 0


def pack(world, name):
    run("pack", name, "--out", world / f"{name}.beton", "--data", world / "data.toml")


def point(world, name, **changes):
    """Change an entry of data.toml."""
    entry = catalog.read(world / "data.toml").entry(name)
    values = {"manifest": entry.manifest, "root": entry.root, "store": entry.store} | changes
    catalog.add(world / "data.toml", name=name, split="train", **values)


def edit(file, *pairs):
    """Replace text in a file."""
    text = file.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1 if old == '"passed"' else -1)
    file.write_text(text)


def reseal(world, seal):
    """Make a seal or a store's index claim that it belongs to removed.csv."""
    note = json.loads(seal.read_text())
    seal.write_text(json.dumps(note | {"manifest_sha256": content_sha256(world / "removed.csv")}))


def edit_the_audit_column(world):
    audit(world, "removed", failed=[0])
    rewrite(world / "removed.csv", audit="passed")


def edit_the_audit_column_and_the_seal(world):
    edit_the_audit_column(world)
    reseal(world, verdict.seal_path(world / "removed.csv"))


def remove_the_audit(world):
    shutil.rmtree(world / "removed-report")
    verdict.seal_path(world / "removed.csv").unlink()


def audit_without_a_verdict(world):
    edit(world / "removed-report/audit.json", ('"passed"', '"cannot tell"'))
    rewrite(world / "removed.csv", audit="cannot tell")
    verdict.seal(world / "removed.csv", world / "removed-report/audit.json")


def copy_the_seal_of_another_manifest(world):
    index(world, "people", "human-removed")
    shutil.copy(verdict.seal_path(world / "removed.csv"), verdict.seal_path(world / "people.csv"))


def weaken_the_audit(world, old, new):
    edit(world / "removed-report/audit.json", (old, new))
    verdict.seal(world / "removed.csv", world / "removed-report/audit.json")


def swap_a_video(world, *, keep_time=False):
    """Replace an audited video by one of the same size with people, and with `keep_time` of the same time."""
    clip, other = (world / name / CLASSES[0] / "0.mp4" for name in ("removed", "people"))
    status = clip.stat()
    assert other.stat().st_size == status.st_size
    clip.write_bytes(other.read_bytes())
    if keep_time:
        os.utime(clip, ns=(status.st_atime_ns, status.st_mtime_ns))


def copy_people_under_other_names(world):
    for clip in sorted((world / "people").rglob("*.mp4")):
        target = world / "virtual" / clip.parent.name / f"drawn-{clip.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, target)
    index(world, "virtual", "synthetic")


def train_a_child_of_people(world):
    assert train(world, "cover", "--init", world / "runs/people", sources=["drawn"], privacy="off") == 0


def convert_there_and_back(world):
    run("export", "--to", "ppma", world / "runs/honest", world / "foreign")
    (world / "foreign/lineage.json").unlink()
    run("convert", world / "foreign/model.pth", world / "converted", "--heads", "3", "--decoder-heads", "2")


def export_and_remove_the_lineage(world):
    run("export", world / "runs/honest", world / "exported", "--no-onnx")
    (world / "exported/lineage.json").unlink()


def copy_a_run_and_edit_its_config(world):
    shutil.copytree(world / "runs/people", world / "copy", symlinks=True)
    edit(world / "copy/config.json", ('"people"', '"drawn"'), ('"off"', '"strict"'))


def edit_a_lineage(world):
    edit(weights(world, "people").parent / "lineage.json", ('"real"', '"synthetic"'), ('"off"', '"strict"'))


def take_the_lineage_of_another_run(world):
    for name in ("lineage.json", "training.pt", "state.json"):
        shutil.copy(weights(world, "honest").parent / name, weights(world, "people").parent / name)


def link_the_weights_of_people(world):
    model = weights(world, "honest").resolve()
    model.unlink()
    model.symlink_to(weights(world, "people").resolve())


def write_an_average_by_hand(world):
    (world / "average").mkdir()
    save_file(load_file(weights(world, "honest")), world / "average/model.safetensors")
    lineage.write(world / "average", lineage.Lineage(origin="averaged"))


def relabel_a_store(world):
    pack(world, "people")
    reseal(world, world / "people.beton/index.json")
    point(world, "removed", store=world / "people.beton")


def pack_other_videos(world):
    (world / "removed").rename(world / "aside")
    shutil.copytree(world / "people", world / "removed")
    pack(world, "removed")
    shutil.rmtree(world / "removed")
    (world / "aside").rename(world / "removed")


def swap_a_shard(world):
    pack(world, "removed")
    pack(world, "people")
    shutil.copy(world / "people.beton/shard-00000.beton", world / "removed.beton/shard-00000.beton")


def link_elsewhere(world, path):
    path.rename(world / "elsewhere")
    path.symlink_to(world / "elsewhere")


def merge_manifests(world):
    index(world, "more", "human-removed", root=world / "people")
    lines = (world / "more.csv").read_text().splitlines()[1:]
    with (world / "removed.csv").open("a") as file:
        file.write("".join(f"{line[: line.rindex(',')]},passed\n" for line in lines))


def plant_as_newest(world):
    source, target = weights(world, "people").parent, weights(world, "honest").parent
    shutil.copytree(source, target.with_name("step_00009999"))


def damage_the_newest_above_planted_weights(world):
    plant_as_newest(world)
    newest = weights(world, "honest").parent
    shutil.copytree(newest, newest.with_name("step_00010000"))
    (newest.with_name("step_00010000") / "model.safetensors").write_bytes(b"damaged")


def plant_another_optimizer(world):
    """Put exported weights, whose lineage lists no optimizer, beside the optimizer of a run on people."""
    run("export", world / "runs/honest", world / "exported", "--no-onnx")
    planted = weights(world, "honest").parent.with_name("step_00009999")
    shutil.copytree(weights(world, "people").parent, planted)
    (planted / "state.json").unlink()
    shutil.copytree(world / "exported", planted, dirs_exist_ok=True)
    if not (planted / "state.json").exists():
        shutil.copy(weights(world, "people").parent / "state.json", planted)


def permute_the_rows_of_a_store(world):
    pack(world, "removed")
    places = np.load(world / "removed.beton/rows.npy")
    np.save(world / "removed.beton/rows.npy", places[::-1])


def index_frames(world):
    """Add the audited source `frames`, one folder of frames with masks beside them."""
    for name in ("img", "mask"):
        for i in (1, 2, 3):
            frame = world / "frames" / CLASSES[0] / "0" / f"{name}_{i}.jpg"
            frame.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(frame), np.full((48, 64, 3), 60 * i, np.uint8))
    flags = ["--out", world / "frames.csv", "--name", "frames", "--data", world / "data.toml"]
    run("index", world / "frames", *flags, "--domain", "human-removed", "--licence", LICENCE, "--frames-prefix", "img_")
    audit(world, "frames")
    return frame.parent


def swap_a_frame(world, name="img_2.jpg"):
    folder = index_frames(world)
    (folder / name).write_bytes((folder / "mask_1.jpg").read_bytes())


def name_a_file_like_a_series(world):
    folder = index_frames(world)
    shutil.copy(folder / "img_2.jpg", folder / "img_*")
    swap_a_frame(world)


def link_a_frame(world):
    folder = index_frames(world)
    (folder / "img_2.jpg").rename(world / "elsewhere.jpg")
    (folder / "img_2.jpg").symlink_to(world / "elsewhere.jpg")


def make_a_folder_of_a_video(world):
    clip = world / "removed" / CLASSES[0] / "0.mp4"
    clip.unlink()
    clip.mkdir()
    cv2.imwrite(str(clip / "1.jpg"), np.full((48, 64, 3), 60, np.uint8))


def spell_a_path_otherwise(world):
    rewrite(world / "removed.csv", path=f"{CLASSES[0]}/./0.mp4")
    reseal(world, verdict.seal_path(world / "removed.csv"))


def audit_of_fewer_clips(world):
    report = world / "removed-report/audit.json"
    content = json.loads(report.read_text())
    report.write_text(json.dumps(content | {"clips": content["clips"][1:]}))
    verdict.seal(world / "removed.csv", report)


def exchange_the_root_for_a_link(world):
    (world / "removed").rename(world / "aside")
    (world / "removed").symlink_to(world / "people")


def nothing(world):
    pass


CLIP = f"drawn/{CLASSES[0]}/0.mp4"
CHANGED, NOT_AUDITED, OTHER_CLIPS = "changed after its audit", "not the file that was audited", "from other clips"
NOT_STRICT, REAL, LINK, DISGUISE = (
    "without --privacy strict",
    "domain is real",
    "link out of the root",
    "is synthetic by",
)
WAYS = {
    "edited audit column": (edit_the_audit_column, CHANGED),
    "blurred people": (lambda w: weaken_the_audit(w, '"method": "remove"', '"method": "blur-bodies"'), "method: 'blur"),
    "an audit weaker than the policy": (
        lambda w: (w / "privacy.toml").write_text("points_since = 2027-01-01"),
        "2026-11-28 in the audit, 2027-01-01 in",
    ),
    "edited audit column and seal": (edit_the_audit_column_and_the_seal, "audit is 'passed', and"),
    "no audit": (remove_the_audit, "has no audit"),
    "failed clip": (lambda w: audit(w, "removed", failed=[1]), "says 'failed'"),
    "clip without a verdict": (audit_without_a_verdict, "says 'cannot tell'"),
    "edited report": (lambda w: (w / "removed-report/audit.json").open("a").write(" "), "changed after the audit"),
    "lost report": (lambda w: (w / "removed-report/audit.json").unlink(), "audit.json"),
    "seal of another manifest": (copy_the_seal_of_another_manifest, f"people.csv was {CHANGED}", ["people"]),
    "detector that judges its own masks": (
        lambda w: weaken_the_audit(w, '["maker"]', '["nanodet"]'),
        "nanodet made the masks",
    ),
    "swapped video": (swap_a_video, NOT_AUDITED),
    "swapped video of the same size and time": (lambda w: swap_a_video(w, keep_time=True), NOT_AUDITED),
    "misspelled domain": (lambda w: edit(w / "drawn.csv", (",synthetic,", ",synthethic,")), "'synthethic'"),
    "no domain": (lambda w: rewrite(w / "drawn.csv", domain=""), "drawn.csv, line 2: its domain"),
    "people": (nothing, REAL, ["removed", "people"]),
    "people called synthetic": (lambda w: index(w, "virtual", "synthetic", root=w / "people"), DISGUISE, ["virtual"]),
    "copies of people called synthetic": (copy_people_under_other_names, DISGUISE, ["virtual"]),
    "unaudited clips called synthetic": (
        lambda w: index(w, "virtual", "synthetic", root=w / "removed"),
        DISGUISE,
        ["virtual"],
    ),
    "no licence": (lambda w: index(w, "drawn", "synthetic", licence=""), "licence is ''"),
    "blank licence": (lambda w: rewrite(w / "drawn.csv", licence=" \u00a0\t "), "licence is"),
    "unknown licence": (lambda w: index(w, "drawn", "synthetic", licence="Unknown"), "licence is 'Unknown'"),
    "invisible licence": (lambda w: rewrite(w / "drawn.csv", licence="\u200b\u2060"), "licence is"),
    "abbreviated licence": (lambda w: rewrite(w / "drawn.csv", licence="N. A."), "licence is"),
    "licence in wide letters": (lambda w: rewrite(w / "drawn.csv", licence="\uff35nknown."), "licence is"),
    "moved window": (lambda w: rewrite(w / "removed.csv", start_seconds=0.5), CHANGED),
    "path spelled otherwise": (spell_a_path_otherwise, "nothing"),
    "audit without auditors": (lambda w: weaken_the_audit(w, json.dumps(list(AUDITORS)), "[]"), "is not a report"),
    "audit of fewer clips": (audit_of_fewer_clips, "nothing"),
    "damaged seal": (lambda w: verdict.seal_path(w / "removed.csv").write_text("[1]"), "is not a seal"),
    "root exchanged for a link": (exchange_the_root_for_a_link, NOT_AUDITED),
    "folder of frames in place of a video": (make_a_folder_of_a_video, NOT_AUDITED),
    "swapped frame of a series": (swap_a_frame, NOT_AUDITED, ["removed", "frames"]),
    "frame added to a series": (lambda w: swap_a_frame(w, "img_4.jpg"), NOT_AUDITED, ["removed", "frames"]),
    "file that is called like a series": (name_a_file_like_a_series, NOT_AUDITED, ["removed", "frames"]),
    "linked frame": (link_a_frame, LINK, ["removed", "frames"]),
    "permuted rows of a store": (permute_the_rows_of_a_store, "rows.npy does not fit"),
    "--resume from planted newest weights": (plant_as_newest, "4 clips of people", "--resume", "honest"),
    "--resume from weights below damaged ones": (
        damage_the_newest_above_planted_weights,
        "4 clips of people",
        "--resume",
        "honest",
    ),
    "--resume with another optimizer": (plant_another_optimizer, "training.pt", "--resume", "honest"),
    "--init of a run on people": (nothing, REAL, "--init {}/runs/people"),
    "--init of an unchecked run": (nothing, NOT_STRICT, "--init {}/runs/unchecked"),
    "--init of a child of people": (train_a_child_of_people, "refused by --privacy strict", "--init {}/runs/cover"),
    "--init of a converted checkpoint": (convert_there_and_back, "converted from", "--init {}/converted"),
    "--init of a bare file": (
        lambda w: shutil.copy(weights(w, "honest"), w / "bare.safetensors"),
        "lineage.json",
        "--init {}/bare.safetensors",
    ),
    "--init of an export without lineage": (export_and_remove_the_lineage, "lineage.json", "--init {}/exported"),
    "--init of a copy with another config": (copy_a_run_and_edit_its_config, REAL, "--init {}/copy"),
    "--init with an edited lineage": (edit_a_lineage, "was changed", "--init {}/runs/people"),
    "--init with another lineage": (take_the_lineage_of_another_run, "is not the file", "--init {}/runs/people"),
    "--init with linked weights": (link_the_weights_of_people, "4 clips of people", "--init {}/runs/honest"),
    "--init of an average with people": (
        lambda w: run("average", w / "runs/honest", w / "runs/people", "--out", w / "average"),
        "4 clips of people",
        "--init {}/average",
    ),
    "--init of an average by hand": (write_an_average_by_hand, "without named parents", "--init {}/average"),
    "--features of other runs": (nothing, "--features", "--features {}/elsewhere"),
    "--resume of an unchecked run": (nothing, "privacy: off -> strict", ["drawn"], "--resume", "unchecked"),
    "--resume with an edited config": (
        lambda w: edit(w / "runs/unchecked/config.json", ('"privacy": "off"', '"privacy": "strict"')),
        NOT_STRICT,
        ["drawn"],
        "--resume",
        "unchecked",
    ),
    "--resume from a planted checkpoint": (
        lambda w: shutil.copytree(w / "runs/people/checkpoints", w / "runs/new/checkpoints", symlinks=True),
        "4 clips of people",
        "--resume",
    ),
    "planted features": (lambda w: (w / "runs/new/features").mkdir(parents=True), "features of unchecked clips"),
    "store of another manifest": (
        lambda w: (pack(w, "people"), point(w, "removed", store=w / "people.beton")),
        "from another manifest",
    ),
    "relabeled store": (relabel_a_store, OTHER_CLIPS),
    "store of other videos": (pack_other_videos, OTHER_CLIPS),
    "swapped shard": (swap_a_shard, "shard-00000.beton"),
    "redirected root": (lambda w: point(w, "removed", root=w / "people"), NOT_AUDITED),
    "redirected manifest": (lambda w: point(w, "removed", manifest=w / "people.csv"), REAL),
    "linked clip": (lambda w: link_elsewhere(w, w / CLIP), LINK),
    "linked class folder": (lambda w: link_elsewhere(w, (w / CLIP).parent), LINK),
    "merged manifests": (merge_manifests, CHANGED),
    "lost clip": (lambda w: (w / CLIP).unlink(), "0.mp4 is missing"),
}  # fmt: skip - a way a line
"""Name -> (what is done, a part of the message; then sources, flags and run folder where they differ)."""


def written(world):
    """Return what is in the runs; a damaged checkpoint that was set aside counts as before."""
    return sorted(str(path).replace(".damaged", "") for path in (world / "runs").rglob("*"))


@pytest.mark.promise("R15")
@pytest.mark.parametrize("way", WAYS)
def test_a_way_round_is_refused_before_anything_is_written(way, world, capfd):
    prepare, message, *rest = WAYS[way]
    sources = rest.pop(0) if rest and isinstance(rest[0], list) else ["removed", "drawn"]
    flags, folder = {0: ("", "new"), 1: (*rest, "new")}.get(len(rest), rest)
    prepare(world)
    before = written(world)
    capfd.readouterr()
    assert train(world, folder, *flags.format(world).split(), sources=sources) == 2
    complaint = capfd.readouterr().err.strip().splitlines()[-1]
    assert complaint.startswith("ppma train: ") and message in complaint
    assert written(world) == before


@pytest.mark.promise("R15")
@pytest.mark.parametrize(
    "source", ["{}/people.csv --root {}/people", "{}/removed.csv --root {}/removed", "--dataset ucf101 --root {}"]
)
def test_the_index_makes_no_filmed_clip_synthetic(source, world, capfd):
    flags = ["--domain", "synthetic", "--licence", LICENCE, "--name", "virtual", "--data", f"{world}/data.toml"]
    out = world / "new.csv" if source.startswith("{}") else world
    assert ppma(["index", *source.replace("{}", str(world)).split(), "--out", str(out), *flags]) == 2
    assert "leave --domain out" in capfd.readouterr().err
    assert not (world / "new.csv").exists() and "virtual" not in (world / "data.toml").read_text()


def test_every_encoder_of_a_learned_average_is_checked(world):
    models = [str(world / "runs" / run) for run in ("honest", "people")]
    flags = [*tiny.FLAGS, "--dataset", "drawn", "--batch", "4", "--privacy", "strict", "--average", *models]
    config = resolve("adaptive_average", [*flags, "--run-dir", f"{world}/runs/new"])
    with pytest.raises(InputError, match="4 clips of people"):
        strict.precheck(config, [], None)


def test_rows_that_are_not_those_of_the_sealed_file_are_refused(world, capfd):
    """A manifest is cached by size and time, which an edit can keep."""
    manifest = world / "removed.csv"
    sealed, times = manifest.read_text(), (manifest.stat().st_atime_ns, manifest.stat().st_mtime_ns)
    for text in (sealed.replace(",moving left,", ",moving east,"), sealed):
        manifest.write_text(text)
        os.utime(manifest, ns=times)
        Manifest.read(manifest)
    assert train(world, "new", "--dry-run", sources=["removed"]) == 2
    assert "changed after it was read" in capfd.readouterr().err


def test_a_dry_run_and_a_login_node_check_what_needs_no_video(world, capfd):
    from ppma.slurm.launch import main as launch

    rewrite(world / "drawn.csv", licence="")
    assert train(world, "new", "--dry-run") == 2
    assert "its licence is ''" in capfd.readouterr().err
    flags = ["--sources", "drawn", *RUN, "--data", f"{world}/data.toml", "--run-dir", f"{world}/runs/new"]
    argv = ["align", "--recipe", "mae_nohuman", "--cluster", "local", "--privacy", "strict", "--gpus-per-node", "0"]
    assert launch([*argv, *flags]) == 2
    assert "its licence is ''" in capfd.readouterr().err
    assert not (world / "runs/new").exists()


@pytest.mark.slow
def test_two_ranks_share_the_hashing_and_are_refused_together(world, tmp_path):
    """Each hashes every other clip; an objection of one stops both."""
    argv = ["train", "mae_nohuman", "--sources", "removed", "drawn", *RUN, "--privacy", "strict"]
    argv += ["--data", f"{world}/data.toml", "--run-dir"]
    assert ppma_on_ranks(2, [*argv, f"{world}/runs/two"], tmp_path)[0] == [0, 0]
    one, two = (lineage.read(weights(world, run)) for run in ("honest", "two"))
    assert two.sources == one.sources
    swap_a_video(world)
    assert ppma_on_ranks(2, [*argv, f"{world}/runs/three"], tmp_path)[0] == [2, 2]
    assert not (world / "runs/three").exists()
