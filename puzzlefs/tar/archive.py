"""A tar archive → its members, one after the other, in the order of the archive.

A member is what a header block and the extended headers in front of it say together; whose data lies where in the
archive is all that is said of contents. Limits: what is held of one archive is bounded, whatever the archive says, and
so is the time, by the bytes that it has.

As GNU tar does it: a block of zeros ends the archive (there should be two), or its end; sizes of links, devices and
directories mean nothing; a file whose name ends with a slash is a directory. A checksum that is wrong is an error, and
nothing is looked for behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from puzzlefs.errors import FormatError
from puzzlefs.tar.acl import ACL_KEYS, acl_xattr, mode_with_acl
from puzzlefs.tar.records import (
    BLOCK_DEVICE,
    BLOCK_SIZE,
    CHAR_DEVICE,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    ZERO_BLOCK,
    Header,
    Segment,
    check_map_size,
    check_records,
    check_segments,
    gnu_key,
    libarchive_xattr,
    old_sparse_extension,
    old_sparse_map,
    parse_extended,
    parse_header,
    parse_id,
    parse_size,
    parse_time,
    seconds_to_ns,
    sparse_pairs,
    sparse_records,
    wanted_records,
)
from puzzlefs.tar.spool import Archive

_MAX_EXTENDED: Final = 16 << 20
"""Bytes of the largest extended header, and of the largest map of holes."""

_MAX_HELD: Final = 1 << 30
"""Bytes of extended headers and maps of one archive: no image can hold more metadata."""

_SPARSE: Final = b"S"
_DUMPED_DIRECTORY: Final = b"D"
"""Of GNU's incremental archives: what follows it is a list of names."""
_MEMBERS: Final = frozenset({
    REGULAR, HARD_LINK, SYMLINK, CHAR_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO, _SPARSE, _DUMPED_DIRECTORY,
})  # fmt: skip
_UNKNOWN: Final = {b"M": "a part of a multi-volume archive", b"A": "an ACL of Solaris", b"E": "attributes of Solaris"}


class Extent(NamedTuple):
    """A run of data: where in the file, where in the archive, how many bytes. Between extents there are zeros."""

    offset: int
    position: int
    length: int


@dataclass(frozen=True, slots=True)
class Member:
    """What an archive says about one name.

    Attributes:
        kind: the type flag: ``0`` file, ``1`` hard link, ``2`` symlink, ``3`` and ``4`` devices, ``5`` directory,
            ``6`` fifo.
        name: as it stands there.
        target: of a link.
        mode: the 12 permission bits.
        uid: owner.
        gid: group.
        mtime_ns: nanoseconds since the epoch.
        device: major and minor number.
        size: bytes of a file.
        extents: where they are.
        xattrs: extended attributes.
    """

    kind: bytes
    name: bytes
    target: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    device: tuple[int, int]
    size: int
    extents: tuple[Extent, ...]
    xattrs: dict[bytes, bytes]


