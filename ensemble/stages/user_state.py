"""Who asks, where and when: the user's stored state and the moment, as the raw columns of a query."""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

import numpy as np

from ensemble.errors import Code, RequestError, invalid
from ensemble.lookup import IdIndex, category_codes, spoken
from ensemble.plan import Plan
from ensemble.release import Release
from ensemble.steps import StageStep, TensorSpec
from market.calendar import END_S, local_context
from market.kinds import KINDS
from market.languages import base, canonical

NULL_INTEGER = np.iinfo(np.int64).min

REQUEST = (
    TensorSpec("user_id", object),
    TensorSpec("market", object),
    TensorSpec("time", np.int64),
    TensorSpec("history", object, (-1,)),
    TensorSpec("exclude", object, (-1,)),
    TensorSpec("shown", object, (-1,)),
    TensorSpec("diversity", np.float32),
    TensorSpec("seed", np.int64),
    TensorSpec("explain", np.bool_),
    TensorSpec("exclude_sellers", object, (-1,), optional=True),
    TensorSpec("languages", object, (-1,), optional=True),
    TensorSpec("kinds", object, (-1,), optional=True),
    TensorSpec("categories", object, (-1,), optional=True),
    TensorSpec("exclude_categories", object, (-1,), optional=True),
)
"""What a client sends: ids as text; `time` in s since the epoch; `history`, ids wanted in this session that
the stored state does not know yet, oldest first, "" fills; `exclude`, ids never to be shown, "" fills;
`shown`, ids shown lately, one entry an exposure, "" fills; `diversity` from 0 (value alone) to 1 (difference
alone); `seed`, of what exploration draws: the same request gives the same slate; `explain`, whether the reply
says what became of all candidates; `exclude_sellers`, ids of sellers none of whose contents are to be shown,
"" fills; `languages`, BCP 47 codes of those that the person reads now, the own one first, "" fills, "pt_BR"
being "pt-BR"; by default the stored one is the own, and filters nothing; `kinds`, of video, live and product
those that are asked for, "" fills, by default all; `categories`, those that are asked for, "" fills, by
default all; `exclude_categories`, those of which nothing is to be shown, "" fills."""
_FOR_LATER = ("diversity", "seed", "explain")
"""What other stages read."""

_DTYPE = {"string": object, "integer": np.int64, "number": np.float32}


