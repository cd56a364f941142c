"""The table of tools: each states its licence, sets name what there is, and nothing runs against its terms."""

import pytest

from ppma.config.errors import InputError
from ppma.privacy.detectors.user_models import USER_MODELS
from ppma.privacy.detectors.weights import WEIGHTS
from ppma.privacy.removal import plugins
from ppma.privacy.removal.fill import TemporalMedian
from ppma.privacy.removal.plugins import PLUGINS, SETS


def test_each_states_a_licence_and_where_its_weights_come_from():
    for name, plugin in PLUGINS.items():
        assert plugin.license and plugin.kind in ("detector", "segmenter", "inpainter"), name
        assert not plugin.weights or plugin.weights in WEIGHTS
        assert not plugin.user_model or plugin.user_model in USER_MODELS
        assert (plugin.kind == "detector") == (plugin.finds in ("person", "face"))


def test_sets_are_made_of_what_there_is():
    for choice in SETS.values():
        assert set(choice.detectors) <= set(plugins.named("detector"))
        assert choice.segmenter in plugins.named("segmenter") and choice.inpainter in plugins.named("inpainter")
    default = SETS["default"]
    assert not any(PLUGINS[name].user_model for name in (*default.detectors, default.segmenter, default.inpainter))
    assert {PLUGINS[name].finds for name in default.detectors} == {"person", "face"}, "they complement each other"


@pytest.mark.parametrize("name", ["e2fgvi", "propainter"])
def test_non_commercial_tools_ask_first(name):
    with pytest.raises(
        InputError, match=f"inpainter {name} is licensed under .* use only; give --accept-non-commercial"
    ):
        plugins.check_terms(["median", name], accept_non_commercial=False)
    plugins.check_terms([name], accept_non_commercial=True)
    plugins.check_terms([n for n, p in PLUGINS.items() if not p.non_commercial], accept_non_commercial=False)


def test_one_without_weights_is_just_made(tmp_path):
    assert isinstance(plugins.load("median", tmp_path), TemporalMedian)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("movenet", "`ppma privacy fetch"),
        ("lama", "--models lama=FILE"),
        ("maskrcnn", r"maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth is missing"),
    ],
)
def test_missing_weights_are_told_with_what_to_do(name, message, tmp_path):
    with pytest.raises(InputError, match=message):
        plugins.load(name, tmp_path)
    assert plugins.state(PLUGINS[name], tmp_path) and not plugins.state(PLUGINS["median"], tmp_path)


def test_an_unknown_name_gets_the_list():
    with pytest.raises(InputError, match="--inpainter: there is no inpainter 'lamma'; inpainters are median, lama"):
        plugins.check("lamma", "inpainter", "--inpainter")
