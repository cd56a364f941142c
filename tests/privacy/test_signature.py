"""Seals are signed with keys of ssh-keygen, and only trusted keys and the signed content are accepted."""

import json
import subprocess
from dataclasses import replace

import pytest
from privacy_stand_ins import audit_content, row

from ppma.config.errors import InputError
from ppma.config.recipes import recipe
from ppma.loaders.sources.manifest import Manifest
from ppma.privacy import signature
from ppma.privacy.strict import precheck
from ppma.privacy.verdict import AUDIT_FILE, PASSED, copy_seal, read_verdicts, seal, seal_path, write_passed

pytest.importorskip("bcrypt", reason="the extra [privacy] is not installed")


def make_key(folder, name, *more):
    file = folder / name
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{name} of ppma", "-f", str(file), *more], check=True
    )
    return file


@pytest.fixture
def world(tmp_path):
    """The manifest and the report of an audit, signed by Ada, and the folder of the keys."""
    for name in ("ada", "eve"):
        make_key(tmp_path, name)
    manifest, audit = tmp_path / "manifest.csv", tmp_path / AUDIT_FILE
    Manifest.write(manifest, [row("a.mp4", PASSED)])
    audit.write_text(json.dumps(audit_content({"a.mp4": (PASSED, "0" * 64)})))
    seal(manifest, audit, signature.signer(tmp_path / "ada"))
    return tmp_path


def test_a_signed_audit_is_read_with_the_key_of_its_signer(world):
    manifest, both = world / "manifest.csv", world / "trusted"
    both.write_text((world / "eve.pub").read_text() + "\n" + (world / "ada.pub").read_text())
    write_passed(manifest, world / AUDIT_FILE, signature.signer(world / "ada"))
    (world / "copy.csv").write_bytes(manifest.read_bytes())
    copy_seal(manifest, world / "copy.csv")
    for name in ("manifest.csv", "manifest-passed.csv", "copy.csv"):
        for trusted in (world / "ada.pub", both, None):
            assert read_verdicts(world / name, trusted)["a.mp4"].verdict == PASSED


def forge(world, signer, keep=()):
    """Seal a changed audit, and keep these fields of the old seal."""
    content = json.loads((world / AUDIT_FILE).read_text())
    (world / AUDIT_FILE).write_text(json.dumps(content | {"frames": 1000}))
    file = seal_path(world / "manifest.csv")
    old = json.loads(file.read_text())
    seal(world / "manifest.csv", world / AUDIT_FILE, signature.signer(world / signer) if signer else None)
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: old[name] for name in keep}))


def lengthen_the_signature(world, by="0"):
    file = seal_path(world / "manifest.csv")
    file.write_text(file.read_text().replace('"signature": "', f'"signature": "{by}'))


FORGED = {
    "another key": (lambda w: forge(w, "eve"), "not in"),
    "no signature": (lambda w: forge(w, ""), "not signed"),
    "a key that did not sign": (lambda w: forge(w, "eve", ["key"]), "not of this seal"),
    "an old signature": (lambda w: forge(w, "ada", ["key", "signature"]), "not of this seal"),
    "a longer signature": (lengthen_the_signature, "not of this seal"),
    "a signature that is no number": (lambda w: lengthen_the_signature(w, "\u0660"), "not of this seal"),
}


@pytest.mark.parametrize("way", FORGED)
def test_a_forged_seal_is_refused(world, way):
    FORGED[way][0](world)
    with pytest.raises(InputError, match=FORGED[way][1]):
        read_verdicts(world / "manifest.csv", world / "ada.pub")


@pytest.mark.parametrize(
    ("content", "says"), [("", "no key"), ("ssh-ed25519 AAAA", "public keys"), ("ssh-rsa AAAA x", "public keys")]
)
def test_a_file_without_keys_is_refused(world, content, says):
    (world / "trusted").write_text(content)
    with pytest.raises(InputError, match=says):
        read_verdicts(world / "manifest.csv", world / "trusted")


def test_what_is_no_key_is_refused(world):
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(world / "ecdsa")], check=True)
    make_key(world, "locked", "-N", "secret")
    for name, says in (("ada.pub", "Ed25519"), ("ecdsa", "Ed25519"), ("locked", "passphrase"), ("none", "none")):
        with pytest.raises(InputError, match=says):
            signature.signer(world / name)


def test_strict_asks_for_the_signature(world):
    config = replace(recipe("mae_nohuman")(), privacy="strict", run_dir=world / "run", data=world / "data.toml")
    sources = [Manifest.read(world / "manifest.csv")]
    assert precheck(replace(config, trust=world / "ada.pub"), sources, None)[0]["a.mp4"].verdict == PASSED
    with pytest.raises(InputError, match="not in"):
        precheck(replace(config, trust=world / "eve.pub"), sources, None)
    with pytest.raises(InputError, match="--privacy strict"):
        replace(config, privacy="off", trust=world / "ada.pub")


def test_a_key_with_a_passphrase_is_opened_at_a_terminal(world, monkeypatch):
    make_key(world, "locked", "-N", "secret")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda _: "secret")
    key, _ = signature.signer(world / "locked")("text")
    assert (world / "locked.pub").read_text().startswith(key)
    monkeypatch.setattr("getpass.getpass", lambda _: "another")
    with pytest.raises(InputError, match="passphrase is wrong"):
        signature.signer(world / "locked")
