"""The whole cascade in this process: its feeds keep every rule, and bad requests are told what is wrong."""

import numpy as np
import pytest

from ensemble.cascade import Cascade, reply
from ensemble.errors import RequestError
from ensemble.explanation import Explanation
from ensemble.stages.user_state import REQUEST
from ensemble.steps import check_wiring
from tests.ensemble.asking import BROKEN, requests, wishes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cascade(small_release):
    return Cascade(small_release)


def places(release, ids):
    """Places of text ids in the contents table."""
    place = {text: row for row, text in enumerate(release.array("text_content_id.npy").tolist())}
    return [place[text] for text in ids if text]


def test_the_steps_fit_together(cascade):
    check_wiring(cascade.steps, REQUEST, reply(cascade.plan))


def test_a_reply_is_as_declared(cascade, small_release):
    made = cascade(requests(small_release, 5))
    assert list(made) == [spec.name for spec in reply(cascade.plan)]
    for spec in reply(cascade.plan):
        assert made[spec.name].dtype == spec.dtype
        assert made[spec.name].shape == (5, *spec.shape)


def test_steps_one_by_one_make_the_reply_of_all(cascade, small_release):
    request = requests(small_release, 5)
    made = cascade.up_to("query", request)
    assert "query_vector" in made
    assert "candidates" not in made
    for name in ("retrieval", "ranking", "reordering"):
        made |= cascade.apply(name, made)
    for name, array in cascade(request).items():
        np.testing.assert_array_equal(made[name], array, err_msg=name)


def test_a_step_that_is_not_there_is_told_with_those_that_are(cascade, small_release):
    with pytest.raises(ValueError, match="no step is named 'rank'; there are user_state, query, retrieval"):
        cascade.up_to("rank", requests(small_release, 5))


def test_only_eligible_contents_are_served_and_none_twice(cascade, small_release):
    request = requests(small_release, 64, seed=1)
    served = cascade(request)["content_id"]
    opens, ends = small_release.array("created_at.npy"), small_release.array("ended_at.npy")
    available, history = small_release.array("available.npy"), small_release.array("user_seen.npy")
    users = {text: row for row, text in enumerate(small_release.array("user_id.npy").tolist())}
    for row, ids in enumerate(served):
        found = places(small_release, ids)
        market, time = cascade.plan.markets.index(request["market"][row]), request["time"][row]
        assert len(found) == cascade.plan.config.slate == len(set(found))
        assert available[market, found].all()
        assert (opens[found] <= time).all()
        assert (time < ends[found]).all()
        assert not set(ids) & {*request["history"][row], *request["exclude"][row]}
        if (user := users.get(request["user_id"][row])) is not None:
            assert not set(found) & set(history[user].tolist())


def test_an_ended_room_is_never_served(cascade, small_release):
    ended, text = small_release.array("ended_at.npy"), small_release.array("text_content_id.npy")
    request = requests(small_release, 16, seed=2)
    for room in np.flatnonzero(ended < ended.max()):
        before, after = (
            cascade(request | {"time": np.full(16, time)})["content_id"]
            for time in (ended[room] - 1, ended[room])
        )
        assert text[room] not in after
        if text[room] in before:
            return
    pytest.fail("no room was served in its last second, so nothing ended")


@pytest.mark.parametrize("asking", [lambda *_: {}, wishes], ids=["for anything", "for what each wishes"])
def test_a_batch_equals_its_requests_one_by_one(cascade, small_release, asking):
    request = requests(small_release, 24, seed=3) | asking(small_release, 24)
    batch = cascade(request)
    alone = [cascade({name: array[[row]] for name, array in request.items()}) for row in range(24)]
    for name, array in batch.items():
        one = np.concatenate([made[name] for made in alone])
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, one, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(array, one, name)


