"""What holds in every slate, from retrieval to re-ordering: thousands of requests in hundreds of worlds."""

from collections import Counter

import numpy as np
import pytest

from ensemble.explanation import Explanation
from ensemble.plan import Plan
from ensemble.rules import Reason
from ensemble.stages.reordering import Reordering
from ensemble.stages.retrieval import Retrieval
from tests.ensemble import synthetic
from tests.ensemble.test_reordering import timeless
from tests.ensemble.test_retrieval import ask, eligible, spared, wished

WORLDS, ROWS = 220, 20
pytestmark = pytest.mark.slow


class Feed:
    """Retrieval and re-ordering of one world; a probability hangs on user and content alone."""

    def __init__(self, folder, seed):
        self.release = synthetic.release(folder, seed)
        self.plan = Plan.of(self.release)
        self.retrieval, self.reordering = Retrieval(self.release), Reordering(self.release)
        contents = len(self.release.array("text_content_id.npy"))
        random = np.random.default_rng([seed, 3])
        self.request = ask(self.release, seed, ROWS)
        sellers = int(self.release.array("seller_code.npy").max())
        for name in (
            "followed",
            "tired_sellers",
            "excluded_sellers",
        ):  # small worlds have fewer than are asked for
            self.request[name] = np.where(self.request[name] <= sellers, self.request[name], -1)
        self.exposed = random.integers(-1, contents, (ROWS, 5))
        self.taste = random.random((ROWS, contents + 1, len(self.plan.tasks))).astype(np.float32)

    def candidates(self, rows):
        request = {name: array[rows] for name, array in self.request.items()}
        return self.retrieval(**request, explain=np.ones(len(rows), bool))

    def slates(self, found, rows):
        return self.reordering(
            candidates=found["candidates"],
            retrieval_score=found["retrieval_score"],
            channel=found["channel"],
            probabilities=self.taste[rows[:, None], found["candidates"]],
            market_index=self.request["market_index"][rows],
            time=self.request["time"][rows],
            exposed=self.exposed[rows],
            diversity=np.where(rows % 3, 0.2, 0).astype(np.float32),
            seed=rows.astype(np.int64),
            explain=np.ones(len(rows), bool),
            preranking_score=found["preranking_score"],
            clock=np.zeros((len(rows), 2), np.int64),
            funnel=found["funnel"],
            excluded_sellers=self.request["excluded_sellers"][rows],
        )


@pytest.fixture(scope="module")
def feeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    return [Feed(folder, seed) for seed in range(1, WORLDS + 1)]


def test_every_slate_is_eligible_distinct_full_and_accounted_for(feeds):
    asked = explored = capped = 0
    for feed in feeds:
        every = np.arange(ROWS)
        found = feed.candidates(every)
        made = feed.slates(found, every)
        ids = feed.release.array("text_content_id.npy").tolist()
        seller = feed.release.array("seller_code.npy")
        size, config = feed.plan.config.slate, feed.plan.config
        for row in range(ROWS):
            request = {name: array[row] for name, array in feed.request.items()}
            may = eligible(
                feed.release,
                request["market_index"],
                request["time"],
                request["seen"].tolist(),
                spared(feed.request, row),
                **wished(feed.request, row),
            )
            slate = [ids.index(content) for content in made["content_id"][row] if content]
            assert set(slate) <= set(may), "what may not be shown is never shown"
            assert len(slate) == len(set(slate)) == min(size, len(may)), "no item twice, no place left empty"
            reasons, propensity = made["slate_reason"][row], made["slate_propensity"][row]
            drawn = reasons[: len(slate)] == Reason.EXPLORATION
            assert (propensity[: len(slate)][~drawn] == 1).all()
            assert ((propensity[: len(slate)][drawn] > 0) & (propensity[: len(slate)][drawn] <= 1)).all()
            told = Explanation.of(made["explanation"][row, 0])
            for stage in told.stages[2:]:
                assert stage.took == stage.kept + sum(stage.dropped.values()), "kept or dropped, once"
            for before, after in zip(told.stages[2:], told.stages[3:]):
                assert before.kept == after.took
            known = [item.content for item in told.items] + [other.content for other in told.others]
            assert max(Counter(known).values(), default=0) <= 1
            taken = Counter(int(seller[c]) for c in slate if seller[c] >= 0)
            pool = [*slate, *(ids.index(other.content) for other in told.others)]
            if config.rules[0] == "seller_cap" and not drawn.any():
                # The strictest rule yields to nothing but an empty place.
                room = sum(
                    min(n, config.seller_cap) for s, n in Counter(seller[pool].tolist()).items() if s >= 0
                )
                room += sum(seller[c] < 0 for c in pool)
                if room >= len(slate):
                    capped += len(taken) > 0
                    assert max(taken.values(), default=0) <= config.seller_cap
            asked, explored = asked + 1, explored + drawn.sum()
    assert asked == WORLDS * ROWS
    assert explored > 500
    assert capped > 100


def test_a_request_gets_the_same_slate_in_any_batch_and_with_candidates_in_any_order(feeds):
    for number, feed in enumerate(feeds):
        random = np.random.default_rng(number)
        every = np.arange(ROWS)
        found = feed.candidates(every)
        whole = timeless(feed.slates(found, every))
        order = random.permutation(ROWS)
        parts = [feed.slates(feed.candidates(rows), rows) for rows in np.array_split(order, 4)]
        for name, array in whole.items():
            if name != "explanation":
                together = np.concatenate([part[name] for part in parts])
                np.testing.assert_array_equal(array[order], together, name)
        turned = {name: array.copy() for name, array in found.items()}
        place = random.permutation(found["candidates"].shape[1])
        for name in ("candidates", "retrieval_score", "channel", "preranking_score"):
            turned[name] = found[name][:, place]
        again = timeless(feed.slates(turned, every))
        for name in set(whole) - {"slate_candidate_rank"}:
            np.testing.assert_array_equal(whole[name], again[name], name)
