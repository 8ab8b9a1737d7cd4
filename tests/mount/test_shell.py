"""``puzzlefs shell``: as an ordinary user, through the real command.

What a command leaves in an image is compared with what the same command leaves in a plain copy of the tree, run by root
with chroot. The user's ids come from files that a mount namespace of the test's own puts over ``/etc/subuid`` and
``/etc/subgid``: nothing of the machine changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from listing import listing
from mounting import as_user, build, copy_packages, python_for, run_puzzlefs, wait_for_end

from puzzlefs.errors import NotFoundError, StorageError
from puzzlefs.image import open_image
from puzzlefs.mount.process_report import NotRun, read_report, report
from puzzlefs.mount.shell_ids import IdRange, ranges_from_one, subordinate_ranges
from puzzlefs.mount.shell_places import Place, Places, find_places

pytestmark = pytest.mark.mount

_USER = 65534
_TIMEOUT = 60
_OLD_NS = 1_500_000_000_123_456_789
_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep

_APPLETS = (
    *("sh", "cat", "chmod", "chown", "cp", "echo", "env", "false", "head", "id", "ln", "ls", "mkdir", "mkfifo"),
    *("mknod", "mv", "pwd", "rm", "setsid", "sleep", "stat", "test", "touch", "true", "tty"),
)
_CHANGES = """\
set -e
echo more >> /etc/motd
chmod 4711 /data/setuid
chmod 700 /bin/capable /xattrs/user
chown 33:33 /data/www
chown 0:42 /bin/sh-copy
rm /data/links/one
ln /data/empty /data/empty-too
rm -r /many
mkdir /many
echo new > /many/0001
mv /data/file /data/renamed
rm /data/fifo /data/gone
mkdir /data/gone
mkfifo /data/gone/fifo
ln -s ../nowhere /data/gone/link
cp -a /data/tree /data/tree-copy
rm -r /data/tree/below
touch -d @1000000000 /data/empty
"""


# ---- who runs it


@dataclass(frozen=True)
class Runner:
    """How to run the command as somebody.

    Attributes:
        command: what comes before the words.
        environment: its variables.
    """

    command: Sequence[str]
    environment: dict[str, str]

    def words(self, *words: str | Path) -> list[str]:
        return [*self.command, "shell", *map(str, words)]

    def __call__(self, *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*words),
            capture_output=True,
            text=True,
            env={**self.environment, **more},
            cwd="/",
            timeout=_TIMEOUT,
            check=False,
        )

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.words(*words), stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=self.environment, cwd="/"
        )


@pytest.fixture(scope="session")
def packages(open_directory: Path) -> tuple[str, dict[str, str]]:
    """An interpreter that any user can start, and the environment in which it has our packages."""
    directory = open_directory / "shell-packages"
    copy_packages(directory)
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "PYTHONPATH": str(directory),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(_scratch(open_directory, "tmp")),
    }
    modules = "puzzlefs.image, puzzlefs.mount.shell, puzzlefs_cli.main, pyfuse3"
    return python_for([*as_user(_USER), "env"], environment, modules), environment


def _scratch(base: Path, name: str) -> Path:
    path = base / name
    path.mkdir()
    path.chmod(0o1777)
    return path


@pytest.fixture(scope="session")
def _user_namespaces() -> None:
    made = subprocess.run([*as_user(_USER), "unshare", "-Urm", "true"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"this machine forbids user namespaces: {made.stderr.strip()}")


@pytest.fixture(scope="session")
def poor(packages: tuple[str, dict[str, str]], _user_namespaces: None) -> Runner:
    """A user who has no other ids than his own."""
    name, environment = packages
    return Runner([*as_user(_USER), name, "-m", "puzzlefs_cli"], environment)


@pytest.fixture(scope="session")
def user(packages: tuple[str, dict[str, str]], _user_namespaces: None, open_directory: Path) -> Runner:
    """A user to whom 65,536 further ids belong."""
    if shutil.which("newuidmap") is None:
        pytest.skip("newuidmap is not installed (apt: uidmap)")
    name, environment = packages
    ids = open_directory / "subids"
    ids.write_text(f"{_USER}:100000:65536\n")
    script = 'for f in uid gid; do mount --bind "$0" /etc/sub$f; done; exec "$@"'
    private = ["unshare", "-m", "--propagation", "private", "sh", "-ec", script, str(ids)]
    return Runner([*private, *as_user(_USER), name, "-m", "puzzlefs_cli"], environment)


@pytest.fixture(scope="session")
def root(packages: tuple[str, dict[str, str]], _user_namespaces: None) -> Runner:
    name, environment = packages
    return Runner([name, "-m", "puzzlefs_cli"], environment)


@pytest.fixture(autouse=True)
def _nothing_stays(open_directory: Path) -> Iterator[None]:
    yield
    assert _left(open_directory) == []


def _left(open_directory: Path) -> list[str]:
    """Temporary directories of shells, and processes that have something mounted in one."""
    places = [open_directory / name for name in ("tmp", "disk")]
    found = [str(path) for place in places for path in place.glob("*")]
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):
            mounts = path.read_bytes()
            if any(os.fsencode(place / "puzzlefs-shell-") in mounts for place in places):
                found.append(str(path))
    return found


# ---- what is run


def _make_tree(tree: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed (apt: busybox-static)")
    for name in ("bin", "data/links", "data/tree/below", "etc", "many", "sys", "xattrs"):
        (tree / name).mkdir(parents=True)
    shutil.copy(busybox, tree / "bin/busybox")
    for name in _APPLETS:
        (tree / "bin" / name).symlink_to("busybox")
    for name, content in {
        "etc/motd": "welcome\n",
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
        "data/file": "content\n" * 9999,
        "data/gone": "a file\n",
        "data/setuid": "#!/bin/sh\n",
        "data/www": "of another owner\n",
        "data/foreign": "of an owner that no map has\n",
        "data/tree/below/file": "deep\n",
        "data/links/one": "three names\n",
        "data/empty": "",
        "bin/sh-copy": "#!/bin/sh\n",
        "bin/capable": "#!/bin/sh\n",
        "xattrs/user": "user\n",
        "xattrs/trusted": "trusted\n",
        "xattrs/label": "label\n",
    }.items():
        (tree / name).write_text(content)
    for number in range(200):
        (tree / f"many/{number:04}").write_text(f"{number}\n")
    for name in ("two", "three"):
        os.link(tree / "data/links/one", tree / "data/links" / name)
    os.mkfifo(tree / "data/fifo")
    os.mknod(tree / "data/null", 0o20666, os.makedev(1, 3))
    for name, uid, gid in (("www", 1000, 1000), ("tree/below", 7, 8), ("foreign", 200_000, 200_000)):
        os.chown(tree / "data" / name, uid, gid)
    os.chmod(tree / "data/setuid", 0o4755)
    os.chmod(tree / "bin/sh-copy", 0o755)
    os.setxattr(tree / "bin/capable", "security.capability", _CAPABILITY)
    os.setxattr(tree / "xattrs/user", "user.note", b"\0kept")
    os.setxattr(tree / "xattrs/trusted", "trusted.note", b"kept")
    os.setxattr(tree / "xattrs/label", "security.note", b"kept")
    (tree / "etc/resolv.conf").symlink_to("../run/resolver/stub")
    for path in (tree, *tree.rglob("*")):
        os.utime(path, ns=(_OLD_NS, _OLD_NS), follow_symlinks=False)
    os.chmod(tree, 0o751)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shell") / "tree"
    _make_tree(path)
    return path


@pytest.fixture(scope="session")
def layout(tree: Path, open_directory: Path, _user_namespaces: None) -> Path:
    """An OCI directory of the user's that holds the tree."""
    path = open_directory / "shell-layout"
    build(tree, f"{path}:base", "--timestamps", "keep")
    subprocess.run(["chown", "-R", f"{_USER}:{_USER}", path], check=True)
    return path


