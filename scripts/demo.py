#!/usr/bin/env python3
"""What ``make demo`` runs: a real root file system becomes an image, is mounted, looked at and compared.

Every step goes through the command ``puzzlefs`` beside this interpreter, as a user types it, is shown before it
runs and timed. Whatever happens, also on Ctrl-C and SIGTERM, nothing stays mounted and only the cached root file
system stays on disk.

Environment: ``ROOTFS=dir`` takes that tree; otherwise a debootstrapped one (``rootfs.py``), or the machine's own
``/usr`` where debootstrap cannot run. ``KEEP=1`` leaves the image for further play. ``DEMO_STARTED`` (seconds since
the epoch) is when ``make`` began, so that the summary can name the time that setting up took.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import compare_trees
import rootfs

PUZZLEFS = Path(sys.executable).with_name("puzzlefs")
_SHOWN_DIFFERENCES = 20
_SHOWN_LINES = 12
_WORK_PREFIX = "work-"


class DemoError(Exception):
    """The demonstration cannot go on; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """The tree that becomes an image.

    Attributes:
        path: Its root directory.
        what: How to call it in a sentence.
        runnable: It holds a Debian that is not the running one, so that one of its programs can be started.
    """

    path: Path
    what: str
    runnable: bool = False


class Clock:
    """Names each step before it runs, and remembers how long it took."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, float]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        print(f"\n== {name}", flush=True)
        start = time.monotonic()
        yield
        self._steps.append((name, time.monotonic() - start))

    def add(self, name: str, seconds: float) -> None:
        """Notes a step that someone else did."""
        self._steps.append((name, seconds))

    def summary(self) -> str:
        total = sum(seconds for _, seconds in self._steps)
        return "\n".join(f"  {seconds:8.2f} s  {name}" for name, seconds in [*self._steps, ("in all", total)])


def main() -> int:
    """Runs the demonstration; returns the exit code."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    clock = Clock()
    if started := os.environ.get("DEMO_STARTED"):
        clock.add("set up (system packages, .venv)", time.time() - float(started))
    try:
        _check_machine()
        cache = rootfs.cache_dir()
        _remove_leftovers(cache)
        with clock.step("get a root file system"):
            source = choose_source(cache)
            print(f"  {source.what}: {source.path}")
        with _workspace(cache) as work:
            demonstrate(source, work, clock)
    except (DemoError, OSError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; nothing is left mounted", file=sys.stderr)
        return 130
    print(f"\nDone: the mounted image shows the same tree as its source.\n{clock.summary()}")
    return 0


def demonstrate(source: Source, work: Path, clock: Clock) -> None:
    """All the steps from the tree ``source`` to an unmounted image.

    Raises:
        DemoError: A step failed, or the mount does not show what the source holds.
    """
    # The commands run in the working folder, so that they read as short as a user would type them.
    os.chdir(work)
    print(f"\nWorking folder: {work}")
    image, mount = "oci:demo", Path("mnt")
    mount.mkdir()
    with clock.step("build an image from it"):
        run(PUZZLEFS, "build", source.path, image)
        print(f"  image on disk: {_disk_usage(work / 'oci') / 1e6:.0f} MB")
    with clock.step("mount it"):
        run(PUZZLEFS, "mount", image, mount)
    with clock.step("list it"):
        run("ls", "-la", mount)
    with clock.step("read a file out of it"):
        run("head", "-n", "5", _readable_file(mount))
    if source.runnable:
        with clock.step("start a program in it"):
            run("chroot", mount, "/usr/bin/apt-get", "--version")
    with clock.step("compare the whole tree with the source"):
        _compare(source.path, mount)
    with clock.step("unmount it"):
        run(PUZZLEFS, "umount", mount)
        if rootfs.mounts_below(mount):
            raise DemoError(f"puzzlefs umount returned, but {mount} is still mounted")


# --- the source --------------------------------------------------------------------------------------------


def choose_source(cache: Path) -> Source:
    """ROOTFS if given, else a debootstrapped tree, else the machine's own ``/usr``.

    Raises:
        DemoError: ROOTFS is not a directory, or no tree can be read by this user.
    """
    if given := os.environ.get("ROOTFS"):
        path = Path(given).resolve()
        if not path.is_dir():
            raise DemoError(f"ROOTFS={given} is not a directory")
        return Source(path, "the tree given as ROOTFS")
    try:
        path, made = rootfs.debootstrapped_tree(cache)
    except rootfs.DebootstrapUnavailableError as error:
        print(f"  no debootstrap here: {error}\n  taking a tree of this machine instead", flush=True)
    else:
        return Source(path, "a Debian just debootstrapped" if made else "a Debian from the cache", runnable=True)
    # As an ordinary user parts of /usr may be closed to us, and an image of half a tree is not an image of it.
    for candidate in ("/usr", "/usr/lib", "/usr/share", "/usr/bin"):
        if _all_readable(candidate):
            return Source(Path(candidate), "a tree of this machine")
    raise DemoError("no tree of this machine can be read as a whole by this user; give one: make demo ROOTFS=dir")


def _all_readable(root: str) -> bool:
    if os.geteuid() == 0:
        return True

    def refuse(error: OSError) -> None:
        raise error

    try:
        for directory, _, files in os.walk(os.fsencode(root), onerror=refuse):
            for name in files:
                path = os.path.join(directory, name)
                if not os.path.islink(path) and not os.access(path, os.R_OK):
                    return False
    except OSError:
        return False
    return True


# --- single steps ------------------------------------------------------------------------------------------


def run(*command: str | Path) -> None:
    """Shows a command, runs it and shows the first lines of its output.

    Raises:
        DemoError: It did not end with exit code 0.
    """
    words = [str(word) for word in command]
    print("  $", " ".join(["puzzlefs", *words[1:]] if command[0] == PUZZLEFS else words), flush=True)
    # The output goes to a file, not a pipe: a daemon that keeps the descriptor must not keep us waiting.
    with tempfile.TemporaryFile() as output:
        status = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=output, check=False).returncode
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    for line in lines[:_SHOWN_LINES]:
        print(f"    {line}")
    if len(lines) > _SHOWN_LINES:
        print(f"    … {len(lines) - _SHOWN_LINES} more lines")
    if status != 0:
        raise DemoError(f"{Path(words[0]).name} failed with exit code {status}")