class MemberReader:
    """Reads the members of one archive.

    Attributes:
        ignored: what an image cannot hold, or could not be understood, and how often it was met.
    """

    def __init__(self, archive: Archive) -> None:
        """A reader from where ``archive`` stands."""
        self.ignored: Counter[str] = Counter()
        self._archive = archive
        self._global: dict[bytes, bytes] = {}
        self._held = 0
        self._header_position = 0

    def __iter__(self) -> Iterator[Member]:
        """Every member.

        Raises:
            FormatError: if the archive is malformed or ends early; it says where.
            SourceError: if it cannot be read.
            StorageError: if it cannot be kept.
        """
        archive = self._archive
        try:
            while (member := self._next()) is not None:
                yield member
            if archive.drain():
                self.ignored["bytes behind the end of the archive"] += 1
        except FormatError as error:
            error.message = f"{archive.name}, byte {self._header_position}: {error.message}"
            if not self._header_position:
                error.hint = error.hint or "this is not a tar archive"
            raise

    def _next(self) -> Member | None:
        """The next member; ``None`` at the end."""
        records: list[tuple[bytes, bytes]] = []
        long_name = long_target = b""
        while True:
            self._header_position = self._archive.position
            block = self._archive.read(BLOCK_SIZE)
            if not block or block == ZERO_BLOCK:
                if records or long_name or long_target:
                    raise FormatError("an extended header has no member behind it")
                if not self._archive.position:
                    raise FormatError("it is empty", hint="a tar archive is expected")
                if not block:
                    self.ignored["missing end of the archive"] += 1
                return None
            if len(block) < BLOCK_SIZE:
                raise self._ends_early()
            header = parse_header(block)
            match header.kind:
                case b"x" | b"X":
                    records += parse_extended(self._read_extended(header.size))
                    check_records(records)
                case b"g":
                    self._global.update(parse_extended(self._read_extended(header.size)))
                    check_records(self._global)
                case b"L":
                    long_name = self._read_extended(header.size).partition(b"\0")[0]
                case b"K":
                    long_target = self._read_extended(header.size).partition(b"\0")[0]
                case b"V":
                    self.ignored["volume labels"] += 1
                case kind if kind in _MEMBERS:
                    if long_name or long_target:
                        header = replace(header, name=long_name or header.name, target=long_target or header.target)
                    return self._member(header, records)
                case kind:
                    what = _UNKNOWN.get(kind, f"of an unknown type ({kind!r})")
                    raise FormatError(f"{header.name[:200]!r} is {what}", hint="it cannot be imported")

    def _member(self, header: Header, records: list[tuple[bytes, bytes]]) -> Member:
        said = wanted_records(records, self._global) if records or self._global else {}
        name = said.get(b"GNU.sparse.name") or said.get(b"path") or header.name
        kind, size = header.kind, header.size
        if b"size" in said:
            size = parse_size(said[b"size"])
        if kind == REGULAR and name.endswith(b"/"):
            kind = _DUMPED_DIRECTORY  # if it has data, they are not its own
        real_size = 0
        extents: tuple[Extent, ...] = ()
        if kind in (REGULAR, _SPARSE):
            real_size, extents = self._content(header, size, records, said)
            kind = REGULAR
        elif kind == _DUMPED_DIRECTORY:
            self._pass_over(size)
            kind = DIRECTORY
        mode = header.mode
        xattrs = self._xattrs(said) if said else {}
        if said and kind != SYMLINK:
            mode = self._add_acls(said, xattrs, mode)
        return Member(
            kind=kind,
            name=name,
            target=said.get(b"linkpath", header.target) if kind in (HARD_LINK, SYMLINK) else b"",
            mode=mode,
            uid=parse_id(said[b"uid"]) if b"uid" in said else header.uid,
            gid=parse_id(said[b"gid"]) if b"gid" in said else header.gid,
            mtime_ns=parse_time(said[b"mtime"]) if b"mtime" in said else seconds_to_ns(header.mtime),
            device=(header.major, header.minor),
            size=real_size,
            extents=extents,
            xattrs=xattrs,
        )

    # ---- content

    def _content(
        self, header: Header, size: int, records: list[tuple[bytes, bytes]], said: dict[bytes, bytes]
    ) -> tuple[int, tuple[Extent, ...]]:
        """The size of a file and where it is; the archive is passed over up to the next header."""
        segments: list[Segment] | None = None
        real_size = size
        if header.kind == _SPARSE:
            real_size, segments = self._old_map(header)
        elif said.get(b"GNU.sparse.major") == b"1":
            start = self._archive.position
            segments = self._map_in_data(size)
            size -= self._archive.position - start
            real_size = parse_size(said.get(b"GNU.sparse.realsize", b""))
        elif b"GNU.sparse.size" in said:
            real_size = parse_size(said[b"GNU.sparse.size"])
            segments = sparse_records(records)
        position = self._archive.position
        self._pass_over(size)
        if segments is None:
            return size, (Extent(0, position, size),) if size else ()
        extents: list[Extent] = []
        for offset, length in check_segments(segments, size, real_size):
            extents.append(Extent(offset, position, length))
            position += length
        return real_size, tuple(extents)

    def _old_map(self, header: Header) -> tuple[int, list[Segment]]:
        real_size, segments, is_extended = old_sparse_map(header)
        while is_extended:
            more, is_extended = old_sparse_extension(self._read_exactly(BLOCK_SIZE))
            self._hold(BLOCK_SIZE)
            segments += more
            check_map_size(len(segments))
        return real_size, segments

    def _map_in_data(self, size: int) -> list[Segment]:
        """The map of format 1.0: lines of numbers, the first of which says how many pairs there are."""
        text = bytearray()
        wanted = 0
        lines = 0
        while not lines or lines <= wanted:
            if len(text) + BLOCK_SIZE > min(size, _MAX_EXTENDED):
                raise FormatError("the map of a file with holes is malformed")
            block = self._read_exactly(BLOCK_SIZE)
            self._hold(BLOCK_SIZE)
            text += block
            lines += block.count(b"\n")
            if lines and not wanted:
                segments = parse_size(bytes(text[: text.index(b"\n")]))
                check_map_size(segments)
                wanted = 2 * segments
                if not wanted:
                    return []
        return sparse_pairs(bytes(text).split(b"\n")[1 : wanted + 1])

    def _pass_over(self, size: int) -> None:
        if not self._archive.skip(size + -size % BLOCK_SIZE):
            raise self._ends_early()

    # ---- extended headers

    def _xattrs(self, said: dict[bytes, bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        certain: dict[bytes, bytes] = {}
        for key, value in said.items():
            if key.startswith(b"SCHILY.xattr."):
                found[gnu_key(key[13:])] = value
            elif key.startswith(b"LIBARCHIVE.xattr."):
                name, data = libarchive_xattr(key[17:], value)
                certain[name] = data
            elif key == b"RHT.security.selinux":
                self.ignored["SELinux labels"] += 1
        return certain or found  # whoever writes the former writes the latter as well, but not in one way

    def _add_acls(self, said: dict[bytes, bytes], xattrs: dict[bytes, bytes], mode: int) -> int:
        """Add ACLs that are there as text to ``xattrs``; the permission bits that go with them."""
        for key, xattr in ACL_KEYS.items():
            if key not in said or xattr in xattrs:
                continue
            is_default = key.endswith(b"default")
            try:
                value = acl_xattr(said[key], is_default=is_default)
            except FormatError:
                self.ignored["ACLs that cannot be understood, or name users without their numbers"] += 1
                continue
            if value:
                xattrs[xattr] = value
                mode = mode if is_default else mode_with_acl(mode, value)
        return mode

    def _read_extended(self, size: int) -> bytes:
        if size > _MAX_EXTENDED:
            raise FormatError(f"an extended header of {size} bytes is larger than the {_MAX_EXTENDED} that are allowed")
        self._hold(size)
        return self._read_exactly(size + -size % BLOCK_SIZE)[:size]

    def _read_exactly(self, size: int) -> bytes:
        data = self._archive.read(size)
        if len(data) < size:
            raise self._ends_early()
        return data

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > _MAX_HELD:
            raise FormatError(f"the archive has more than {_MAX_HELD} bytes of extended headers", hint="it is refused")

    def _ends_early(self) -> FormatError:
        return FormatError("the archive ends early", hint="it is incomplete")
