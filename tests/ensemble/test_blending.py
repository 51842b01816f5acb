"""Weights under which nothing in a market is worth showing are refused before training and when loaded."""

from dataclasses import replace

import numpy as np
import pytest

from ensemble import build
from ensemble.blending import Blend, kinds_sold, without_effect
from ensemble.plan import FILE, CascadeConfig, Slot
from ensemble.release import Release, ReleaseWriter
from market.kinds import KINDS
from tests.ensemble import synthetic

ALL = np.ones((2, len(KINDS)), bool)
OFF = {"click": 0, "order": 0}


@pytest.mark.parametrize(
    ("weights_for", "sold", "refused"),
    [
        ({}, ALL, None),
        ({"ID": OFF}, ALL, "ID"),
        ({"ID": OFF, "ID.live": {"order": 0.1}}, ALL, None),
        ({"ID": OFF, "ID.live": {"order": 0.1}}, ALL & [True, False, True], "ID"),
        ({kind: OFF for kind in KINDS}, ALL, "GB"),
        ({"video": OFF, "live": OFF}, ALL, None),
        ({"ID": OFF}, ALL & [[True], [False]], None),
    ],
    ids=["default", "all", "but a kind", "but a kind that is not sold", "by kind", "not by one", "no market"],
)
def test_a_market_in_which_nothing_has_worth_is_named(weights_for, sold, refused):
    config = CascadeConfig(weights_for=weights_for)
    if refused is None:
        return config.expect_worth(("click", "order", "negative"), ("GB", "ID"), sold)
    with pytest.raises(
        ValueError, match=rf"nothing in {refused} is worth.*learns click, order, negative.*give"
    ):
        config.expect_worth(("click", "order", "negative"), ("GB", "ID"), sold)


@pytest.mark.parametrize(
    ("scope", "weights", "told"),
    [
        ("live", {"order": 2}, []),
        ("ID", {"order": 2}, []),
        ("ID.video", {"order": 2}, []),
        ("VN", {"order": 2}, ["cascade.weights_for.VN has no effect: contents are served in GB, ID alone"]),
        ("VN.live", {}, ['cascade.weights_for."VN.live" has no effect: contents are served in GB, ID alone']),
        ("ID.live", {"order": 2}, ['cascade.weights_for."ID.live" has no effect: no live is sold in ID']),
        ("product", {"order": 2}, ["cascade.weights_for.product has no effect: no product is sold anywhere"]),
        (
            "GB",
            {"order": 2, "cart": 1},
            ["cascade.weights_for.GB.cart has no effect: the ranker learned click, order alone"],
        ),
    ],
)
def test_weights_for_what_there_is_not_are_told(scope, weights, told):
    """Of the two markets GB alone sells rooms, and neither sells products."""
    sold = np.array([[True, True, False], [True, False, False]])
    config = CascadeConfig(weights_for={scope: weights})
    assert config.without_effect(("click", "order"), ("GB", "ID"), sold) == told


def test_slots_for_a_kind_that_is_not_sold_or_without_their_rule_are_told():
    sold = np.array([[True, False, False], [True, True, False]])
    slots = (Slot("product", most=1), Slot("live", least=1), Slot("product", least=1, within=5))
    told = "cascade.slots has no effect for product: no product is sold anywhere"
    config = CascadeConfig(slots=slots)
    assert config.without_effect(("click",), ("GB", "ID"), sold) == [told]
    config = CascadeConfig(slots=slots, rules=("dpp",))
    told = "cascade.slots has no effect: cascade.rules does not have slots"
    assert config.without_effect(("click",), ("GB", "ID"), sold) == [told]


def test_weights_without_effect_are_those_of_a_release(tmp_path):
    release = synthetic.release(tmp_path, 5)
    assert without_effect(release) == []
    with ReleaseWriter(tmp_path / "other", name="other") as made:
        made.copy(release)
        body = release.json(FILE)
        body["config"]["weights_for"] = {"NZ": {"click": 1.0}}
        made.json(FILE, body)
    (text,) = without_effect(Release.open(tmp_path / "other"))
    assert text.startswith("cascade.weights_for.NZ has no effect: contents are served in ")


def test_the_kinds_that_a_market_sells_are_those_of_its_contents():
    sold = kinds_sold(np.array([[True, True, False], [False, False, True]]), np.array([0, 2, 0]))
    assert sold.tolist() == [[True, False, True], [True, False, False]]


def test_what_is_free_costs_nothing_and_what_has_no_price_the_usual_one(tmp_path):
    sound = synthetic.release(tmp_path, 3)
    price = np.full(len(sound.array("price_usd.npy")), 3, np.float32)
    price[:2] = 0, np.nan
    with ReleaseWriter(tmp_path / "free", name="free") as made:
        made.copy(sound)
        made.array("price_usd.npy", price)
        body = sound.json(FILE)
        body["config"] |= {"weights_for": {}, "price_usd": 10.0}
        made.json(FILE, body)
    ordered = np.array([[[0, 1, 0]]] * 3, np.float32).reshape(1, 3, 3)
    worth = Blend(Release.open(tmp_path / "free"))(ordered, np.array([[0, 1, 2]]), np.array([0]))
    assert worth.tolist() == [[0, 10 * synthetic.WEIGHTS["order"], 3 * synthetic.WEIGHTS["order"]]]


def test_a_release_in_which_nothing_has_worth_is_not_loaded(tmp_path):
    sound = synthetic.release(tmp_path, 3)
    Blend(sound)
    with ReleaseWriter(tmp_path / "worthless", name="worthless") as made:
        made.copy(sound)
        body = sound.json(FILE)
        body["config"] |= {"weights": {"relevant": 1.0}, "weights_for": {}}
        made.json(FILE, body)
    with pytest.raises(ValueError, match=r"nothing in BR is worth showing.*build again"):
        Blend(Release.open(tmp_path / "worthless"))


def test_a_build_is_refused_before_it_trains(small_world_dataset, small_training_set, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "build_training_set", lambda *_, **__: small_training_set)
    monkeypatch.setattr(build, "train_two_tower", None)
    off = dict.fromkeys(("click", "watch", "cart", "order"), 0)
    config = build.BuildConfig(cascade=CascadeConfig(weights_for={"GB": off}))
    with pytest.raises(ValueError, match="nothing in GB is worth showing"):
        build.build_release(small_world_dataset, tmp_path / "build", config)


def test_a_build_is_refused_before_it_trains_where_what_is_spoken_in_a_new_market_has_no_worth(
    small_world_dataset, small_training_set, tmp_path, monkeypatch
):
    examples = small_training_set.examples
    popularity = examples.popularity.copy()
    popularity[examples.markets.index("GB")] = 0
    language = np.where(examples.contents["kind"] == "video", "en", "id")
    examples = replace(examples, popularity=popularity, contents=examples.contents.assign(language=language))
    data = replace(small_training_set, examples=examples)
    monkeypatch.setattr(build, "build_training_set", lambda *_, **__: data)
    monkeypatch.setattr(build, "train_two_tower", None)
    off = dict.fromkeys(("click", "watch", "cart", "order"), 0)
    config = build.BuildConfig(cascade=CascadeConfig(weights_for={"GB.video": off}))
    with pytest.raises(ValueError, match=r"nothing in GB is worth showing.*sold there \(video\)"):
        build.build_release(small_world_dataset, tmp_path / "build", config)
