"""Who and what lives in the world: the latent truth of markets, users, sellers and contents.

Everything that differs by market is drawn world → region → market, and user traits below that, so neighbours
resemble each other and a model that pools markets by region has something to learn.
"""

from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from market.kinds import KINDS
from market.languages import base
from market.profiles import Market, profile
from market.world.config import DAY, WorldConfig
from market.world.rooms import Rooms, draw_rooms

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# fmt: off
CATEGORIES = (
    "womenswear", "menswear", "shoes", "bags", "jewellery", "makeup", "skincare", "haircare", "health",
    "baby", "toys", "kitchen", "furniture", "garden", "groceries", "snacks", "pets", "phones", "computers",
    "gaming", "sports", "outdoor", "books", "crafts",
)
# fmt: on
TOPICS_PER_CATEGORY = 8
TOPICS = [f"{category}-{k}" for category in CATEGORIES for k in range(TOPICS_PER_CATEGORY)]
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55+")
GENDERS = ("female", "male", "undisclosed")
VIDEO, LIVE, PRODUCT = map(KINDS.index, ("video", "live", "product"))
IMAGE_DIM = 32
INTEREST_WEIGHTS = np.array([1.0, 0.9, 0.8], np.float32)
CHRONOTYPE_SHIFT = np.array([-2.5, 0.0, 2.5])
"""Hours by which the day of early, usual and late people is moved."""
FOREVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Culture:
    """What is true of a market as a whole: one row per market (M), C categories, T topics, L languages."""

    category: Floats  # [M, C] how much the market likes each category (log-weight)
    topic: Floats  # [M, T] and each topic within its category (log-weight)
    price_sensitivity: Floats  # [M] elasticity of its people, before personal differences
    budget: Floats  # [M] log of what its people spend, relative to purchasing power
    live: Floats  # [M] liking of live rooms (logit)
    hour_shift: Floats  # [M] hours by which its day runs late
    rhythm: Floats  # [M, 3 chronotypes, 24] relative activity by local hour
    holiday: Floats  # [M] lift of activity on weekends and holidays (log)
    payday: Floats  # [M] lift of buying around pay-day (logit)
    shopping: Floats  # [M] lift of buying on shopping days (logit)
    fatigue: Floats  # [M] how soon repetition tires (1 = usual)
    foreign: Floats  # [M, L, L] cost of content in a language (last axis) to who speaks another (logit, ≤ 0)
    languages: list[str]  # the L languages of the world
    power_per_usd: Floats  # [M] purchasing-power dollars that a US dollar buys


@dataclass(frozen=True)
class Users:
    """Latent and visible traits of U users; visible ones are market, language, age, gender, registered_at."""

    market: Ints
    language: Ints
    age: Ints
    gender: Ints
    registered_at: Ints
    interests: Floats  # [U, 3, D] unit vectors times their weight
    price_sensitivity: Floats
    budget: Floats  # log, includes the market's
    live: Floats  # logit, includes the market's
    activity: Floats
    chronotype: Ints


@dataclass(frozen=True)
class Sellers:
    """S sellers; `quality` is latent, rating and followers are its noisy signs."""

    market: Ints
    category: Ints
    language: Ints
    quality: Floats
    rating: Floats
    followers: Ints
    registered_at: Ints
    size: Floats


@dataclass(frozen=True)
class Contents:
    """N contents; latent are `vector` and `quality`, all else can be seen by models."""

    kind: Ints
    seller: Ints
    markets: Bools  # [M, N] where it may be shown
    category: Ints
    topic: Ints
    language: Ints
    price: Floats  # in the seller's currency
    price_usd: Floats
    relative_price: Floats  # log(price in USD / what is usual in the category in purchasing-power dollars)
    duration: Floats  # seconds; videos only, else NaN
    created_at: Ints
    ended_at: Ints  # FOREVER where there is no end
    stock: Ints
    vector: Floats  # [N, D] unit vectors
    image: Floats  # [N, V] unit vectors, what can be seen of `vector`
    quality: Floats


@dataclass(frozen=True)
class Population:
    """The whole latent truth of a world."""

    culture: Culture
    users: Users
    sellers: Sellers
    contents: Contents
    rooms: Rooms


def _unit(vectors: NDArray[np.floating]) -> Floats:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def _pick(rng: Generator, log_weights: NDArray[np.floating]) -> Ints:
    """One index per row with probability softmax(log_weights) (Gumbel-max)."""
    return np.argmax(log_weights + rng.gumbel(size=log_weights.shape), axis=-1)