@pytest.fixture(scope="session")
def image(layout: Path) -> str:
    return f"{layout}:base"


@pytest.fixture(scope="session")
def disk(open_directory: Path) -> Path:
    """A directory that every user may write to."""
    return _scratch(open_directory, "disk")


def _extracted(image: str, to: Path) -> Path:
    run_puzzlefs("extract", image, to)
    return to


# ---- what a commit holds


@pytest.fixture(scope="session")
def changed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the changes leave in a plain copy of the tree, where root makes them."""
    copy = tmp_path_factory.mktemp("changed") / "tree"
    subprocess.run(["cp", "-a", tree, copy], check=True)
    subprocess.run(["chroot", copy, "/bin/busybox", "sh", "-c", f"umask 022\n{_CHANGES}"], check=True)
    return copy


@pytest.mark.parametrize(
    ("who", "options"),
    [
        ("user", ()),
        ("user", ("--engine", "pyfuse3")),
        ("user", ("--scratch",)),
        ("user", ("--overlay", "fuse-overlayfs")),
        ("user", ("--overlay", "fuse-overlayfs", "--scratch")),
        ("root", ()),
        ("root", ("--overlay", "fuse-overlayfs")),
    ],
)
def test_commit_holds_what_chroot_would_have_left(
    request: pytest.FixtureRequest,
    layout: Path,
    changed: Path,
    tmp_path: Path,
    disk: Path,
    who: str,
    options: tuple[str, ...],
) -> None:
    if "fuse-overlayfs" in options and shutil.which("fuse-overlayfs") is None:
        pytest.skip("fuse-overlayfs is not installed (apt: fuse-overlayfs)")
    runner: Runner = request.getfixturevalue(who)
    words = [word for option in options for word in ((option, str(disk)) if option == "--scratch" else (option,))]
    tag = f"{who}{len(words)}{options[-1:]}".translate({ord(character): "-" for character in "(),'"})
    made = runner(*words, "--commit", tag, f"{layout}:base", "sh", "-c", _CHANGES)
    assert (made.returncode, made.stderr) == (0, "")
    digest = re.fullmatch(r"puzzlefs image manifest digest: ([0-9a-f]{64})\n", made.stdout)
    assert digest is not None, made.stdout
    run_puzzlefs("extract", "-d", digest[1], f"{layout}:{tag}", tmp_path / "got")
    shown, expected = listing(tmp_path / "got", mtime=False), listing(changed, mtime=False)
    if "fuse-overlayfs" in options:  # it cuts the links of what it copies, and it copies all names if one is removed
        for name in (b"data/links/two", b"data/links/three"):
            assert shown.pop(name) == replace(expected.pop(name), nlink=1, names=(name,))
    assert shown == expected
    old = {path: shown.mtime_ns for path, shown in listing(changed, mtime=True).items() if shown.mtime_ns == _OLD_NS}
    got = {path: shown.mtime_ns for path, shown in listing(tmp_path / "got", mtime=True).items()}
    if "fuse-overlayfs" in options:  # a directory gets a new time from it when something in it is copied up
        old = {path: time for path, time in old.items() if not (changed / os.fsdecode(path)).is_dir()}
    assert len(old) > 20
    assert {path: got[path] for path in old} == old
    assert (tmp_path / "got/data/empty").stat().st_mtime == 1_000_000_000


@pytest.mark.parametrize(
    ("options", "name", "is_lost"),
    [((), "trusted", True), (("--scratch",), "trusted", True), ((), "label", False), (("--scratch",), "label", True)],
)
def test_attributes_that_only_the_hosts_root_may_set(
    user: Runner, layout: Path, tmp_path: Path, disk: Path, options: tuple[str, ...], name: str, is_lost: bool
) -> None:
    words = [word for option in options for word in (option, str(disk))]
    made = user(*words, "--commit", "lost", f"{layout}:base", "chmod", "600", f"/xattrs/{name}")
    said = "extended attributes that only the host's root may set are not in the commit"
    assert (made.returncode, made.stderr) == (0, f"puzzlefs: /xattrs/{name}: {said}\n" if is_lost else "")
    got = _extracted(f"{layout}:lost", tmp_path / "got")
    assert len(os.listxattr(got / "xattrs" / name)) == (0 if is_lost else 1)
    assert os.getxattr(got / "xattrs/user", "user.note") == b"\0kept"
    assert (got / "xattrs" / name).stat().st_mode & 0o777 == 0o600


def test_a_command_that_changes_nothing_commits_the_same_image(user: Runner, layout: Path) -> None:
    def digest(tag: str) -> object:
        index = json.loads((layout / "index.json").read_bytes())
        return next(
            entry["digest"]
            for entry in index["manifests"]
            if entry["annotations"]["org.opencontainers.image.ref.name"] == tag
        )

    script = "cat /proc/self/stat /etc/resolv.conf > /dev/null; ls /sys /dev/pts /proc; echo >> /etc/resolv.conf"
    assert user("--commit", "same", f"{layout}:base", "sh", "-c", script).returncode == 0
    assert digest("same") == digest("base")


def test_nothing_is_committed_if_the_command_fails(user: Runner, layout: Path) -> None:
    made = user("--commit", "failed", f"{layout}:base", "sh", "-c", "echo x > /x; exit 3")
    assert (made.returncode, made.stdout) == (3, "")
    assert made.stderr == "puzzlefs: the command exited with 3: failed was not committed\n"
    with pytest.raises(NotFoundError):
        open_image(f"{layout}:failed")


def test_a_commit_that_cannot_be_is_refused_before_the_work(poor: Runner, tree: Path, open_directory: Path) -> None:
    layout = open_directory / "of-root"
    build(tree, f"{layout}:base")
    layout.chmod(0o755)
    subprocess.run(["chmod", "-R", "a+rX", layout], check=True)
    refused = poor("--commit", "new", f"{layout}:base", "sh", "-c", "echo worked")
    assert (refused.returncode, refused.stdout) == (7, "")
    assert f"{layout} cannot be written, and --commit new has to" in refused.stderr
    assert poor("-q", f"{layout}:base", "echo", "worked").stdout == "worked\n"


# ---- the command


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (("true",), 0, ""),
        (("false",), 1, ""),
        (("sh", "-c", "exit 77"), 77, ""),
        (("sh", "-c", "kill -9 $$"), 137, ""),
        (("sh", "-c", "kill -15 $$"), 143, ""),
        (
            ("nothing-like-it",),
            127,
            "puzzlefs: nothing-like-it cannot be run in the image: No such file or directory\n",
        ),
        (("/etc/motd",), 126, "puzzlefs: /etc/motd cannot be run in the image: Permission denied\n"),
        (("--", "true"), 0, ""),
    ],
)
def test_exit_status(user: Runner, image: str, command: tuple[str, ...], status: int, said: str) -> None:
    result = user(image, *command)
    assert (result.returncode, result.stderr) == (status, said)


def test_options_of_the_command_are_its_own(user: Runner, image: str) -> None:
    assert user(image, "echo", "--debug", "-d", "--commit", "--").stdout == "--debug -d --commit --\n"


def test_the_surroundings(user: Runner, image: str) -> None:
    script = """