class UserState:
    """Looks users up and writes the raw columns that the compiled query workflow reads.

    An unknown user is served as one without attributes and history; an unknown market is refused, since
    nothing may be shown there.
    """

    name = "user_state"

    def __init__(self, release: Release) -> None:
        self.plan = Plan.of(release)
        self.users = IdIndex(release.array("user_id.npy"))
        self.contents = IdIndex(release.array("text_content_id.npy"))
        self.seller_codes = IdIndex(release.array("seller_ids.npy"))
        self.categories = category_codes(release)
        #: The code of a category that no content is in.
        self.no_category = max(self.categories.values(), default=-1) + 1
        self.markets = {market: place for place, market in enumerate(self.plan.markets)}
        self.history = release.array("user_history.npy")
        self.seen = release.array("user_seen.npy")
        self.sellers = release.array("user_followed.npy")
        self.language = release.array("user_language.npy")
        self.languages = spoken(release)[0]
        self.since = release.array("user_since.npy") if self.plan.season_s else None
        self.tired = {
            name: release.array(f"user_tired_{name}.npy")
            for name in ("contents", "contents_until", "sellers", "sellers_until")
        }
        self.attributes = {
            column.name: release.array(f"attribute_{column.name}.npy")
            for column in self.plan.columns
            if column.source == "user"
        }
        self.followed = {
            column.name: release.array(f"text_{column.name.removeprefix('hist_')}.npy")
            for column in self.plan.columns
            if column.source == "history"
        }
        #: Users' languages as the query workflow knows them, by themselves and by what dialects belong to.
        stored = self.attributes.get("language", np.empty(0, str))
        if len(stored):
            stored = stored[np.unique(self.language, return_index=True)[1]]
        texts = [text for text in stored.tolist() if text]
        self.known_as = {base(text): text for text in reversed(texts)} | {
            canonical(text): text for text in texts
        }
        #: Of these, the columns that some content lacks.
        self.gaps = {name for name, texts in self.followed.items() if (texts == "").any()}

    @staticmethod
    def step(plan: Plan) -> StageStep:
        """Border of the stage."""
        raw = tuple(
            TensorSpec(f"raw_{column.name}", _DTYPE[column.kind], (-1,) if column.source == "history" else ())
            for column in plan.columns
        )
        made = (
            *raw,
            TensorSpec("market_index", np.int64),
            TensorSpec("recent", np.int64, (plan.history_length,)),
            TensorSpec("seen", np.int64, (-1,), pad=-1),
            TensorSpec("followed", np.int64, (-1,), pad=-1),
            TensorSpec("exposed", np.int64, (-1,), pad=-1),
            TensorSpec("tired_sellers", np.int64, (-1,), pad=-1),
            TensorSpec("excluded_sellers", np.int64, (-1,), pad=-1),
            TensorSpec("speaks", np.int64),
            TensorSpec("asked_kinds", np.int64),
            TensorSpec("asked_categories", np.int64, (-1,), pad=-1),
            TensorSpec("excluded_categories", np.int64, (-1,), pad=-1),
            TensorSpec("reads", np.int64, (-1,), pad=-1),
            TensorSpec("clock", np.int64, (2,)),
            *((TensorSpec("since", np.int64),) if plan.season_s else ()),
        )
        inputs = tuple(spec for spec in REQUEST if spec.name not in _FOR_LATER)
        return StageStep(UserState.name, inputs, made)

    def __call__(
        self,
        user_id: np.ndarray,
        market: np.ndarray,
        time: np.ndarray,
        history: np.ndarray,
        exclude: np.ndarray,
        shown: np.ndarray,
        exclude_sellers: np.ndarray | None = None,
        languages: np.ndarray | None = None,
        kinds: np.ndarray | None = None,
        categories: np.ndarray | None = None,
        exclude_categories: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Raw query columns by name (`raw_…`), market_index int64[B], and rows of the contents table with -1
        fills: recent int64[B, L], the latest wanted ones, seen int64[B, S], not to be shown again, and
        exposed int64[B, H], shown lately. Codes of sellers: followed int64[B, F], those that the user follows
        or bought from, tired_sellers int64[B, T], those that the user has been shown too often, and
        excluded_sellers int64[B, X], those that the request excludes, -1 for one that is not known. Also
        speaks int64[B], the code of the user's language, -1 where unknown, and reads int64[B, K], those that
        the request says are read, -1 for one that no content is in; asked_kinds int64[B], asked_categories
        int64[B, K] and excluded_categories int64[B, X], what it asks for (`ensemble.channels.Wishes`); and,
        where the release knows seasons, since int64[B], when the user's latest event was.

        Raises:
            RequestError: an unknown market or kind, or a time outside 1970 to 2100.
        """
        began = monotonic_ns()
        market_index = self._market_index(market)
        if (outside := (time < 0) | (time >= END_S)).any():
            first = int(np.flatnonzero(outside)[0])
            raise invalid(
                f"tensor 'time' holds {int(time[first])} at row {first}; send seconds from 1970 to 2099"
            )
        row, rows = self.users(user_id), self.contents(np.concatenate([history, exclude, shown], axis=1))
        first, last = history.shape[1], history.shape[1] + exclude.shape[1]
        session, excluded, exposed = rows[:, :first], rows[:, first:last], rows[:, last:]
        past = self._latest(np.concatenate([_stored(self.history, row), session], axis=1))
        columns: dict[str, np.ndarray] = {}
        speaks, reads, said = self._languages(row, languages)
        each = np.arange(len(row))[:, None]
        context = local_context(market.astype(str), time)
        for column in self.plan.columns:
            if column.source == "user":
                values = self._attribute(column.name, column.kind, row)
                if column.name == "language":
                    values[list(said)] = list(said.values())
            elif column.source == "context":
                values = getattr(context, column.name)
            elif column.source == "history":
                values = self.followed[column.name].take(past, mode="clip")
                values[past < 0] = ""
                if column.name in self.gaps:
                    # What a content lacks is left out, as in training: padding stands at the end alone.
                    values = values[each, np.argsort(values == "", axis=1, kind="stable")]
                values = values.astype(object)
            else:
                values = {
                    "user_id": user_id,
                    "market": market,
                    "history_length": (past >= 0).sum(axis=1).astype(np.float32),
                }[column.name]
            columns[f"raw_{column.name}"] = values
        # A long session pushes the stored history out of the query, not out of what was seen.
        seen = np.concatenate(
            [_stored(self.seen, row), session, excluded, self._tired("contents", row, time)], axis=1
        )
        if self.since is not None:
            # Who wants something in this session, or is unknown, is of this season.
            stays = (row >= 0) & (session < 0).all(axis=1)
            stored = self.since.take(row, mode="clip") if len(self.since) else time
            columns["since"] = np.where(stays, np.minimum(stored, time), time)
        clock = np.empty((len(row), 2), np.int64)
        clock[:] = began, monotonic_ns()
        return columns | {
            "market_index": market_index,
            "recent": past,
            "seen": seen,
            "followed": _stored(self.sellers, row),
            "exposed": exposed,
            "tired_sellers": self._tired("sellers", row, time),
            "excluded_sellers": np.empty((len(row), 0), np.int64)
            if exclude_sellers is None
            else self.seller_codes(exclude_sellers),
            "asked_kinds": self._kinds(len(row), kinds),
            "asked_categories": self._categories(len(row), categories, unknown=self.no_category),
            "excluded_categories": self._categories(len(row), exclude_categories, unknown=-1),
            "speaks": speaks,
            "reads": reads,
            "clock": clock,
        }

    def _market_index(self, market: np.ndarray) -> np.ndarray:
        place = np.array([self.markets.get(code, -1) for code in market.tolist()], np.int64)
        if (place < 0).any():
            row = int(np.flatnonzero(place < 0)[0])
            raise RequestError(
                Code.NOT_FOUND,
                f"unknown market {market[row][:60]!r} at row {row}; "
                f"this release serves {', '.join(self.plan.markets)}",
            )
        return place

    @staticmethod
    def _kinds(requests: int, kinds: np.ndarray | None) -> np.ndarray:
        """Bits of the kinds text[B, K] that requests ask for, int64[B]."""
        bits = np.zeros(requests, np.int64)
        if kinds is not None and kinds.size:
            for request, place in np.argwhere(kinds != "").tolist():
                kind = kinds[request, place]
                if kind not in KINDS:
                    raise invalid(
                        f"tensor 'kinds' holds {kind[:60]!r} at row {request}; there are {', '.join(KINDS)}",
                    )
                bits[request] |= 1 << KINDS.index(kind)
        return bits

    def _categories(self, requests: int, names: np.ndarray | None, *, unknown: int) -> np.ndarray:
        """Codes of categories text[B, K], int64[B, K]; -1 fills."""
        if names is None or not names.size:
            return np.empty((requests, 0), np.int64)
        codes = np.full(names.shape, -1)
        for request, place in np.argwhere(names != "").tolist():
            codes[request, place] = self.categories.get(names[request, place], unknown)
        return codes

    def _languages(
        self, row: np.ndarray, languages: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """speaks int64[B] and reads int64[B, K] of users int64[B] who say languages text[B, K]; and their own
        language as the query workflow knows it, by request.

        A language in which there are no contents says nothing; who says no other is served as usual.
        """
        speaks = _stored(self.language[:, None], row)[:, 0]
        if languages is None or not languages.size:
            return speaks, np.empty((len(row), 0), np.int64), {}
        own: dict[int, str] = {}
        reads = np.full(languages.shape, -1)
        for request, place in np.argwhere(languages != "").tolist():
            text = languages[request, place].replace("_", "-")  # as systems write their locales
            code = reads[request, place] = self.languages.get(base(text), -1)
            if code >= 0 and request not in own:
                speaks[request] = code
                own[request] = self.known_as.get(canonical(text), self.known_as.get(base(text), text))
        return speaks, reads, own

    def _tired(self, of: str, row: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Contents or sellers that users int64[B] are tired of at a time int64[B]: int64[B, T], -1 fills."""
        until = _stored(self.tired[f"{of}_until"], row)
        return np.where(time[:, None] < until, _stored(self.tired[of], row), -1)

    def _attribute(self, name: str, kind: str, row: np.ndarray) -> np.ndarray:
        null: Any = {"string": "", "integer": NULL_INTEGER, "number": 0.0}[kind]
        if not len(self.attributes[name]):
            return np.full(len(row), null, _DTYPE[kind])
        return np.where(row >= 0, self.attributes[name].take(row, mode="clip"), null).astype(_DTYPE[kind])

    def _latest(self, history: np.ndarray) -> np.ndarray:
        """The last L contents of histories with gaps of -1, oldest first, left-aligned, int64[B, L]."""
        # A stable sort by "absent" moves absences to the front and keeps the order of events.
        order = np.argsort(history >= 0, axis=1, kind="stable")[:, -self.plan.history_length :]
        each = np.arange(len(history))[:, None]
        last = history[each, order]
        return last[each, np.argsort(last < 0, axis=1, kind="stable")]


def _stored(table: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Rows of a stored table int32[U, L] for users int64[B], int64[B, L]; -1 for users that are unknown."""
    if not len(table):
        return np.full((len(row), table.shape[1]), -1, np.int64)
    stored = table.take(row, axis=0, mode="clip").astype(np.int64)
    stored[row < 0] = -1
    return stored
