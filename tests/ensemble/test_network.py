"""Who asks a server of this host asks no proxy, whatever the environment says."""

import contextlib
import socket
from pathlib import Path

import grpc
import pytest

from ensemble.client import FeedClient
from ensemble.errors import Code, RequestError
from ensemble.network import DIRECT, draw_key, read_key, way_to


@contextlib.contextmanager
def proxy(monkeypatch):
    """A proxy that the environment names; afterwards, where those were from that asked it."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as door:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{door.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        yield asked
        door.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            asked.append(door.accept()[1])


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8001",
        "localhost:8001",
        "127.8.0.1:1",
        "[::1]:8001",
        "0.0.0.0:8001",
        "dns:///localhost:1",
        "grpcs://localhost:1",
    ],
)
def test_this_host_is_known_by_all_its_names(url):
    assert way_to(url) == DIRECT


@pytest.mark.parametrize(
    "url",
    [
        "10.0.0.7:8001",
        "feeds.example:8001",
        "localhost.example:8001",
        "grpcs://localhost.example:1",
        ":8001",
        "",
    ],
)
def test_of_other_hosts_the_environment_decides(url):
    assert way_to(url) == []


def test_a_client_asks_a_server_of_this_host_directly(monkeypatch):
    with proxy(monkeypatch) as asked, FeedClient("127.0.0.1:1", timeout_s=2) as client:
        with pytest.raises(RequestError) as caught:
            _ = client.tasks
        assert caught.value.code is Code.UNAVAILABLE
    assert not asked


def test_credentials_go_over_tls_alone():
    with pytest.raises(ValueError, match=r"would get credentials without TLS; write grpcs://feeds.example:1"):
        FeedClient("feeds.example:1", credentials=grpc.ssl_channel_credentials())


def test_a_repository_that_nobody_can_write_to_is_served_with_a_key_of_nobody(tmp_path):
    away = Path("/proc/self")
    assert draw_key(away) != draw_key(away)
    assert read_key(away) is None
    assert read_key(tmp_path) is None
    assert draw_key(tmp_path) == read_key(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".key"]
