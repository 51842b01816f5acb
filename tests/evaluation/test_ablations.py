"""Each ablation takes away what its name says, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest

import evaluation.ablations
from ensemble.adjust import adjust
from ensemble.channels import Channel
from evaluation.ablations import ABLATIONS, FULL, ablate, ablate_training, blind_to_moments
from evaluation.closed_loop import EXPECTED, Asked, Player, held_out_requests
from evaluation.replay import ranking_and_ranker
from evaluation.runs import ALL
from market.moments import MOMENT_FEATURES
from market.world import World
from tests.evaluation.test_closed_loop import SMALL_WORLD

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world():
    return World(SMALL_WORLD)


@pytest.fixture
def player(small_build, small_release, world):
    examples = small_build.built.data.examples
    begin = held_out_requests(examples, 50, seed=1).begin
    return Player(small_release, examples, world, begin, seed=1)


def visits(small_build):
    requests = held_out_requests(small_build.built.data.examples, 50, seed=1)
    none = np.full((len(requests), 1), -1)
    return Asked(requests.user, requests.market, requests.time, none, none)


def retrieved(player, small_build):
    return player._retrieved(visits(small_build))


def test_without_pre_ranking_everything_retrieved_is_ranked(player, small_build):
    before = retrieved(player, small_build)["candidates"]
    ABLATIONS["no pre-ranking, all ranked"](player)
    after = retrieved(player, small_build)["candidates"]
    config = small_build.config.cascade
    assert before.shape[1] == config.candidates < after.shape[1] == config.retrieved
    for kept, every in zip(before, after):
        assert set(kept.tolist()) <= set(every.tolist()) | {-1}


@pytest.mark.parametrize("channel", [Channel.TWO_TOWER, Channel.ITEM_GRAPH, Channel.TRENDING])
def test_one_channel_alone_brings_what_it_proposes(player, small_build, channel):
    ABLATIONS[
        f"{channel.name.lower().replace('_', '-' if channel == Channel.TWO_TOWER else ' ')} channel alone"
    ](player)
    made = retrieved(player, small_build)
    bits = made["channel"][made["candidates"] >= 0]
    assert len(bits)
    assert (bits == channel).all()


@pytest.mark.parametrize("channel", list(Channel))
def test_a_channel_left_out_brings_nothing(player, small_build, channel):
    ABLATIONS[f"without {channel.name.lower().replace('_', ' ')}"](player)
    assert not (retrieved(player, small_build)["channel"] & channel).any()


def test_without_calibration_probabilities_are_those_of_the_ranker(player, small_build):
    made = retrieved(player, small_build)
    ranker = ranking_and_ranker(player.release, threads=1)(**player.cascade.read("ranking", made))
    calibrated = player.cascade.apply("ranking", made)["probabilities"]
    ABLATIONS["no calibration"](player)
    said = player.cascade.apply("ranking", made)
    assert list(said) == ["probabilities"]
    np.testing.assert_allclose(said["probabilities"], ranker["ranker_probabilities"], rtol=1e-5)
    np.testing.assert_allclose(calibrated, ranker["probabilities"], rtol=1e-5)
    there = made["candidates"] >= 0
    assert (np.abs(said["probabilities"] - calibrated)[there] > 1e-4).any()


def test_with_caps_alone_slates_are_those_of_who_asks_for_no_diversity(player, small_build):
    def slates(change=None):
        request = player._request(visits(small_build)) | (change or {})
        return player.cascade(request)["content_id"]

    whole, plain = slates(), slates({"diversity": np.zeros(50, np.float32)})
    ABLATIONS["caps alone, no diversity by vectors"](player)
    alone = slates()
    np.testing.assert_array_equal(alone, plain)
    assert (alone != whole).any()
    ABLATIONS["no re-ordering diversity"](player)
    assert (alone != slates()).any(), "the caps were left"


def test_without_caps_and_diversity_a_slate_is_the_best_by_value(player, small_build):
    ABLATIONS["no re-ordering diversity"](player)
    made = retrieved(player, small_build)
    count = len(made["candidates"])
    random = np.random.default_rng(0)
    shape = (*made["candidates"].shape, len(player.cascade.plan.tasks))
    asked = made | {
        "probabilities": random.random(shape).astype(np.float32),
        "exposed": np.repeat(made["candidates"][:, :3], 3, axis=1),
        "diversity": np.full(count, 0.5, np.float32),
    }
    value = player.cascade.apply("reordering", asked)
    greedy = value["slate_propensity"] == 1
    for row in range(count):
        assert (np.diff(value["slate_value"][row][greedy[row] & (value["content_id"][row] != "")]) <= 0).all()


def test_without_caps_and_diversity_slates_are_those_of_a_release_without_such_rules(
    player, small_build, small_release, world, tmp_path
):
    config = replace(player.cascade.plan.config, rules=("exploration",))
    adjusted = adjust(small_release.path, tmp_path / "release", config).release
    begin = held_out_requests(small_build.built.data.examples, 50, seed=1).begin
    other = Player(adjusted, small_build.built.data.examples, world, begin, seed=1)
    asked = visits(small_build)
    whole = player.cascade_slate(asked)
    ABLATIONS["no re-ordering diversity"](player)
    np.testing.assert_array_equal(player.cascade_slate(asked), other.cascade_slate(asked))
    assert (player.cascade_slate(asked) != whole).any()


def test_every_ablation_is_played_beside_the_whole_cascade(small_build, small_release, world):
    examples = small_build.built.data.examples
    requests = held_out_requests(examples, 60, seed=1)
    rows = ablate(small_release, examples, world, requests, seed=1)
    overall = [row for row in rows if row.market == ALL]
    assert {row.system for row in overall} == {FULL, *ABLATIONS}
    own = {row.system: row.value for row in overall if row.metric == EXPECTED}
    for row in overall:
        if row.metric == f"{EXPECTED} over {FULL}":
            assert row.value == pytest.approx(own[row.system] - own[FULL], abs=1e-9)
            assert row.low <= row.value <= row.high


def test_what_training_leaves_out_is_built_as_the_release_and_played_on_the_same_requests(
    small_build, small_release, small_world_dataset, world, monkeypatch, tmp_path
):
    built, asked = small_build.built, {}

    def same(name, made):
        def build(dataset, folder, config, **told):
            asked[name] = dataset, folder, config, told.get("see")
            return made

        monkeypatch.setattr(evaluation.ablations, name, build)

    same("build_release", built)
    same("build_blind", built)
    same("build_alone", dict.fromkeys(SMALL_WORLD.markets, built))
    examples, config = built.data.examples, replace(small_build.config, seed=9)
    requests = held_out_requests(examples, 60, seed=1)
    rows = ablate_training(
        built, small_world_dataset, world, requests, config, tmp_path, markets=True, seed=1
    )
    assert {row.seed for row in rows} == {9}
    assert {name: (folder.name, see) for name, (_, folder, _, see) in asked.items()} == {
        "build_release": ("rooms", blind_to_moments),
        "build_blind": ("blind", None),
        "build_alone": ("alone", None),
    }
    assert all(told[0] is small_world_dataset and told[2] is config for told in asked.values())
    plain = ablate(small_release, examples, world, requests, seed=1)
    value, own = (
        {row.system: row.value for row in table if (row.market, row.metric) == (ALL, EXPECTED)}
        for table in (rows, plain)
    )
    assert value.items() >= own.items()
    # As good as the whole one, which stands for them here.
    assert value["no market adaptation"] == value["one model a market"] == value[FULL]
    assert value["without the moments of rooms"] != value[FULL]
    few = ablate_training(
        built, small_world_dataset, world, requests, config, tmp_path, markets=False, seed=1
    )
    assert {row.system for row in rows} - {row.system for row in few} == {
        "no market adaptation",
        "one model a market",
    }


def test_a_model_that_is_blind_to_moments_reads_none_of_a_room_and_all_else(small_training_set):
    pairs = small_training_set.examples.pairs
    rows = np.arange(len(pairs.query))
    own = np.zeros(len(rows), bool)
    seen, blind = (
        data.pair_arrays(pairs.query[rows], pairs.content[rows], own)
        for data in (small_training_set, blind_to_moments(small_training_set))
    )
    hidden = set(MOMENT_FEATURES) - {"stock"}
    for name in seen:
        if name in hidden:
            assert seen[name].any()
            assert not blind[name].any()
        else:
            np.testing.assert_array_equal(seen[name], blind[name])
