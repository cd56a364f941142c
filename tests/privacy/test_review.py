"""`ppma audit review`: the sample, the page, its script and the record of what a person saw."""

import base64
import json
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from ppma.cli import main as ppma
from ppma.common.files import content_sha256, file_sha256
from ppma.privacy import answers
from ppma.privacy.audit.clip import InspectorConfig, Pair
from ppma.privacy.audit.jobs import AuditJob
from ppma.privacy.removal.clip import ClipSource
from ppma.privacy.removal.writing import part_writer
from ppma.privacy.verdict import CANNOT_TELL, FAILED, FORMAT, PASSED

VERDICTS = {"jump/a": PASSED, "jump/b": CANNOT_TELL, "run/c <i>": PASSED, "run/left": FAILED}
ORIGINAL, CLEANED = 200, 60
"""Red level of the pictures."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report on four clips of three frames, whose green level is their number; one has no original."""
    folder = tmp_path_factory.mktemp("review")
    entries = []
    for name, verdict in VERDICTS.items():
        paths = [folder / part / f"{name}.mp4" for part in ("removed", "videos")]
        blue = 20 * len(entries)
        for path, red in zip(paths, (CLEANED, ORIGINAL)):
            with part_writer(path, "inp", "videos", 10.0) as add:
                for t in range(3):
                    add(np.full((96, 128, 3), (red, 60 * t, blue), np.uint8))
        source = ClipSource(path=paths[1], fps=10.0)
        pair = Pair(
            name=name, path=f"inp/{name}.mp4", class_name=name[:3], cleaned=paths[0], frames=3, mask=None, makers=("m",),
            original=None if name == "jump/b" else source, method="remove", outside_sha256="", clean=None,
        )  # fmt: skip
        job = AuditJob(
            pair=pair, out=folder / "report",
            inspector=InspectorConfig(detectors=("nanodet",), frames=0, weights=folder),
        )  # fmt: skip
        files = job.files()
        job.record.parent.mkdir(parents=True, exist_ok=True)
        job.record.write_text(json.dumps({"settings": job.settings(files), "files": files}))
        entry = {"path": pair.path, "name": name, "verdict": verdict, "frames": 3}
        entries.append(entry | {"sha256": content_sha256(pair.cleaned)})
    (folder / "report" / "audit.json").write_text(json.dumps({"format": FORMAT, "clips": entries}))
    return folder


@pytest.fixture
def report(made, tmp_path):
    """A copy of the report; its clips stay where they are."""
    return shutil.copytree(made / "report", tmp_path / "report")


def run(*argv):
    return ppma(["audit", "review", *map(str, argv), "--workers", "1"])


def refusal(capsys, code):
    message = capsys.readouterr().err
    assert code == 2 and message.count("\n") == 1, message
    return message


