"""Names of users and groups, as the image itself gives them in ``/etc/passwd`` and ``/etc/group``.

The host's names mean nothing here: its user 101 is another one than the image's. What cannot be read (there is no such
file, or it is damaged) names nobody: whoever asks wants to look at other things. Both files are read once, when they
are first asked for, and no more than a mebibyte of each.
"""

from __future__ import annotations

import os
from functools import cached_property
from itertools import islice
from typing import Final

from puzzlefs.errors import PuzzlefsError
from puzzlefs.image_file import FileSource, content_of
from puzzlefs.vfs.paths import resolve

_MAX_WINDOWS: Final = 1


class Owners:
    """The names of one image's users and groups."""

    def __init__(self, image: FileSource) -> None:
        self._image = image

    def user(self, uid: int) -> str | None:
        """The name of a user; ``None`` if the image does not name it."""
        return self._users.get(uid)

    def group(self, gid: int) -> str | None:
        """The name of a group; ``None`` if the image does not name it."""
        return self._groups.get(gid)

    @cached_property
    def _users(self) -> dict[int, str]:
        return self._names(b"/etc/passwd")

    @cached_property
    def _groups(self) -> dict[int, str]:
        return self._names(b"/etc/group")

    def _names(self, path: bytes) -> dict[int, str]:
        """The third field of each line → the first; the first line of a number counts, as in getpwuid(3)."""
        try:
            place = resolve(self._image.tree, path)
            data = b"".join(islice(content_of(self._image, place), _MAX_WINDOWS))
        except PuzzlefsError:
            return {}
        names: dict[int, str] = {}
        for line in data.splitlines():
            fields = line.split(b":")
            if len(fields) > 2 and fields[0] and fields[2].isdigit() and len(fields[2]) <= 10:
                name = os.fsdecode(fields[0])
                if name.isprintable() and " " not in name:
                    names.setdefault(int(fields[2]), name)
        return names
