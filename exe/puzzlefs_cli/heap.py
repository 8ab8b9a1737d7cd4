"""How the C library's heap is set up in processes that serve a mount."""

from __future__ import annotations

from typing import Final

_M_ARENA_MAX: Final = -8  # <malloc.h>


def keep_memory_together() -> None:
    """Let all threads allocate from one heap, where the C library can: they run one at a time anyway, and each heap
    keeps what it once needed."""
    import ctypes  # noqa: PLC0415  other verbs should not pay for it

    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_M_ARENA_MAX, 1)