def test_values_and_probabilities_are_finite_and_blended_as_declared(cascade, small_release):
    made = cascade(requests(small_release, 8, seed=4))
    probabilities = made["slate_probabilities"]
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    price = small_release.array("price_usd.npy")
    for row, place in np.ndindex(made["content_id"].shape):
        (content,) = places(small_release, [made["content_id"][row, place]])
        parts = {"cart": price[content], "order": price[content]}
        weights = [cascade.plan.config.weights[task] * parts.get(task, 1.0) for task in cascade.plan.tasks]
        value = probabilities[row, place] @ np.array(weights)
        assert made["slate_value"][row, place] == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_unknown_users_of_a_market_share_its_cold_feed(cascade, small_release):
    request = requests(small_release, 4)
    request |= {
        "user_id": np.array(["nobody", "stranger", "nobody", "stranger"], object),
        "market": np.array(["ID", "ID", "GB", "GB"], object),
        "time": np.full(4, cascade.plan.as_of),
        "history": np.full((4, 0), "", object),
        "exclude": np.full((4, 0), "", object),
        "shown": np.full((4, 0), "", object),
        "diversity": np.zeros(4, np.float32),
        "seed": np.zeros(4, np.int64),
        "explain": np.zeros(4, bool),
        "exclude_sellers": np.full((4, 0), "", object),
        "languages": np.full((4, 0), "", object),
    }
    made = cascade(request)["content_id"]
    assert (made != "").all()
    assert made[0].tolist() == made[1].tolist()
    assert made[2].tolist() == made[3].tolist()
    assert made[0].tolist() != made[2].tolist()


def test_what_a_person_wants_now_moves_the_feed(cascade, small_release):
    request = {name: array[:1] for name, array in requests(small_release, 1).items()}
    request |= {"user_id": np.array(["nobody"], object), "history": np.full((1, 0), "", object)}
    cold = cascade(request)
    wanted = small_release.array("text_content_id.npy")[np.arange(6)].astype(object)
    warm = cascade(request | {"history": wanted[None]})
    assert not np.array_equal(cold["slate_retrieval_score"], warm["slate_retrieval_score"])


def test_a_content_wanted_again_and_again_in_a_session_is_no_error(cascade, small_release):
    request = requests(small_release, 2)
    text = small_release.array("text_content_id.npy")[0]
    made = cascade(request | {"history": np.full((2, 300), text, object)})["content_id"]
    assert (made != "").all()
    assert text not in made


@pytest.mark.parametrize("count", [10_000, None])
def test_the_excluded_are_never_served_and_the_slate_is_as_full_as_what_is_left(
    cascade, small_release, count
):
    texts = small_release.array("text_content_id.npy").astype(object)
    kept = texts[::4] if count else texts[:0]
    exclude = np.setdiff1d(texts, kept)
    exclude = np.concatenate([exclude, [f"unknown-{i}" for i in range((count or len(texts)) - len(exclude))]])
    request = requests(small_release, 3) | {"exclude": np.tile(exclude.astype(object), (3, 1))}
    request["history"][:] = ""
    request["user_id"][:] = "nobody"
    made = cascade(request)
    assert not set(made["content_id"].ravel()) & set(exclude)
    if count:
        assert (made["content_id"] != "").all()
    else:
        assert (made["content_id"] == "").all()
        assert not made["slate_value"].any()


def test_the_funnel_loses_nothing_on_its_way(cascade, small_release):
    request = requests(small_release, 8, seed=6) | {"explain": np.arange(8) % 2 == 0}
    made = cascade(request)
    assert (made["explanation"][1::2] == "").all()
    for row in range(0, 8, 2):
        told = Explanation.of(made["explanation"][row, 0])
        names = ["user_state", "query", "retrieval", "pre-ranking", "ranking", "reordering"]
        assert [stage.stage for stage in told.stages] == names
        funnel = told.stages[2:]
        for stage in funnel:
            assert stage.took == stage.kept + sum(stage.dropped.values())
            assert min(stage.dropped.values(), default=1) > 0
        assert [stage.kept for stage in funnel[:-1]] == [stage.took for stage in funnel[1:]]
        market, time = cascade.plan.markets.index(request["market"][row]), request["time"][row]
        shelf = cascade.retrieval.shelves[market]
        assert funnel[0].took == len(shelf.rows)
        stocked = small_release.array("stock.npy")[shelf.rows] != 0
        assert funnel[0].dropped.get("sold out", 0) == (~stocked).sum()
        assert funnel[0].dropped.get("not open", 0) == (stocked & (shelf.opens > time)).sum()
        assert funnel[0].dropped.get("ended", 0) == (stocked & (shelf.ends <= time)).sum()
        assert [item.content for item in told.items] == made["content_id"][row].tolist()
        assert sum(stage.ms for stage in told.stages) > 0


def test_asking_for_an_explanation_changes_nothing_else(cascade, small_release):
    request = requests(small_release, 6, seed=7)
    silent, told = cascade(request), cascade(request | {"explain": np.ones(6, bool)})
    for name in set(silent) - {"explanation"}:
        np.testing.assert_array_equal(silent[name], told[name], name)


