#!/usr/bin/env python3
"""A real root file system to work on: debootstrapped once, kept in a cache folder.

``${XDG_CACHE_HOME:-~/.cache}/puzzlefs-demo/<name>-<suite>-<machine>`` is a Debian (or derivative) of the machine's
own release, from the mirror in the machine's own apt sources. Invariant: that name exists only for a whole tree.
debootstrap works under ``….partial``, which is renamed after it succeeded and thrown away, with whatever it left
mounted inside, if it did not. A lock keeps two runs from making the same tree; debootstrap inherits it, so that
it holds even when the run that started it was killed.

Standard library only. Run as ``rootfs.py`` it prints the path of the tree, making it first if need be; messages
go to stderr.
"""

import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

DEFAULT_MIRRORS = {"debian": "http://deb.debian.org/debian", "ubuntu": "http://archive.ubuntu.com/ubuntu"}
_LOG_TAIL_LINES = 8


class DebootstrapUnavailableError(Exception):
    """This machine or this user cannot make a root file system; the text says why."""


def cache_dir() -> Path:
    """The folder that outlives a run; created if missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base) / "puzzlefs-demo"
    path.mkdir(parents=True, exist_ok=True)
    return path


def debootstrapped_tree(cache: Path, name: str = "rootfs", packages: Sequence[str] = ()) -> tuple[Path, bool]:
    """Returns a whole minimal root file system, and whether it had to be made now.

    Args:
        cache: the folder that keeps it.
        name: what its name begins with; trees with different packages need different ones.
        packages: what is installed besides.

    Raises:
        DebootstrapUnavailableError: There is none in the cache and none can be made here.
    """
    release = os_release(Path("/etc/os-release").read_text(encoding="utf-8", errors="replace"))
    suite = release.get("VERSION_CODENAME", "")
    if not suite:
        raise DebootstrapUnavailableError("/etc/os-release names no release (VERSION_CODENAME)")
    tree = cache / f"{name}-{suite}-{platform.machine()}"
    if tree.is_dir():
        return tree, False
    _check_debootstrap(suite)
    partial = tree.with_name(tree.name + ".partial")
    with locked(cache / "lock") as lock:
        if tree.is_dir():
            return tree, False
        remove_tree(partial)
        try:
            mirror = apt_mirror(suite, release.get("ID", ""))
            _debootstrap(suite, partial, mirror, packages, cache / "debootstrap.log", lock)
            unmount_below(partial)
            partial.rename(tree)
        finally:
            remove_tree(partial)
    return tree, True


def os_release(text: str) -> dict[str, str]:
    """The assignments of an os-release file (os-release(5)); quotes removed."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, value in pairs}


def _check_debootstrap(suite: str) -> None:
    if os.geteuid() != 0:
        raise DebootstrapUnavailableError("debootstrap needs root")
    if shutil.which("debootstrap") is None:
        raise DebootstrapUnavailableError("debootstrap is not installed")
    if not Path("/usr/share/debootstrap/scripts", suite).exists():
        raise DebootstrapUnavailableError(f"this debootstrap does not know the release {suite!r}")


def _debootstrap(suite: str, target: Path, mirror: str, packages: Sequence[str], log_path: Path, lock: int) -> None:
    include = [f"--include={','.join(packages)}"] if packages else []
    command = ["debootstrap", "--variant=minbase", *include, suite, str(target), mirror]
    print(f"  $ {' '.join(command)}   (log: {log_path})", file=sys.stderr, flush=True)
    with (
        log_path.open("wb") as log,
        # A session of its own, so that what debootstrap started can be ended together with it.
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(),
            start_new_session=True,
            pass_fds=(lock,),
        ) as process,
    ):
        try:
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if status != 0:
        tail = log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        raise DebootstrapUnavailableError("\n    ".join([f"debootstrap failed (exit code {status}):", *tail]))


