"""What training goes on from: the right weights at the right ids, the right rows, and no other model's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from models import two_tower
from models.batches import FORGOTTEN, UNSEEN, RankingBatches
from models.blocks import table_of
from models.ranker import (
    RankerConfig,
    build_ranker,
    expect_starts,
    losses,
    made_of,
    task_labels,
    train_ranker,
)
from models.seasons import Seasons
from models.starts import FILE, Start, _state, after, keep
from models.training import train
from tests.models import resumable
from tests.models.conftest import Trained
from workflows.examples import TRAIN

import tensorflow as tf  # isort: skip

FIRST = UNSEEN + 1
SEED = 11


@pytest.fixture(scope="module")
def made(small_ranker: Trained, small_training_set):
    """What the small ranker is made of."""
    labels = task_labels(small_training_set.examples, small_ranker.config.min_outcomes)
    return made_of(small_training_set, labels, small_ranker.config)


@pytest.fixture(scope="module")
def learned(small_ranker: Trained, small_training_set, made, tmp_path_factory):
    """A file of the small ranker's weights as they are by now."""
    folder = tmp_path_factory.mktemp("work") / "ranker"
    folder.mkdir()
    keep(small_ranker.model, small_training_set, made, FORGOTTEN, folder)
    return folder / FILE


def rewritten(file, path, **arrays):
    """The file with other arrays of some names."""
    with np.load(file) as opened:
        np.savez(path, **(dict(opened) | arrays))
    return path


def drawn(small_ranker, data, seed=5):
    """A model of the same shape with weights as they are drawn."""
    model = build_ranker(data.features, small_ranker.tasks, small_ranker.config, seed)
    labels = task_labels(data.examples, small_ranker.config.min_outcomes)
    x, y = RankingBatches(data, np.arange(8), labels, batch_size=8)[0]
    losses(model, {name: tf.constant(array) for name, array in x.items()}, y)
    model.optimizer._create_all_weights(model.trainable_variables)
    return model


def weights(model) -> dict[str, np.ndarray]:
    return _state(model)[0]  # the optimiser's moments, too


def test_a_model_of_the_same_data_starts_with_the_same_weights(
    learned, small_ranker, small_training_set, made
):
    model = drawn(small_ranker, small_training_set)
    before, expected = weights(model), weights(small_ranker.model)
    assert any(not np.array_equal(before[name], expected[name]) for name in expected)
    Start(learned).give(model, small_training_set, made)
    after_ = weights(model)
    assert after_.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(after_[name], array, name)
    np.testing.assert_array_equal(
        table_of(model).embeddings.numpy(), table_of(small_ranker.model).embeddings.numpy()
    )


def test_every_id_of_its_own_has_its_key(small_training_set, small_examples):
    features = small_training_set.features
    for schema in (features.query.schema, features.content.schema):
        for column in schema:
            if "domain" in column.properties and not column.shape.is_list:
                assert len(features.keys[column.name]) + FIRST == int(column.int_domain.max) + 1, column.name
    ids = features.content.arrays["content_id"]
    known = ids >= FIRST
    assert known.any()
    np.testing.assert_array_equal(
        features.keys["content_id"][ids[known] - FIRST],
        small_examples.contents["content_id"].to_numpy(str)[known],
    )


def test_rows_follow_their_keys_and_new_ones_start_as_unseen(
    learned, small_ranker, small_training_set, made, tmp_path
):
    """An earlier build that numbered its contents the other way round and lacked the last two of them."""
    keys = small_training_set.features.keys["content_id"]
    names = [f"{kind}rows in content_id" for kind in ("", "m of ", "v of ")]
    old = {name: weights(small_ranker.model)[name] for name in names}
    turned = {name: np.concatenate([of[:FIRST], of[FIRST:][:-2][::-1]]) for name, of in old.items()}
    other = rewritten(learned, tmp_path / "other.npz", **turned, **{"keys of content_id": keys[:-2][::-1]})
    model = drawn(small_ranker, small_training_set)
    Start(other).give(model, small_training_set, made)
    found = weights(model)
    for name in names:
        np.testing.assert_array_equal(found[name][:-2], old[name][:-2])
    np.testing.assert_array_equal(found[names[0]][-2:], old[names[0]][[UNSEEN, UNSEEN]])
    assert (old["v of rows in content_id"][:-2] > 0).any()
    # An id that nobody moved yet has no moments.
    assert not found["m of rows in content_id"][-2:].any()
    assert not found["v of rows in content_id"][-2:].any()
    # Where that build showed no id as unseen nothing was learned about what is.
    Start(rewritten(other, tmp_path / "all-shown.npz", forgotten=np.array([], str))).give(
        model, small_training_set, made
    )
    mean = turned[names[0]][FIRST:].mean(axis=0)
    np.testing.assert_allclose(weights(model)[names[0]][-2:], [mean, mean], rtol=1e-6, atol=1e-7)


