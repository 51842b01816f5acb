"""From all contents of a market to the candidates worth ranking: channels, eligibility, merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic_ns

import numpy as np

from ensemble.channels import NONE, Channel, MarketQueries, Shelf, Source, Wishes
from ensemble.channels.cart import cart
from ensemble.channels.followed import followed as followed_sellers
from ensemble.channels.fresh import fresh
from ensemble.channels.item_graph import item_graph
from ensemble.channels.live import live
from ensemble.channels.trending import trending
from ensemble.channels.two_tower import two_tower
from ensemble.channels.worth import worth
from ensemble.explanation import FUNNEL
from ensemble.lookup import spoken
from ensemble.plan import Plan
from ensemble.preranking import NO_CANDIDATE, PreRanker, spread
from ensemble.release import Release
from ensemble.search import read_index
from ensemble.steering import NOTHING, Steering, eligibility
from ensemble.steps import StageStep, TensorSpec
from market.item_graph import ItemGraph, LowRank, MarketGraphs, Reach, related
from market.kinds import KINDS
from market.moments import Moments, moment_features
from market.offers import Offers
from market.statistics import EventCounts, pair_features
from supply.eligibility import CLOSED
from supply.moments import CurrentMoments

CHANNELS: dict[Channel, Source] = {
    Channel.TWO_TOWER: two_tower,
    Channel.ITEM_GRAPH: item_graph,
    Channel.TRENDING: trending,
    Channel.FRESH: fresh,
    Channel.LIVE: live,
    Channel.FOLLOWED: followed_sellers,
    Channel.CART: cart,
    Channel.WORTH: worth,
}
"""Every channel, in the order in which they are merged."""


class Retrieval:
    """Every channel's proposals, merged by quota with their provenance, and what the ranker reads of them."""

    name = "retrieval"

    def __init__(self, release: Release, steering: Steering = NOTHING) -> None:
        self.plan = Plan.of(release)
        self.eligibility = eligibility(release, steering)
        vectors = release.array("content_vectors.npy")
        popularity, self.created_at = release.array("popularity.npy"), release.array("created_at.npy")
        available = release.array("available.npy")
        trend, few = release.array("trend.npy"), self.plan.config.fresh_exposures
        value = release.array("worth.npy")
        exposures, language = release.array("exposures.npy"), spoken(release)[1]
        kind, category = release.array("kind_code.npy"), release.array("category_code.npy")
        self.shelves = [
            Shelf(
                available[m],
                index=read_index(release, m, vectors[available[m]]),
                # As published: what events say since then follows, so that a process which starts now
                # has the order of one that saw them come.
                opens=self.created_at,
                ends=self.eligibility.ends,
                popularity=popularity[m],
                trend=trend[m],
                worth=value[m],
                fresh=exposures[m] <= few,
                seller=release.array("seller_code.npy"),
                kind=kind,
                category=category,
                language=language,
            )
            for m in range(len(self.plan.markets))
        ]
        self.update_shelves(np.arange(len(self.created_at)))
        self.moments: Moments = CurrentMoments(self.eligibility, kind == KINDS.index("live"))
        # A market without a log has its neighbours' popularity, which is no event of its own.
        self.popularity, self.world = popularity, release.array("popularity_world.npy")
        self.preranker = PreRanker.of(release)
        self.graph = ItemGraph(
            release.array("graph_neighbours.npy"), release.array("graph_weights.npy"), self.plan.recency
        )
        self.market_graphs = MarketGraphs(
            release.array("market_graph_place.npy"),
            ItemGraph(
                release.array("market_graph_neighbours.npy"),
                release.array("market_graph_weights.npy"),
                self.plan.recency,
            ),
        )
        self.low_rank = LowRank(
            release.array("low_rank_source.npy"), release.array("low_rank_target.npy"), self.plan.recency
        )
        conversion = release.array("conversion.npy")
        self.conversion = conversion if conversion.any() else None
        self.season = None
        if half := self.plan.season_s:
            market, content, at = (
                release.array(f"season_{what}.npy") for what in ("market", "content", "time")
            )
            self.season = EventCounts(market, content, at, popularity.shape[1], half, half)
        self.offers = Offers(
            price_usd=release.array("price_usd.npy"),
            category=category,
            language=release.array("language_code.npy"),
            power=release.array("purchasing_power.npy"),
            usual=release.array("price_usual.npy"),
            fit=release.array("language_fit.npy"),
        )
        self.channels = CHANNELS
        self.quotas = {channel: self.plan.config.quotas[str(channel.name).lower()] for channel in CHANNELS}
        self.kind, self.reserved = kind, self.plan.config.reserved()
        self.content_ids = release.array("content_ids.npy")
        stand_ins = release.array("stand_in_ids.npy")
        self.stand_ins = stand_ins if stand_ins.any() else None
        self.content_numbers = release.array("content_numbers.npy")

    @staticmethod
    def step(plan: Plan) -> StageStep:
        """Border of the stage."""
        size = plan.config.candidates
        return StageStep(
            Retrieval.name,
            (
                TensorSpec("query_vector", np.float32, (plan.dim,)),
                TensorSpec("market_index", np.int64),
                TensorSpec("time", np.int64),
                TensorSpec("recent", np.int64, (plan.history_length,)),
                TensorSpec("seen", np.int64, (-1,), pad=NONE),
                TensorSpec("followed", np.int64, (-1,), pad=NONE),
                TensorSpec("tired_sellers", np.int64, (-1,), pad=NONE),
                TensorSpec("excluded_sellers", np.int64, (-1,), pad=NONE),
                TensorSpec("speaks", np.int64),
                TensorSpec("asked_kinds", np.int64),
                TensorSpec("asked_categories", np.int64, (-1,), pad=NONE),
                TensorSpec("excluded_categories", np.int64, (-1,), pad=NONE),
                TensorSpec("reads", np.int64, (-1,), pad=NONE),
                TensorSpec("explain", np.bool_),
                *((TensorSpec("since", np.int64),) if plan.season_s else ()),
            ),
            (
                TensorSpec("candidates", np.int64, (size,)),
                TensorSpec("retrieval_score", np.float32, (size,)),
                TensorSpec("channel", np.int32, (size,)),
                TensorSpec("content_ids", np.int64, (size, plan.content_ids)),
                TensorSpec("content_numbers", np.float32, (size, plan.content_numbers)),
                TensorSpec("market_affinity", np.float32, (size,)),
                TensorSpec("low_rank_affinity", np.float32, (size,)),
                TensorSpec("conversion", np.float32, (size,)),
                TensorSpec("preranking_score", np.float32, (size,)),
                TensorSpec("funnel", np.int64, (len(FUNNEL),)),
            ),
        )

    def __call__(
        self,
        query_vector: np.ndarray,
        market_index: np.ndarray,
        time: np.ndarray,
        recent: np.ndarray,
        seen: np.ndarray,
        followed: np.ndarray,
        tired_sellers: np.ndarray,
        speaks: np.ndarray,
        explain: np.ndarray | None = None,
        since: np.ndarray | None = None,
        excluded_sellers: np.ndarray | None = None,
        asked_kinds: np.ndarray | None = None,
        asked_categories: np.ndarray | None = None,
        excluded_categories: np.ndarray | None = None,
        reads: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """The candidates that pre-ranking leaves of those retrieved, best first; see `retrieve`.

        Returns:
            What `retrieve` does, for fewer candidates, and what `read_last` adds; preranking_score
            float32[B, C], 0 without a pre-ranker; funnel int64[B, F], see `ensemble.explanation.FUNNEL`, 0
            where nobody asks for it.
        """
        began = monotonic_ns()
        made = self.retrieve(
            query_vector,
            market_index,
            time,
            recent,
            seen,
            followed,
            tired_sellers,
            speaks,
            since=since,
            excluded_sellers=excluded_sellers,
            asked_kinds=asked_kinds,
            asked_categories=asked_categories,
            excluded_categories=excluded_categories,
            reads=reads,
        )
        scored, kept = self._pre_rank(query_vector, made)
        kept = self.read_last(kept, market_index, recent)
        funnel = np.zeros((len(time), len(FUNNEL)), np.int64)
        for row in np.flatnonzero(explain) if explain is not None else ():
            shelf, one = self.shelves[market_index[row]], slice(row, row + 1)
            barred = self.eligibility.barred(shelf.rows, market_index[row], time[row])
            excluded = tired_sellers[one, :0] if excluded_sellers is None else excluded_sellers[one]
            wishes = _wishes(asked_kinds, asked_categories, excluded_categories, reads).of(one)
            withheld = shelf.withheld(time[one], seen[one], excluded, tired_sellers[one], wishes)
            retrieved, left = ((table["candidates"][row] >= 0).sum() for table in (made, kept))
            gave_way = _gave_way(made["candidates"][row], scored[row], kept["candidates"][row])
            funnel[row] = (
                len(shelf.rows),
                *barred,
                *withheld,
                retrieved,
                gave_way,
                left,
                began,
                monotonic_ns(),
            )
        return kept | {"funnel": funnel}

    def _pre_rank(
        self, query_vector: np.ndarray, made: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Scores of all that was retrieved, float32[B, R], 0 without a pre-ranker; and what is kept."""
        size = self.plan.config.candidates
        if self.preranker is None:
            kept = {name: array[:, :size] for name, array in made.items()}
            if self.reserved:
                every = np.arange(made["candidates"].shape[1])[None].repeat(len(query_vector), axis=0)
                first = self._with_kinds(every, made["candidates"])
                kept = {name: array[np.arange(len(first))[:, None], first] for name, array in made.items()}
            score = np.zeros(made["candidates"].shape, np.float32)
            return score, kept | {"preranking_score": score[:, :size]}
        score = self.preranker(
            query_vector, made["candidates"], self.preranking_numbers(made), made["retrieval_score"]
        )
        best = self.let_through(made["candidates"], score)
        each = np.arange(len(best))[:, None]
        score = np.where(made["candidates"] >= 0, score, 0)
        scored = made | {"preranking_score": score}
        return score, {name: array[each, best] for name, array in scored.items()}

    def let_through(self, candidates: np.ndarray, score: np.ndarray) -> np.ndarray:
        """Columns of the candidates int64[B, R] that pre-ranking leaves under its scores float32[B, R], best
        first, with no category above its share while there are others, and with room for the kinds that slots
        ask for: int64[B, C]."""
        size = self.plan.config.candidates
        order = np.argsort(-score, axis=1, kind="stable")
        ordered = candidates[np.arange(len(order))[:, None], order]
        category = self.offers.category.take(ordered, mode="clip")
        category[ordered < 0] = NO_CANDIDATE
        most = max(round(size * self.plan.config.category_share), 1)
        return self._with_kinds(spread(order, category, most), candidates)

    def _with_kinds(self, order: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """The first columns int64[B, C] of an order int64[B, R] of candidates int64[B, R].

        Of a kind that slots ask for the best are among them, as large a part as its places are of a slate.
        """
        size, slate = self.plan.config.candidates, self.plan.config.slate
        if not self.reserved:
            return order[:, :size]
        each = np.arange(len(order))[:, None]
        ordered = candidates[each, order]
        kept = np.zeros(order.shape, bool)
        for kind, places in self.reserved.items():
            of_kind = (self.kind[ordered] == KINDS.index(kind)) & (ordered >= 0)
            kept |= of_kind & (of_kind.cumsum(axis=1) <= size * len(places) // slate)
        return order[each, np.sort(np.argsort(~kept, axis=1, kind="stable")[:, :size], axis=1)]

    def preranking_numbers(self, made: dict[str, np.ndarray]) -> np.ndarray:
        """The numbers that pre-ranking reads of candidates as `retrieve` makes them, float32[B, C, G]: the
        ranker's and, where the release has them, the low-rank affinity, on a scale like theirs, and
        conversion."""
        numbers = [made["content_numbers"]]
        if self.low_rank.source.shape[1]:
            numbers.append(np.arcsinh(50 * made["low_rank_affinity"])[..., None] / 2)
        if self.conversion is not None:
            numbers.append(made["conversion"][..., None])
        return np.concatenate(numbers, axis=-1) if len(numbers) > 1 else numbers[0]

    def retrieve(
        self,
        query_vector: np.ndarray,
        market_index: np.ndarray,
        time: np.ndarray,
        recent: np.ndarray,
        seen: np.ndarray,
        followed: np.ndarray,
        tired_sellers: np.ndarray,
        speaks: np.ndarray,
        explain: np.ndarray | None = None,
        since: np.ndarray | None = None,
        excluded_sellers: np.ndarray | None = None,
        asked_kinds: np.ndarray | None = None,
        asked_categories: np.ndarray | None = None,
        excluded_categories: np.ndarray | None = None,
        reads: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """All that the channels bring, in the order of the merge, with what pre-ranking reads of them.

        Args:
            speaks: int64[B], codes of the users' languages, -1 where unknown.
            explain: taken so that the stage's tensors may be passed as they are; nothing here depends on it.
            since: int64[B], when the users' latest events were; read where the release knows seasons.
            excluded_sellers: int64[B, X], codes, -1 fills: none of theirs is found.
            asked_kinds, asked_categories, excluded_categories, reads: as of `Wishes`.

        Returns:
            candidates int64[B, R] (rows of the contents table, -1 fills), retrieval_score float32[B, R]
            (cosine of query and content), channel int32[B, R] (`Channel` bits), content_numbers as the
            ranker reads them, and what `_beside` says.
        """
        if len(changed := self.eligibility.refresh()):
            self.update_shelves(changed)
        wishes = _wishes(asked_kinds, asked_categories, excluded_categories, reads)
        size = self.plan.config.retrieved
        candidates = np.full((len(query_vector), size), NONE, np.int64)
        score = np.zeros((len(query_vector), size), np.float32)
        channel = np.zeros((len(query_vector), size), np.int32)
        affinity = self.graph.reach(recent)
        spared = tired_sellers
        if excluded_sellers is not None and excluded_sellers.shape[1]:
            spared = np.concatenate([tired_sellers, excluded_sellers], axis=1)
        for market in sorted(set(market_index.tolist())):
            here = np.flatnonzero(market_index == market)
            shelf = self.shelves[market]
            if not len(shelf.rows):
                continue
            asked = MarketQueries(
                shelf,
                query_vector[here],
                time[here],
                recent[here],
                affinity.of(here),
                seen[here],
                followed[here],
                spared[here],
                wishes.of(here),
            )
            found, bits = self._found(asked, size, first=True)
            short = np.flatnonzero(found[:, -1] == NONE)
            # Where there is less than is asked for the two-tower brings all of it, and nobody has more.
            if len(short) and Channel.TWO_TOWER not in self.channels:
                again = asked if len(short) == len(here) else asked.of(short)
                found[short], bits[short] = self._found(again, size)
            known = found >= 0
            candidates[here] = np.where(known, shelf.rows.take(found, mode="clip"), NONE)
            score[here] = asked.cosine(found)
            channel[here] = bits
        return {
            "candidates": candidates,
            "retrieval_score": score,
            "channel": channel,
            "content_numbers": self.numbers(
                candidates, market_index, time, affinity, speaks, since, wishes.reads
            ),
            **self._beside(candidates, recent),
        }

    def _beside(self, candidates: np.ndarray, recent: np.ndarray) -> dict[str, np.ndarray]:
        """What pre-ranking and stacking read of candidates int64[B, C] beside the ranker's numbers.

        Returns:
            low_rank_affinity float32[B, C] (`LowRank`) and conversion float32[B, C] (`models.conversion`),
            each where the release has it.
        """
        made = {}
        if self.low_rank.source.shape[1]:
            made["low_rank_affinity"] = self.low_rank.affinity(recent, candidates)
        if self.conversion is not None:
            of_content = self.conversion.take(candidates, mode="clip")
            made["conversion"] = np.where(candidates >= 0, of_content, np.float32(0))
        return made

    def _found(
        self, asked: MarketQueries, size: int, *, first: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the channels bring, merged; as `merge` says.

        Args:
            first: ask the first channel alone for all, the others for their quotas. It goes first where
                places are left, and mostly fills them: what more the others have is seldom needed.
        """
        quotas = [self.quotas[channel] for channel in self.channels]
        counts = [size, *quotas[1:]] if first else [size] * len(quotas)
        proposed = [source(asked, min(n, size)) for source, n in zip(self.channels.values(), counts)]
        return merge(proposed, quotas, tuple(self.channels), size)

    def update_shelves(self, changed: np.ndarray) -> None:
        """Take over what the eligibility says of contents int64[*], which may have changed."""
        now = self.eligibility
        for market, shelf in enumerate(self.shelves):
            # The index is of all that is sold in the market; what its rules forbid is there, but never open.
            ends = np.where(now.available[market, changed], now.ends[changed], CLOSED)
            shelf.update(changed, now.opens[changed], ends, now.viewers[changed])

    def describe(
        self,
        candidates: np.ndarray,
        market_index: np.ndarray,
        time: np.ndarray,
        recent: np.ndarray,
        speaks: np.ndarray,
        since: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Encoded features of candidates int64[B, C] as the ranker reads them; places with -1 get id 0.

        Args:
            recent: int64[B, L], what the users wanted last, rows of the contents table, -1 fills.
            speaks: int64[B], codes of the users' languages, -1 where unknown.
            since: int64[B], as of `retrieve`.

        Returns:
            candidates; content_numbers float32[B, C, Gi] with the pair features last, and what `read_last`
            adds.
        """
        reach = self.graph.reach(recent)
        numbers = self.numbers(candidates, market_index, time, reach, speaks, since)
        made = {"candidates": candidates, "content_numbers": numbers, **self._beside(candidates, recent)}
        return self.read_last(made, market_index, recent)

    def read_last(
        self, made: Mapping[str, np.ndarray], market_index: np.ndarray, recent: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What was made of candidates int64[B, C] with what ranking alone reads; pre-ranking does without.

        Args:
            recent: int64[B, L], as of `describe`.

        Returns:
            `made` and content_ids int64[B, C, Fi]; market_affinity float32[B, C], what the market's own item
            graph says, on the scale of the feature `affinity`; of what `_beside` says 0 where there is none.
        """
        candidates = made["candidates"]
        none = np.zeros(candidates.shape, np.float32)
        return {
            "low_rank_affinity": none,
            "conversion": none,
            **made,
            "content_ids": self.ids(candidates, market_index),
            "market_affinity": related(self.market_graphs.affinity(market_index, recent, candidates)),
        }

    def ids(self, candidates: np.ndarray, market_index: np.ndarray) -> np.ndarray:
        """Encoded ids of candidates int64[B, C] as their markets read them, int64[B, C, Fi]."""
        made = self.content_ids.take(candidates, axis=0, mode="clip")
        if self.stand_ins is not None:
            stand_ins = self.stand_ins[market_index][:, None]
            made = np.where(stand_ins > 0, stand_ins, made)
        made[candidates < 0] = 0
        return made

    def numbers(
        self,
        candidates: np.ndarray,
        market_index: np.ndarray,
        time: np.ndarray,
        reach: Reach,
        speaks: np.ndarray,
        since: np.ndarray | None = None,
        reads: np.ndarray | None = None,
    ) -> np.ndarray:
        """Numbers of candidates int64[B, C], the pair features last, float32[B, C, Gi].

        Args:
            reach: what the item graph says of all contents.
            speaks: int64[B], codes of the users' languages, -1 where unknown.
            since: int64[B], as of `retrieve`.
            reads: int64[B, K], codes of other languages that they read, -1 fills.
        """
        rows = np.maximum(candidates, 0)
        known = self.plan.as_of > 0
        season = None
        if self.season is not None:
            assert since is not None
            pair = np.broadcast_arrays(market_index[:, None], rows, since[:, None])
            season = self.season.in_market(*pair)
        pairs = pair_features(
            self.popularity[market_index[:, None], rows],
            self.world[rows],
            self.created_at[rows] if known else None,
            time[:, None] if known else None,
            reach.at(candidates),
            self.offers(
                market_index[:, None], rows, speaks[:, None], None if reads is None else reads[:, None]
            ),
            moment_features(
                self.moments, rows, np.broadcast_to(time[:, None] if known else 0, rows.shape), reach.at
            ),
            season,
        )
        return np.concatenate([self.content_numbers[rows], pairs], axis=-1)


def _gave_way(candidates: np.ndarray, score: np.ndarray, kept: np.ndarray) -> int:
    """How many of one request's candidates int64[R] are among the first by their scores float32[R], but not
    among those that pre-ranking kept, int64[C]: others have their places for their category or kind."""
    best = np.where(candidates >= 0, -score, np.inf).argsort(kind="stable")[: len(kept)]
    return int(np.isin(candidates[best], kept, invert=True).sum())


def _wishes(
    kinds: np.ndarray | None,
    categories: np.ndarray | None,
    excluded_categories: np.ndarray | None,
    reads: np.ndarray | None,
) -> Wishes:
    """What a batch's tensors say, see `Wishes`; mostly nothing."""
    if reads is not None and reads.shape[1] > 1:
        reads = distinct(reads)
    return Wishes(
        None if kinds is None or not kinds.any() else kinds,
        *(
            None if said is None or not said.shape[1] else said
            for said in (categories, excluded_categories, reads)
        ),
    )


def distinct(codes: np.ndarray) -> np.ndarray:
    """What stands in each row int64[B, K], int64[B, <=K]: each of it once, as often as need be in a row of
    less than others.

    Every candidate is held against every code, and lists in a batch are as long as the longest.
    """
    ordered = np.sort(codes, axis=1)
    new = np.ones(codes.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.argsort(~new, axis=1, kind="stable")[:, : int(new.sum(axis=1).max(initial=0))]
    return np.take_along_axis(ordered, first, axis=1)


def merge(
    proposed: Sequence[np.ndarray], quotas: Sequence[int], channels: Sequence[Channel], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Merge channels: first the quota of each, in order, then what is left of each, in order.

    So a channel that comes short is filled by the others, and no place is lost while any has a content more.

    Args:
        proposed: places of each channel, int64[b, *], best first, -1 fills; each place once a channel.
        quotas: places that each channel may take before the others fill up.

    Returns:
        places int64[b, size] without duplicates, -1 fills at the end; channel bits int32 of that shape, of
        every channel that proposed the place.
    """
    parts = [places[:, :quota] for places, quota in zip(proposed, quotas)]
    parts += [places[:, quota:] for places, quota in zip(proposed, quotas)]
    widths = [part.shape[1] for part in parts]
    bits = np.repeat(np.array([*channels, *channels], np.float64), widths)
    places = np.concatenate(parts, axis=1)
    number = np.arange(places.shape[1])
    merged, merged_bits = np.full((len(places), size), NONE), np.zeros((len(places), size), np.int32)
    slot = np.empty(int(places.max(initial=NONE)) + 2, np.int64)
    for row, own in enumerate(places):
        # Written from behind, the slot of a place keeps the number of its first occurrence: no sort.
        slot[own[::-1]] = number[::-1]
        first = slot[own]
        kept = np.flatnonzero((first == number) & (own >= 0))[:size]
        merged[row, : len(kept)] = own[kept]
        # A place occurs at most once a channel, so the sum of its bits is all of them.
        merged_bits[row, : len(kept)] = np.bincount(first, bits, len(own))[kept]
    return merged, merged_bits