id -u; id -g; id -G; pwd; umask; echo $$
for name in null zero full random urandom tty; do test -c /dev/$name; done
head -c 3 /dev/zero > /dev/null
test -w /dev/shm
ls -A /data/links
"""
    result = user(image, "sh", "-ec", script)
    assert result.stderr == ""
    assert result.stdout.splitlines() == ["0", "0", "0", "/", "0022", "2", "one", "three", "two"]
    variables = user(image, "env", TERM="vt100", SHELL="/bin/zsh", LD_PRELOAD="/nowhere.so", FOO="bar").stdout
    found = dict(line.split("=", 1) for line in variables.splitlines())
    expected = {"HOME": "/", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/sh", "TERM": "vt100", "FOO": "bar"}
    assert {name: found[name] for name in expected} == expected
    assert "LD_PRELOAD" not in found
    assert found["PATH"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def test_the_shell_that_runs_without_a_command(user: Runner, image: str) -> None:
    with user.start(image) as process:
        said, problem = process.communicate("echo $0; exit 9\n", timeout=_TIMEOUT)
    assert (process.returncode, said, problem) == (9, "/bin/sh\n", "")


def test_resolv_conf_is_the_hosts_and_a_copy(user: Runner, image: str, layout: Path, tmp_path: Path) -> None:
    host = Path("/etc/resolv.conf")
    if not host.exists():
        pytest.skip("this machine has no /etc/resolv.conf")
    result = user("--commit", "resolv", image, "sh", "-c", "cat /etc/resolv.conf; echo changed > /etc/resolv.conf")
    before = host.read_text()
    assert (result.returncode, result.stdout.partition("puzzlefs image")[0]) == (0, before)
    assert host.read_text() == before
    assert not (_extracted(f"{layout}:resolv", tmp_path / "got") / "run").exists()


@pytest.mark.parametrize("who", ["user", "root"])
def test_the_host_is_out_of_reach(request: pytest.FixtureRequest, image: str, tree: Path, who: str) -> None:
    runner: Runner = request.getfixturevalue(who)
    script = f"""
