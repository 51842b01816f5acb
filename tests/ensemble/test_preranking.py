"""What a release says of its pre-ranker is what pre-ranking does when it is served."""

from types import SimpleNamespace

import numpy as np
import pytest

from ensemble import distil
from ensemble.plan import Plan
from ensemble.release import Release
from ensemble.stages.retrieval import Retrieval
from models.preranker import PreRankerConfig
from tests.ensemble import synthetic
from tests.ensemble.test_retrieval import ask

QUERIES = 400


def taught(draft, folder, monkeypatch, count, served=None):
    """A draft with a pre-ranker of random weights; the stage, queries and worths that it learned of."""
    random, retrieval, request = np.random.default_rng(0), Retrieval(draft), ask(draft, 1, count)
    worth = random.random(len(draft.array("created_at.npy")))

    def ranked(cascade, data, rows, query_vectors, seen):
        asked = {name: array[rows] for name, array in request.items()}
        np.testing.assert_array_equal(query_vectors, asked["query_vector"])
        return asked | retrieval.retrieve(**asked) | {"probabilities": None}

    def trained(query_vector, vectors, numbers, *_):
        sizes = {"query": (synthetic.DIM, 2), "content": (synthetic.DIM, 2), "bias": (3,), "out": (3,)}
        sizes["hidden"] = (2 * 2 + numbers.shape[-1] + 1, 3)
        return SimpleNamespace(
            **{name: random.integers(-2, 3, size).astype(np.float32) for name, size in sizes.items()}
        )

    cascade = SimpleNamespace(
        retrieval=retrieval, plan=Plan.of(draft), blend=lambda _, candidates, __: worth[candidates]
    )
    queries = SimpleNamespace(rows=lambda part: slice(0, count), history=np.full((count, 1), -1))
    examples = SimpleNamespace(queries=queries, moments=retrieval.moments)
    data = SimpleNamespace(examples=examples, query_arrays=lambda rows: rows)
    two_tower = SimpleNamespace(query_encoder=request["query_vector"])
    monkeypatch.setattr(distil, "encode", lambda encoder, rows, _: encoder[rows])
    monkeypatch.setattr(distil, "Cascade", lambda *_, **__: cascade)
    monkeypatch.setattr(distil, "_ranked", ranked)
    monkeypatch.setattr(distil, "train_preranker", trained)
    made = distil.with_preranker(draft, folder / "made", data, two_tower, PreRankerConfig(), 0, served)
    return made, retrieval, request, worth


def test_the_agreement_of_a_release_is_that_of_the_candidates_it_serves(tmp_path, monkeypatch):
    draft = synthetic.release(tmp_path, 2)
    made, retrieval, request, worth = taught(draft, tmp_path, monkeypatch, QUERIES)
    judged = {name: array[::10] for name, array in request.items()}
    brought = retrieval.retrieve(**judged)["candidates"]
    served = Retrieval(Release.open(made.path))(**judged)["candidates"]
    best = [sorted(row[row >= 0], key=lambda c: -worth[c])[:10] for row in brought]
    kept = [np.isin(wanted, own).sum() for wanted, own in zip(best, served)]
    told = made.info["preranker"]
    assert told["agreement"] == pytest.approx(sum(kept) / sum(map(len, best)))
    assert told["agreement"] != told["unspread"]


@pytest.mark.parametrize(("world", "learned"), [(2, False), (10, True)])
def test_conversions_that_pre_ranking_learned_nothing_of_are_not_served(
    tmp_path, monkeypatch, world, learned
):
    """Where few orders were logged all of them may be drawn for validation, of which served arrays know."""
    draft = synthetic.release(tmp_path, world)
    assert draft.array("conversion.npy").any() == learned
    more = np.full(len(draft.array("conversion.npy")), -1.0, np.float32)
    made, *_ = taught(draft, tmp_path, monkeypatch, 20, {"conversion.npy": more})
    stage, request = Retrieval(Release.open(made.path)), ask(draft, 2, 4)
    assert (stage(**request)["candidates"] >= 0).any()
    assert (stage.conversion is None) == (not learned)
