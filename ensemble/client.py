"""Asks a running server for feeds over gRPC."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from ensemble.channels import Channel
from ensemble.errors import Code, RequestError, invalid
from ensemble.explanation import Explanation
from ensemble.network import open_channel
from ensemble.rules import Reason
from ensemble.stages.user_state import REQUEST
from ensemble.steps import STRING, TensorSpec, check_inputs
from ensemble.wire import NO_ROWS, read_slates, write_requests
from feedback import records

FEED, EVENTS, FEEDBACK = "feed", "events", "feedback"
DIVERSITY = 0.1
"""What a client sends unless it says otherwise."""
_WAIT = 0.5
"""Part of a client's patience that a request may wait on the server: what begins later comes too late."""
_TOO_MANY = re.compile(r"batch-size must be <= (\d+)")
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Else a server that was away for minutes is not looked for until two more have passed.
    ("grpc.max_reconnect_backoff_ms", 1000),
]


@dataclass(frozen=True)
class FeedRequest:
    """One person's request for a feed.

    Attributes:
        user: id; an unknown one is served without attributes and history.
        market: code of a market that the release serves.
        time: seconds since the epoch, 1970 to 2099.
        history: contents wanted in this session, oldest first.
        exclude: contents never to be shown.
        shown: contents shown lately, one entry an exposure.
        diversity: 0 (value alone) to 1 (difference alone).
        seed: of what exploration draws; by default another one for each user and second.
        explain: whether the slate comes with what became of all candidates.
        exclude_sellers: sellers none of whose contents are to be shown; unknown ones do no harm.
        languages: BCP 47 codes of those that the person reads now, the own one first: nothing known to be in
            another is shown while anything in these may be; by default contents in others are shown too.
        kinds: of video, live and product those that the place asks for that the feed is shown in, such as a
            tab of live rooms; by default all.
        categories: those that it asks for, by default all; in one that is unknown there is nothing to show.
        exclude_categories: those of which nothing is to be shown; unknown ones do no harm.
    """

    user: str
    market: str
    time: int
    history: Sequence[str] = ()
    exclude: Sequence[str] = ()
    shown: Sequence[str] = ()
    diversity: float = DIVERSITY
    seed: int | None = None
    explain: bool = False
    exclude_sellers: Sequence[str] = ()
    languages: Sequence[str] = ()
    kinds: Sequence[str] = ()
    categories: Sequence[str] = ()
    exclude_categories: Sequence[str] = ()


@dataclass(frozen=True)
class Item:
    """One place of a slate.

    Attributes:
        content: id.
        channels: retrieval channels that found it; all but the first look no further than their quotas.
        candidate_rank: place among the candidates as pre-ranking left them, from 1.
        retrieval_score: cosine of query and content.
        probabilities: of the ranker, by task.
        value: blended from them.
        reason: why it stands here.
        propensity: probability of its standing here under the policy; 1 where nothing was drawn.
    """

    content: str
    channels: tuple[str, ...]
    candidate_rank: int
    retrieval_score: float
    probabilities: dict[str, float]
    value: float
    reason: str
    propensity: float


@dataclass(frozen=True)
class Slate:
    """The reply to one request, best item first; `explanation` where it was asked for."""

    items: tuple[Item, ...] = field(default_factory=tuple)
    explanation: Explanation | None = None