class Page(HTMLParser):
    """Each frame of a page: its data, its pictures by their names, and its buttons."""

    def __init__(self, text):
        super().__init__()
        self.frames, self.script, self.tag, self.body, self.links = [], "", "", {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values, self.tag = dict(attrs), tag
        self.links += [values[key] for key in ("src", "href") if key in values]
        if tag == "body":
            self.body = values
        elif tag == "article":
            self.frames.append({"path": values["data-path"], "frame": int(values["data-frame"]), "answers": []})
        elif tag == "img":
            data = np.frombuffer(base64.b64decode(values["src"].partition(",")[2]), np.uint8)
            self.frames[-1][values["alt"]] = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
        elif tag == "button" and "data-says" in values:
            self.frames[-1]["answers"].append(values["data-says"])

    def handle_data(self, data):
        self.script += data if self.tag == "script" else ""


def page_of(report, *flags):
    page = report.parent / "page.html"
    assert run(report, "--out", page, *flags) == 0
    return Page(page.read_text())


def answers_of(report, page, **changes):
    """Write what the page saves if every frame shows no one."""
    given = [{**{k: f[k] for k in ("path", "frame")}, "says": "no one", "at": "2026-11-28T09:00:00.000Z"} for f in page]
    content = {"format": "ppma-review-1", "audit_sha256": file_sha256(report / "audit.json"), "reviewer": "Ada"}
    file = report.parent / "answers.json"
    file.write_text(json.dumps(content | {"frames": len(given), "answers": given} | changes))
    return file


def test_the_page_shows_full_size_pairs_of_a_sample_fixed_by_the_audit(report, capsys):
    page = page_of(report, "--frames", "4")
    printed = capsys.readouterr().out
    assert "originals" in printed and "4 frames of 3 clips" in printed and "at most 52.7 %" in printed
    assert {frame["path"] for frame in page.frames[:3]} == {f"inp/{n}.mp4" for n, v in VERDICTS.items() if v != FAILED}
    for frame in page.frames:
        blue = 20 * list(VERDICTS).index(frame["path"].removeprefix("inp/").removesuffix(".mp4"))
        assert frame["answers"] == list(answers.ANSWERS)
        assert ("original" in frame) == (frame["path"] != "inp/jump/b.mp4")
        for name, red in {"original": ORIGINAL, "cleaned": CLEANED}.items():
            picture = frame.get(name)
            assert picture is None or picture.shape == (96, 128, 3)
            assert picture is None or np.abs(picture.mean((0, 1)) - (red, 60 * frame["frame"], blue)).max() < 8
    assert all(link.startswith("data:") for link in page.links) and "fetch" not in page.script
    again, more = page_of(report, "--frames", "4"), page_of(report)
    assert [f["path"] for f in again.frames] == [f["path"] for f in page.frames]
    assert (
        len({(f["path"], f["frame"]) for f in more.frames}) == len(more.frames) == 9
        and "only 9" in capsys.readouterr().out
    )
    clips = json.loads((report / "audit.json").read_text())["clips"]
    drawn = answers.sample([*clips, clips[0] | {"path": "copy.mp4"}], "0" * 64, 99)
    assert len(drawn) == len({(clip["sha256"], frame) for clip, frame in drawn}) == 12, "a copy shows nothing else"
    assert {answers.sample(clips, f"{n:064d}"[::-1], 1)[0][1] for n in range(40)} == {0, 1, 2}, "other audits, others"


def test_what_a_person_saw_is_recorded_with_the_exact_bound(report, capsys):
    page = page_of(report, "--frames", "4").frames
    assert run(report, "--answers", answers_of(report, page)) == 0
    assert "at most 52.7 %" in capsys.readouterr().out  # 1 - 0.05 ** (1 / 4)
    file = answers_of(report, page, reviewer="Bea")
    for says in ("unsure", "part of a person"):
        file.write_text(file.read_text().replace('"no one"', f'"{says}"', 1))
    assert run(report, "--answers", file) == 3
    assert f"{page[1]['path']} frame {page[1]['frame'] + 1}" in capsys.readouterr().out
    ada, bea = json.loads((report / "review.json").read_text())["reviews"]
    assert (ada["reviewer"], ada["counts"]["no one"], bea["reviewer"]) == ("Ada", 4, "Bea")
    assert ada["upper"] == pytest.approx(1 - 0.05 ** (1 / 4)) and bea["upper"] == pytest.approx(0.9024, abs=1e-4)
    assert bea["audit_sha256"] == file_sha256(report / "audit.json") and len(bea["answers"]) == 4
    assert "already" in refusal(capsys, run(report, "--answers", file))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["answers"].pop(), "3 of 4 frames"),
        (lambda c: c["answers"].reverse(), "not the sample"),
        (lambda c: c["answers"][0].update(frame=7), "not the sample"),
        (lambda c: c["answers"][0].update(says="fine"), "fine"),
        (lambda c: c["answers"][0].update(at="noon"), "answers.json"),
        (lambda c: c.update(reviewer=" "), "name"),
        (lambda c: c.update(frames=0, answers=[]), "no frames"),
        (lambda c: c.update(audit_sha256="0" * 64), "another audit"),
        (lambda c: c.update(format="x"), "ppma-review-1"),
        (lambda c: c.clear(), "answers.json"),
    ],
)
def test_wrong_or_partial_answers_are_refused(report, capsys, change, named):
    audit = report / "audit.json"
    drawn = answers.sample(
        [c for c in json.loads(audit.read_text())["clips"] if c["verdict"] != FAILED], file_sha256(audit), 4
    )
    file = answers_of(report, [{"path": clip["path"], "frame": frame} for clip, frame in drawn])
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    assert named in refusal(capsys, run(report, "--answers", file)) and not (report / "review.json").exists()


def test_what_cannot_be_reviewed_is_refused(report, capsys, tmp_path):
    page, audit = tmp_path / "page.html", report / "audit.json"
    assert "--answers" in refusal(capsys, run(report))
    assert "audit.json" in refusal(capsys, run(tmp_path, "--out", page))
    whole = audit.read_text()
    audit.write_text(whole.replace('"sha256": "', '"sha256": "0'))
    assert "not the file that was audited" in refusal(capsys, run(report, "--out", page))
    audit.write_text(whole.replace(PASSED, FAILED).replace(CANNOT_TELL, FAILED))
    assert "failed" in refusal(capsys, run(report, "--out", page)) and not page.exists()


BROWSER = """
const element = dataset => ({dataset, value: "", attributes: {}, setAttribute(k, v) { this.attributes[k] = v }, scrollIntoView() {}});
const elements = FRAMES.map(({path, frame, answers}) => {
  const shown = element({path, frame}), found = answers.map(says => element({says}));
  return Object.assign(shown, {querySelectorAll: () => found});
});
const named = {"#reviewer": element(), "#save": element(), "#state": element()}, stored = {};
const localStorage = {getItem: key => stored[key] ?? null, setItem: (key, value) => stored[key] = value};
let saved;
const document = {
  body: element({format: BODY["data-format"], audit: BODY["data-audit"]}),
  querySelector: name => named[name], querySelectorAll: () => elements, createElement: () => ({click() {}}),
};
globalThis.Blob = class { constructor(parts) { saved = parts[0] } };
globalThis.URL = {createObjectURL: () => ""};
{ SCRIPT
articles[0].querySelectorAll()[3].onclick();
document.onkeydown({key: "1"});
document.onkeydown({key: "9"});
document.onkeydown({key: "1"});
const early = save.disabled;
reviewer.value = "Ada";
reviewer.oninput();
save.onclick();
console.log(JSON.stringify({early, late: save.disabled, saved: JSON.parse(saved)}));
}
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_of_the_page_saves_answers_that_are_accepted(report, tmp_path):
    """It runs in node, with stand-ins for what it uses of a browser."""
    page = page_of(report, "--frames", "3")
    frames = [{key: frame[key] for key in ("path", "frame", "answers")} for frame in page.frames]
    code = BROWSER.replace("FRAMES", json.dumps(frames)).replace("BODY", json.dumps(page.body), 2)
    code = code.replace("SCRIPT", page.script)
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert (result["early"], result["late"]) == (True, False)
    assert [one["says"] for one in result["saved"]["answers"]] == ["unsure", "no one", "no one"]
    (tmp_path / "saved.json").write_text(json.dumps(result["saved"]))
    assert run(report, "--answers", tmp_path / "saved.json") == 0