def _shares(rng: Generator, markets: int, total: int) -> Ints:
    """A market for each of `total` members, sorted: unequal shares, at least one member each."""
    share = np.exp(rng.normal(0, 0.35, markets))
    counts = 1 + np.floor(share / share.sum() * (total - markets)).astype(np.int64)
    counts[np.argmax(counts)] += total - counts.sum()
    return np.repeat(np.arange(markets), counts)


def draw_population(config: WorldConfig) -> Population:
    """Draw the latent truth of a world; a function of the configuration alone."""
    profiles = [profile(code) for code in config.markets]
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, 0]))
    culture = _draw_culture(rng, profiles)
    categories = _unit(rng.normal(size=(len(CATEGORIES), config.taste_dim)))
    within = _unit(rng.normal(size=(len(TOPICS), config.taste_dim)))
    topics = _unit(np.repeat(categories, TOPICS_PER_CATEGORY, axis=0) + 0.6 * within)
    users = _draw_users(rng, config, profiles, culture, topics)
    sellers = _draw_sellers(rng, config, profiles, culture)
    contents = _draw_contents(rng, config, profiles, culture, sellers, topics)
    rooms = draw_rooms(
        np.random.default_rng(np.random.SeedSequence([config.seed, 5])),
        contents.kind == LIVE,
        contents.kind == PRODUCT,
        contents.seller,
        contents.created_at,
        contents.ended_at,
    )
    return Population(culture, users, sellers, contents, rooms)


def _draw_culture(rng: Generator, profiles: list[Market]) -> Culture:
    regions, region = np.unique([market.region for market in profiles], return_inverse=True)
    count = len(profiles)

    def nested(*shape: int, world: float, by_region: float, by_market: float) -> Floats:
        draw = rng.normal(0, world, (1, *shape)) + rng.normal(0, by_region, (len(regions), *shape))[region]
        return (draw + rng.normal(0, by_market, (count, *shape))).astype(np.float32)

    hour_shift = nested(world=0.3, by_region=0.7, by_market=0.5)
    hours = np.arange(24) - hour_shift[:, None, None] - CHRONOTYPE_SHIFT[:, None]
    evening = np.cos(2 * np.pi * (hours - 20.5) / 24)
    midday = np.cos(4 * np.pi * (hours - 12.5) / 24)
    languages = sorted({language for market in profiles for language in market.languages})
    english = 1 / (1 + np.exp(-nested(world=0.3, by_region=0.8, by_market=0.5)))
    return Culture(
        category=nested(len(CATEGORIES), world=0.5, by_region=0.6, by_market=0.4),
        topic=nested(len(TOPICS), world=0.4, by_region=0.4, by_market=0.3),
        price_sensitivity=np.exp(-0.2 + nested(world=0.1, by_region=0.3, by_market=0.15)),
        budget=nested(world=0, by_region=0.25, by_market=0.15),
        live=nested(world=0.2, by_region=0.6, by_market=0.3),
        hour_shift=hour_shift,
        rhythm=np.exp(0.9 * evening + 0.35 * midday).astype(np.float32),
        holiday=0.2 + nested(world=0.05, by_region=0.1, by_market=0.08),
        payday=0.35 + nested(world=0.05, by_region=0.15, by_market=0.1),
        shopping=0.8 + nested(world=0.1, by_region=0.25, by_market=0.15),
        fatigue=np.exp(nested(world=0, by_region=0.15, by_market=0.1)),
        foreign=_foreign(profiles, languages, english),
        languages=languages,
        power_per_usd=np.array([m.purchasing_power / m.usd_per_unit for m in profiles], np.float32),
    )


def _foreign(profiles: list[Market], languages: list[str], english: Floats) -> Floats:
    """The cost of content in another language: least for a language of the market or well-known English."""
    stem = np.array([base(language) for language in languages])
    same = stem[:, None] == stem
    cost = np.full((len(profiles), len(languages), len(languages)), -1.8, np.float32)
    for m, market in enumerate(profiles):
        cost[m, :, stem == "en"] = -1.8 + 1.2 * english[m]
        cost[m, :, np.isin(languages, market.languages)] = -0.6
        cost[m, same] = 0
    return cost


