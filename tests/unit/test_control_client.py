"""Clients of a mount's control socket: servers that die, answer nonsense, or nobody; and what is no mount at all."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from puzzlefs.errors import MountError, NotFoundError
from puzzlefs.mount import control_client
from puzzlefs.mount.control import address_of, listen
from puzzlefs.mount.control_client import LiveMount, ask, find_mount

pytestmark = pytest.mark.unit


def _fake_server(device: str, *answers: bytes) -> threading.Thread:
    """Somebody who sends one of ``answers`` to each client and hangs up."""
    listener = listen(device)
    assert listener is not None
    listener.setblocking(True)

    def serve() -> None:
        with listener:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def test_a_request_is_made_again_if_the_server_dies(live: LiveMount, device: str) -> None:
    whole = b'{"progress": {"done": 1}}\n{"result": {"a": 1}}\n'
    thread = _fake_server(device, b"", whole[:10], whole[:30], whole)
    seen: list[str] = []
    assert ask(live, "status", lambda key, _: seen.append(key)) == {"a": 1}
    assert seen == ["progress", "progress"]
    thread.join(30)


def test_a_request_that_may_be_made_once(live: LiveMount, device: str) -> None:
    thread = _fake_server(device, b'{"progress": {}}\n')
    with pytest.raises(MountError, match="ended before it had answered"):
        ask(live, "restart", again=False)
    thread.join(30)


@pytest.mark.parametrize("answer", [b"hello\n", b"[1]\n", b'{"result": 1}\n', b"[" * 100_000 + b"\n"])
def test_an_answer_that_is_none(live: LiveMount, device: str, answer: bytes) -> None:
    thread = _fake_server(device, answer)
    with pytest.raises(MountError, match="not understood"):
        ask(live, "status")
    thread.join(30)


def test_nobody_listens(live: LiveMount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "_NOBODY", 0.1)
    with pytest.raises(MountError, match="does not listen here"):
        ask(live, "status")


def test_a_server_that_accepts_nobody(live: LiveMount, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that are waiting already leave no room; somebody has stopped it, for example."""
    monkeypatch.setattr(control_client, "_NOBODY", 0.1)
    kind = socket.AF_UNIX, socket.SOCK_STREAM
    with socket.socket(*kind) as listener, socket.socket(*kind) as first:
        listener.bind(address_of(device))
        listener.listen(0)
        first.connect(address_of(device))
        with pytest.raises(MountError, match="does not answer; it may be stopped"):
            ask(live, "status")


def test_what_is_no_mount_point(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is not a mount point"):
        find_mount(tmp_path / "missing")


def test_what_is_another_mount() -> None:
    with pytest.raises(MountError, match="type proc, not one of PuzzleFS"):
        find_mount("/proc")
