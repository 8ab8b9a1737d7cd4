"""Running something in a process with mounts of its own.

A mount that everybody sees is also in every mount namespace that anybody makes meanwhile, and what is unmounted here
stays mounted there; a disk is only let go of when nobody has it. Mounts of a namespace that ends are gone, whatever
happened in it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import traceback
import warnings
from collections.abc import Callable

import pytest

from puzzlefs.mount.mountinfo import IMAGE_FS_TYPE, all_mounts

_CLONE_NEWNS = 0x00020000


def in_own_mounts(run: Callable[[], None]) -> None:
    """Call ``run`` in a fork of this process that has mounts of its own; fails the test if it raises anything."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about fork beside the threads of pytest's plugins
        child = os.fork()
    if child == 0:
        text = ""
        try:
            os.close(reading)
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            for mount in all_mounts():  # other tests' servers wait for these to be gone everywhere
                if mount.fs_type == IMAGE_FS_TYPE:
                    subprocess.run(["umount", "-l", mount.point], check=False, capture_output=True)
            run()
        except BaseException:  # noqa: BLE001  whatever it is, it is told
            text = traceback.format_exc()
        finally:
            with open(writing, "w") as file:
                file.write(text or "done")
            os._exit(0)
    os.close(writing)
    try:
        with open(reading) as file:
            text = file.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.waitpid(child, 0)
    if text != "done":
        pytest.fail(text or "the process with mounts of its own was killed", pytrace=False)
