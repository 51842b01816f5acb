"""Which way a connection takes: one to this host itself asks no proxy that the environment names for it."""

from __future__ import annotations

import ipaddress

DIRECT = [("grpc.enable_http_proxy", 0)]
"""Options of a gRPC channel that asks no proxy."""


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
