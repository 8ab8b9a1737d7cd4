"""Many processes that read a mount at once, and compare what they see with the tree that it was made of.

Run as a program, also by hand, for as long as one likes::

    python tests/support/readers.py MOUNT SOURCE 300 64

reads for 300 seconds in 64 processes and prints, as JSON, how often each kind of reader got through. Each is a fork of
this program, whose memory costs next to nothing, or one of the programs that people walk trees with. What somebody
read wrongly, and what failed, is told on stderr; the exit code is then 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

FIO_FILE = "read-by-fio"
"""The file whose blocks say themselves what is in them (``lay_out_for_fio``)."""

_FIO_LAYOUT = ("--verify=crc32c", "--bs=16k", "--size=2m", "--ioengine=psync", "--direct=0", "--thread")
_PATIENCE = 60.0
"""Seconds that a reader may take longer than it should before it counts as hanging."""

Reader = Callable[[Path, Path, random.Random], None]
"""``reader(mount, source, random)`` reads something once; it fails with any exception."""


def lay_out_for_fio(root: Path) -> bool:
    """Have fio write a file that it can check itself into a tree; whether there is a fio here."""
    program = shutil.which("fio")
    if program is None:
        return False
    words = ["--name=x", f"--filename={root / FIO_FILE}", "--rw=write", "--do_verify=0", "--verify_state_save=0"]
    subprocess.run([program, *words, *_FIO_LAYOUT], check=True, capture_output=True, cwd=root.parent)
    return True


def run(mount: Path, source: Path, *, seconds: float, count: int) -> dict[str, int]:
    """Run this as a program; how often each kind of reader got through.

    Raises:
        AssertionError: if anybody read something wrong, failed, or hangs.
    """
    words = [sys.executable, __file__, str(mount), str(source), str(seconds), str(count)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds + 3 * _PATIENCE)
    assert done.returncode == 0, done.stderr
    passes: dict[str, int] = json.loads(done.stdout)
    return passes


# ---- the kinds


def _random_reads(mount: Path, source: Path, rnd: random.Random) -> None:
    """Pieces of files, past what the kernel has of them."""
    names = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
    for name in rnd.sample(names, min(len(names), 20)):
        size = (source / name).stat().st_size
        if size == 0:
            continue
        with open(source / name, "rb") as expected, open(mount / name, "rb", buffering=0) as shown:
            os.posix_fadvise(shown.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(expected.fileno(), 0, prot=mmap.PROT_READ) as data:
                for _ in range(8):
                    offset, length = rnd.randrange(size), rnd.choice((1, 100, 4096, 100_000))
                    if os.pread(shown.fileno(), length, offset) != data[offset : offset + length]:
                        raise AssertionError(f"{name}: {length} bytes at {offset} are wrong")


def _tar(mount: Path, source: Path, rnd: random.Random) -> None:
    digests = [_digest_of_tar(root) for root in (mount, source)]
    if digests[0] != digests[1]:
        raise AssertionError("tar makes another archive")


def _digest_of_tar(root: Path) -> str:
    words = ["tar", "-c", "--sort=name", "--mtime=@0", "--numeric-owner", "-C", os.fspath(root), "."]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        digest = hashlib.sha256()
        while block := process.stdout.read(1 << 20):
            digest.update(block)
    if process.returncode:
        raise AssertionError(f"tar ended with {process.returncode}")
    return digest.hexdigest()


def _find(mount: Path, source: Path, rnd: random.Random) -> None:
    listings = []
    for root in (mount, source):
        words = ["find", root, "-type", "d", "-printf", "%P/ %m %U\n", "-o", "-printf", "%P %y %m %U %s %l\n"]
        listings.append(sorted(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout.splitlines()))
    if listings[0] != listings[1] or not listings[0]:
        raise AssertionError("find finds something else")


def _fio(mount: Path, source: Path, rnd: random.Random) -> None:
    how = rnd.choice(("read", "randread"))
    words = ["--name=x", f"--filename={mount / FIO_FILE}", "--readonly", f"--rw={how}", "--verify_state_save=0"]
    subprocess.run(["fio", *words, *_FIO_LAYOUT], check=True, stdout=subprocess.DEVNULL, cwd="/")


# ---- all of them


def _kinds(source: Path) -> dict[str, tuple[Reader, int]]:
    """The readers, and the part that each kind is of all, in sixteenths."""
    kinds: dict[str, tuple[Reader, int]] = {"tar": (_tar, 2), "find": (_find, 2), "random": (_random_reads, 11)}
    if (source / FIO_FILE).exists():
        kinds["fio"] = (_fio, 1)
    return kinds


def _work(reader: Reader, mount: Path, source: Path, seed: int, end: float) -> int:
    """What a forked process does: read again and again; how often it got through, at least once."""
    rnd = random.Random(seed)
    passes = 0
    while passes == 0 or time.monotonic() < end:
        reader(mount, source, rnd)
        passes += 1
    return passes


def _fork(kind: str, reader: Reader, mount: Path, source: Path, seed: int, end: float, pipe: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)  # with the programs that it starts
        passes = _work(reader, mount, source, seed, end)
        os.write(pipe, f"{kind} {passes}\n".encode())
        code = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def main() -> int:
    """Read the command line, and read."""
    mount, source, seconds, count = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    kinds = _kinds(source)
    plan = [kind for kind, (_, part) in kinds.items() for _ in range(part)]
    read_end, write_end = os.pipe()
    end = time.monotonic() + seconds
    left = set()
    for number in range(count):
        kind = plan[number % len(plan)]
        left.add(_fork(kind, kinds[kind][0], mount, source, number, end, write_end))
    os.close(write_end)
    failed = False
    while left and time.monotonic() < end + _PATIENCE:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            time.sleep(0.02)
            continue
        left.discard(pid)
        failed = failed or status != 0
    for pid in left:
        print(f"process {pid} hangs", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    if failed or left:
        return 1
    passes: Counter[str] = Counter(dict.fromkeys(kinds, 0))
    with open(read_end, encoding="ascii") as lines:
        for line in lines:
            kind, number_of_passes = line.split()
            passes[kind] += int(number_of_passes)
    print(json.dumps(passes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