def _environment() -> dict[str, str]:
    """Ours, with sbin on the PATH (``su`` without ``-`` drops it) and the proxy that apt is told to use."""
    environment = dict(os.environ)
    environment["PATH"] = f"{environment.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
    if "http_proxy" not in environment and shutil.which("apt-config"):
        answer = subprocess.run(
            ["apt-config", "shell", "PROXY", "Acquire::http::Proxy"],
            capture_output=True,
            text=True,
            check=False,
        )
        proxy = answer.stdout.strip().removeprefix("PROXY=").strip("'")
        if proxy and proxy != "DIRECT":
            environment["http_proxy"] = proxy
    return environment


# --- where apt takes this release from ----------------------------------------------------------------------


def apt_mirror(suite: str, distribution: str, etc_apt: Path = Path("/etc/apt")) -> str:
    """The archive in the machine's apt sources that holds ``suite`` itself, else the usual one."""
    files = [etc_apt / "sources.list"]
    parts = etc_apt / "sources.list.d"
    if parts.is_dir():
        files += sorted(path for path in parts.iterdir() if path.suffix in {".list", ".sources"})
    for path in files:
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        sources = deb822_sources(text) if path.suffix == ".sources" else one_line_sources(text)
        for uri, suites, components in sources:
            # debootstrap knows plain archives only, not apt's mirror: or cdrom: methods.
            if suite in suites and "main" in components and uri.startswith(("http://", "https://", "file:/")):
                return uri.rstrip("/")
    return DEFAULT_MIRRORS.get(distribution, DEFAULT_MIRRORS["debian"])


def one_line_sources(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yields (URI, suites, components) of each ``deb [option=value …] URI suite component…`` line."""
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if not words or words[0] != "deb":
            continue
        words = words[1:]
        if words and words[0].startswith("["):
            while words and not words.pop(0).endswith("]"):
                pass
        if len(words) >= 3:
            yield words[0], [words[1]], words[2:]


def deb822_sources(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yields (URI, suites, components) for each URI of each enabled ``deb`` stanza (sources.list(5))."""
    for stanza in text.replace("\r\n", "\n").split("\n\n"):
        fields: dict[str, list[str]] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields.setdefault(name, []).extend(line.split())
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.split()
        disabled = fields.get("enabled", ["yes"])[:1] in (["no"], ["false"], ["0"])
        if "deb" in fields.get("types", []) and not disabled:
            for uri in fields.get("uris", []):
                yield uri, fields.get("suites", []), fields.get("components", [])


# --- leaving nothing behind ---------------------------------------------------------------------------------


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Holds an exclusive lock and gives its descriptor; says so when it has to wait."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"  waiting for another run, which holds {path}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def mounts_below(path: Path) -> list[Path]:
    """Mount points at or under ``path``, innermost first."""
    prefix = os.fsencode(path.resolve())
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        # proc(5): the fifth field; white space and backslashes in it are octal escapes.
        field = line.split(b" ")[4]
        for escape, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
            field = field.replace(escape, byte)
        if field == prefix or field.startswith(prefix + b"/"):
            found.append(Path(os.fsdecode(field)))
    return found[::-1]


def unmount_below(path: Path) -> None:
    """Unmounts everything at or under ``path``, by force where a daemon is gone.

    Raises:
        OSError: Something is still mounted there; deleting the tree would delete what is mounted.
    """
    for mount in mounts_below(path):
        for command in (
            ["umount"],
            ["fusermount3", "-u", "-q"],
            ["umount", "-l"],
            ["fusermount3", "-u", "-z"],
        ):
            if shutil.which(command[0]) is None:
                continue
            if subprocess.run([*command, str(mount)], capture_output=True, check=False).returncode == 0:
                break
    if left := mounts_below(path):
        raise OSError(f"still mounted: {', '.join(map(str, left))}; unmount it by hand")


def remove_tree(path: Path) -> None:
    """Removes a directory tree if it exists, after unmounting what is mounted in it.

    Raises:
        OSError: It could not be removed, or something in it could not be unmounted.
    """
    if path.is_dir():
        unmount_below(path)
    while path.is_dir():
        with suppress(FileNotFoundError):  # a mount that has just ended removes its lease at the same time
            shutil.rmtree(path)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        print(debootstrapped_tree(cache_dir())[0])
    except DebootstrapUnavailableError as error:
        sys.exit(f"rootfs: {error}")
