"""Requests and slates on their way: a JSON text for each request, two tensors for the slates.

A tensor costs client, server and stage 30 to 40 µs between them, however small it is. The eighteen of a
request and its slate cost more than re-ordering does, so on the wire they are few.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ensemble.errors import Code, RequestError, invalid
from ensemble.plan import Plan
from ensemble.stages.user_state import REQUEST
from ensemble.steps import STRING, TensorSpec

WIRE_REQUEST = (TensorSpec("request", object),)
"""What `feed` takes: a row is a JSON object with a value for each tensor of `REQUEST`, lists for the tensors
of two dimensions; it may leave out the optional ones."""

MOST_IDS = 10_000
"""Ids in a list of a request. Requests that share a run have lists as long as the longest of them, so one of
a hundred thousand would hold up everybody's."""

NO_ROWS = "the batch has no rows; send at least one request"
"""Said of no request at all."""

_NUMBERS = {
    "slate_channel": np.int32,
    "slate_reason": np.int32,
    "slate_candidate_rank": np.int32,
    "slate_retrieval_score": np.float32,
    "slate_value": np.float32,
    "slate_propensity": np.float32,
}
"""Columns of `slate`, each exact as float32; after them the probabilities by task."""


def wire_reply(plan: Plan) -> tuple[TensorSpec, ...]:
    """What `feed` gives: ids with the explanation and the user's id after them, and the numbers of each place
    (`_NUMBERS`, then the tasks). By the user's id a client knows that the slate is the one it asked for."""
    size = plan.config.slate
    return (
        TensorSpec("text", object, (size + 2,)),
        TensorSpec("slate", np.float32, (size, len(_NUMBERS) + len(plan.tasks))),
    )


def write_requests(request: Mapping[str, np.ndarray]) -> np.ndarray:
    """The JSON of each row, text[B], of tensors that `check_inputs` passed; what is optional and says nothing
    is left out."""
    names = [spec.name for spec in REQUEST if not spec.optional or request[spec.name].size]
    rows = zip(*(request[name].tolist() for name in names))
    texts = [json.dumps(dict(zip(names, row)), ensure_ascii=False) for row in rows]
    return np.array(texts, STRING)


def read_requests(request: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of `REQUEST` from the JSON of each row, text[B]; shorter lists are filled with "".

    Raises:
        RequestError: INVALID_ARGUMENT; a row is no such object, or a value is of another kind.
    """
    rows = [_row(number, text) for number, text in enumerate(request.tolist())]
    made = {}
    for spec, column in zip(REQUEST, zip(*rows) if rows else [()] * len(REQUEST)):
        if spec.shape:
            table = np.full((len(rows), max(map(len, column), default=0)), "", STRING)
            for own, values in zip(table, column):
                own[: len(values)] = values
            made[spec.name] = table
        else:
            made[spec.name] = np.array(column, spec.dtype)
    return made


def write_slates(made: Mapping[str, np.ndarray], user: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of `wire_reply` from those of `ensemble.cascade.reply` and the users' ids, text[B]."""
    probabilities = made["slate_probabilities"]
    slate = np.empty((*probabilities.shape[:2], len(_NUMBERS) + probabilities.shape[2]), np.float32)
    for place, name in enumerate(_NUMBERS):
        slate[..., place] = made[name]
    slate[..., len(_NUMBERS) :] = probabilities
    text = np.concatenate([made["content_id"], made["explanation"], user[:, None]], axis=1)
    return {"text": text, "slate": slate}


def read_slates(reply: Mapping[str, np.ndarray], user: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of `ensemble.cascade.reply` from those of `wire_reply`, for users text[B] who asked.

    Raises:
        RequestError: INTERNAL; the slates are other people's.
    """
    told = reply["text"][:, -1].tolist()
    if [text.decode() if isinstance(text, bytes) else text for text in told] != user.tolist():
        raise RequestError(Code.INTERNAL, "the reply is another request's; see the server log, ask again")
    slate = reply["slate"]
    numbers = {name: slate[..., place].astype(kind) for place, (name, kind) in enumerate(_NUMBERS.items())}
    return {
        "content_id": reply["text"][:, :-2],
        **numbers,
        "slate_probabilities": slate[..., len(_NUMBERS) :],
        "explanation": reply["text"][:, -2:-1],
    }


def _whole(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _number(value: Any) -> bool:
    return _whole(value) or (type(value) is float and math.isfinite(value))


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "object": (_text, "text"),
    "int64": (_whole, "a whole number of 64 bits"),
    "float32": (_number, "a finite number"),
    "bool": (_flag, "true or false"),
}
_KEYS = [(spec.name, *_KINDS[spec.dtype.name], bool(spec.shape)) for spec in REQUEST]
_OPTIONAL: dict[str, list[Any]] = {spec.name: [] for spec in REQUEST if spec.optional}
_NEEDED = len(REQUEST) - len(_OPTIONAL)


def _row(number: int, text: str) -> list[Any]:
    """Values of one request in the order of `REQUEST`."""
    try:
        said = json.loads(text)
        if "\\u" in text:
            json.dumps(said, ensure_ascii=False).encode()  # half a character may be escaped, but is no text
    except (ValueError, RecursionError) as error:
        raise invalid(f"request {number} is not JSON ({error}); send one object a row") from None
    if not isinstance(said, dict) or (len(said) != _NEEDED and len(said.keys() - _OPTIONAL) != _NEEDED):
        raise _misfit(number, said)
    values = []
    for name, fits, kind, many in _KEYS:
        if name not in said and name not in _OPTIONAL:  # another key is there in its place
            raise _misfit(number, said)
        value: Any = said.get(name, _OPTIONAL.get(name))
        if not (isinstance(value, list) and all(map(fits, value)) if many else fits(value)):
            wanted = f"a list of {kind}" if many else kind
            raise invalid(f"'{name}' of request {number} is {str(value)[:60]!r}; send {wanted}")
        if many and len(value) > MOST_IDS:
            raise invalid(f"'{name}' of request {number} has {len(value):,} ids; send at most {MOST_IDS:,}")
        values.append(value)
    return values


def _misfit(number: int, said: Any) -> RequestError:
    """Refuses what is no object of a request's keys: names those that it lacks, and the first that it has
    beside them."""
    names, told = [name for name, *_ in _KEYS if name not in _OPTIONAL], []
    if isinstance(said, dict):
        lacking = [name for name in names if name not in said]
        other = next((key for key in said if key not in names and key not in _OPTIONAL), None)
        told += [f"lacks {', '.join(lacking)}"] if lacking else []
        told += [f"has {other[:60]!r}"] if other is not None else []
    why = f": it {' and '.join(told)}" if told else ""
    return invalid(
        f"request {number} is not an object of {', '.join(names)}{why}; send all of them, and "
        f"{' or '.join(_OPTIONAL)} where there are any"
    )
