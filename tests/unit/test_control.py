"""The control socket of a mount, without a mount: who may ask, what is answered, and what cannot disturb it."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from support.forge import Forge, directory, regular
from support.layouts import damaged

from puzzlefs._version import __version__
from puzzlefs.blobs import verified
from puzzlefs.builder import build
from puzzlefs.digest import VerityDigest
from puzzlefs.errors import InvalidArgumentError, MountError, NotFoundError
from puzzlefs.image import Image, open_image
from puzzlefs.mount import control, control_answers, soundness
from puzzlefs.mount.control import Action, Control, ServerFacts, address_of, listen
from puzzlefs.mount.control_client import LiveMount, ask
from puzzlefs.mount.counters import RequestCounters
from puzzlefs.mount.operations import Operations
from puzzlefs.verity import verity_digest

pytestmark = pytest.mark.unit

_NOBODY = 65534
_devices = itertools.count()


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge(tmp_path / "layout")


@pytest.fixture
def image(forge: Forge) -> Iterator[Image]:
    chunk, shared = forge.chunk(b"one" * 1000), forge.chunk(b"two" * 1000, compressed=True)
    forge.image(
        [
            directory(1, {b"both": 2, b"one": 3, b"sub": 4}),
            regular(2, chunk, shared),
            regular(3, chunk),
            directory(4, {b"two": 5}),
            regular(5, shared),
        ]
    )
    with open_image(forge.reference()) as opened:
        yield opened


Controlled = Callable[..., AbstractContextManager[Operations]]


@pytest.fixture
def controlled(image: Image, device: str, tmp_path: Path) -> Controlled:
    """``with controlled(actions) as operations:`` the socket is answered."""

    @contextmanager
    def serve(actions: Mapping[str, Action] | None = None) -> Iterator[Operations]:
        listener = listen(device)
        assert listener is not None
        operations = Operations(image)
        counters = RequestCounters()
        counters.counts[1] = 7
        now = time.monotonic()
        facts = ServerFacts(tmp_path, "kernel", mounted=now - 100, started=now - 1, restarts=2, confinement={"a": 1})
        control = Control(listener, operations, counters, facts, actions)
        control.start()
        try:
            yield operations
        finally:
            control.stop()
            listener.close()

    return serve


def _connect(device: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(30)
    connection.connect(address_of(device))
    return connection


def _said(device: str, data: bytes) -> dict[str, object]:
    """The one line that answers ``data``."""
    with _connect(device) as connection:
        connection.sendall(data)
        with connection.makefile("rb") as file:
            answer = json.loads(file.readline())
            assert file.read() == b""
    assert isinstance(answer, dict)
    return answer


# ---- answers


def test_status(controlled: Controlled, live: LiveMount, image: Image) -> None:
    with controlled() as operations:
        operations.fetch(3, operations.plan(3, 0, 10))
        status = ask(live, "status")
    assert status["image"] == f"{image.reference.layout}:{image.reference.tag}"
    assert status["manifest"] == image.manifest_digest.oci
    assert status["digest"] == image.verity_digest().hex()
    assert status["digest_required"] is False
    assert status["verity"] == "user"
    assert (status["blobs_checked"], status["blobs_to_check"]) == (3, 5)  # manifest, rootfs; one, two; configuration
    assert (status["corruptions"], status["failed_requests"], status["events"]) == (0, 0, [])
    assert status["requests"] == {"lookup": 7}
    assert (status["engine"], status["server_pid"], status["version"]) == ("kernel", os.getpid(), __version__)
    assert (status["supervised"], status["guardian_pid"], status["restarts"]) == (False, None, 2)
    assert status["confinement"] == {"a": 1}
    uptime, server_uptime = status["uptime"], status["server_uptime"]
    assert isinstance(uptime, float)
    assert isinstance(server_uptime, float)
    assert uptime - server_uptime == pytest.approx(99, abs=0.01)
    caches = status["caches"]
    assert isinstance(caches, dict)
    assert caches["contents"]["items"] == 1
    assert 3000 <= caches["contents"]["bytes"] <= caches["contents"]["max_bytes"]


def test_status_of_an_image_that_was_named_by_its_digest(
    forge: Forge, image: Image, device: str, live: LiveMount
) -> None:
    digest = image.verity_digest()
    with open_image(forge.reference(), digest=digest) as anchored:
        listener = listen(device)
        assert listener is not None
        control = Control(listener, Operations(anchored), RequestCounters(), ServerFacts(Path("/"), "kernel", 0, 0))
        control.start()
        forge.blob_path(anchored.manifest_digest).unlink()
        status = ask(live, "status")
        control.stop()
        listener.close()
    assert (status["digest"], status["digest_required"], status["verity"]) == (digest.hex(), True, "auto")


@pytest.mark.parametrize("backlog", [1, 64])
def test_the_name_of_a_mount_that_is_about_to_be_gone_is_waited_for(device: str, backlog: int) -> None:
    """Its server accepts nobody any more."""
    former = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    former.bind(address_of(device))
    former.listen(backlog)
    threading.Timer(0.5, former.close).start()
    listener = listen(device)
    assert listener is not None
    listener.close()


def test_verification_of_a_sound_image(controlled: Controlled, live: LiveMount) -> None:
    seen: list[tuple[str, object]] = []
    with controlled():
        result = ask(live, "verify", lambda key, value: seen.append((key, dict(value))))
        status = ask(live, "status")
    assert (result["blobs"], result["bad"]) == (5, 0)
    assert seen[-1] == ("progress", {"done": 5, "total": 5})
    assert {key for key, _ in seen} == {"progress"}
    assert status["blobs_checked"] == status["blobs_to_check"] == 5


def test_verification_finds_what_is_bad_and_the_files_that_are_hit(
    controlled: Controlled, live: LiveMount, image: Image, forge: Forge, caplog: pytest.LogCaptureFixture
) -> None:
    corrupt = image.tree.plan(3, 0, 1).pieces[0].blob
    missing = image.tree.plan(5, 0, 1).pieces[0].blob
    damaged(forge.blob_path(corrupt), "flipped")
    forge.blob_path(missing).unlink()
    damaged(forge.blob_path(image.manifest_digest), "flipped")
    bad: dict[object, Mapping[str, object]] = {}

    def note(key: str, value: Mapping[str, object]) -> None:
        if key == "bad":
            bad[value["digest"]] = value

    with controlled():
        result = ask(live, "verify", note)
        status = ask(live, "status")
    assert result["bad"] == 3
    assert {digest: (value["role"], value["fault"], value["files"]) for digest, value in bad.items()} == {
        corrupt.oci: ("chunk", "corrupt", ["/both", "/one"]),
        missing.oci: ("chunk", "missing", ["/both", "/sub/two"]),
        image.manifest_digest.oci: ("manifest", "corrupt", []),
    }
    events = status["events"]
    assert isinstance(events, list)
    assert {(event["path"], event["blob"], event["kind"]) for event in events} == {
        ("/both", corrupt.hex(), "corrupt"),
        ("/one", corrupt.hex(), "corrupt"),
        ("/both", missing.hex(), "missing"),
        ("/sub/two", missing.hex(), "missing"),
        ("/", image.manifest_digest.hex(), "corrupt"),
    }
    assert status["corruptions"] == 5
    assert status["blobs_checked"] == 3 + 0  # what opening the image had read, and the configuration
    assert sum(corrupt.hex() in record.getMessage() for record in caplog.records) == 2


@pytest.mark.parametrize("version", [2, 3])
def test_verification_where_the_kernel_vouches(
    tmp_path: Path, device: str, live: LiveMount, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """With a kernel that measures what it is asked for, as the one of ``tests/verity`` does."""
    measured: list[int] = []

    def measure(fd: int) -> VerityDigest:
        size = os.fstat(fd).st_size
        measured.append(size)
        return verity_digest(os.pread(fd, size, 0))

    monkeypatch.setattr(verified, "measure", measure)
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        (source / str(number)).write_bytes(bytes([number]) * 300_000)
    reference = f"{tmp_path / 'built'}:t"
    report = build(source, reference, format_version=version)
    listener = listen(device)
    assert listener is not None
    with listener, open_image(reference, digest=report.digest, verity="kernel") as image:
        facts = ServerFacts(Path("/"), "kernel", 0, 0)
        control = Control(listener, Operations(image), RequestCounters(), facts)
        control.start()
        measured.clear()
        result = ask(live, "verify")
        status = ask(live, "status")
        control.stop()
    assert result["bad"] == 0
    assert result["blobs"] == status["blobs_checked"] == status["blobs_to_check"]
    assert len(measured) == result["blobs"] - (version == 3), "of all but the configuration a digest is recorded"
    assert (status["verity"], status["digest_required"]) == ("kernel", True)


def test_long_work_shows_that_it_is_alive(
    controlled: Controlled, live: LiveMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soundness, "_SLICE", 1)
    monkeypatch.setattr(control_answers, "_HEARTBEAT", 0)
    seen: list[tuple[str, dict[str, object]]] = []
    with controlled():
        ask(live, "status", lambda key, value: seen.append((key, dict(value))))
        first = list(seen)
        ask(live, "status", lambda key, value: seen.append((key, dict(value))))
    assert first == [("progress", {"done": 0, "total": 0})] * 4  # parts of files
    assert seen == first, "what was counted is known"


def test_other_requests(controlled: Controlled, live: LiveMount) -> None:
    def fail(connection: socket.socket, request: Mapping[str, object]) -> None:
        raise NotFoundError("none", hint="look elsewhere")

    def repeat(connection: socket.socket, request: Mapping[str, object]) -> Mapping[str, object]:
        return {"said": request["word"]}

    with controlled({"fail": fail, "repeat": repeat}):
        assert ask(live, "repeat", parameters={"word": "a\udcff\n"}) == {"said": "a\udcff\n"}
        with pytest.raises(NotFoundError, match="none; look elsewhere"):
            ask(live, "fail")
        with pytest.raises(InvalidArgumentError, match="does not know the request 'dance'"):
            ask(live, "dance")


# ---- what may not disturb it


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b'"status"\n',
        b'{"request": 1}\n',
        b"\xff\xfe\n",
        b"[" * 4000 + b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_garbage_is_refused(controlled: Controlled, live: LiveMount, device: str, data: bytes) -> None:
    with controlled():
        answer = _said(device, data)
        assert list(answer) == ["error"]
        assert "server_pid" in ask(live, "status")


def test_a_request_without_an_end_is_refused(controlled: Controlled, live: LiveMount, device: str) -> None:
    with controlled():
        with _connect(device) as connection, pytest.raises(OSError):
            while True:
                connection.sendall(b"x" * (1 << 20))
        assert "server_pid" in ask(live, "status")


def test_silent_clients_are_dropped(
    controlled: Controlled, live: LiveMount, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_answers, "_REQUEST_TIME", 0.2)
    with controlled():
        silent = [_connect(device) for _ in range(30)]  # more than are answered at once
        assert "server_pid" in ask(live, "status")
        for connection in silent:
            assert connection.recv(1) == b""
            connection.close()


def test_a_client_that_goes_away_ends_its_verification(
    controlled: Controlled, live: LiveMount, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    check = Image.check_blob

    def slow(image: Image, digest: object) -> int:
        began.set()
        assert go_on.wait(30)
        return check(image, digest)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "check_blob", slow)
    monkeypatch.setattr(control_answers, "_INTERVAL", 0)
    with controlled() as operations:
        with _connect(device) as connection:
            connection.sendall(b'{"request": "verify"}\n')
            assert began.wait(30)
        go_on.set()
        assert "server_pid" in ask(live, "status")
        assert ask(live, "verify")["bad"] == 0  # it was not in the way of another one
        assert len(operations.checked) == 5


def test_nothing_is_left_behind(controlled: Controlled, live: LiveMount) -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        with controlled():
            ask(live, "status")
    deadline = time.monotonic() + 30
    while threading.active_count() > before[1] and time.monotonic() < deadline:
        time.sleep(0.01)  # a client's thread ends a moment after its client has the answer
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_a_name_that_is_taken(device: str, caplog: pytest.LogCaptureFixture) -> None:
    first = listen(device)
    assert first is not None
    with first:
        assert listen(device) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert device in record.getMessage()


# ---- strangers


def _as_nobody(work: Callable[[], bool]) -> None:
    """Run ``work`` as another user, and see it succeed."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            status = 0 if work() else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_another_user_may_not_ask(controlled: Controlled, live: LiveMount) -> None:
    def is_refused() -> bool:
        try:
            ask(live, "status")
        except MountError as error:
            return "only root" in error.message
        return False

    with controlled():
        _as_nobody(is_refused)
        assert "server_pid" in ask(live, "status")


def test_another_user_is_not_believed(live: LiveMount, device: str) -> None:
    """The name was taken by somebody who is neither root nor the owner of the mount."""
    read_end, write_end = os.pipe()

    def squat() -> bool:
        if os.fork() == 0:
            listener = listen(device)
            os.write(write_end, b"%d\n" % os.getpid())
            time.sleep(60 if listener else 0)
            os._exit(0)
        return True

    _as_nobody(squat)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        pid = int(pipe.readline())
    try:
        with pytest.raises(MountError, match=f"somebody else answers .* user {_NOBODY}"):
            ask(live, "status")
    finally:
        os.kill(pid, 9)


def test_the_socket_comes_back_when_there_is_memory_again(
    controlled: Controlled, live: LiveMount, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = control.load
    failures = iter((MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")))

    def fails_first() -> None:
        for failure in failures:
            raise failure
        load()

    monkeypatch.setattr(control, "load", fails_first)
    monkeypatch.setattr(control, "_FIRST_RETRY", 0.01)
    with controlled():
        assert ask(live, "status")["server_pid"] == os.getpid()
    assert len(caplog.records) == 2
    assert "MemoryError()" in caplog.records[0].getMessage()
    assert "Cannot allocate memory" in caplog.records[1].getMessage()