def _speak(rng: Generator, profiles: list[Market], languages: list[str], market: Ints) -> Ints:
    """A language per member: the first of its market for most, each further one a quarter as often."""
    log_weights = np.full((len(profiles), len(languages)), -np.inf)
    for m, place in enumerate(profiles):
        for rank, language in enumerate(place.languages):
            log_weights[m, languages.index(language)] = -rank * np.log(4)
    return _pick(rng, log_weights[market])


def _draw_users(
    rng: Generator, config: WorldConfig, profiles: list[Market], culture: Culture, topics: Floats
) -> Users:
    count = config.users
    market = _shares(rng, len(profiles), count)
    age = rng.choice(len(AGE_BANDS), count, p=[0.27, 0.31, 0.21, 0.13, 0.08])
    gender = rng.choice(len(GENDERS), count, p=[0.5, 0.43, 0.07])
    by_age = rng.normal(0, 0.7, (len(AGE_BANDS), len(CATEGORIES)))
    by_gender = rng.normal(0, 0.8, (len(GENDERS), len(CATEGORIES)))
    liking = culture.category[market] + by_age[age] + by_gender[gender]
    chosen = np.argsort(-(liking + rng.gumbel(size=liking.shape)), axis=1)[:, : len(INTEREST_WEIGHTS)]
    topic = culture.topic.reshape(len(profiles), len(CATEGORIES), TOPICS_PER_CATEGORY)
    favourite = chosen * TOPICS_PER_CATEGORY + _pick(rng, topic[market[:, None], chosen])
    spread = _unit(rng.normal(size=(count, len(INTEREST_WEIGHTS), config.taste_dim)))
    interests = _unit(topics[favourite] + 0.3 * spread) * INTEREST_WEIGHTS[:, None]
    newcomer = rng.random(count) < 0.1
    newcomer[np.searchsorted(market, np.arange(len(profiles)))] = False  # no market starts empty
    age_of_account = np.where(
        newcomer, -rng.random(count) * config.days * DAY * 0.9, rng.exponential(300 * DAY, count)
    )
    return Users(
        market=market,
        language=_speak(rng, profiles, culture.languages, market),
        age=age,
        gender=gender,
        registered_at=config.begin - age_of_account.astype(np.int64),
        interests=interests.astype(np.float32),
        price_sensitivity=culture.price_sensitivity[market]
        * np.exp(rng.normal(0, 0.35, count)).astype(np.float32),
        budget=culture.budget[market] + rng.normal(0, 0.4, count).astype(np.float32),
        live=culture.live[market] + rng.normal(0, 0.7, count).astype(np.float32),
        activity=np.exp(rng.normal(0, 1.5, count)).astype(np.float32),
        chronotype=rng.choice(3, count, p=[0.25, 0.5, 0.25]),
    )


def _draw_sellers(rng: Generator, config: WorldConfig, profiles: list[Market], culture: Culture) -> Sellers:
    count = config.sellers
    market = _shares(rng, len(profiles), count)
    quality = rng.normal(0, 1, count).astype(np.float32)
    size = np.exp(rng.normal(0, 1, count)).astype(np.float32)
    return Sellers(
        market=market,
        category=_pick(rng, culture.category[market]),
        language=_speak(rng, profiles, culture.languages, market),
        quality=quality,
        rating=np.clip(4.3 + 0.35 * quality + rng.normal(0, 0.2, count), 1, 5).astype(np.float32).round(1),
        followers=(2_000 * size * np.exp(0.5 * quality + rng.normal(0, 0.8, count))).astype(np.int64),
        registered_at=config.begin - (60 * DAY + rng.exponential(500 * DAY, count)).astype(np.int64),
        size=size,
    )


