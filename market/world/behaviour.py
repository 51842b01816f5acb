"""How people respond: examination, watch time, click, cart, order, refund and negative feedback.

The funnel is a cascade of conditional probabilities, so expected outcomes have a closed form and the truth is
known exactly. `respond` is the only model of behaviour: the log, `World.step` and the truth all use it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from market.calendar import CalendarContext
from market.world.config import DAY
from market.world.population import CATEGORIES, LIVE, VIDEO, Bools, Floats, Ints, Population

# Logits by kind (video, live, product), of an indifferent person and an ordinary content.
CLICK = np.array([-3.3, -3.5, -3.3], np.float32)
CART = np.array([-2.2, -2.0, -1.6], np.float32)
ORDER = np.array([-0.9, -0.7, -0.7], np.float32)
REFUND = -2.4
NEGATIVE = -4.6
TASTE = 5.5
"""Click logit of a perfect match over no match: by far the strongest force in the world."""
HEAT = 0.9
"""Click logit of a unit of a room's heat; of buying 0.3 times that."""
FEW, SCARCITY = 10, 0.5
"""Cart logit of what has at most so many pieces left, but not none: last pieces sell."""
POSITION_DECAY = 0.2
"""Position p (from 0) is examined with probability (1 + p) ** -POSITION_DECAY."""
CATEGORY_FATIGUE, SELLER_FATIGUE = 0.06, 0.2
"""Click logit lost per recent exposure to the same category, and to the same seller."""
CATEGORY_PEAK = np.random.default_rng(24).uniform(8, 23, len(CATEGORIES)).astype(np.float32)
"""Local hour at which each category is liked best."""
# Watching: log-normal around a part of a video's duration, or around seconds for rooms and cards.
WATCH_MEDIAN = np.array([np.nan, 8.0, 5.0], np.float32)
WATCH_PART = 0.55
WATCH_SPREAD = np.array([1.0, 1.5, 0.8], np.float32)
WATCH_AFTER_CLICK = np.float32(0.5)
CARD_CAP_S = 600.0


@dataclass(frozen=True)
class Outcomes:
    """What came of slates, arrays [B, S]; zero where nothing was shown.

    Realised, watch_s (seconds) and value (US dollars, of the order before a refund) are float32 and the
    others int8 0 or 1. In expectation all are float32, the others probabilities.
    """

    watch_s: Floats
    click: NDArray[np.generic]
    cart: NDArray[np.generic]
    order: NDArray[np.generic]
    value: Floats
    refund: NDArray[np.generic]
    negative: NDArray[np.generic]


@dataclass(frozen=True)
class Response:
    """The law of the outcomes of [B, S] exposures; each probability is given the step before it."""

    examined: Floats
    click: Floats  # given examined
    cart: Floats  # given click
    order: Floats  # given cart; 0 of what is sold out
    refund: Floats  # given order
    negative: Floats  # given examined and no click
    watch: Floats  # mean of log seconds without a click, given examined
    watch_spread: Floats
    watch_cap: Floats
    price_usd: Floats

    def expected(self) -> Outcomes:
        """Expected outcomes, in closed form; nobody orders what is sold out.

        Each exposure counts as if it came first. Where more of the exposures of one batch order a content
        than there are pieces left, `draw` serves the first alone, so that fewer are ordered than expected
        here, until the batch is over.
        """
        click = self.examined * self.click
        cart = click * self.cart
        order = cart * self.order
        calm = self._capped_mean(self.watch)
        watch = calm + self.click * (self._capped_mean(self.watch + WATCH_AFTER_CLICK) - calm)
        return Outcomes(
            watch_s=self.examined * watch,
            click=click,
            cart=cart,
            order=order,
            value=order * self.price_usd,
            refund=order * self.refund,
            negative=self.examined * (1 - self.click) * self.negative,
        )

    def _capped_mean(self, mean: Floats) -> Floats:
        """E[min(X, cap)] of a log-normal X."""
        far = (np.log(np.maximum(self.watch_cap, 1e-3)) - mean) / self.watch_spread
        below = np.exp(mean + self.watch_spread**2 / 2) * ndtr(far - self.watch_spread)
        return below + self.watch_cap * ndtr(-far)

    def draw(self, rng: Generator, content: Ints, stock: Ints) -> Outcomes:
        """Realised outcomes; rows in order of time. An order of the last piece leaves none for later ones."""
        shape = content.shape
        chance = rng.random((6, *shape), dtype=np.float32)
        examined = chance[0] < self.examined
        click = examined & (chance[1] < self.click)
        cart = click & (chance[2] < self.cart)
        order = in_stock(cart & (chance[3] < self.order), content, stock)
        mean = self.watch + WATCH_AFTER_CLICK * click
        watch = np.exp(mean + self.watch_spread * rng.standard_normal(shape, dtype=np.float32))
        return Outcomes(
            watch_s=examined * np.minimum(watch, self.watch_cap),
            click=click.astype(np.int8),
            cart=cart.astype(np.int8),
            order=order.astype(np.int8),
            value=order * self.price_usd,
            refund=(order & (chance[4] < self.refund)).astype(np.int8),
            negative=(examined & ~click & (chance[5] < self.negative)).astype(np.int8),
        )


