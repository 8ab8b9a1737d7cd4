"""The engine on pyfuse3 and trio: thin.

One trio loop serves all requests. What is in memory is answered on the loop, because handing a request to a thread
costs more than most answers; a read that has to wait for the host goes to a thread, of which there are ``_THREADS``
at most, and a few tasks more than that keep names and cached reads flowing meanwhile. Handlers raise ``FUSEError``
and nothing else (any other exception would end the session), and every handler that would change something answers
``EROFS``.

pyfuse3 keeps its session in module variables, so a process serves one mount through it at a time.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Final, NoReturn, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FlagT, FUSEError, InodeT, ModeT, RequestContext

from puzzlefs.errors import MountError, UnsupportedError
from puzzlefs.mount.engine import FOREVER, Mounting, probe
from puzzlefs.mount.errors import RequestError
from puzzlefs.mount.kernel_protocol import Opcode
from puzzlefs.mount.mountinfo import is_hidden, is_still_there, new_mount_at
from puzzlefs.mount.operations import Operations
from puzzlefs.mount.pyfuse3_init import initialise
from puzzlefs.mount.signals import held_back, in_main_thread, let_through
from puzzlefs.signal_mask import ENDING
from puzzlefs.vfs import Attributes, Entry

log = logging.getLogger("puzzlefs.mount")
_pyfuse3_log = logging.getLogger("pyfuse3")

_THREADS: Final = 4
_TASKS: Final = _THREADS + 2
_MAX_CACHED_ENTRIES: Final = 8_192
_BLOCK_SIZE: Final = 4_096

_PASSING: Final = (errno.EAGAIN, errno.ENOMEM)
"""What may go wrong with reading a request without being the end."""
_PAUSE: Final = 0.005
"""Seconds before it is tried again."""

_NOBODY_WAITS: Final = f"failed with {os.strerror(errno.ENOENT)}"

_in_use = threading.Lock()

P = ParamSpec("P")
R = TypeVar("R")


class Pyfuse3Engine:
    """Serves a mount through libfuse."""

    def serve(self, mounting: Mounting) -> None:
        """See ``Engine.serve``."""
        if not _in_use.acquire(blocking=False):
            raise UnsupportedError(
                "this process already serves a mount", hint="mount each image in a process of its own"
            )
        try:
            _Session(mounting).run()
        finally:
            _in_use.release()


class _Session:
    """One mount from beginning to end."""

    def __init__(self, mounting: Mounting) -> None:
        self._mounting = mounting
        self._failure: Exception | None = None

    def run(self) -> None:
        _pyfuse3_log.addFilter(_is_worth_logging)
        point = self._mounting.mountpoint
        words = self._mounting.options.libfuse_words(self._mounting.fsname, as_root=os.geteuid() == 0)
        with held_back():
            initialise(_Handlers(self._mounting), os.fspath(point), words)
            mount = new_mount_at(point)
            try:
                trio.run(self._main)
            finally:
                # closing by path would hit whatever took our place there, had somebody unmounted us lazily before, and
                # would look it up in what we serve, had somebody covered it with an overlay
                pyfuse3.close(unmount=mount is not None and is_still_there(mount) and not is_hidden(mount))
        if self._failure is not None:
            raise self._failure

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals)
            nursery.start_soon(self._announce)
            try:
                await _answer_requests()
            except Exception as error:  # noqa: BLE001 - libfuse's errors come in groups of whatever class
                self._fail(MountError(f"the session with the kernel broke: {_first(error)}"))
            nursery.cancel_scope.cancel()

    async def _watch_signals(self, task_status: trio.TaskStatus[None]) -> None:
        if not in_main_thread():
            task_status.started()
            return
        with trio.open_signal_receiver(*ENDING) as signals, let_through():
            task_status.started()
            async for number in signals:
                log.info("%s: unmounting %s", signal.Signals(number).name, self._mounting.mountpoint)
                pyfuse3.terminate()

    async def _announce(self) -> None:
        try:
            # abandoned if a signal ends the mount first: it then waits for an answer that only closing can give
            await trio.to_thread.run_sync(probe, self._mounting.mountpoint, abandon_on_cancel=True)
            self._mounting.on_ready()
        except Exception as error:  # noqa: BLE001 - a caller's on_ready may fail in any way
            self._fail(error)
            pyfuse3.terminate()

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error


async def _answer_requests() -> None:
    """Run pyfuse3's loop until the session ends.

    The queue's descriptor does not block: between the moment when a request is announced and the one when it is read,
    the process that made it may be killed, and the request is withdrawn. A read that waited for the next one would
    stop this whole process. pyfuse3 does not expect "nothing there", nor that there is no memory to read a request
    into, and leaves its loop, which is then simply entered again. Nor does it expect that the file system is unmounted
    while it reads (ECONNABORTED), which is an end like any other.
    """
    ended = False
    while not ended:
        try:
            await pyfuse3.main(min_tasks=1, max_tasks=_TASKS)
            ended = True
        except* ConnectionAbortedError:
            ended = True
        except* OSError as group:
            _, others = group.split(lambda error: isinstance(error, OSError) and error.errno in _PASSING)
            if others is not None:
                raise others from None
            log.debug("no request was read: %s", _first(group))
            await trio.sleep(_PAUSE)


class _Handlers(pyfuse3.Operations):
    """The requests as pyfuse3 hands them over."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = True  # without it the kernel lets group members in and keeps granted users out

    def __init__(self, mounting: Mounting) -> None:
        super().__init__()
        self._operations: Operations = mounting.operations
        self._counts = mounting.requests.counts
        self._cached: dict[int, EntryAttributes] = {}
        self._listings: dict[int, tuple[int, Sequence[Entry]]] = {}
        self._last_handle = 0
        self._threads = trio.CapacityLimiter(_THREADS)
        self._absent = EntryAttributes()
        self._absent.st_ino = InodeT(0)
        self._absent.entry_timeout = FOREVER

    # ---- names and attributes

    async def lookup(self, parent_inode: InodeT, name: pyfuse3.FileNameT, ctx: RequestContext) -> EntryAttributes:
        self._counts[Opcode.LOOKUP] += 1
        attributes = _answer(self._operations.lookup, parent_inode, name)
        return self._absent if attributes is None else self._entry(attributes)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        self._counts[Opcode.GETATTR] += 1
        return self._cached.get(inode) or self._entry(_answer(self._operations.getattr, inode))

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> pyfuse3.FileNameT:
        self._counts[Opcode.READLINK] += 1
        return pyfuse3.FileNameT(_answer(self._operations.readlink, inode))

    # ---- directories

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        self._counts[Opcode.OPENDIR] += 1
        self._last_handle += 1
        self._listings[self._last_handle] = (inode, _answer(self._operations.entries, inode))
        return FileHandleT(self._last_handle)

    async def releasedir(self, fh: FileHandleT) -> None:
        self._counts[Opcode.RELEASEDIR] += 1
        self._listings.pop(fh, None)

    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        self._counts[Opcode.READDIRPLUS] += 1
        # an offset is the position in a listing that cannot change: 0 is ".", 1 is "..", then the entries
        directory, entries = self._listings[fh]
        reply = pyfuse3.readdir_reply
        if start_id == 0 and not reply(token, _name(b"."), _bare(directory, stat.S_IFDIR), 1):
            return
        if start_id <= 1:
            parent = self._operations.parent(directory)
            if not reply(token, _name(b".."), _bare(parent, stat.S_IFDIR), 2):
                return
        for position in range(max(start_id - 2, 0), len(entries)):
            entry = entries[position]
            if not reply(token, _name(entry.name), self._listed(directory, entry), position + 3):
                return

    def _listed(self, directory: int, entry: Entry) -> EntryAttributes:
        attributes = self._operations.entry_attributes(directory, entry)
        if attributes is None:
            # a mode without a type is what the kernel takes as "no attributes": it shows the name and asks again
            return _bare(entry.ino or (1 << 64) - 1, 0)
        return self._entry(attributes)

    # ---- content

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        self._counts[Opcode.OPEN] += 1
        _answer(self._operations.open, inode, flags)
        return FileInfo(fh=FileHandleT(inode), keep_cache=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        self._counts[Opcode.READ] += 1
        plan = _answer(self._operations.plan, fh, off, size)
        if self._operations.is_ready(plan):
            return _answer(self._operations.fetch, fh, plan)
        return await self._in_thread(self._operations.fetch, fh, plan)

    # ---- extended attributes

    async def getxattr(self, inode: InodeT, name: pyfuse3.XAttrNameT, ctx: RequestContext) -> bytes:
        self._counts[Opcode.GETXATTR] += 1
        return _answer(self._operations.getxattr, inode, name)

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[pyfuse3.XAttrNameT]:
        self._counts[Opcode.LISTXATTR] += 1
        try:
            names = self._operations.listxattr(inode, privileged=ctx.uid == 0)
        except RequestError as error:
            raise FUSEError(error.errno) from error
        return [pyfuse3.XAttrNameT(name) for name in names]

    # ---- the file system

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        self._counts[Opcode.STATFS] += 1
        totals = await self._in_thread(self._operations.totals)
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = _BLOCK_SIZE
        data.f_blocks = -(-totals.size // _BLOCK_SIZE)
        data.f_files = totals.inodes
        data.f_namemax = 255
        return data

    # ---- inside

    async def _in_thread(self, operation: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
        # shielded: a request must be answered even if pyfuse3's loop is left meanwhile, or its process hangs
        call = partial(_answer, operation, *arguments, **named)
        with trio.CancelScope(shield=True):
            try:
                result = await trio.to_thread.run_sync(call, limiter=self._threads)
            except (RuntimeError, MemoryError):  # there is no room for a thread now: everybody waits for this one
                result = call()
        return result

    def _entry(self, attributes: Attributes) -> EntryAttributes:
        cached = self._cached.get(attributes.ino)
        if cached is None:
            cached = _entry_attributes(attributes)
            self._cached[attributes.ino] = cached
            if len(self._cached) > _MAX_CACHED_ENTRIES:
                del self._cached[next(iter(self._cached))]
        return cached


def _refusal(opcode: Opcode) -> Callable[..., Coroutine[None, None, NoReturn]]:
    async def refuse(self: _Handlers, *arguments: object) -> NoReturn:
        self._counts[opcode] += 1
        raise FUSEError(errno.EROFS)

    return refuse


for _opcode in (
    *(Opcode.CREATE, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK, Opcode.RENAME, Opcode.UNLINK),
    *(Opcode.RMDIR, Opcode.WRITE, Opcode.SETATTR, Opcode.SETXATTR, Opcode.REMOVEXATTR),
):
    # nothing changes an image; the kernel stops most of these before they come here, and pyfuse3 would answer ENOSYS
    setattr(_Handlers, _opcode.name.lower(), _refusal(_opcode))


def _answer(operation: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    try:
        return operation(*arguments, **named)
    except RequestError as error:
        raise FUSEError(error.errno) from error
    except MemoryError as error:  # there was none left to say so in the log
        raise FUSEError(errno.ENOMEM) from error


def _entry_attributes(attributes: Attributes) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = InodeT(attributes.ino)
    entry.entry_timeout = FOREVER
    entry.attr_timeout = FOREVER
    entry.st_mode = ModeT(attributes.mode)
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = attributes.rdev
    entry.st_size = attributes.size
    entry.st_blocks = attributes.blocks
    entry.st_blksize = _BLOCK_SIZE
    entry.st_atime_ns = entry.st_ctime_ns = entry.st_mtime_ns = attributes.mtime_ns
    return entry


def _bare(ino: int, mode: int) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = InodeT(ino)
    entry.st_mode = ModeT(mode)
    return entry


def _name(name: bytes) -> pyfuse3.FileNameT:
    return pyfuse3.FileNameT(name)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    # the kernel answers ENOENT to a reply that nobody waits for any more: the process was killed meanwhile
    return not (record.levelno == logging.ERROR and record.getMessage().endswith(_NOBODY_WAITS))


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