ls -d {tree} /root 2>/dev/null
mknod /x b 8 0 2>/dev/null && echo mknod
echo x 2>/dev/null > /proc/sys/kernel/core_pattern && echo sysctl
echo x 2>/dev/null > /proc/sysrq-trigger && echo sysrq
echo x 2>/dev/null > /sys/kernel/uevent_helper && echo sys
for fd in /proc/1/fd/*; do case $(ls -l $fd) in *layout*|*blobs*|*packages*) echo $fd;; esac; done
ls /proc/1/cwd/data > /dev/null || echo cwd
ls /proc/1/root/data > /dev/null || echo root
true
"""
    result = runner(image, "sh", "-c", script)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_processes_end_with_the_command(user: Runner, image: str, tmp_path: Path) -> None:
    started = time.monotonic()
    result = user(image, "sh", "-c", "setsid sleep 1234567 & sleep 1234567 & echo on; exit 5")
    assert (result.returncode, result.stdout) == (5, "on\n")
    assert time.monotonic() - started < 30
    assert subprocess.run(["pgrep", "-f", "sleep 1234567"], capture_output=True, check=False).stdout == b""


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_command(root: Runner, image: str, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got; exit 42' {name}; echo ready; while :; do sleep 0.05; done"
    with root.start(image, "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=_TIMEOUT)[0] == "got\n"
    assert process.returncode == 42


def _read_until(fd: int, wanted: bytes) -> bytes:
    said = b""
    deadline = time.monotonic() + _TIMEOUT
    while wanted not in said:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, said
        try:
            data = os.read(fd, 4096)
        except OSError:  # the other side is closed
            data = b""
        assert data, said
        said += data
    return said


@contextlib.contextmanager
def _on_a_terminal(runner: Runner, *words: str) -> Iterator[tuple[int, int]]:
    pid, fd = pty.fork()
    if pid == 0:
        try:
            os.execvpe(runner.command[0], runner.words(*words), runner.environment)
        finally:
            os._exit(1)
    try:
        yield pid, fd
    finally:
        os.close(fd)


def test_ctrl_c_is_for_the_command(user: Runner, image: str) -> None:
    with _on_a_terminal(user, "--commit", "interrupted", image, "sh", "-c", "tty; echo re''ady; sleep 60") as (pid, fd):
        assert b"/dev/console" in _read_until(fd, b"ready")
        os.write(fd, b"\x03")
        said = _read_until(fd, b"was not committed")
        assert b"the command exited with 130" in said
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130


def test_a_shell_that_survives_ctrl_c(user: Runner, image: str) -> None:
    with _on_a_terminal(user, image, "sh", "-i") as (pid, fd):
        _read_until(fd, b"# ")
        os.write(fd, b"sh -c 'echo sle\"\"eps; exec sleep 60'\n")
        _read_until(fd, b"sleeps")
        os.write(fd, b"\x03")
        os.write(fd, b"echo still $((40 + 2)); exit 6\n")
        _read_until(fd, b"still 42")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 6


def _only_child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1, children
    return int(children[0])


@pytest.mark.parametrize("options", [(), ("--scratch",)])
@pytest.mark.parametrize(
    ("depth", "status"),
    [(0, -signal.SIGKILL), (1, 7), (2, 137), (3, 137), (4, 137)],
    ids=["caller", "server", "keeper", "one", "cmd"],
)
def test_whoever_is_killed_nothing_stays(
    root: Runner,
    image: str,
    disk: Path,
    open_directory: Path,
    options: tuple[str, ...],
    depth: int,
    status: int,
) -> None:
    words = [word for option in options for word in (option, str(disk))]
    # once it is ready, nothing is to be started: that would fail aloud when the server is gone
    background = "setsid sh -c 'echo ready; read line < /fifo' 2> /dev/null"
    script = f"mkfifo /fifo; echo x > /x; chown 5:5 /x; {background} & read line"
    with root.start(*words, image, "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        pids = [process.pid]
        for _ in range(3):
            pids.append(_only_child(pids[-1]))
        inside = Path(f"/proc/{pids[3]}/task/{pids[3]}/children").read_text().split()
        pids.append(int(inside[0]))
        os.kill(pids[depth], signal.SIGKILL)
        said = process.communicate(timeout=_TIMEOUT)[1]
    assert process.returncode == status
    if status == 7:
        assert said == "puzzlefs: the server of the image was killed (SIGKILL), and the command with it\n"
    for pid in (*pids[1:], *map(int, inside)):
        wait_for_end(pid)
    assert _left(open_directory) == []


# ---- who may write what


def test_without_further_ids_only_files_of_uid_0_are_writable(poor: Runner, image: str) -> None:
    script = (
        "echo x >> /etc/motd && echo wrote; echo x 2>/dev/null >> /data/www || echo refused; stat -c %u:%g /etc/motd;"
        "stat -c %u:%g /data/www"
    )
    result = poor(image, "sh", "-c", script)
    assert result.stdout.splitlines() == ["wrote", "refused", "0:0", "65534:65534"]
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(
        "puzzlefs: only files of uid 0 and gid 0 can be written, the others show as nobody's"
    )
    assert "/etc/subuid has no line for nobody; as root: usermod --add-subuids" in result.stderr
    assert poor("-q", image, "true").stderr == ""


def test_root_of_a_user_namespace_with_one_id(poor: Runner, image: str) -> None:
    inside = Runner([*as_user(_USER), "unshare", "-Ur", *poor.command[len(as_user(_USER)) :]], poor.environment)
    result = inside(image, "sh", "-c", "echo x >> /etc/motd; stat -c %u /etc/motd /data/www")
    assert result.stdout.splitlines() == ["0", "65534"], result.stderr
    assert result.stderr.endswith("root has no further uids in the user namespace in which this runs\n")
    assert result.stderr.count("\n") == 1


def test_ids_that_no_map_has_stay_as_they_are(user: Runner, layout: Path, tmp_path: Path) -> None:
    script = "stat -c %u /data/foreign; chmod 600 /data/foreign 2>/dev/null || echo refused; echo x > /new"
    result = user("--commit", "foreign", f"{layout}:base", "sh", "-c", script)
    assert result.stdout.splitlines()[:2] == ["65534", "refused"]
    got = _extracted(f"{layout}:foreign", tmp_path / "got")
    assert ((got / "data/foreign").stat().st_uid, (got / "new").stat().st_uid) == (200_000, 0)


_DRIVER = """
import errno, os, sys
from puzzlefs.mount import namespace, shell_stage
lacking = sys.argv.pop(1)
real_mount, real_check = namespace.mount, shell_stage._takes_xattrs
def mount(source, target, fs_type, *more):
    if fs_type == lacking:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(target))
    real_mount(source, target, fs_type, *more)
def takes_xattrs(directory):
    in_memory = os.path.ismount(directory)
    return not (lacking == "xattrs" or (lacking == "xattrs in memory" and in_memory)) and real_check(directory)
namespace.mount, shell_stage._takes_xattrs = mount, takes_xattrs
from puzzlefs_cli.main import run
run()
"""


@pytest.fixture
def kernel_without(user: Runner) -> Callable[[str], Runner]:
    """``kernel_without("overlay")`` runs the command on a kernel that lacks something."""

    def runner(lacking: str) -> Runner:
        return Runner([*user.command[:-2], "-c", _DRIVER, lacking], user.environment)

    return runner


def test_a_kernel_whose_overlayfs_refuses(kernel_without: Callable[[str], Runner], image: str) -> None:
    if shutil.which("fuse-overlayfs") is None:
        pytest.skip("fuse-overlayfs is not installed (apt: fuse-overlayfs)")
    kernel = kernel_without("overlay")
    show = "while read -r a b c d; do if [ $b = / ]; then echo $c; fi; done < /proc/mounts; echo x > /etc/motd"
    assert kernel(image, "sh", "-c", show).stdout == "fuse.fuse-overlayfs\n"
    refused = kernel("--overlay", "kernel", image, "true")
    assert (refused.returncode, refused.stderr) == (
        6,
        "puzzlefs: this kernel's overlayfs refuses: Operation not permitted; use --overlay fuse-overlayfs\n",
    )


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ('printf %0100000d 42 >&2; exec {} "$@"', 0, ""),  # more than a pipe holds
        ("echo no luck >&2; exit 1", 7, "puzzlefs: it was asked for, and fuse-overlayfs failed: no luck\n"),
    ],
)
def test_what_fuse_overlayfs_says(
    user: Runner, image: str, open_directory: Path, script: str, status: int, said: str
) -> None:
    program = shutil.which("fuse-overlayfs")
    if program is None:
        pytest.skip("fuse-overlayfs is not installed (apt: fuse-overlayfs)")
    directory = open_directory / f"fuse-overlayfs-{status}"
    directory.mkdir()
    (directory / "fuse-overlayfs").write_text(f"#!/bin/sh\n{script.format(program)}\n")
    (directory / "fuse-overlayfs").chmod(0o755)
    result = user("--overlay", "fuse-overlayfs", image, "true", PATH=f"{directory}:{user.environment['PATH']}")
    assert (result.returncode, result.stderr) == (status, said)


def test_a_kernel_without_attributes_in_memory(
    kernel_without: Callable[[str], Runner], image: str, open_directory: Path
) -> None:
    show = "echo x > /x; while read -r a b c d; do if [ $b = / ]; then echo $c; fi; done < /proc/mounts"
    result = kernel_without("xattrs in memory")(image, "sh", "-c", show)
    assert (result.returncode, result.stdout, result.stderr) == (0, "overlay\n", "")
    refused = kernel_without("xattrs")(image, "true")
    assert refused.returncode == 6
    assert refused.stderr == (
        f"puzzlefs: {open_directory / 'tmp'} has no extended attributes of users, which a writable layer needs; "
        "name a directory on ext4, XFS or btrfs: --scratch DIR\n"
    )


def test_where_no_new_proc_may_be_mounted(kernel_without: Callable[[str], Runner], image: str) -> None:
    script = "test -e /proc/self/exe && echo there; echo x 2>/dev/null > /proc/sys/kernel/panic || echo refused"
    assert kernel_without("proc")(image, "sh", "-c", script).stdout == "there\nrefused\n"


def test_where_user_namespaces_are_forbidden(packages: tuple[str, dict[str, str]], image: str) -> None:
    name, environment = packages
    script = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    inside = ["unshare", "-Ur", "sh", "-ec", script, "sh", name, "-m", "puzzlefs_cli"]
    result = Runner(inside, environment)(image, "true")
    assert result.returncode == 6
    assert re.fullmatch(
        r"puzzlefs: this user may not have a user namespace: .*; see the sysctls user.max_user_namespaces, .*\n",
        result.stderr,
    )


def test_a_scratch_directory_that_is_not_there(user: Runner, image: str) -> None:
    result = user("--scratch", "/nowhere/at/all", image, "true")
    assert result.returncode == 7
    assert "cannot be made in /nowhere/at/all: No such file or directory; name another one with --scratch" in (
        result.stderr
    )


# ---- parts


def test_subordinate_ranges() -> None:
    lines = ["# comment", "joe:100000:65536", "1000:7:0", "ann:1:2", "1000:300000:10", "joe:x:1", "joe:1", ""]
    assert subordinate_ranges(lines, ["joe", "1000"]) == [(100000, 65536), (300000, 10)]
    assert ranges_from_one(1000, [(100000, 65536), (300000, 10)]) == [
        IdRange(0, 1000, 1),
        IdRange(1, 100000, 65536),
        IdRange(65537, 300000, 10),
    ]


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ({}, Place((b"etc", b"resolv.conf"), is_missing=True)),
        ({"etc/resolv.conf": "/run/a/../b"}, None),
        ({"etc/resolv.conf": "../../../run/./a"}, Place((b"run", b"a"), is_missing=True)),
        ({"etc/resolv.conf": "/etc/resolv.conf"}, None),
        ({"etc/resolv.conf": "/proc/net"}, None),
        ({"etc/resolv.conf": "file"}, Place((b"etc", b"file"), is_missing=False)),
        ({"etc/resolv.conf": "file/below"}, None),
        ({"etc/resolv.conf": "/etc"}, None),
        ({"dev": "etc/dev", "etc/resolv.conf": "dev/null"}, None),
    ],
)
def test_places_are_found_without_the_host(tmp_path: Path, links: dict[str, str], expected: Place | None) -> None:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/file").touch()
    for name, target in links.items():
        (tree / name).symlink_to(target)
    build(tree, f"{tmp_path / 'layout'}:t")
    with open_image(f"{tmp_path / 'layout'}:t") as image:
        places = find_places(image.tree)
    dev = (b"etc", b"dev") if "dev" in links else (b"dev",)
    assert places == Places(
        proc=Place((b"proc",), is_missing=True),
        dev=Place(dev, is_missing=True),
        sys=Place((b"sys",), is_missing=True),
        resolv_conf=expected,
    )


@pytest.mark.parametrize(
    "error",
    [
        NotRun("sh cannot be run"),
        StorageError("the disk is full", hint="make room"),
        NotFoundError("no such thing"),
        OSError(5, "Input/output error", "/some/file"),
        KeyboardInterrupt(),
    ],
)
def test_what_a_process_reports_comes_out_as_it_was(error: BaseException | NotRun) -> None:
    read, write = os.pipe()
    report(write, error)
    report(write, NotRun("later"))
    os.close(write)
    with open(read, "rb") as pipe:
        found = read_report(pipe.read())
    assert type(found) is type(error)
    assert str(found) == str(error)
    if isinstance(error, StorageError):
        assert isinstance(found, StorageError)
        assert found.hint == "make room"


def test_a_defect_comes_out_with_its_traceback() -> None:
    read, write = os.pipe()
    try:
        raise LookupError("which")
    except LookupError as error:
        report(write, error)
    os.close(write)
    with open(read, "rb") as pipe:
        found = read_report(pipe.read())
    assert isinstance(found, RuntimeError)
    assert str(found) == "LookupError: which"
    assert 'raise LookupError("which")' in found.__notes__[0]
    assert read_report(b"") is None