def _draw_contents(
    rng: Generator,
    config: WorldConfig,
    profiles: list[Market],
    culture: Culture,
    sellers: Sellers,
    topics: Floats,
) -> Contents:
    count = config.contents
    # Each market's share of contents is its share of sellers' sizes, at least one content each.
    largest = np.array(
        [np.argmax(np.where(sellers.market == m, sellers.size, -1)) for m in range(len(profiles))]
    )
    seller = rng.choice(config.sellers, count, p=sellers.size / sellers.size.sum(dtype=np.float64))
    seller[: len(profiles)] = largest
    home = sellers.market[seller]
    kind = rng.choice(len(KINDS), count, p=[0.6, 0.22, 0.18])
    kind[: len(profiles)] = VIDEO

    regions = np.array([market.region for market in profiles])
    abroad = (regions[:, None] == regions[home]) & (rng.random((len(profiles), count)) < 0.3)
    markets = abroad | (np.arange(len(profiles))[:, None] == home)

    faithful = rng.random(count) < 0.8
    category = np.where(faithful, sellers.category[seller], _pick(rng, culture.category[home]))
    topic_weights = culture.topic.reshape(len(profiles), len(CATEGORIES), TOPICS_PER_CATEGORY)
    topic = category * TOPICS_PER_CATEGORY + _pick(rng, topic_weights[home, category])

    usual = np.exp(rng.normal(3.0, 0.5, len(CATEGORIES)))  # purchasing-power dollars
    asked = usual[category] * np.exp(0.7 * culture.budget[home] + rng.normal(0, 0.5, count))
    power = np.array([market.purchasing_power for market in profiles])[home]
    price = _round_price(asked / power)
    price_usd = price * np.array([market.usd_per_unit for market in profiles])[home]

    created, ended = _draw_life(rng, config, profiles, culture, home, kind)
    duration = np.clip(np.exp(rng.normal(np.log(28), 0.7, count)), 5, 240)
    stock = 1 + np.exp(rng.normal(4, 1.2, count)).astype(np.int64)
    vector = _unit(topics[topic] + 0.35 * _unit(rng.normal(size=(count, config.taste_dim))))
    return Contents(
        kind=kind,
        seller=seller,
        markets=markets,
        category=category,
        topic=topic,
        language=sellers.language[seller],
        price=price.astype(np.float32),
        price_usd=price_usd.astype(np.float32),
        relative_price=np.log(price_usd / usual[category]).astype(np.float32),
        duration=np.where(kind == VIDEO, duration, np.nan).astype(np.float32).round(1),
        created_at=created,
        ended_at=ended,
        stock=stock,
        vector=vector,
        image=_see(config, vector),
        quality=rng.normal(0, 0.45, count).astype(np.float32),
    )


def _see(config: WorldConfig, vector: Floats) -> Floats:
    """What an encoder of pictures says of contents: their vectors from its own angle, under noise about as
    large as what sets contents of one topic apart."""
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, 4]))
    angle = rng.normal(size=(config.taste_dim, IMAGE_DIM)) / np.sqrt(IMAGE_DIM)
    return _unit(vector @ angle + 0.5 * _unit(rng.normal(size=(len(vector), IMAGE_DIM))))


def _round_price(price: NDArray[np.floating]) -> NDArray[np.floating]:
    """Prices as shops write them: three significant digits, cents at the finest."""
    digit = np.maximum(10.0 ** (np.floor(np.log10(price)) - 2), 0.01)
    return np.maximum(np.round(price / digit), 1) * digit


def _draw_life(
    rng: Generator, config: WorldConfig, profiles: list[Market], culture: Culture, home: Ints, kind: Ints
) -> tuple[Ints, Ints]:
    """Creation and end (s since epoch): videos come all the time, rooms last hours, cards are old."""
    count = len(home)
    length = config.days * DAY
    video = config.begin + rng.uniform(-30 * DAY, length, count)
    card = config.begin - rng.uniform(0, 90 * DAY, count)
    # A room opens on some local day around its market's evening, and may be open when the log begins or ends.
    noon_utc = np.array([_noon_utc(market.timezone, config.begin) for market in profiles])[home]
    day = rng.integers(-1, config.days + 1, count)
    evening = rng.normal(6.5, 3.5, count) + culture.hour_shift[home]
    room = config.begin + day * DAY + noon_utc + evening * 3600
    created = np.select([kind == VIDEO, kind == LIVE], [video, room], card).astype(np.int64)
    stay = np.clip(np.exp(rng.normal(np.log(3), 0.5, count)), 0.5, 12) * 3600
    # The first video of each market was there before the log, so that no market starts empty.
    created[: len(profiles)] = np.minimum(created[: len(profiles)], config.begin - DAY)
    return created, np.where(kind == LIVE, created + stay.astype(np.int64), FOREVER)


def _noon_utc(zone: str, time: int) -> int:
    """Seconds after midnight UTC of noon in a time zone, by its offset at `time`."""
    offset = datetime.fromtimestamp(time, ZoneInfo(zone)).utcoffset()
    return 12 * 3600 - int(offset.total_seconds() if offset else 0)