def pack(requests: Sequence[FeedRequest]) -> dict[str, np.ndarray]:
    """Requests as the tensors of `REQUEST`, one row each.

    Raises:
        RequestError: INVALID_ARGUMENT; a value is of another kind, or a number has no place.
    """

    def values(name: str, fits: Callable[[Any], bool], wanted: str) -> list[Any]:
        every = [getattr(request, name) for request in requests]
        for number, value in enumerate(every):
            if not fits(value):
                raise invalid(f"'{name}' of request {number} is {value!r:.60}; send {wanted}")
        return every

    def lists(name: str) -> np.ndarray:
        for number, ids in enumerate(getattr(request, name) for request in requests):
            if isinstance(ids, str):
                raise invalid(
                    f"'{name}' of request {number} is the text {ids[:60]!r}; send a list, [{ids[:60]!r}]"
                )
        every = [list(ids) for ids in values(name, _is_list, "a list of text")]
        table = np.full((len(every), max(map(len, every), default=0)), "", STRING)
        for row, ids in zip(table, every):
            row[: len(ids)] = ids
        return table

    whole = "a whole number of 64 bits"
    values("seed", lambda seed: seed is None or _is_whole(seed), whole)
    return {
        "user_id": np.array(values("user", _is_text, "text"), STRING),
        "market": np.array(values("market", _is_text, "text"), STRING),
        "time": np.array(values("time", _is_whole, whole), np.int64),
        "history": lists("history"),
        "exclude": lists("exclude"),
        "shown": lists("shown"),
        "diversity": np.array(values("diversity", _is_share, "0 to 1"), np.float32),
        "seed": np.array([_seed(request) for request in requests], np.int64),
        "explain": np.array(values("explain", _is_flag, "True or False"), np.bool_),
        "exclude_sellers": lists("exclude_sellers"),
        "languages": lists("languages"),
        "kinds": lists("kinds"),
        "categories": lists("categories"),
        "exclude_categories": lists("exclude_categories"),
    }


def _is_text(value: Any) -> bool:
    return isinstance(value, str | bytes)