@pytest.mark.parametrize("wrong", BROKEN)
def test_a_broken_request_is_told_what_is_wrong(cascade, small_release, wrong):
    broken, code = BROKEN[wrong]
    with pytest.raises(RequestError) as caught:
        cascade(broken(requests(small_release, 3)))
    assert caught.value.code is code
    assert "\n" not in caught.value.message
    assert "/" not in caught.value.message


def test_a_request_gets_nothing_of_sellers_that_it_excludes_and_a_full_slate_all_the_same(
    cascade, small_release
):
    sellers, seller = small_release.array("seller_ids.npy"), small_release.array("seller_code.npy")
    request = requests(small_release, 8, seed=8) | {"explain": np.ones(8, bool)}
    request["exclude"][:] = request["exclude_sellers"][:] = request["languages"][:] = ""
    before = cascade(request)
    codes = [seller[places(small_release, ids)] for ids in before["content_id"]]
    said = np.array([[str(sellers[code]) for code in own[:3]] + ["unknown", ""] for own in codes], object)
    made = cascade(request | {"exclude_sellers": said})
    for row, ids in enumerate(made["content_id"]):
        assert (ids != "").all()
        assert not set(seller[places(small_release, ids)]) & set(codes[row][:3])
        funnel = Explanation.of(made["explanation"][row, 0]).stages[2]
        assert funnel.dropped["of an excluded seller"] > 0
        assert funnel.took == funnel.kept + sum(funnel.dropped.values())
        left = funnel.took - sum(n for why, n in funnel.dropped.items() if "quotas" not in why)
        assert funnel.kept == min(cascade.plan.config.retrieved, left), "the channels fill up with others"


def test_excluding_every_seller_but_one_leaves_what_that_one_may_show(cascade, small_release):
    sellers, seller = small_release.array("seller_ids.npy"), small_release.array("seller_code.npy")
    request = {name: array[:1] for name, array in requests(small_release, 1, seed=9).items()}
    market, time = cascade.plan.markets.index(request["market"][0]), request["time"]
    shelf = cascade.run["retrieval"].shelves[market]
    request["exclude"][:] = request["history"][:] = request["languages"][:] = ""
    request["user_id"][:] = "nobody"
    may = shelf.rows[shelf.eligible(time, np.full((1, 0), -1))[0]]
    left = seller[may][seller[may] >= 0][0]
    made = cascade(request | {"exclude_sellers": np.delete(sellers, left).astype(object)[None]})
    found = [text for text in made["content_id"][0] if text]
    size = min(cascade.plan.config.slate, int(np.isin(seller[may], [left, -1]).sum()))
    assert len(found) == size > 0
    assert set(seller[places(small_release, np.array(found, object))]) <= {left, -1}


def test_a_request_without_what_is_optional_is_answered_as_one_that_says_nothing(cascade, small_release):
    request = requests(small_release, 4, seed=10)
    request["exclude_sellers"][:] = request["languages"][:] = ""
    optional = {spec.name for spec in REQUEST if spec.optional}
    assert len(optional) == 5
    silent = {name: array for name, array in request.items() if name not in optional}
    with_it, without = cascade(request), cascade(silent)
    for name, array in with_it.items():
        np.testing.assert_array_equal(array, without[name], name)


def test_a_request_that_says_its_languages_gets_contents_in_these_or_in_none(cascade, small_release):
    texts = small_release.array("text_content_language.npy")
    request = requests(small_release, 8, seed=11) | {"explain": np.ones(8, bool)}
    request["exclude"][:] = request["exclude_sellers"][:] = request["languages"][:] = ""
    shelves = cascade.run["retrieval"].shelves
    said = np.full((8, 2), "", object)
    for row, market in enumerate(request["market"]):
        here = texts[shelves[cascade.plan.markets.index(market)].rows]
        names, count = np.unique(here[here != ""], return_counts=True)
        said[row] = "xx", str(names[count.argsort()[-1 - row % min(2, len(names))]])
    usual, made = cascade(request), cascade(request | {"languages": said})
    stems = np.array([text.split("-")[0] for text in texts])
    others = 0
    for row, ids in enumerate(made["content_id"]):
        found = stems[places(small_release, ids[ids != ""])]
        assert set(found) <= {said[row, 1].split("-")[0], ""}
        others += len(set(stems[places(small_release, usual["content_id"][row])]) - set(found))
        funnel = Explanation.of(made["explanation"][row, 0]).stages[2]
        here = shelves[cascade.plan.markets.index(request["market"][row])].rows
        assert bool(funnel.dropped.get("in a language not read")) == bool(
            set(stems[here]) - {"", said[row, 1].split("-")[0]}
        )
        assert funnel.took == funnel.kept + sum(funnel.dropped.values())
    assert others


