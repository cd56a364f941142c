"""Labels are matched by class name wherever two lists of classes meet, and never by their numbers where there are names."""

import random
import tomllib
import unicodedata
from pathlib import Path

import pytest

from ppma.config.errors import InputError
from ppma.loaders.sources import labels
from ppma.loaders.sources.labels import by_name, class_names, renumbered
from ppma.loaders.sources.manifest import Clip, Manifest

DATASETS = Path(__file__).resolve().parents[2] / "ppma" / "data" / "datasets"
HEAD = ("archery", "biking", "climbing", "diving")
METADATA = {"frames": 9, "fps": 9.0, "width": 8, "height": 8, "codec": "h264", "key_frame_spacing": 1}


def manifest(*classes):
    """A manifest with a clip for each (label, name), whose path is the name."""
    rows = [
        Clip(path=f"{name or label}.mp4", label=label, class_name=name, duration_seconds=1.0, **METADATA)
        for label, name in classes
    ]
    return Manifest.from_clips(rows, root=Path("/nowhere"), name="made")


def listed(*names):
    return manifest(*enumerate(names))


def matched(source, classes=HEAD, **flags):
    return by_name(source, classes, head="the head", remedy="fix it", **flags)


def test_a_split_without_a_class_gets_the_labels_of_the_head(caplog):
    found = matched(listed("archery", "climbing", "diving"))
    assert found.labels.tolist() == [0, 2, 3] and found.n_classes == 4
    assert found.class_names == dict(enumerate(HEAD)) and "biking" in caplog.text
    assert found.sha256 == listed("archery", "climbing", "diving").sha256


@pytest.mark.promise("R21")
def test_every_order_and_subset_of_classes_is_matched(figure):
    pick, wrong, trials = random.Random(0), 0, 500
    for _ in range(trials):
        head = tuple(f"class {n}" for n in pick.sample(range(40), pick.randint(1, 30)))
        own = pick.sample(head, pick.randint(1, len(head)))
        rows = [(label, name) for label, name in enumerate(own) for _ in range(pick.randint(0, 2))]
        source = manifest(*(rows or [(0, own[0])]))
        found = matched(source, head)
        wrong += [head[label] for label in found.labels] != source.texts("class_name")
    figure("R21", f"{wrong} of {trials} class lists are matched wrongly")
    assert not wrong


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (listed("archery", "surfing"), "surfing"),
        (listed("Archery", "biking"), "Archery"),
        (manifest((0, "archery"), (1, "")), "number 1"),
        (manifest((0, ""), (1, "")), "--classes"),
    ],
)
def test_a_class_that_the_head_lacks_is_refused(source, named):
    with pytest.raises(InputError, match=named):
        matched(source)


def test_or_gets_a_label_behind_those_of_the_head():
    found = matched(listed("surfing", "archery", "skiing"), mark_unknown=True)
    assert found.labels.tolist() == [4, 0, 5] and found.n_classes == 6
    assert found.class_names == dict(enumerate((*HEAD, "surfing", "skiing")))
    assert matched(found, mark_unknown=True).labels.tolist() == [4, 0, 5]
    assert [(found.clip(i).label, found.clip(i).class_name) for i in (0, 1)] == [(4, "surfing"), (0, "archery")]


def test_without_names_the_numbers_are_compared(caplog):
    assert matched(manifest((0, ""), (2, "")), ("", "", "")).labels.tolist() == [0, 2]
    assert not caplog.text.count("numbers")
    assert matched(listed("b", "a"), ("", "", "")).labels.tolist() == [0, 1]  # a head of an older version
    assert "numbers" in caplog.text
    assert matched(manifest((1, ""), (0, "b")), ("b", "")).labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="number 3"):
        matched(manifest((0, ""), (3, "")), ("", "", ""))


def test_an_accent_is_the_same_in_both_of_its_spellings():
    """A folder copied from a Mac has the decomposed one."""
    name = "Grätsche"
    assert matched(listed(unicodedata.normalize("NFD", name)), ("x", name)).labels.tolist() == [1]


@pytest.mark.parametrize("rows", [[(0, "a"), (1, "a")], [(None, "")], [(0, "a"), (None, "")]])
def test_a_list_that_is_no_numbering_is_refused(rows):
    with pytest.raises(InputError, match="label"):
        class_names(manifest(*rows))


def test_what_changed_is_named():
    assert renumbered(listed(*HEAD), HEAD) == []
    found = renumbered(listed("biking", "archery", "surfing"), HEAD)
    assert ["biking" in found[0], "archery" in found[1], "surfing" in found[2]] == [True] * 3


def test_a_paper_source_with_other_numbers_than_the_authors_lists_is_named(monkeypatch):
    published = ("diving", "archery", "climbing", "biking")
    orders = {labels._hash(sorted(published)): labels._hash(published)}
    monkeypatch.setattr(labels, "PUBLISHED_ORDERS", orders)
    labels.check_published_order(listed(*published))
    labels.check_published_order(listed("walking", "waving"))  # not of the paper
    with pytest.raises(InputError, match="--classes"):
        labels.check_published_order(listed(*HEAD))


def test_the_order_is_known_of_the_classes_that_the_data_set_has():
    table = tomllib.loads((DATASETS / "kinetics150.toml").read_text())
    assert labels._hash(sorted(table["read"]["class_names"])) in labels.PUBLISHED_ORDERS