def test_a_new_category_starts_as_the_mean_of_those_known(
    learned, small_ranker, small_training_set, made, tmp_path
):
    keys = small_training_set.features.keys["category"]
    old = weights(small_ranker.model)["rows in category"]
    fewer = {"keys of category": keys[1:], "rows in category": np.delete(old, FIRST, axis=0)}
    model = drawn(small_ranker, small_training_set)
    Start(rewritten(learned, tmp_path / "fewer.npz", **fewer)).give(model, small_training_set, made)
    found = weights(model)["rows in category"]
    np.testing.assert_array_equal(found[FIRST + 1 :], old[FIRST + 1 :])
    np.testing.assert_allclose(found[FIRST], old[FIRST + 1 :].mean(axis=0), rtol=1e-6, atol=1e-7)


def test_weights_that_would_mean_something_else_are_refused(
    learned, small_ranker, small_training_set, tmp_path
):
    """Whatever of the data set or the configuration changed, and before anything is trained."""
    until(learned, tmp_path / "ranker" / FILE, 0)
    clicks = int(small_training_set.examples.pairs.outcomes["click"].sum())

    def expect(data=small_training_set, config=small_ranker.config, **knobs):
        expect_starts(data, replace(config, **knobs), tmp_path / "ranker", after(tmp_path))

    expect(id_dropout=0.0, epochs=7)  # they change no weight's meaning
    for changed, said in (
        ({"top": (16, 8)}, "ranker.top,"),
        ({"embedding_dim": 4, "bottom": (9,)}, "ranker.embedding_dim, ranker.bottom,"),
        ({"vectors": True, "attention": True}, "ranker.vectors, ranker.attention,"),
        ({"gates": True}, "ranker.gates,"),
        ({"min_outcomes": clicks // 2}, "tasks, "),
        ({"esmm": True}, r"tasks that follow others \(ranker.esmm\),"),
    ):
        with pytest.raises(ValueError, match=f"other {said}.*the configuration changed; build without"):
            expect(**changed)
    seasonal = replace(small_training_set, seasons=Seasons.of(small_training_set.examples, 86_400))
    with pytest.raises(ValueError, match=r"other seasons \(features.season_days\),"):
        expect(seasonal)
    content = small_training_set.features.content
    fewer = replace(content, schema=content.schema.excluding_by_name(["category"]))
    other = replace(small_training_set, features=replace(small_training_set.features, content=fewer))
    with pytest.raises(ValueError, match="other columns,"):
        expect(other)
    with pytest.raises(ValueError, match=r"ranker-1.*missing"):
        expect(members=2)


def test_what_another_version_left_is_refused(learned, small_ranker, small_training_set, made, tmp_path):
    model = drawn(small_ranker, small_training_set)
    before = weights(model)
    with np.load(learned) as opened:
        [name, *_] = [name for name in opened if name.startswith("weight") and opened[name].ndim == 2]
        wide, rest = np.concatenate([opened[name]] * 2, axis=1), dict(opened)
    del rest["markets"]
    np.savez(tmp_path / "older.npz", **rest)
    wider = rewritten(learned, tmp_path / "wide.npz", **{name: wide})
    narrow = rewritten(learned, tmp_path / "narrow.npz", **{"rows in category": np.zeros((9, 3), np.float32)})
    for file in (tmp_path / "older.npz", wider, narrow):
        with pytest.raises(ValueError, match=f"{file} was left by another version of Pasar; build without"):
            Start(file).give(model, small_training_set, made)
        for key, array in before.items():
            np.testing.assert_array_equal(weights(model)[key], array, key)


def test_what_is_missing_or_damaged_is_named(learned, small_training_set, tmp_path):
    whole, cut = learned.read_bytes(), tmp_path / "cut.npz"
    with pytest.raises(ValueError, match=f"{cut} is missing, .*build without an earlier one"):
        Start(cut).new(small_training_set.examples)
    for size in (0, 9, len(whole) // 2, len(whole) - 9):
        cut.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{cut} is damaged .*build what made it once more, or build"):
            Start(cut).new(small_training_set.examples)


def until(learned, path, time):
    path.parent.mkdir(exist_ok=True)
    return rewritten(learned, path, until=np.array(time))


def test_new_rows_are_learned_and_as_many_earlier_ones_as_asked(learned, small_training_set, tmp_path):
    pairs, times = small_training_set.examples.pairs, small_training_set.examples.queries.time
    rows = np.arange(pairs.rows(TRAIN).start, pairs.rows(TRAIN).stop)
    when = times[pairs.query[rows]]
    cut = int(np.quantile(when, 0.9))
    file = until(learned, tmp_path / "cut.npz", cut)
    new = rows[when >= cut]
    for replay in (0, 0.5, 2):
        found = Start(file).rows(small_training_set.examples, replay, SEED)
        assert len(found) == len(np.unique(found)) == len(new) + round(replay * len(new))
        assert (np.diff(found) > 0).all()
        assert np.isin(new, found).all()
        assert np.isin(found, rows).all()
    np.testing.assert_array_equal(
        found, Start(file).rows(small_training_set.examples, 2, SEED), "the same under a seed"
    )
    assert not np.array_equal(found, Start(file).rows(small_training_set.examples, 2, SEED + 1))
    # More than there are is all there are.
    np.testing.assert_array_equal(Start(file).rows(small_training_set.examples, 1e6, SEED), rows)


def test_a_log_without_news_is_refused(learned, small_training_set):
    with pytest.raises(ValueError, match="nothing new to learn; take a longer log"):
        Start(learned).rows(small_training_set.examples, 1, SEED)


def test_all_rows_of_a_market_that_joins_are_new(learned, small_training_set, tmp_path):
    examples = small_training_set.examples
    with np.load(learned) as kept:
        assert list(kept["markets"]) == ["GB", "ID"] == list(examples.markets)
    file = rewritten(learned, tmp_path / "alone.npz", markets=np.array(["GB"]))
    rows = examples.pairs.rows(TRAIN)
    joined = examples.queries.market[examples.pairs.query[rows]] == 1
    assert 0 < joined.sum() < len(joined)
    np.testing.assert_array_equal(Start(file).new(examples), joined)


def test_it_goes_on_and_is_never_worse_than_it_was(small_training_set, tmp_path):
    """Trained again on the same days from where it was: the start is judged as an epoch of its own."""
    config = RankerConfig(embedding_dim=8, bottom=(16,), top=(16, 8), epochs=2, gates=True, min_outcomes=60)
    fit = partial(train_ranker, small_training_set, config)
    [state] = fit(tmp_path / "first" / "ranker", SEED)[-1]
    file = tmp_path / "first" / "ranker" / FILE
    until(file, file, int(np.quantile(small_training_set.examples.queries.time, 0.6)))
    [later] = fit(tmp_path / "again" / "ranker", SEED, start=after(tmp_path / "first"))[-1]
    assert later.start["auc"] == pytest.approx(state.best, abs=1e-6)
    assert later.best >= state.best
    assert later.best == max(metrics["auc"] for metrics in (later.start, *later.history))


def test_the_start_is_kept_where_no_epoch_is_better(tmp_path):
    metrics = iter([0.5, 0.4, 0.3, 0.9])

    def as_given(model):
        return all((variable.numpy() == 0.25).all() for variable in model.trainable_variables)

    def run(folder, epochs, validate):
        model = resumable.model()
        state = train(
            "toy",
            model,
            two_tower.losses,
            resumable.RandomBatches,
            validate,
            monitor="recall",
            epochs=epochs,
            patience=2,
            folder=folder,
            begin=lambda model: model.set_weights([np.full_like(w, 0.25) for w in model.get_weights()]),
        )
        return model, state

    model, state = run(tmp_path / "worse", 5, lambda model: {"recall": next(metrics)})
    assert (state.best_epoch, state.epoch, state.best) == (0, 2, 0.5)
    assert as_given(model)
    # Taken up again it begins no second time.
    model, state = run(tmp_path / "worse", 5, lambda model: pytest.fail("it had ended"))
    assert state.best_epoch == 0
    assert as_given(model)
    # Without validation data the last epoch is kept, as ever.
    model, state = run(tmp_path / "blind", 2, lambda model: {})
    assert state.best_epoch == 2
    assert not as_given(model)