def _compare(source: Path, mount: Path) -> None:
    options = compare_trees.Options(one_file_system=True)
    statistics = compare_trees.Statistics()
    found = 0
    for difference in compare_trees.compare(source, mount, options, statistics):
        found += 1
        if found <= _SHOWN_DIFFERENCES:
            print(f"    {difference}")
    kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(statistics.by_type.items()))
    print(f"  {statistics.entries} entries ({kinds}), {statistics.content_bytes / 1e6:.0f} MB of content")
    print("  names, types, modes, owners, sizes, contents, targets, devices, xattrs, hard links, link counts:")
    if found:
        raise DemoError(f"{found} differences between the source and the mounted image")
    print("  no differences")


def _readable_file(mount: Path) -> Path:
    """A file worth showing: what the system calls itself, else the first short text."""
    for name in ("etc/debian_version", "etc/os-release", "lib/os-release"):
        path = mount / name
        if path.is_file() and not path.is_symlink():
            return path
    for directory, _, files in os.walk(mount):
        for name in files:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink() and 0 < path.stat().st_size < 10_000:
                with suppress(OSError, UnicodeDecodeError):
                    path.read_text(encoding="utf-8")
                    return path
    raise DemoError("the tree holds no short text file to show")


def _disk_usage(root: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in root.rglob("*"))


def _check_machine() -> None:
    if not PUZZLEFS.exists():
        raise DemoError(f"{PUZZLEFS} is missing; `make setup` installs it")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) and os.geteuid() == 0:
        # Where the kernel has FUSE as a module nobody may have asked for it yet.
        with suppress(FileNotFoundError):
            subprocess.run(["modprobe", "fuse"], capture_output=True, check=False)
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise DemoError(
            "/dev/fuse cannot be opened, so nothing can be mounted here"
            " (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
        )
    if shutil.which("fusermount3") is None and os.geteuid() != 0:
        raise DemoError("fusermount3 is missing; install the package fuse3")


# --- leaving nothing behind --------------------------------------------------------------------------------


@contextmanager
def _workspace(cache: Path) -> Iterator[Path]:
    """A folder for image and mount point; unmounted and removed at the end, whatever happened.

    The folder is locked as long as its run lives, so that a later run knows a leftover from one in use.
    """
    work = Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=cache))
    descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    done = False
    try:
        yield work
        done = True
    finally:
        if done and os.environ.get("KEEP"):
            kept = work.rename(work.with_name("kept-" + work.name.removeprefix(_WORK_PREFIX)))
            print(f"\nThe image stays: {PUZZLEFS} mount {kept / 'oci'}:demo MOUNTPOINT")
        else:
            os.chdir("/")
            rootfs.remove_tree(work)
        os.close(descriptor)


def _remove_leftovers(cache: Path) -> None:
    for work in cache.glob(_WORK_PREFIX + "*"):
        descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            print(f"removing what an earlier run left: {work}")
            rootfs.remove_tree(work)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _end(signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(signum).name)


if __name__ == "__main__":
    sys.exit(main())
