"""Connections to a server: their way, what keeps them private, and who may change what is served."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
from pathlib import Path
from typing import Any

import grpc
import tritonclient.grpc as triton
from tritonclient.grpc import InferenceServerClientPlugin
from tritonclient.utils import InferenceServerException

from market.files import written

DIRECT = [("grpc.enable_http_proxy", 0)]
"""Options of a gRPC channel that asks no proxy."""
TLS = "grpcs://"
"""Begins the address of a server that is reached over TLS."""
RESTRICTED = "model-repository,shared-memory,trace,logging"
"""Of Triton's protocols, those that change what others are served or read what others are told."""
KEY = ".key"
"""File of a repository that holds the key to them, for its owner alone."""
_HEADER = "pasar-key"


def way_to(url: str) -> list[tuple[str, int]]:
    """Options of a gRPC channel to "host:port": `DIRECT` where that is this host itself, which a proxy cannot
    reach; else none, and the environment decides."""
    host = url.rpartition("/")[2].rpartition(":")[0].strip("[]")
    if host == "localhost":
        return DIRECT
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return []
    return DIRECT if address.is_loopback or address.is_unspecified else []


def open_channel(
    url: str, options: list[tuple[str, Any]], credentials: grpc.ChannelCredentials | None = None
) -> grpc.Channel:
    """A gRPC channel to "host:port", or over TLS to "grpcs://host:port".

    Args:
        options: of the channel, besides those of `way_to`.
        credentials: who is trusted and who asks; by default the authorities that gRPC trusts, or those of the
            file that GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names.

    Raises:
        ValueError: credentials are given to a server that is not reached over TLS, which would see them.
    """
    options = [*options, *way_to(url)]
    if url.startswith(TLS):
        return grpc.secure_channel(
            url.removeprefix(TLS), credentials or grpc.ssl_channel_credentials(), options=options
        )
    if credentials is not None:
        raise ValueError(f"{url} would get credentials without TLS; write {TLS}{url}")
    return grpc.insecure_channel(url, options=options)


def draw_key(repository: Path) -> str:
    """The key that the server of a repository asks for; it lies in the repository, for its owner alone.

    Where nothing can be written it is nobody's, as nobody can change what is served there.
    """
    drawn = secrets.token_hex(16)
    with contextlib.suppress(OSError), written(repository / KEY) as place:
        place.touch(0o600)
        place.write_text(drawn)
    return drawn


def read_key(repository: Path) -> str | None:
    """The key to the server of a repository; None of one that asks for none.

    Raises:
        PermissionError: another user's server has it.
    """
    try:
        return (repository / KEY).read_text()
    except FileNotFoundError:
        return None


def restrictions(key: str) -> list[str]:
    """Options of Triton by which it refuses `RESTRICTED` without the key."""
    return [
        f"--grpc-restricted-protocol={RESTRICTED}:{_HEADER}={key}",
        f"--http-restricted-api={RESTRICTED}:{_HEADER}={key}",
    ]


def is_locked_out(error: BaseException) -> bool:
    """Whether a server refused what was asked because it has another key."""
    return isinstance(error, InferenceServerException) and "protocol is restricted" in str(error)


class _Key(InferenceServerClientPlugin):
    """Says the key with each request."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: Any) -> None:
        request.headers[f"triton-grpc-protocol-{_HEADER}"] = self._key


def administrator(
    url: str, key: str | None, options: list[tuple[str, int]] | None = None
) -> contextlib.closing[triton.InferenceServerClient]:
    """A client that may change what the server at "host:port" serves.

    Args:
        key: of `read_key`.
        options: of the channel; by default those of `way_to`.
    """
    client = triton.InferenceServerClient(
        url, channel_args=(way_to(url) if options is None else options) or None
    )
    if key is not None:
        client.register_plugin(_Key(key))
    return contextlib.closing(client)