def in_stock(wanted: Bools, content: Ints, stock: Ints) -> Bools:
    """Those of the wanted orders [B, S] that stock [N] suffices for, first come first served."""
    row, column = np.nonzero(wanted)
    wanted_content = content[row, column]
    by_content = np.argsort(wanted_content, kind="stable")
    grouped = wanted_content[by_content]
    turn = np.arange(len(grouped)) - np.searchsorted(grouped, grouped)
    late = by_content[turn >= stock[grouped]]
    served = wanted.copy()
    served[row[late], column[late]] = False
    return served


def respond(
    world: Population,
    user: Ints,
    content: Ints,
    time: Ints,
    moment: CalendarContext,
    position: Ints,
    fatigue: Floats,
    stock: Ints,
) -> Response:
    """The law of what users do with contents at a time.

    Args:
        user: [B] indices. content: [B, S] indices, -1 = empty. time: [B] s since epoch.
        moment: the local calendar of each row. position: [S] or [1], from 0 at the top.
        fatigue: [B, S] click logit lost to recent exposures.
        stock: [N] pieces left.

    People take to a room for what it is or for the product that it shows, whichever they like better. A
    content that is not on (empty, not sold in the user's market, not yet created, ended) is never examined.
    """
    culture, users, sellers, contents = world.culture, world.users, world.sellers, world.contents
    market = users.market[user]
    kind, category, seller = contents.kind[content], contents.category[content], contents.seller[content]
    created, ended = contents.created_at[content], contents.ended_at[content]
    now = time[:, None]
    on = (content >= 0) & (created <= now) & (now < ended) & contents.markets[market[:, None], content]

    vectors = contents.vector[content]
    match = np.matmul(users.interests[user], vectors.transpose(0, 2, 1)).max(axis=1)
    heat = np.zeros(content.shape, np.float32)
    row, column = np.nonzero(on & (kind == LIVE))
    if len(row):
        rooms, then = content[row, column], time[row]
        heat[row, column] = world.rooms.heat(rooms, then)
        shown = world.rooms.showing(rooms, then)
        of_shown = np.einsum("kid,kd->ki", users.interests[user[row]], vectors_of(contents.vector, shown))
        match[row, column] = np.maximum(match[row, column], of_shown.max(axis=1))
    taste = np.square(np.maximum(match, 0))
    foreign = culture.foreign[market[:, None], users.language[user][:, None], contents.language[content]]
    hour = moment.hour.astype(np.float32) - culture.hour_shift[market]
    evening = np.cos(2 * np.pi * (hour - 21) / 24)[:, None]
    mood = 0.25 * np.cos((2 * np.pi / 24) * (hour[:, None] - CATEGORY_PEAK[category]))
    live = np.where(kind == LIVE, users.live[user][:, None] + 0.3 * evening + HEAT * heat, np.float32(0))
    age = np.maximum(now - created, 0).astype(np.float32) / np.float32(DAY)
    appeal = np.where(kind == VIDEO, -0.35 * np.log1p(age / 3), np.float32(0))
    liking = contents.quality[content] + foreign + mood + live + appeal

    dear = contents.relative_price[content] + np.log(culture.power_per_usd[market])[:, None]
    dear = np.clip(dear - users.budget[user][:, None], -2, 2)
    price = -users.price_sensitivity[user][:, None] * dear
    buying = (
        culture.payday[market] * moment.is_payday_window + culture.shopping[market] * moment.is_shopping_day
    )
    buying = buying.astype(np.float32)[:, None]
    trust = sellers.quality[seller]
    left = stock[content]
    urge = np.where((left > 0) & (left <= FEW), np.float32(SCARCITY), np.float32(0))

    usual = np.where(kind == VIDEO, contents.duration[content] * np.float32(WATCH_PART), WATCH_MEDIAN[kind])
    rest = np.where(kind == LIVE, ended - now, CARD_CAP_S).astype(np.float32)
    return Response(
        examined=on * ((1.0 + position) ** -POSITION_DECAY).astype(np.float32),
        click=expit(CLICK[kind] + TASTE * taste + liking + 0.2 * price - fatigue),
        cart=expit(CART[kind] + 1.2 * taste + price + 0.3 * trust + 0.3 * live + buying + urge),
        order=(left > 0) * expit(ORDER[kind] + 0.6 * taste + 0.6 * price + 0.3 * trust + 0.5 * buying),
        refund=expit(REFUND - 0.5 * trust - 0.3 * contents.quality[content] + 0.2 * dear),
        negative=expit(NEGATIVE - 1.5 * taste - 0.5 * liking + fatigue),
        watch=np.log(usual) + 1.2 * taste + 0.3 * liking - 0.5 * fatigue,
        watch_spread=WATCH_SPREAD[kind],
        watch_cap=np.where(kind == VIDEO, 3 * contents.duration[content], np.maximum(rest, 0)),
        price_usd=contents.price_usd[content],
    )


