"""Off-policy estimators: on a bandit of known truth, on degenerate logs, and on two real logs of one shop."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evaluation.off_policy import Estimate, estimate
from tests.conftest import public_data

# A bandit: six kinds of people, equally many, four actions, rewards of 0 and 1.
RATES = np.random.default_rng(1).uniform(0.1, 0.9, (6, 4))
LOGGING = np.tile([0.4, 0.3, 0.2, 0.1], (6, 1))
TARGET = np.random.default_rng(2).dirichlet(np.ones(4), 6)
TRUTH = float((TARGET * RATES).sum(axis=1).mean())
WRONG = 1 - RATES
"""A model that takes the best for the worst."""
REPETITIONS = 1000


def by_name(estimates: list[Estimate]) -> dict[str, Estimate]:
    return {each.estimator: each for each in estimates}


def judged(rng: np.random.Generator, rows: int, model: np.ndarray = RATES, logging: np.ndarray = LOGGING):
    """One log of the bandit, judged with propensities of `logging` and a model of the rates [6, 4]."""
    kind = rng.integers(0, 6, rows)
    action = (rng.random((rows, 1)) > LOGGING.cumsum(axis=1)[kind]).sum(axis=1)
    reward = (rng.random(rows) < RATES[kind, action]).astype(float)
    expected = (TARGET * model).sum(axis=1)[kind]
    probabilities = logging[kind, action], TARGET[kind, action]
    return by_name(estimate(reward, *probabilities, predicted=model[kind, action], expected=expected))


def repeated(seed: int, rows: int, **options) -> pd.DataFrame:
    """Value, low and high of every estimator over many logs; a row for each log and estimator."""
    rng = np.random.default_rng(seed)
    logs = [judged(rng, rows, **options) for _ in range(REPETITIONS)]
    return pd.DataFrame([each for log in logs for each in log.values()]).set_index("estimator")


@pytest.fixture(scope="module")
def good_model() -> pd.DataFrame:
    return repeated(seed=3, rows=500)


@pytest.fixture(scope="module")
def wrong_model() -> pd.DataFrame:
    return repeated(seed=4, rows=500, model=WRONG)


def assert_centred(values: pd.Series, truth: float = TRUTH):
    """The mean over logs is the truth, within four of its own standard errors."""
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / len(values) ** 0.5)


def assert_covered(found: pd.DataFrame, truth: float = TRUTH):
    """95 % of the intervals hold the truth, within four standard errors of a share over so many logs."""
    covered = found.low.le(truth) & found.high.ge(truth)
    assert covered.mean() == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / len(found)) ** 0.5)


def test_ips_and_dr_are_unbiased_and_all_intervals_cover_the_truth(good_model):
    assert_centred(good_model.loc["ips"].value)
    assert_centred(good_model.loc["dr"].value)
    for estimator in ("ips", "snips", "dr"):
        assert_covered(good_model.loc[estimator])


def test_the_logs_own_mean_is_the_logging_policys_value_and_not_the_targets(good_model):
    own = (LOGGING * RATES).sum(axis=1).mean()
    assert abs(own - TRUTH) > 0.03
    assert_centred(good_model.loc["on-policy"].value, own)
    assert_covered(good_model.loc["on-policy"], own)


def test_a_good_model_makes_dr_narrower_than_ips(good_model):
    spread = good_model.groupby("estimator").value.std()
    assert spread["dr"] < 0.8 * spread["ips"]
    width = (good_model.high - good_model.low).groupby("estimator").mean()
    assert width["dr"] < 0.8 * width["ips"]


def test_a_wrong_model_costs_dr_width_and_no_bias(good_model, wrong_model):
    assert_centred(wrong_model.loc["dr"].value)
    assert_covered(wrong_model.loc["dr"])
    assert wrong_model.loc["dr"].value.std() > 1.2 * good_model.loc["dr"].value.std()


def test_a_right_model_saves_dr_from_wrong_propensities():
    found = repeated(seed=5, rows=500, logging=np.full((6, 4), 0.25))
    assert_centred(found.loc["dr"].value)
    assert abs(found.loc["ips"].value.mean() - TRUTH) > 0.03


def test_snips_comes_closer_to_the_truth_as_the_log_grows():
    few, many = (repeated(seed=6, rows=rows).loc["snips"].value - TRUTH for rows in (100, 1600))
    # Sixteen times the rows, a quarter of the error; a spread over 1,000 logs is known to 2.2 %.
    assert few.pow(2).mean() ** 0.5 / many.pow(2).mean() ** 0.5 == pytest.approx(4, abs=0.5)


def test_a_policy_judged_on_its_own_log_earned_the_mean_reward():
    rng = np.random.default_rng(0)
    reward, logged, person = rng.normal(size=50), rng.uniform(0.1, 1, 50), rng.integers(0, 20, 50)
    found = by_name(estimate(reward, logged, logged, groups=person))
    assert found["on-policy"].value == reward.mean()
    for estimator in ("ips", "snips"):
        own = found["on-policy"]
        assert found[estimator] == Estimate(estimator, own.value, own.low, own.high, 50.0, 1.0, 50)


def test_snips_follows_a_shift_of_all_rewards_which_ips_does_not():
    rng = np.random.default_rng(0)
    reward, logged, target = rng.normal(size=50), rng.uniform(0.1, 1, 50), rng.random(50)
    plain = by_name(estimate(reward, logged, target))
    moved = by_name(estimate(reward + 10, logged, target))
    for end in ("value", "low", "high"):
        assert getattr(moved["snips"], end) == pytest.approx(getattr(plain["snips"], end) + 10)
    assert moved["ips"].value != pytest.approx(plain["ips"].value + 10, abs=1)


def test_the_effective_size_counts_equal_weights_fully_and_a_single_one_once():
    reward = np.zeros(4)
    same = by_name(estimate(reward, np.full(4, 0.2), np.full(4, 0.5)))["ips"]
    assert (same.effective, same.largest, same.rows) == (pytest.approx(4), 2.5, 4)
    single = by_name(estimate(reward, np.full(4, 0.2), np.array([0, 0, 1, 0])))["ips"]
    assert (single.effective, single.largest) == (1, 5)


def test_rows_that_a_person_repeats_make_nothing_surer():
    rng = np.random.default_rng(0)
    reward, logged, target = rng.random(40), rng.uniform(0.1, 1, 40), rng.random(40)
    model = {"predicted": rng.random(40), "expected": rng.random(40)}
    plain = by_name(estimate(reward, logged, target, **model))
    person = np.repeat(np.arange(40), 5)
    columns = [column[person] for column in (reward, logged, target)]
    again = {name: column[person] for name, column in model.items()}
    grouped = by_name(estimate(*columns, groups=person, **again))
    alone = by_name(estimate(*columns, **again))
    for estimator, first in plain.items():
        found, narrow = grouped[estimator], alone[estimator]
        expected = pytest.approx((first.value, first.low, first.high))
        assert (found.value, found.low, found.high) == expected
        assert found.high - found.low > 2 * (narrow.high - narrow.low)  # the root of 5


def test_groups_by_any_label_are_the_same_and_one_group_has_no_interval():
    rng = np.random.default_rng(0)
    columns = rng.random(30), rng.uniform(0.1, 1, 30), rng.random(30)
    person = np.arange(30) % 7
    assert estimate(*columns, groups=person) == estimate(*columns, groups=np.array([f"p{p}" for p in person]))
    for found in estimate(*columns, groups=np.zeros(30)):
        assert np.isfinite(found.value)
        assert np.isnan([found.low, found.high]).all()


def test_without_a_model_there_is_no_dr():
    assert list(by_name(estimate(np.ones(2), np.ones(2), np.ones(2)))) == ["on-policy", "ips", "snips"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reward": np.zeros(0)}, "no rows"),
        ({"reward": np.zeros((3, 1))}, r"reward has shape \(3, 1\).*one number a row"),
        ({"reward": [0, np.nan, 1]}, "1 of 3 values of reward are NaN"),
        ({"logged": [0.5, 0.5]}, r"logged has shape \(2,\), reward has 3 rows"),
        ({"logged": [0.5, 0, 0.5]}, r"1 of 3 values of logged, such as 0, are not in \(0, 1\]"),
        ({"logged": [0.5, 1.5, 2]}, "2 of 3 values of logged, such as 1.5"),
        ({"logged": [0.5, np.nan, 0.5]}, "1 of 3 values of logged are NaN"),
        ({"logged": [0.5, 1e-320, 0.5]}, "target over logged is infinite"),
        ({"target": [0.5]}, r"target has shape \(1,\)"),
        ({"target": [0.5, -0.1, 0.5]}, r"such as -0.1, are not in \[0, 1\]"),
        ({"target": [0.5, 1.1, 0.5]}, r"such as 1.1, are not in \[0, 1\]"),
        ({"target": [0, 0, 0]}, "target is 0 in all 3 rows.*a log that explores them"),
        ({"groups": [1, 2]}, r"groups has shape \(2,\), reward has 3 rows"),
        ({"predicted": [0, 0, 0]}, "only one of predicted and expected"),
        ({"expected": [0, 0, 0]}, "only one of predicted and expected"),
        ({"predicted": [0, 0], "expected": [0, 0, 0]}, r"predicted has shape \(2,\)"),
        ({"predicted": [0, 0, 0], "expected": [0, np.inf, 0]}, "1 of 3 values of expected are NaN or inf"),
    ],
)
def test_what_cannot_be_judged_is_refused(changed, message):
    columns = {"reward": [0, 1, 1], "logged": [0.5, 0.5, 0.5], "target": [0.2, 0.5, 1]}
    columns = {name: np.asarray(values) for name, values in (columns | changed).items()}
    with pytest.raises(ValueError, match=message):
        estimate(**columns)


class Shop:
    """The Open Bandit logs of Saito et al. (NeurIPS 2021), men's items: 34 items at three positions, logged
    under a uniform policy ("random") and under Bernoulli Thompson sampling ("bts").

    Neither policy looked at the person. BTS learned on while it ran, so what is judged of it is its average
    over the week: the share that each item had of a position.
    """

    def __init__(self, root: Path):
        folder = public_data(root, "open_bandit")
        self.logs = {of: pd.read_csv(folder / of / "men.csv") for of in ("random", "bts")}
        self.share = pd.crosstab(self.logs["bts"].position, self.logs["bts"].item_id, normalize="index")
        self.policies = {"random": np.full((3, 34), 1 / 34), "bts": self.share.to_numpy()}

    def judge(self, policy: str, log: str, reward: np.ndarray | None = None) -> dict[str, Estimate]:
        """A policy on a log; rows of one request stay together, and the model knows other requests only."""
        rows = self.logs[log]
        reward = rows.click.to_numpy() if reward is None else reward
        place, item = rows.position.to_numpy() - 1, rows.item_id.to_numpy()
        request = pd.factorize(rows.timestamp)[0]
        rate = np.empty((2, 34))
        for fold in range(2):
            other = request % 2 != fold
            prior = 1 / reward[other].mean()  # rows that are worth one click
            clicks, shown = (np.bincount(item[other], of, 34) for of in (reward[other], np.ones(other.sum())))
            rate[fold] = (clicks + 1) / (shown + prior)
        probability = self.policies[policy]
        return by_name(
            estimate(
                reward,
                rows.propensity_score.to_numpy(),
                probability[place, item],
                groups=request,
                predicted=rate[request % 2, item],
                expected=(rate[request % 2] * probability[place]).sum(axis=1),
            )
        )


@pytest.fixture(scope="module")
def shop(data_root) -> Shop:
    return Shop(data_root)


CLICK_RATES = {"random": 0.0046, "bts": 0.0069}
"""What each policy earned on its own log of 10,000 impressions."""


def holds(found: Estimate, rate: float) -> bool:
    return found.low <= rate <= found.high


@pytest.mark.real_data
@pytest.mark.parametrize("policy", ["random", "bts"])
def test_the_click_rates_of_the_shop_are_the_known_ones(shop, policy):
    assert shop.judge(policy, log=policy)["on-policy"].value == pytest.approx(CLICK_RATES[policy])


@pytest.mark.real_data
def test_the_propensities_of_bts_moved_and_yet_say_how_often_each_item_was_drawn(shop):
    cell = shop.logs["bts"].groupby(["position", "item_id"]).propensity_score
    often = cell.count() >= 50
    assert (cell.max() / cell.min())[often].min() > 10
    # Draws favour the hours in which an item was likely, so the mean over draws is no policy: it sums to two.
    assert cell.mean().groupby("position").sum().min() > 1.5
    # Weights of a policy that sums to one have mean 1, whatever it is.
    rows = shop.logs["bts"]
    (_, ips, *_) = estimate(np.ones(len(rows)), rows.propensity_score.to_numpy(), np.full(len(rows), 1 / 34))
    assert holds(ips, 1)


@pytest.mark.real_data
def test_the_log_of_the_uniform_policy_tells_what_bts_earned(shop):
    found = shop.judge("bts", log="random")
    for estimator in ("ips", "snips", "dr"):
        assert holds(found[estimator], CLICK_RATES["bts"]), found[estimator]
        assert found[estimator].value > CLICK_RATES["random"]
    assert found["ips"].effective == pytest.approx(2869, abs=1)
    assert found["ips"].largest == pytest.approx(7.48, abs=0.01)


@pytest.mark.real_data
def test_the_log_of_bts_hardly_tells_what_the_uniform_policy_earned(shop):
    found = shop.judge("random", log="bts")
    assert found["ips"].effective == pytest.approx(656, abs=1)  # of 10,000 rows, or three clicks
    assert found["ips"].largest == pytest.approx(178, abs=1)
    assert holds(found["snips"], CLICK_RATES["random"])
    assert holds(found["dr"], CLICK_RATES["random"])
    # IPS ends at .00453, short of .0046, which is an estimate too: two independent ones may differ this much.
    assert not holds(found["ips"], CLICK_RATES["random"])
    own = shop.judge("random", log="random")["on-policy"]
    joint = np.hypot(found["ips"].high - found["ips"].value, own.value - own.low)
    assert own.value - found["ips"].value < joint


@pytest.mark.real_data
def test_on_weights_as_heavy_as_those_of_bts_intervals_are_too_short(shop):
    rate, rng = CLICK_RATES["random"], np.random.default_rng(0)
    clicks = (rng.random((300, 10_000)) < rate).astype(float)
    logs = [shop.judge("random", log="bts", reward=drawn) for drawn in clicks]
    for estimator in ("snips", "dr"):
        covered = np.mean([holds(log[estimator], rate) for log in logs])
        assert covered == pytest.approx(0.77, abs=4 * (0.77 * 0.23 / 300) ** 0.5)
    # So low an estimate as the one found is nothing rare.
    found = shop.judge("random", log="bts")["ips"].value
    assert np.mean([log["ips"].value <= found for log in logs]) > 0.2