def _is_list(value: Any) -> bool:
    """Whether a value is texts side by side; sets are, of which no order is asked."""
    return isinstance(value, Collection) and not isinstance(value, bytes) and all(map(_is_text, value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and -(2**63) <= int(value) < 2**63


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and bool(0 <= value <= 1)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _seed(request: FeedRequest) -> int:
    if request.seed is not None:
        return request.seed
    text = f"{request.user}\n{request.time}".encode(errors="surrogatepass")
    told = hashlib.blake2b(text, digest_size=8)
    return int.from_bytes(told.digest(), "big", signed=True)


def unpack(reply: dict[str, np.ndarray], tasks: Sequence[str]) -> list[Slate]:
    """The tensors of a reply as slates."""
    slates = []
    for row, ids in enumerate(reply["content_id"]):
        items = []
        for place, content in enumerate(ids):
            content = content.decode() if isinstance(content, bytes) else content
            if not content:
                continue
            bits = Channel(int(reply["slate_channel"][row, place]))
            items.append(
                Item(
                    content=content,
                    channels=tuple(str(c.name).lower().replace("_", "-") for c in Channel if c & bits),
                    candidate_rank=int(reply["slate_candidate_rank"][row, place]),
                    retrieval_score=float(reply["slate_retrieval_score"][row, place]),
                    probabilities=dict(zip(tasks, reply["slate_probabilities"][row, place].tolist())),
                    value=float(reply["slate_value"][row, place]),
                    reason=Reason(int(reply["slate_reason"][row, place])).text,
                    propensity=float(reply["slate_propensity"][row, place]),
                )
            )
        told = np.ravel(reply["explanation"][row])[0]
        told = told.decode() if isinstance(told, bytes) else told
        slates.append(Slate(tuple(items), Explanation.of(told) if told else None))
    return slates


def shown(
    request_id: int,
    request: FeedRequest,
    slate: Slate,
    *,
    seen: Container[int] | None = None,
    release: str | None = None,
) -> dict[str, Any]:
    """What `FeedClient.send_feedback` is told of a slate that came into view.

    Args:
        request_id: a whole number of 64 bits that names the request among those of this user and second.
        seen: places that came into view, from 0; by default all.
        release: `FeedClient.release` of when the slate was asked for.
    """
    items = [
        {"content": item.content, "position": place, "propensity": item.propensity}
        for place, item in enumerate(slate.items)
        if seen is None or place in seen
    ]
    return records.shown(request_id, request.user, request.market, request.time, items, release)


def outcome(
    request_id: int, request: FeedRequest, content: str, at: int | None = None, **came: float
) -> dict[str, Any]:
    """What `FeedClient.send_feedback` is told of one place of it, such as `click=1` or `watch_s=12.5`.

    Args:
        at: s since the epoch; by default now.
        came: values of `market.outcomes.OUTCOMES`; of each the latest that is told of a content holds, so
            `watch_s` is all that was watched by then.
    """
    return records.outcome(request_id, request.user, request.time, content, at, **came)


def event_texts(events: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Events or records as the steps beside the cascade take them, text[1, E]."""
    return np.array([[json.dumps(event, default=_plain) for event in events]], object).reshape(1, -1)


def infer_message(
    request: Mapping[str, np.ndarray], timeout_s: float | None = None
) -> messages.ModelInferRequest:
    """What a `FeedClient` of that `timeout_s` sends to ask for the slates of a request's tensors; None says
    nothing of how long it waits."""
    return _asking(check_inputs(REQUEST, request), timeout_s)


def _asking(asked: Mapping[str, np.ndarray], timeout_s: float | None) -> messages.ModelInferRequest:
    """The message of tensors that `check_inputs` passed."""
    if not len(asked["user_id"]):
        raise invalid(NO_ROWS)
    try:
        message = _message(FEED, "request", write_requests(asked)[:, None])
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise invalid(f"a text of the request holds {half!r}, half a character; send whole ones") from None
    if timeout_s is not None:
        message.parameters["timeout"].int64_param = int(_WAIT * 1e6 * timeout_s)
    return message


def _message(model: str, name: str, texts: np.ndarray) -> messages.ModelInferRequest:
    """Asks a model about one tensor of text[B, *].

    Client libraries that build an object for each tensor take half a millisecond for this.
    """
    message = messages.ModelInferRequest(model_name=model)
    message.inputs.add(name=name, datatype="BYTES", shape=texts.shape)
    message.raw_input_contents.append(serialize_byte_tensor(texts).item() if texts.size else b"")
    return message


class FeedClient:
    """A connection to a server that serves a release.

    Args:
        url: gRPC address, "host:port", or "grpcs://host:port" where it is reached over TLS.
        timeout_s: seconds that one request may take. A server that is too busy refuses what has waited half
            of it, so that it makes no slates that nobody waits for.
        credentials: of TLS, where others than the usual authorities are trusted or the client proves who it
            is; see `ensemble.network.open_channel`.
    """

    def __init__(
        self, url: str, timeout_s: float = 10.0, credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        self.url, self.timeout_s = url, timeout_s
        self._channel = open_channel(url, _OPTIONS, credentials)
        self._server = GRPCInferenceServiceStub(self._channel)
        self._tasks: tuple[str, ...] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the served ranker, in order."""
        if self._tasks is None:
            self._tasks = tuple(self._said("tasks").split(","))
        return self._tasks

    @property
    def release(self) -> str:
        """Name of the release that the server answers from now; asked each time, since it may be replaced."""
        return self._said("release")

    def _said(self, what: str) -> str:
        """What the served `feed` says of itself."""
        told = self._ask(self._server.ModelConfig, messages.ModelConfigRequest(name=FEED))
        return told.config.parameters[what].string_value

    def feed(self, requests: Sequence[FeedRequest]) -> list[Slate]:
        """The slates of a batch of requests.

        Raises:
            RequestError: with the server's code and message; UNAVAILABLE where no server answers.
        """
        reply = self.infer(pack(requests))
        if self._tasks is not None and len(self._tasks) != reply["slate_probabilities"].shape[2]:
            self._tasks = None  # the server is another one, which was started while nobody asked
        return unpack(reply, self.tasks)

    def infer(self, request: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The reply's tensors to a request's, as the in-process cascade gives them; text as UTF-8."""
        asked = check_inputs(REQUEST, request)
        reply = self._ask(self._server.ModelInfer, _asking(asked, self.timeout_s))
        return read_slates(_tensors(reply, "text", "slate"), asked["user_id"])

    def send_events(self, events: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
        """Tell the server what happens to contents and sellers; the next feed that is asked for knows it.

        Args:
            events: as `supply.events` has them, such as {"event": "ended", "content": "l00017"}; all are
                taken in or none.

        Returns:
            events written, and how many of them are about ids that the release does not know.

        Raises:
            RequestError: with the number of the event that is wrong; UNAVAILABLE where no server answers;
                NOT_FOUND where the server has no live state.
        """
        written, unknown = self._tell(EVENTS, "event", events, "live state", "--state", "written", "unknown")
        return written, unknown

    def send_feedback(self, told: Sequence[Mapping[str, Any]]) -> int:
        """Tell the server what was shown and what came of it; the next data set has it.

        Args:
            told: as `shown` and `outcome` make them; all are taken in or none.

        Returns:
            records written.

        Raises:
            RequestError: with the number of the record that is wrong; UNAVAILABLE where no server answers or
                the log cannot be written; NOT_FOUND where the server has no feedback log.
        """
        (written,) = self._tell(FEEDBACK, "record", told, "feedback log", "--feedback", "written")
        return written

    def _tell(
        self, model: str, name: str, events: Sequence[Mapping[str, Any]], what: str, option: str, *wanted: str
    ) -> list[int]:
        """The numbers that a step beside the cascade answers events with.

        Args:
            what, option: what a server without that step does not have, and how to start one with it.
        """
        try:
            reply = self._ask(self._server.ModelInfer, _message(model, name, event_texts(events)))
        except RequestError as error:
            if "unknown model" in error.message:
                raise RequestError(
                    Code.NOT_FOUND, f"the server has no {what}; start it with `pasar serve {option} DIR`"
                ) from None
            raise
        result = _tensors(reply, *wanted)
        return [int(result[name][0, 0]) for name in wanted]

    def _ask(self, call: Callable[..., Any], message: Any) -> Any:
        try:
            return call(message, timeout=self.timeout_s)
        except grpc.RpcError as error:
            status = error.code().name
            if status == "UNAVAILABLE":
                self._tasks = None  # who answers next may serve other ones
            if status == "DEADLINE_EXCEEDED":
                raise RequestError(Code.UNAVAILABLE, f"no reply within {self.timeout_s:g} s") from None
            code = Code(status) if status in Code.__members__ else Code.INTERNAL
            said = error.details().removeprefix(f"in ensemble '{FEED}', ")
            if "Request timeout expired" in said:
                raise RequestError(
                    Code.UNAVAILABLE, "the server is too busy: the request waited in vain; ask less often"
                ) from None
            if most := _TOO_MANY.search(said):
                raise invalid(
                    f"the server takes {most[1]} requests at once; send fewer, or raise serve.max_batch"
                ) from None
            if "has no available versions" in said:  # Triton calls a model unknown that is being loaded
                raise RequestError(
                    Code.UNAVAILABLE, "the server loads a step that died anew; ask again in a second"
                ) from None
            raise RequestError(code, said) from None

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> FeedClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def connect(url: str) -> Iterator[FeedClient]:
    """A client that is closed at the end of the block; says what to do where no server answers."""
    with FeedClient(url) as client:
        try:
            client.tasks  # noqa: B018  (asks the server once)
        except RequestError as error:
            raise RequestError(
                error.code,
                f"no feed is served at {url} ({error.message}); start `pasar serve`, or give --url",
            ) from None
        yield client


def _plain(value: Any) -> Any:
    """A number of numpy's as JSON has it."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is no JSON; send text, numbers and lists")


def _tensors(reply: messages.ModelInferResponse, *wanted: str) -> dict[str, np.ndarray]:
    """The tensors of a reply by name; Triton passes on a step's reply that lacks some as a success."""
    tensors = {
        output.name: _array(raw, output.datatype, output.shape)
        for output, raw in zip(reply.outputs, reply.raw_output_contents)
    }
    if missing := [name for name in wanted if name not in tensors]:
        raise RequestError(
            Code.INTERNAL, f"the reply lacks {', '.join(missing)}; see the server log, ask again"
        )
    return tensors


def _array(raw: bytes, datatype: str, shape: Sequence[int]) -> np.ndarray:
    """A tensor of a reply; text as UTF-8."""
    if datatype == "BYTES":
        return deserialize_bytes_tensor(raw).reshape(shape)
    return np.frombuffer(raw, TensorSpec.dtype_of(datatype)).reshape(shape)