def vectors_of(vectors: Floats, content: Ints) -> Floats:
    """Vectors [K, D] of contents [K]; zero of -1."""
    return np.where(content[:, None] >= 0, vectors[content], np.float32(0))


class Memory:
    """The last exposures of every user, from which fatigue comes; they fade with a half-life of an hour."""

    EXPOSURES = 40
    HALF_LIFE_S = 3600.0

    def __init__(self, world: Population) -> None:
        users = len(world.users.market)
        self._category = world.contents.category
        self._seller = world.contents.seller
        self._sensitivity = world.culture.fatigue[world.users.market]
        self._content = np.full((users, self.EXPOSURES), -1, np.int32)
        self._time = np.zeros((users, self.EXPOSURES), np.int64)

    def fatigue(self, user: Ints, content: Ints, time: Ints) -> Floats:
        """Click logit [B, S] that users [B] lose for contents [B, S] at times [B] by past exposures."""
        past = self._content[user]
        age = np.maximum(time[:, None] - self._time[user], 0).astype(np.float32)
        weight = np.where(past >= 0, np.exp2(-age / self.HALF_LIFE_S), np.float32(0))
        tired = np.matmul(self._likeness(content, past), weight[:, :, None])[:, :, 0]
        return tired * self._sensitivity[user][:, None]

    def slate_fatigue(self, user: Ints, content: Ints) -> Floats:
        """Click logit [B, S] lost by what stands above in the same slate [B, S]."""
        above = np.tri(content.shape[1], k=-1, dtype=np.float32)
        tired = (self._likeness(content, content) * above * (content >= 0)[:, None, :]).sum(axis=2)
        return tired * self._sensitivity[user][:, None]

    def remember(self, user: Ints, content: Ints, time: Ints) -> None:
        """Note slates [B, S] shown to distinct users [B] at times [B]."""
        seen = np.concatenate([self._content[user], content], axis=1)
        when = np.concatenate([self._time[user], np.broadcast_to(time[:, None], content.shape)], axis=1)
        self._content[user] = seen[:, -self.EXPOSURES :]
        self._time[user] = when[:, -self.EXPOSURES :]

    def _likeness(self, content: Ints, past: NDArray[np.integer]) -> Floats:
        category, seller = self._category, self._seller
        same_category = category[content][:, :, None] == category[past][:, None, :]
        same_seller = seller[content][:, :, None] == seller[past][:, None, :]
        return same_category * np.float32(CATEGORY_FATIGUE) + same_seller * np.float32(SELLER_FATIGUE)
