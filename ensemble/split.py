"""Releases side by side: each person is asked for at one of some servers, always the same one."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np

from ensemble.client import FeedClient, FeedRequest, Slate, event_texts, pack
from ensemble.errors import RequestError, invalid
from ensemble.intake import taken_in
from ensemble.wire import NO_ROWS
from feedback.records import parse


class SplitClient:
    """Asks the server of each person, for an experiment that `pasar readout` reads.

    Who is asked for where hangs on the user's id, the experiment's name and the shares in their order alone,
    so every process must name the servers in the same one. Of two servers, one that gets a larger share keeps
    the people it has.

    Args:
        shares: what part of all people each server takes, by its gRPC address; they are
            relative, such as {"127.0.0.1:8001": 9, "127.0.0.1:8101": 1}.
        experiment: names the draw. Another name draws anew, so that what one experiment did to people is
            spread evenly over the next.
        timeout_s, credentials: as `FeedClient` takes them.

    Raises:
        ValueError: there are no servers, or a share is no positive number.
    """

    def __init__(
        self,
        shares: Mapping[str, float],
        experiment: str,
        timeout_s: float = 10.0,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        parts = np.array(list(shares.values()), np.float64)
        if not len(parts) or not (np.isfinite(parts) & (parts > 0)).all():
            raise ValueError(f"shares are {dict(shares)}; give each server a positive part of all people")
        self.urls, self.experiment = tuple(shares), experiment
        self._ends = np.cumsum(parts)[:-1] / parts.sum()
        self._clients = [FeedClient(url, timeout_s, credentials) for url in self.urls]

    def sides(self, users: Sequence[str]) -> np.ndarray:
        """Places in `urls` of the users' servers, int64[B]."""
        return np.searchsorted(self._ends, [self._point(user) for user in users], side="right")

    def client(self, user: str) -> FeedClient:
        """The connection to a user's server."""
        return self._clients[self.sides([user])[0]]

    def feed(self, requests: Sequence[FeedRequest]) -> list[Slate]:
        """The slates of a batch of requests, in their order, each server asked once.

        Raises:
            RequestError: as `FeedClient.feed`, of the first server that refuses, with its address.
        """
        if not requests:
            raise invalid(NO_ROWS)
        pack(requests)  # refuses what needs no server, by the numbers that the caller knows
        slates: list[Slate] = [Slate()] * len(requests)
        for client, rows in self._parts([request.user for request in requests]):
            with _said_by(client):
                made = client.feed([requests[row] for row in rows])
            for row, slate in zip(rows, made):
                slates[row] = slate
        return slates

    def send_feedback(self, told: Sequence[Mapping[str, Any]]) -> int:
        """Tell each server what came of its slates, as `FeedClient.send_feedback`; how many were written.

        Raises:
            RequestError: with the number of the record that is wrong, and none was sent; or of the first
                server that refuses, with its address: what went to others before is written, and counts once
                however often it is sent.
        """
        (checked,) = taken_in(event_texts(told), time.time(), "record", parse)
        written = 0
        for client, rows in self._parts([record["user"] for record in checked]):
            with _said_by(client):
                written += client.send_feedback([told[row] for row in rows])
        return written

    def _parts(self, users: Sequence[str]) -> list[tuple[FeedClient, list[int]]]:
        """Which of some users each server has, but for servers that have none."""
        sides = self.sides(users)
        parts = [np.flatnonzero(sides == side).tolist() for side in range(len(self.urls))]
        return [(client, rows) for client, rows in zip(self._clients, parts) if rows]

    def _point(self, user: str) -> float:
        """Where a user stands between 0 and 1."""
        text = f"{self.experiment}\n{user}".encode(errors="surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big") / 2**48

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def __enter__(self) -> SplitClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _said_by(client: FeedClient) -> Iterator[None]:
    """Have a server's refusal say whose it is: the rows that it names are those of its part."""
    try:
        yield
    except RequestError as error:
        raise RequestError(error.code, f"{client.url} says of its part: {error.message}") from None
