"""From ranked candidates to the slate: one value each, then a greedy choice under the declared rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic_ns
from typing import Any

import numpy as np

from ensemble.blending import Blend
from ensemble.channels import NONE
from ensemble.errors import invalid
from ensemble.explanation import FUNNEL, explanation_text
from ensemble.plan import DIVERSITIES, LIMITS, CascadeConfig, Plan
from ensemble.release import Release
from ensemble.rules import Gain, Limit, Reason
from ensemble.rules.category_cap import category_cap
from ensemble.rules.dpp import Dpp
from ensemble.rules.exploration import deal, explore, uniform
from ensemble.rules.frequency_cap import FrequencyCap
from ensemble.rules.mmr import Mmr
from ensemble.rules.pool import Pool
from ensemble.rules.seller_cap import seller_cap
from ensemble.rules.slots import slots
from ensemble.steering import NOTHING, Steering, eligibility
from ensemble.steps import StageStep, TensorSpec
from market.kinds import KINDS

CAPS: dict[str, Callable[[Release, CascadeConfig], list[Limit]]] = {
    "seller_cap": seller_cap,
    "category_cap": category_cap,
    "slots": slots,
}
GAINS: dict[str, Callable[..., Gain]] = {"mmr": Mmr, "dpp": Dpp}

CROWDED = "enough of its seller, category or kind in the pool"
NO_MORE = "no more of it among the candidates"
GONE = np.uint16(0xFFFF)
"""Above all broken limits: what is in the slate already, or is no content."""
NEVER = np.iinfo(np.int64).max
"""More often than anything was shown."""
FAR = 32.0
"""More than two gains lie apart; as float64 it keeps their order within equal limits to the last bit."""


@dataclass(frozen=True)
class Ranked:
    """The candidates of each request by value, and which of them are the pool.

    Attributes:
        contents: int64[B, C], rows of the contents table, -1 fills.
        value: float32[B, C], -inf where there is none.
        tired: uint16[B, C], bits of what was shown too often.
        often: int64[B, C], times that a content beyond its cap was shown, 0 for others; None where none is.
        groups: int32[R, B, C], by limit as of `ensemble.rules.Limit`.
        behind: uint16[B, C], bits of the limits for which each stood behind others when the pool was cut.
        kept: int64[B, P], places of the pool's contents among these, ascending.
        cut: whether any pool is another than the first P.
    """

    contents: np.ndarray
    value: np.ndarray
    tired: np.ndarray
    often: np.ndarray | None
    groups: np.ndarray
    behind: np.ndarray
    kept: np.ndarray
    cut: bool

    def pool(self, array: np.ndarray) -> np.ndarray:
        """What the pool has of one of these, [..., B, P]."""
        if not self.cut:
            return array[..., : self.kept.shape[1]]
        return array[..., np.arange(len(self.kept))[:, None], self.kept]


@dataclass(frozen=True)
class Chosen:
    """Slates as places in the pool.

    Attributes:
        places: int64[B, S], -1 fills.
        greedy: int64[B, S], the same as they were before exploration.
        reasons: int64[B, S], `Reason`.
        propensity: float32[B, S], of the content standing at its place; 0 where there is none.
        broken: uint16[S, B, P], limits that each content of the pool broke when a place was filled.
    """

    places: np.ndarray
    greedy: np.ndarray
    reasons: np.ndarray
    propensity: np.ndarray
    broken: np.ndarray


class Reordering:
    """Blends the ranker's outcomes into one value and chooses the slate greedily under the rules.

    The rules are in `ensemble.rules`, their order in `CascadeConfig.rules`. What weighs against difference is
    the value scaled to [0, 1] within a request's pool.

    Args:
        config: other knobs than the release's own, such as fewer rules.
    """

    name = "reordering"

    def __init__(
        self, release: Release, steering: Steering = NOTHING, config: CascadeConfig | None = None
    ) -> None:
        own = Plan.of(release)
        config = config or own.config
        self.plan = replace(own, config=config)
        self.eligibility = eligibility(release, steering)
        self.content_id, self.seller = release.array("text_content_id.npy"), release.array("seller_code.npy")
        self.vectors = release.array("content_vectors.npy")
        # A market without a log has its neighbours' popularity, which is no outcome of its own.
        self.wanted = release.array("popularity_world.npy")
        self.blend = Blend(release)
        self.gain = next((GAINS[name] for name in config.rules if name in DIVERSITIES), None)
        #: The bit of tired sellers; that of tired contents is the next one above.
        self.tired, self.tired_bit = None, np.uint16(0)
        limits: list[Limit] = []
        bits: list[int] = []
        #: Reason of each limit by its bit: the sooner a rule is declared, the higher.
        self.why = [Reason.DIVERSITY]
        for name in reversed([name for name in config.rules if name in LIMITS]):
            bit = 1 << (len(self.why) - 1)
            if name == "frequency_cap":
                self.tired, self.tired_bit = FrequencyCap(release, config), np.uint16(bit)
                self.why += [Reason.SELLER_FREQUENCY, Reason.FREQUENCY_CAP]
                continue
            made = CAPS[name](release, config)
            limits += reversed(made)
            bits += [bit << turn for turn in range(len(made))]
            self.why += [Reason[name.upper()]] * len(made)
        self.kind, self.reserved = release.array("kind_code.npy"), config.reserved()
        self.codes, self.bits = np.array(self.why), np.array(bits, np.uint16)
        self.pool = Pool(limits, self.bits, config.pool, config.slate)
        none = np.zeros((0, len(self.content_id)), np.int32)
        groups = np.stack([limit.group for limit in limits]) if limits else none
        self.groups = np.ascontiguousarray(groups, np.int32)
        # By place, so that a place's caps are one array [R, 1, 1].
        most = np.array([limit.most for limit in limits]).reshape(len(limits), config.slate)
        self.most = np.ascontiguousarray(most.T[..., None, None], np.int16)

    @staticmethod
    def step(plan: Plan) -> StageStep:
        """Border of the stage."""
        size, slate, tasks = plan.config.candidates, plan.config.slate, len(plan.tasks)
        return StageStep(
            Reordering.name,
            (
                TensorSpec("candidates", np.int64, (size,)),
                TensorSpec("retrieval_score", np.float32, (size,)),
                TensorSpec("channel", np.int32, (size,)),
                TensorSpec("probabilities", np.float32, (size, tasks)),
                TensorSpec("market_index", np.int64),
                TensorSpec("exposed", np.int64, (-1,), pad=NONE),
                TensorSpec("diversity", np.float32),
                TensorSpec("seed", np.int64),
                TensorSpec("time", np.int64),
                TensorSpec("explain", np.bool_),
                TensorSpec("preranking_score", np.float32, (size,)),
                TensorSpec("clock", np.int64, (2,)),
                TensorSpec("funnel", np.int64, (len(FUNNEL),)),
                TensorSpec("excluded_sellers", np.int64, (-1,), pad=NONE),
            ),
            (
                TensorSpec("content_id", object, (slate,)),
                TensorSpec("slate_channel", np.int32, (slate,)),
                TensorSpec("slate_reason", np.int32, (slate,)),
                TensorSpec("slate_candidate_rank", np.int32, (slate,)),
                TensorSpec("slate_retrieval_score", np.float32, (slate,)),
                TensorSpec("slate_probabilities", np.float32, (slate, tasks)),
                TensorSpec("slate_value", np.float32, (slate,)),
                TensorSpec("slate_propensity", np.float32, (slate,)),
                TensorSpec("explanation", object, (1,)),
            ),
        )

    def __call__(
        self,
        candidates: np.ndarray,
        retrieval_score: np.ndarray,
        channel: np.ndarray,
        probabilities: np.ndarray,
        market_index: np.ndarray,
        exposed: np.ndarray,
        diversity: np.ndarray,
        seed: np.ndarray,
        time: np.ndarray,
        explain: np.ndarray,
        preranking_score: np.ndarray,
        clock: np.ndarray,
        funnel: np.ndarray,
        excluded_sellers: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """The slate of each request; places without an item have id "" and zeros.

        Args:
            exposed: int64[B, H], rows of contents shown lately, one entry an exposure, -1 fills.
            seed: int64[B], of what exploration draws.
            explain: bool[B], who gets an `ensemble.explanation.Explanation`, as JSON; the others get "".
            clock, funnel: of the stages before, for that.
            excluded_sellers: int64[B, X], codes, -1 fills: none of theirs is in the slate.

        Raises:
            RequestError: `diversity` outside [0, 1].
        """
        if diversity.min() < 0 or diversity.max() > 1:
            row = int(np.flatnonzero((diversity < 0) | (diversity > 1))[0])
            raise invalid(f"tensor 'diversity' holds {float(diversity[row])} at row {row}; send 0 to 1")
        began = monotonic_ns()
        # Ranking takes a while, and a room may have ended meanwhile.
        self.eligibility.refresh()
        came = candidates
        allowed = self.eligibility.allows(candidates, market_index, time)
        excluded = np.zeros(len(candidates), np.int64)
        if excluded_sellers is not None and excluded_sellers.shape[1]:
            seller = self.seller[candidates][..., None]
            theirs = allowed & ((seller == excluded_sellers[:, None]) & (seller >= 0)).any(axis=2)
            allowed, excluded = allowed & ~theirs, theirs.sum(axis=1)
        candidates = np.where(allowed, candidates, NONE)
        each = np.arange(len(candidates))[:, None]
        value = np.where(candidates >= 0, self.blend(probabilities, candidates, market_index), -np.inf)
        # Of equal values the lower row of the contents table goes first, in whatever order they came.
        order = np.lexsort((candidates, -value))
        ranked = self._ranked(candidates[each, order], value[each, order], exposed)
        pool = order[each, ranked.kept]
        chosen = self._choose(ranked, diversity, seed)
        filled = chosen.places >= 0
        place = pool[each, np.maximum(chosen.places, 0)]

        full = filled.all()

        def slate(array: np.ndarray) -> np.ndarray:
            picked = array[each, place]
            if full:
                return picked
            return np.where(filled.reshape(filled.shape + (1,) * (array.ndim - 2)), picked, 0).astype(
                array.dtype, copy=False
            )

        explanation = np.full((len(candidates), 1), "", object)
        for row in np.flatnonzero(explain):
            told = self._explain(ranked, chosen, row, preranking_score[row, order[row]])
            barred = self.eligibility.barred(came[row], market_index[row], time[row])
            explanation[row, 0] = explanation_text(
                funnel[row], clock[row], began, monotonic_ns(), *told, barred, int(excluded[row])
            )
        ids = self.content_id[slate(candidates)]
        return {
            "content_id": ids.astype(object) if full else np.where(filled, ids, "").astype(object),
            "slate_channel": slate(channel),
            "slate_reason": np.where(filled, chosen.reasons, 0).astype(np.int32),
            "slate_candidate_rank": np.where(filled, place + 1, 0).astype(np.int32),
            "slate_retrieval_score": slate(retrieval_score),
            "slate_probabilities": slate(probabilities),
            "slate_value": slate(value),
            "slate_propensity": chosen.propensity,
            "explanation": explanation,
        }

    def _ranked(self, contents: np.ndarray, value: np.ndarray, exposed: np.ndarray) -> Ranked:
        """Cut the pool from candidates sorted by value, int64[B, C] and float32[B, C].

        Behind the others stand those shown too often, the most shown last, and those past their group's
        share; what is kept is in the order of value again.
        """
        present, size = contents >= 0, self.plan.config.pool
        tired, often = np.zeros(contents.shape, np.uint16), None
        if self.tired and exposed.shape[1]:
            bits, often = self.tired(contents, exposed)
            tired, often = self.tired_bit * bits, often if often.any() else None
        behind, kept, cut = tired, np.arange(size)[None].repeat(len(contents), axis=0), False
        groups = self.groups.take(contents, axis=1, mode="clip")
        if not present.all():
            groups = np.where(present, groups, -2)
        if present[:, size:].any():
            behind = self.pool.behind(groups, tired, often)
            if cut := bool(behind[:, :size].any()):
                last = np.where(present, behind, GONE)
                order = (
                    np.argsort(last, axis=1, kind="stable") if often is None else np.lexsort((often, last))
                )
                kept = np.sort(order[:, :size], axis=1)
        return Ranked(contents, value, tired, often, groups, behind, kept, cut)

    def _choose(self, ranked: Ranked, diversity: np.ndarray, seed: np.ndarray) -> Chosen:
        """Greedy choice from the pools.

        At each place the contents that break the least limits, the sooner declared counting more than all
        later ones, stand for choice, and the highest gain of these is taken; where all were shown too often,
        of those shown least.
        """
        candidates, value = ranked.pool(ranked.contents), ranked.pool(ranked.value)
        batch, size = candidates.shape
        slate, explored = self.plan.config.slate, self.plan.config.explored
        each = np.arange(batch)
        gone = np.where(candidates >= 0, ranked.pool(ranked.tired), GONE)
        gain = worth = _scaled(value, candidates >= 0)
        rule = None
        if self.gain and diversity.any():
            rule = self.gain(worth, self.vectors[candidates], diversity, slate)
            gain = rule.gain
        groups = ranked.pool(ranked.groups)
        # Contents that a limit does not concern never come near its cap.
        count = np.where(groups >= 0, np.int16(0), np.int16(-2 * slate))
        best = np.empty((slate, batch), np.int64)
        broken = np.empty((slate, batch, size), np.uint16)
        often = None if ranked.often is None else ranked.pool(ranked.often)
        if often is not None and self.why[-1] is Reason.FREQUENCY_CAP:
            # Under the strictest limit those of others that fill a slate are all taken before.
            rested = (often == 0) & (candidates >= 0)
            often = often if (rested.sum(axis=1) < slate).any() else None
        allowed, room = gone == 0, count
        for place in range(slate):
            if explored and place == slate - explored:
                room = self.most[place:].min(axis=0) - count
                allowed = self._broken(room < 1, gone) == 0
            broken[place] = over = self._broken(count >= self.most[place], gone)
            one = (gain - np.multiply(over, FAR, dtype=np.float64)).argmax(axis=1)
            if often is not None and (weary := np.flatnonzero(often[each, one])).size:
                times = np.where(over[weary] == over[weary, one[weary]][:, None], often[weary], NEVER)
                least = times == times.min(axis=1, keepdims=True)
                one[weary] = np.where(least, gain[weary], -np.inf).argmax(axis=1)
            best[place] = one
            if place == slate - 1:
                break
            gone[each, one] = GONE
            count += groups == groups[:, each, one][..., None]
            if rule:
                rule.take(each, one)
                gain = rule.gain
        greedy, reasons = self._reasons(ranked, best, broken)
        places = greedy.copy()
        propensity = (places >= 0).astype(np.float32)
        if explored:
            allowed &= self.wanted[candidates] < self.plan.config.explore_outcomes
            rival = deal(allowed, groups, room, explored)
            rows = np.flatnonzero((rival >= 0).any(axis=1))
            last = np.s_[rows[:, None], np.arange(slate - explored, slate)]
            if len(rows):
                places[last], propensity[last] = explore(
                    value[rows], self.wanted[candidates[rows]], rival[rows], uniform(seed[rows], explored)
                )
                reasons[last] = Reason.EXPLORATION
        return Chosen(places, greedy, reasons, propensity, broken)

    def _broken(self, over: np.ndarray, gone: np.ndarray) -> np.ndarray:
        """Bits of the limits that are over, bool[R, B, P] → uint16[B, P]."""
        return (self.bits @ over.reshape(len(self.bits), gone.size)).reshape(gone.shape) | gone

    def _reasons(self, ranked: Ranked, best: np.ndarray, broken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places int64[B, S] with -1 where nothing was left, and why each stands there, int64[B, S].

        Args:
            best: int64[S, B], the place of the pool taken.
            broken: uint16[S, B, P], limits broken by each place of the pool before that.
        """
        left = broken < GONE
        by_value = left.argmax(axis=2)  # the pool is sorted by value
        place, row = np.arange(best.shape[0])[:, None], np.arange(best.shape[1])
        own, first = broken[place, row, best], broken[place, row, by_value]
        highest = best == by_value
        other = ranked.kept[row, by_value]
        if ranked.cut:
            # Of higher value than all that is left of the pool may be what the pool did not take.
            missing = ranked.kept != np.arange(ranked.kept.shape[1])
            out = np.where(missing.any(axis=1), missing.argmax(axis=1), -1)
            above = (out >= 0) & (out < ranked.kept[row, by_value])
            if above.any():
                first = np.where(above, self._broken_outside(ranked, out, best), first)
                other = np.where(above, out, other)
                # Those for which it stood behind count where nothing else kept it from the place.
                alike = above & (first == own) & ~self._shown_more(ranked, other, best)
                first = np.where(alike, first | ranked.behind[row, out], first)
                highest &= ~above
        # The strictest limit that the content of the highest value breaks and the chosen one does not.
        decided = np.frexp((own ^ first).astype(np.float32))[1]
        why = self.codes.take(decided, mode="clip")
        if ranked.often is not None:
            more = self._shown_more(ranked, other, best)
            why = np.where((decided == 0) & more, Reason.FREQUENCY_CAP, why)
        reasons = np.where(highest, Reason.VALUE, why)
        return np.where(left.any(axis=2), best, NONE).T, reasons.T

    @staticmethod
    def _shown_more(ranked: Ranked, other: np.ndarray, best: np.ndarray) -> np.ndarray:
        """Whether candidates int64[S, B] were shown more often than the pool's at `best`: bool[S, B]."""
        if ranked.often is None:
            return np.zeros(best.shape, bool)
        row = np.arange(best.shape[1])
        return ranked.often[row, other] > ranked.often[row, ranked.kept[row, best]]

    def _broken_outside(self, ranked: Ranked, out: np.ndarray, best: np.ndarray) -> np.ndarray:
        """Limits that a candidate outside the pool, its place int64[B], broke at each place, uint16[S, B]."""
        row = np.arange(len(out))
        group = ranked.groups[:, row, out][:, None]
        same = (ranked.groups[:, row, ranked.kept[row, best]] == group) & (group >= 0)
        over = (same.cumsum(axis=1) - same >= self.most[..., 0].transpose(1, 0, 2)) & (group >= 0)
        return self._broken(over, np.broadcast_to(ranked.tired[row, out], best.shape))

    def _explain(
        self, ranked: Ranked, chosen: Chosen, row: int, preranked: np.ndarray
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, str]], list[str]]:
        """The items, the others and the slots given up of one request, fields of `ItemReport`, `OtherReport`
        and `SlotReport`; and why each candidate outside the pool is there.

        Args:
            preranked: [C], of the row's candidates by value.
        """
        places = [place for place in chosen.places[row].tolist() if place >= 0]
        drawn = [reason == Reason.EXPLORATION for reason in chosen.reasons[row].tolist()]
        broken, behind = chosen.broken[:, row].astype(int), ranked.behind[row].astype(int)
        contents, value, rank = ranked.contents[row], ranked.value[row], ranked.kept[row].tolist()
        often = np.zeros(len(contents), np.int64) if ranked.often is None else ranked.often[row]
        outside = [place for place in np.flatnonzero(contents >= 0).tolist() if place not in set(rank)]

        def against(turn: int, other: int) -> Reason:
            """Why a content of the pool did not get the place of the slate."""
            one = places[turn]
            if broken[turn, other] > broken[turn, one]:
                return self.why[(broken[turn, other] ^ broken[turn, one]).item().bit_length()]
            if often[rank[other]] > often[rank[one]]:
                return Reason.FREQUENCY_CAP
            return Reason.DIVERSITY if other < one else Reason.VALUE

        def held(turn: int) -> list[Reason]:
            """Why contents of higher value did not get the place, the best-valued first."""
            place = places[turn]
            why = {rank[other]: against(turn, other) for other in range(place) if other not in places[:turn]}
            why |= {out: self.why[behind[out].item().bit_length()] for out in outside if out < rank[place]}
            best = [Reason(int(chosen.reasons[row, turn]))] if why else []
            return list(dict.fromkeys([*best, *(why[other] for other in sorted(why)[1:])]))

        items = [
            {
                "content": str(self.content_id[contents[rank[place]]]),
                "preranking_score": float(preranked[rank[place]]),
                "value_rank": rank[place] + 1,
                "rules": [Reason.EXPLORATION.text]
                if drawn[turn]
                else [why.lost if why is Reason.DIVERSITY else why.text for why in held(turn)],
            }
            for turn, place in enumerate(places)
        ]
        last = sum(not one for one in drawn[: len(places)]) - 1
        displaced = set(chosen.greedy[row].tolist())
        others = [
            {
                "content": str(self.content_id[contents[rank[place]]]),
                "value": float(value[rank[place]]),
                "reason": (Reason.EXPLORATION if place in displaced else against(last, place)).lost,
            }
            for place in range(len(rank))
            if contents[rank[place]] >= 0 and place not in places
        ]
        most = int(behind[rank].max())
        shown = often[rank][behind[rank] == most].max()
        why = [
            self.why[(behind[place] ^ most).item().bit_length()]
            if behind[place] > most
            else Reason.FREQUENCY_CAP
            if often[place] > shown
            else Reason.DIVERSITY
            for place in outside
        ]
        tired = (Reason.FREQUENCY_CAP, Reason.SELLER_FREQUENCY)
        below = [
            one.lost if one in tired else CROWDED if behind[place] > most else Reason.VALUE.lost
            for one, place in zip(why, outside)
        ]
        kind = np.where(contents >= 0, self.kind[contents], NONE)
        slate = [rank[place] for place in places]
        given_up = []
        for slot in self.plan.config.slots if self.reserved else ():
            code, within = KINDS.index(slot.kind), slot.within or self.plan.config.slate
            of_kind = (kind[slate[:within]] == code).tolist()
            if sum(of_kind) >= (slot.least or 0):
                continue
            # Where the first of the kind that is missing should have stood, and what was left of the kind.
            due = self.reserved[slot.kind]
            turn = next(at for count, at in enumerate(due) if sum(of_kind[: at + 1]) <= count)
            left = [at for at in np.flatnonzero(kind == code).tolist() if at not in slate[:turn]]
            inside = [against(turn, rank.index(at)).lost for at in left if at in rank]
            left_out = [below[outside.index(at)] for at in left if at not in rank]
            given_up.append(
                {
                    "slot": f"at least {slot.least} {slot.kind} among the first {within}",
                    "reason": [*inside, *left_out, NO_MORE][0],
                }
            )
        return items, others, given_up, below


def _scaled(value: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Value scaled to [0, 1] within each row of a sorted pool, float32[B, P]; 0 where there is none."""
    low = np.where(present, value, np.inf).min(axis=1, keepdims=True)
    span = np.maximum(value[:, :1] - low, np.float32(1e-9))
    return np.where(present, (value - low) / span, 0)
