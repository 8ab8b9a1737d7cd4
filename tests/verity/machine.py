"""A machine whose kernel has fs-verity: a distribution's kernel, emulated, with this machine's files as its
root.

``run_in_machine`` boots it (about 20 seconds: software emulation, because KVM is rarely there where tests
run), runs pytest in it and returns what each test came to. The machine sees the root file system read-only,
except for the one directory in which it reports; what it writes lies in its own memory and is gone with it.

It asks this machine for each name of each path that it looks up, every time, and Python looks up thousands until pytest
is there: minutes of emulation. So the directories that tests and their interpreter come from are seen through a second
device, of which the machine may remember what it has seen: nobody changes them meanwhile.

Run as a program, this module tells whether there can be a machine here, and what is missing if there cannot.

What is needed: a kernel with its modules in ``/boot`` and ``/lib/modules`` (Debian: ``linux-image-amd64``),
QEMU (``qemu-system-x86``), a static busybox (``busybox-static``) and ``vng`` (PyPI: ``virtme-ng``).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]

INSIDE = "PUZZLEFS_TEST_MACHINE_REPORT"
"""The environment variable that is set inside the machine: the file in which tests are reported, a line of
JSON each."""

# Where the original's programs are kept; read while tests are collected, since a fixture changes it.
_CACHES = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
_BOOT_AND_RUN_SECONDS = 1200
_NEAR = "/run/near"
_NEAR_TAG = "near"
_NEAR_OPTIONS = "ro,trans=virtio,version=9p2000.L,access=any,msize=524288,cache=loose"
_NEAR_DEVICE = (
    f"-fsdev local,id={_NEAR_TAG},path=/,security_model=none,readonly=on,multidevs=remap "
    f"-device virtio-9p-pci,fsdev={_NEAR_TAG},mount_tag={_NEAR_TAG}"
)
_TAIL = 2000


class MachineUnavailableError(Exception):
    """Something that the machine is made of is not installed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one test came to inside the machine: ``passed``, ``failed`` or ``skipped``, and pytest's words
    about it."""

    outcome: str
    text: str


_PASSED = Outcome("passed", "")


def inside_machine() -> bool:
    """Whether this process runs inside the machine."""
    return INSIDE in os.environ


def find_kernel() -> tuple[Path, str]:
    """The newest kernel image in ``/boot`` that can do fs-verity and has its modules, and its release.

    Raises:
        MachineUnavailableError: if there is none.
    """
    reasons = []
    images = sorted(Path("/boot").glob("vmlinuz-*"), key=lambda path: _version(path.name), reverse=True)
    for image in images:
        release = image.name.removeprefix("vmlinuz-")
        config = Path(f"/boot/config-{release}")
        if not os.access(image, os.R_OK):
            reasons.append(f"{image} is not readable")
        elif not Path(f"/lib/modules/{release}").is_dir():
            reasons.append(f"/lib/modules/{release} is missing")
        elif config.exists() and "CONFIG_FS_VERITY=y" not in config.read_text():
            reasons.append(f"{image} was built without CONFIG_FS_VERITY")
        else:
            return image, release
    raise MachineUnavailableError("; ".join(reasons) or "there is no kernel in /boot (apt: linux-image-amd64)")


def find_vng() -> Path:
    """The program that boots a kernel on this machine's files.

    Raises:
        MachineUnavailableError: if it, or what it needs, is not installed.
    """
    beside_python = Path(sys.executable).with_name("vng")
    found = str(beside_python) if beside_python.exists() else shutil.which("vng")
    if found is None:
        raise MachineUnavailableError("vng is not installed (PyPI: virtme-ng)")
    if not shutil.which(f"qemu-system-{os.uname().machine}"):
        raise MachineUnavailableError("QEMU is not installed (apt: qemu-system-x86)")
    if not shutil.which("busybox"):
        raise MachineUnavailableError("busybox is not installed (apt: busybox-static)")
    return Path(found)


def run_in_machine(node_ids: Sequence[str], directory: Path) -> tuple[Mapping[str, Outcome], str]:
    """Runs tests of this project inside the machine.

    Args:
        node_ids: the tests, as pytest names them, relative to the project.
        directory: an existing directory for the report and the machine's console.

    Returns:
        The outcome of each test that was reported, by node id, and the end of what the machine printed.

    Raises:
        MachineUnavailableError: if something is not installed.
    """
    vng = find_vng()
    kernel, _ = find_kernel()
    report = directory / "report.jsonl"
    arguments = directory / "arguments"
    arguments.write_text("\n".join(node_ids))
    environment = {
        INSIDE: str(report),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Loading plugins takes longer there than most tests.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "HOME": "/run",
        "TMPDIR": "/run",
        "XDG_CACHE_HOME": _CACHES,
    }
    assignments = [f"{name}={value}" for name, value in environment.items()]
    pytest = [
        sys.executable, "-m", "pytest", "-p", "pytest_timeout", "-p", "xdist.plugin", "-n", "2",
        "-p", "no:cacheprovider", "-o", "timeout=600", "--basetemp=/run/pytest", "--durations=10",
    ]  # fmt: skip
    script = directory / "run.sh"
    script.write_text(
        "set -e\n"
        "modprobe -a fuse loop ext4\n"
        f"mkdir {_NEAR}\n"
        f"mount -t 9p -o {_NEAR_OPTIONS} {_NEAR_TAG} {_NEAR}\n"
        f"{_show_near(directory)}"
        f"cd {shlex.quote(str(PROJECT))}\n"
        f"exec {shlex.join(['env', '-i', *assignments, *pytest, f'@{arguments}'])}\n"
    )
    console = directory / "console"
    command = [
        vng, "--disable-kvm", "--run", kernel, "--user", "root", "--cpus", "2", "--memory", "2G",
        f"--rwdir={directory}", f"--qemu-opts={_NEAR_DEVICE}", "--", f"sh {shlex.quote(str(script))}",
    ]  # fmt: skip
    with console.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            # vng starts the programs that were installed with it by their names.
            env={**os.environ, "PATH": f"{vng.parent}:{os.environ.get('PATH', os.defpath)}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(timeout=_BOOT_AND_RUN_SECONDS)
        except subprocess.TimeoutExpired:
            output.write(f"\n(stopped after {_BOOT_AND_RUN_SECONDS} seconds)".encode())
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    outcomes: dict[str, Outcome] = {}
    if report.exists():
        for line in report.read_text().splitlines():
            entry = json.loads(line)
            # Of a test and the clean-up after it, the first that failed tells more.
            if outcomes.get(entry["node_id"], _PASSED).outcome == "passed":
                outcomes[entry["node_id"]] = Outcome(entry["outcome"], entry["text"])
    return outcomes, console.read_bytes()[-_TAIL:].decode(errors="replace")


def _show_near(report: Path) -> str:
    """Commands that put what the tests read through the second device where they look for it.

    It may lie where the machine has an empty directory of its own, such as ``/tmp``. What holds the directory for the
    report stays as it is: it would be hidden.
    """
    shown: list[Path] = []
    for path in (PROJECT, PROJECT.parent / "shared", Path(sys.prefix), Path(sys.base_prefix)):
        if path.exists() and not report.is_relative_to(path) and not any(map(path.is_relative_to, shown)):
            shown.append(path)
    commands = ""
    for path in shown:
        here, there = shlex.quote(str(path)), shlex.quote(f"{_NEAR}{path}")
        commands += f"mkdir -p {here}\nmount --bind {there} {here}\n"
    return commands


def _version(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def main() -> int:
    """Tell whether the tests in this directory can be run here."""
    try:
        kernel, release = find_kernel()
        find_vng()
    except MachineUnavailableError as error:
        print(f"no machine with fs-verity can be emulated here: {error}", file=sys.stderr)
        print("`make setup-verity`, as root, installs kernel and emulator, `make setup` the rest", file=sys.stderr)
        return 1
    print(f"fs-verity is tested by Linux {release} ({kernel}) in an emulated machine")
    return 0


if __name__ == "__main__":
    sys.exit(main())
