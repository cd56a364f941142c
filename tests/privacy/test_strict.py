"""--privacy strict lets an honest run through, and each way round it that is tried here is refused before anything is written."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import tiny
from safetensors.torch import load_file, save_file

from ppma.cli import main as ppma
from ppma.config.errors import InputError
from ppma.config.flags import resolve
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.privacy import strict, verdict
from ppma.training import checkpoint, lineage
from tests.training.test_distributed import on_ranks

LICENCE = "own footage, all rights held"
CLASSES, PEOPLE = ("moving left", "moving right"), ("rising, [slowly]", "größer fallend")
CLIP_BYTES = 50_000
RUN = [*tiny.FLAGS, *tiny.MAE_FLAGS, "--batch", "4", "--optim.epochs", "1", "--pictures-every", "0"]


def index(folder, name, domain, licence=LICENCE, *, file=None, root=None):
    """Make <name>.csv of the clips below `root` and enter it into data.toml."""
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
    """What `ppma audit` leaves: the verdict in each row, a report and a seal. `failed`: rows that did not pass."""
    manifest, report = folder / f"{name}.csv", folder / f"{name}-report" / verdict.AUDIT_FILE
    report.parent.mkdir(exist_ok=True)
    found = Manifest.read(manifest)
    said = [verdict.FAILED if i in failed else verdict.PASSED for i in range(len(found))]
    rows = [replace(found.clip(i), audit=said[i]) for i in range(len(found))]
    Manifest.write(manifest, rows)
    clips = [
        {"path": row.path, "verdict": row.audit, "sha256": verdict.content_sha256(folder / name / row.path)}
        for row in rows
    ]
    content = {"format": verdict.FORMAT, "makers": ["maker"], "auditors": ["auditor"], "clips": clips}
    report.write_text(json.dumps(content))
    verdict.seal(manifest, report)


def train(world, run, *flags, sources=("removed", "drawn"), privacy="strict"):
    """`ppma train` with a tiny stage 1; returns its exit code."""
    places = ["--data", world / "data.toml", "--run-dir", world / "runs" / run, "--privacy", privacy]
    return ppma(["train", "mae_nohuman", "--sources", *sources, *RUN, *map(str, [*places, *flags])])


def filled(video, number):
    """An MP4 file of CLIP_BYTES and a content of its own, by a box that decoders skip."""
    room = CLIP_BYTES - len(video) - 8
    return video + (room + 8).to_bytes(4, "big") + b"free" + bytes([number]) * room


@pytest.fixture(scope="module")
def made(tmp_path_factory, clip_tree):
    """Clips called removed, drawn and people, their manifests, and a run of each kind; copied for every test."""
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
def world(made, tmp_path):
    folder = tmp_path / "world"
    shutil.copytree(made, folder, symlinks=True)
    return folder


def weights(world, run):
    return checkpoint.locate_model(world / "runs" / run)


def test_an_honest_run_writes_what_it_saw_wherever_the_weights_go(world, tmp_path):
    assert train(world, "child", "--init", world / "runs" / "honest") == 0
    found = lineage.read(weights(world, "child"))
    parent = found.parents[0]
    assert (found.origin, found.privacy, parent.recipe) == ("trained", "strict", "mae_nohuman")
    assert parent.weights_sha256 == verdict.content_sha256(weights(world, "honest"))
    removed, drawn = found.sources
    assert removed.manifest_sha256 == verdict.content_sha256(world / "removed.csv")
    assert removed.audit_sha256 == verdict.content_sha256(world / "removed-report" / "audit.json")
    assert (removed.domains, removed.audits) == ({"human-removed": 4}, {"passed": 4})
    assert (drawn.domains, drawn.licences, drawn.audit_sha256) == ({"synthetic": 4}, {LICENCE: 4}, "")
    assert json.loads((world / "runs/child/lineage.json").read_text())["lineage"]["privacy"] == "strict"
    assert ppma(["export", str(world / "runs/child"), str(tmp_path / "exported"), "--no-onnx"]) == 0
    card = (tmp_path / "exported/README.md").read_text()
    assert removed.audit_sha256[:16] in card and removed.manifest_sha256[:16] in card and LICENCE in card
    assert card.count("saw 4 clips of removed") == 2  # by itself and by what it started from
    assert train(world, "grandchild", "--init", tmp_path / "exported") == 0
    (tmp_path / "exported/README.md").write_text("a card in better words")
    assert train(world, "another", "--init", tmp_path / "exported") == 0


def test_a_strict_run_resumes_and_a_packed_store_counts_as_its_clips(world):
    assert train(world, "honest", "--resume", "--optim.epochs", "1") == 0
    assert ppma(["pack", "removed", "--out", str(world / "removed.beton"), "--data", str(world / "data.toml")]) == 0
    assert train(world, "packed", "--optim.epochs", "1") == 0
    packed, plain = (lineage.read(weights(world, run)) for run in ("packed", "honest"))
    assert packed == replace(plain, weights_sha256=packed.weights_sha256)


def test_those_that_passed_are_let_in_by_a_manifest_of_their_own(world, capfd):
    audit(world, "removed", failed=[1])
    verdict.write_passed(world / "removed.csv", world / "removed-report" / verdict.AUDIT_FILE)
    assert train(world, "refused") == 2
    assert "the rows that passed are in removed-passed.csv" in capfd.readouterr().err
    point(world, "removed", manifest=world / "removed-passed.csv")
    assert train(world, "passed") == 0
    assert lineage.read(weights(world, "passed")).sources[0].audits == {"passed": 3}


# ------------------------------------------------------------------------------------------------------------- ways round


def edited_audit_column(world):
    audit(world, "removed", failed=[0])
    rewrite(world / "removed.csv", audit="passed")
    return "was changed after its audit"


def edited_audit_column_and_seal(world):
    audit(world, "removed", failed=[0])
    rewrite(world / "removed.csv", audit="passed")
    note = verdict.seal_path(world / "removed.csv")
    sealed = json.loads(note.read_text())
    note.write_text(json.dumps(sealed | {"manifest_sha256": verdict.content_sha256(world / "removed.csv")}))
    return "audit is 'passed', and"


def passed_without_an_audit(world):
    shutil.rmtree(world / "removed-report")
    verdict.seal_path(world / "removed.csv").unlink()
    return "has no audit"


def a_clip_that_failed(world):
    audit(world, "removed", failed=[1])
    return "says 'failed'"


def a_clip_of_which_nothing_can_be_told(world):
    audit(world, "removed")
    report = world / "removed-report" / "audit.json"
    report.write_text(report.read_text().replace('"passed"', '"cannot tell"', 1))
    rewrite(world / "removed.csv", audit="cannot tell")
    verdict.seal(world / "removed.csv", report)
    return "says 'cannot tell'"


def edited_report(world):
    report = world / "removed-report" / "audit.json"
    report.write_text(report.read_text() + " ")
    return "was changed after the audit"


def lost_report(world):
    (world / "removed-report" / "audit.json").unlink()
    return "is not there"


def seal_of_another_manifest(world):
    index(world, "people", "human-removed")
    shutil.copy(verdict.seal_path(world / "removed.csv"), verdict.seal_path(world / "people.csv"))
    return "people.csv was changed after its audit", ["people"]


def a_detector_that_judges_its_own_masks(world):
    report = world / "removed-report" / "audit.json"
    report.write_text(report.read_text().replace('"auditor"', '"maker"'))
    verdict.seal(world / "removed.csv", report)
    return "made the masks and judged them"


def video_swapped_after_the_audit(world):
    shutil.copy(world / "people" / CLASSES[0] / "0.mp4", world / "removed" / CLASSES[0] / "0.mp4")
    return "is not the file that was audited"


def video_swapped_for_one_of_its_size_and_time(world):
    clip = world / "removed" / CLASSES[0] / "0.mp4"
    status, other = clip.stat(), (world / "people" / CLASSES[0] / "0.mp4").read_bytes()
    assert len(other) == status.st_size
    clip.write_bytes(other)
    os.utime(clip, ns=(status.st_atime_ns, status.st_mtime_ns))
    return "is not the file that was audited"


def misspelt_domain(world):
    text = (world / "drawn.csv").read_text()
    (world / "drawn.csv").write_text(text.replace(",synthetic,", ",synthethic,"))
    return "domain is 'synthethic'"


def no_domain(world):
    rewrite(world / "drawn.csv", domain="")
    return "drawn.csv, line 2: its domain is not known"


def people(world):
    return "its domain is real", ["removed", "people"]


def people_called_synthetic_by_another_manifest(world):
    index(world, "virtual", "synthetic", root=world / "people")
    return "is synthetic by", ["virtual"]


def people_copied_under_other_names(world):
    for clip in sorted((world / "people").rglob("*.mp4")):
        target = world / "virtual" / clip.parent.name / f"drawn-{clip.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, target)
    index(world, "virtual", "synthetic")
    return "is synthetic by", ["virtual"]


def removed_called_synthetic_to_spare_the_audit(world):
    index(world, "virtual", "synthetic", root=world / "removed")
    return "is synthetic by", ["virtual"]


def no_licence(world):
    index(world, "drawn", "synthetic", licence="")
    return "its licence is ''"


def licence_of_blanks(world):
    rewrite(world / "drawn.csv", licence=" \u00a0\t ")
    return "its licence is"


def licence_unknown(world):
    index(world, "drawn", "synthetic", licence="Unknown")
    return "its licence is 'Unknown'"


def init_of_a_run_that_saw_people(world):
    return "mae_nohuman saw 4 clips of people whose domain is real", "--init", world / "runs/people"


def init_of_a_run_that_nobody_checked(world):
    return "was trained without --privacy strict", "--init", world / "runs/unchecked"


def init_of_a_grandchild_of_people(world):
    flags = ["--init", world / "runs/people"]
    assert train(world, "cover", *flags, sources=["drawn"], privacy="off") == 0
    return "is refused by --privacy strict", "--init", world / "runs/cover"


def init_of_a_converted_checkpoint(world):
    assert ppma(["convert", "--to", "ppma", str(world / "runs/honest"), str(world / "foreign.pth")]) == 0
    assert ppma(["convert", "--from", "ppma", str(world / "foreign.pth"), str(world / "converted")]) == 0
    return "converted from a file of ppma", "--init", world / "converted"


def init_of_a_bare_file(world):
    shutil.copy(weights(world, "honest"), world / "bare.safetensors")
    return "there is no lineage.json", "--init", world / "bare.safetensors"


def init_of_an_exported_folder_without_lineage(world):
    assert ppma(["export", str(world / "runs/honest"), str(world / "exported"), "--no-onnx"]) == 0
    (world / "exported" / "lineage.json").unlink()
    return "there is no lineage.json", "--init", world / "exported"


def init_of_a_copy_with_another_config(world):
    shutil.copytree(world / "runs/people", world / "copy", symlinks=True)
    config = world / "copy" / "config.json"
    config.write_text(config.read_text().replace('"people"', '"drawn"').replace('"off"', '"strict"'))
    return "saw 4 clips of people whose domain is real", "--init", world / "copy"


def init_with_an_edited_lineage(world):
    note = weights(world, "people").parent / "lineage.json"
    note.write_text(note.read_text().replace('"real"', '"synthetic"').replace('"off"', '"strict"'))
    return "was changed after it was written", "--init", world / "runs/people"


def init_with_the_lineage_of_another_run(world):
    target = weights(world, "people").parent
    for name in ("lineage.json", "training.pt", "state.json"):
        shutil.copy(weights(world, "honest").parent / name, target / name)
    return "is not the file that lineage.json beside it was written for", "--init", world / "runs/people"


def init_with_weights_linked_from_elsewhere(world):
    model = weights(world, "honest").resolve()
    model.unlink()
    model.symlink_to(weights(world, "people").resolve())
    return "saw 4 clips of people", "--init", world / "runs/honest"


def init_of_an_average_with_people_in_it(world):
    both = [str(world / "runs" / run) for run in ("honest", "people")]
    assert ppma(["average", *both, "--out", str(world / "average")]) == 0
    return "saw 4 clips of people", "--init", world / "average"


def init_of_an_average_by_hand(world):
    (world / "average").mkdir()
    save_file(load_file(weights(world, "honest")), world / "average" / "model.safetensors")
    lineage.write(world / "average", lineage.Lineage(origin="averaged"))
    return "an average of nothing", "--init", world / "average"


def features_of_other_runs(world):
    return "names a folder that other runs write to", "--features", world / "elsewhere"


def resume_of_an_unchecked_run(world):
    return "privacy: off -> strict", ["drawn"], "unchecked", "--resume"


def resume_of_an_unchecked_run_with_an_edited_config(world):
    config = world / "runs/unchecked/config.json"
    config.write_text(config.read_text().replace('"privacy": "off"', '"privacy": "strict"'))
    return "was trained without --privacy strict", ["drawn"], "unchecked", "--resume"


def resume_from_a_planted_checkpoint(world):
    shutil.copytree(world / "runs/people/checkpoints", world / "runs/new/checkpoints", symlinks=True)
    return "saw 4 clips of people", "--resume"


def features_of_other_clips_laid_ready(world):
    (world / "runs/new/features").mkdir(parents=True)
    return "holds features of clips that nobody checked"


def pack(world, name, out):
    assert ppma(["pack", name, "--out", str(world / out), "--data", str(world / "data.toml")]) == 0


def point(world, name, **changes):
    """Change an entry of data.toml."""
    entry = catalog.read(world / "data.toml").entry(name)
    values = {"manifest": entry.manifest, "root": entry.root, "store": entry.store} | changes
    catalog.add(world / "data.toml", name=name, split="train", **values)


def store_of_another_manifest(world):
    pack(world, "people", "people.beton")
    point(world, "removed", store=world / "people.beton")
    return "was packed from another manifest"


def relabelled_store(world):
    pack(world, "people", "people.beton")
    note = world / "people.beton" / "index.json"
    sealed = json.loads(note.read_text())
    note.write_text(json.dumps(sealed | {"manifest_sha256": verdict.content_sha256(world / "removed.csv")}))
    point(world, "removed", store=world / "people.beton")
    return "was packed from other clips"


def store_packed_while_other_videos_lay_there(world):
    (world / "removed").rename(world / "aside")
    shutil.copytree(world / "people", world / "removed")
    pack(world, "removed", "removed.beton")
    shutil.rmtree(world / "removed")
    (world / "aside").rename(world / "removed")
    return "was packed from other clips"


def swapped_shard(world):
    pack(world, "removed", "removed.beton")
    pack(world, "people", "people.beton")
    shutil.copy(world / "people.beton/shard-00000.beton", world / "removed.beton/shard-00000.beton")
    return "differs from its checksum|bytes, not"


def redirected_root(world):
    point(world, "removed", root=world / "people")
    return "is not the file that was audited"


def redirected_manifest(world):
    point(world, "removed", manifest=world / "people.csv")
    return "its domain is real"


def link_out_of_the_root(world):
    clip = world / "drawn" / CLASSES[0] / "0.mp4"
    clip.rename(world / "elsewhere.mp4")
    clip.symlink_to(world / "elsewhere.mp4")
    return "is a link out of the root"


def linked_class_folder(world):
    folder = world / "drawn" / CLASSES[0]
    folder.rename(world / "elsewhere")
    folder.symlink_to(world / "elsewhere")
    return "is a link out of the root"


def merged_manifests(world):
    index(world, "more", "human-removed", root=world / "people")
    lines = (world / "more.csv").read_text().splitlines()[1:]
    with (world / "removed.csv").open("a") as file:
        file.write("".join(f"{line[: line.rindex(',')]},passed\n" for line in lines))
    return "was changed after its audit"


def lost_clip(world):
    (world / "drawn" / CLASSES[0] / "0.mp4").unlink()
    return "is not there"


WAYS = [
    edited_audit_column, edited_audit_column_and_seal, passed_without_an_audit, a_clip_that_failed,
    a_clip_of_which_nothing_can_be_told, edited_report, lost_report, seal_of_another_manifest, a_detector_that_judges_its_own_masks,
    video_swapped_after_the_audit, video_swapped_for_one_of_its_size_and_time, misspelt_domain, no_domain, people,
    people_called_synthetic_by_another_manifest, people_copied_under_other_names, removed_called_synthetic_to_spare_the_audit,
    no_licence, licence_of_blanks, licence_unknown, init_of_a_run_that_saw_people, init_of_a_run_that_nobody_checked,
    init_of_a_grandchild_of_people, init_of_a_converted_checkpoint, init_of_a_bare_file,
    init_of_an_exported_folder_without_lineage, init_of_a_copy_with_another_config, init_with_an_edited_lineage,
    init_with_the_lineage_of_another_run, init_with_weights_linked_from_elsewhere, init_of_an_average_with_people_in_it,
    init_of_an_average_by_hand, features_of_other_runs, resume_of_an_unchecked_run, resume_of_an_unchecked_run_with_an_edited_config,
    resume_from_a_planted_checkpoint, features_of_other_clips_laid_ready, store_of_another_manifest, relabelled_store,
    store_packed_while_other_videos_lay_there, swapped_shard, redirected_root, redirected_manifest, link_out_of_the_root,
    linked_class_folder, merged_manifests, lost_clip,
]  # fmt: skip
"""Each prepares the way and returns a part of the message that it must end in; then sources, run folder and flags where they differ."""


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_way_round_is_refused_before_anything_is_written(way, world, capfd):
    told = way(world)
    message, *rest = (told,) if isinstance(told, str) else told
    sources = rest.pop(0) if rest and isinstance(rest[0], list) else ["removed", "drawn"]
    run = rest.pop(0) if rest and not str(rest[0]).startswith("--") else "new"
    before = sorted(path for path in (world / "runs").rglob("*"))
    capfd.readouterr()
    assert train(world, run, *rest, sources=sources) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    complaint = lines[-1]
    assert any(part in complaint for part in message.split("|")), complaint
    assert complaint.startswith("ppma train: ")
    assert sorted(path for path in (world / "runs").rglob("*")) == before


def test_each_encoder_of_an_average_that_is_learned_is_asked(world):
    models = [str(world / "runs" / run) for run in ("honest", "people")]
    flags = [*tiny.FLAGS, "--dataset", "drawn", "--batch", "4", "--privacy", "strict", "--average", *models]
    config = resolve("adaptive_average", [*flags, "--run-dir", f"{world}/runs/new"])
    with pytest.raises(
        InputError, match="runs/people is refused by --privacy strict: mae_nohuman saw 4 clips of people"
    ):
        strict.precheck(config, [])


def test_a_dry_run_and_a_login_node_see_what_needs_no_video(world, capfd):
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
    """Each hashes every other clip; what one of them finds stops both, and neither waits for the other."""
    flags = ["mae_nohuman", "--sources", "removed", "drawn", *RUN, "--privacy", "strict"]
    flags += ["--data", f"{world}/data.toml"]
    code = f"""
    from ppma.cli import main
    print(main(["train", *{flags!r}, "--run-dir", {str(world / "runs/two")!r}]))
    """
    assert [out.split()[-1] for out in on_ranks(2, code, tmp_path)] == ["0", "0"]
    one, two = (lineage.read(weights(world, run)) for run in ("honest", "two"))
    assert two.sources == one.sources
    video_swapped_after_the_audit(world)
    (tmp_path / "again").mkdir()
    outputs = on_ranks(2, code.replace("runs/two", "runs/three"), tmp_path / "again")
    assert [out.split()[-1] for out in outputs] == ["2", "2"]
    assert not (world / "runs/three").exists()