def asking_for(release, rows, **said):
    """Requests that say nothing but this of what they ask for."""
    request = requests(release, rows, seed=13) | {"explain": np.ones(rows, bool)}
    request["exclude_sellers"][:] = request["languages"][:] = request["exclude"][:] = ""
    return request | {name: np.tile(np.array([names], object), (rows, 1)) for name, names in said.items()}


@pytest.mark.parametrize(
    ("kinds", "categories", "excluded"),
    [
        (["live"], [""], [""]),
        (["product", "video", "product"], [""], [""]),
        ([""], ["first", "none"], [""]),
        ([""], ["first", "second"], [""]),
        ([""], [""], ["first", "second", "none"]),
        (["product"], ["first", "second"], ["second"]),
    ],
)
def test_a_request_gets_what_it_asks_for_and_all_that_there_is_of_it(
    cascade, small_release, kinds, categories, excluded
):
    kind, category = (small_release.array(f"text_{name}.npy") for name in ("kind", "category"))
    names, count = np.unique(category[category != ""], return_counts=True)
    called = dict(zip(("first", "second"), names[count.argsort()[::-1]].tolist())) | {"": "", "none": "none"}
    categories, excluded = ([called[name] for name in own] for own in (categories, excluded))
    request = asking_for(small_release, 12, kinds=kinds, categories=categories, exclude_categories=excluded)
    made = cascade(request)
    told = 0
    for row, ids in enumerate(made["content_id"]):
        funnel = Explanation.of(made["explanation"][row, 0]).stages[2]
        told += funnel.dropped.get("of a kind or category not asked for", 0)
        assert funnel.took == funnel.kept + sum(funnel.dropped.values())
        left = funnel.took - sum(n for why, n in funnel.dropped.items() if "quotas" not in why)
        assert funnel.kept == min(cascade.plan.config.retrieved, left), "the channels fill up"
        assert (ids != "").sum() == min(cascade.plan.config.slate, funnel.kept)
        for place in places(small_release, ids[ids != ""]):
            assert kinds == [""] or kind[place] in kinds
            assert categories == [""] or category[place] in set(categories) - {""}
            assert category[place] not in set(excluded) - {""}
    assert (made["content_id"] != "").any()
    assert told


def test_of_a_category_that_is_unknown_there_is_nothing_and_to_exclude_it_does_no_harm(
    cascade, small_release
):
    none = cascade(asking_for(small_release, 3, categories=["none", ""]))
    assert (none["content_id"] == "").all()
    usual = cascade(asking_for(small_release, 3))["content_id"]
    without = cascade(asking_for(small_release, 3, exclude_categories=["none"]))["content_id"]
    np.testing.assert_array_equal(usual, without)


def test_languages_are_those_of_what_is_asked_for(cascade, small_release):
    """Where nothing of the kinds and categories is in them, contents in others are shown."""
    category, language = (
        small_release.array(f"text_{name}.npy") for name in ("category", "content_language")
    )
    sold = small_release.array("available.npy").any(axis=0)
    of = {name: {*language[sold & (category == name)]} for name in np.unique(category[category != ""])}
    name, read = next((n, code) for n, own in of.items() for code in {*language} - own - {""})
    made = cascade(asking_for(small_release, 6, categories=[name], languages=[read]))["content_id"]
    np.testing.assert_array_equal(
        made, cascade(asking_for(small_release, 6, categories=[name]))["content_id"]
    )
    assert (made != "").any()


def test_an_unknown_kind_is_refused_with_those_that_there_are(cascade, small_release):
    request = asking_for(small_release, 2, kinds=["live", "story"])
    with pytest.raises(RequestError, match="'kinds' holds 'story' at row 0; there are video, live, product"):
        cascade(request)


def test_languages_in_which_nothing_is_sold_filter_nothing(cascade, small_release):
    request = requests(small_release, 4, seed=12)
    request["languages"][:] = ""
    usual = cascade(request)["content_id"]
    np.testing.assert_array_equal(
        usual, cascade(request | {"languages": np.full((4, 1), "xx", object)})["content_id"]
    )
