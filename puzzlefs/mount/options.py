"""The words after ``-o``: which ones a mount takes, and what libfuse is given.

Grammar (mount.fuse3(8)): words are separated by commas; a backslash takes away the meaning of the character after it,
so that ``fsname=`` may hold a comma or a backslash. Words come in three kinds:

* those that change something: ``allow_other default_permissions ro dev nodev suid nosuid exec noexec auto_unmount
  fsname= subtype=``;
* those that a read-only image cannot mean anything by and that callers such as mount(8) pass anyway: ``rw``, every
  word about access times, and the words of fstab that are meant for somebody else. They are accepted and dropped,
  because libfuse would refuse some of them;
* everything else: refused by name. ``max_read=`` and ``allow_root`` are refused on purpose: the first makes the
  session of pyfuse3 fail, the second lets other users see what the kernel has cached.

A mount is always read-only, and the kernel always checks permissions (``default_permissions``). Pure; immutable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from puzzlefs.errors import InvalidArgumentError

SUBTYPE: Final = "puzzlefs"
"""Makes ``mount`` say ``type fuse.puzzlefs``; ``puzzlefs umount`` knows its mounts by it."""

_ATIME_WORDS: Final = frozenset(
    prefix + word for word in ("atime", "relatime", "strictatime", "lazytime", "diratime") for prefix in ("", "no")
)
_FSTAB_WORDS: Final = frozenset(
    {"rw", "defaults", "auto", "noauto", "nofail", "_netdev", "_rnetdev", "async", "sync", "dirsync", "silent", "loud"}
    | {prefix + word for word in ("user", "users", "owner", "group") for prefix in ("", "no")}
)
_FSTAB_PREFIXES: Final = ("x-", "X-", "comment=", "user=")
_WITHOUT_EFFECT: Final = _ATIME_WORDS | _FSTAB_WORDS
_REFUSED: Final = {
    "allow_root": "it would let other users see what the kernel has cached; use allow_other",
    "max_read": "the size of a read request is chosen by the program",
}
_KNOWN: Final = (
    "allow_other, default_permissions, ro, dev, nodev, suid, nosuid, exec, noexec, auto_unmount, fsname=NAME and "
    "subtype=NAME"
)


class MountOptions(NamedTuple):
    """How to mount.

    Attributes:
        allow_other: whether other users may enter the mount; ``None``: if root mounts it.
        dev: whether device nodes work.
        suid: whether set-user-ID bits and file capabilities work.
        exec: whether programs can be started.
        auto_unmount: whether a helper unmounts when the server dies.
        fsname: what ``mount`` shows as the source; ``None``: the image.
        subtype: what ``mount`` shows after ``fuse.``.
    """

    allow_other: bool | None = None
    dev: bool = False
    suid: bool = False
    exec: bool = True
    auto_unmount: bool = False
    fsname: str | None = None
    subtype: str = SUBTYPE

    def libfuse_words(self, default_fsname: str, *, as_root: bool) -> list[str]:
        """The options as libfuse wants them, one per element, values escaped.

        Args:
            default_fsname: the source to show where the options name none.
            as_root: whether the mount is made by root.
        """
        fsname = default_fsname if self.fsname is None else self.fsname
        words = ["ro", "default_permissions", f"fsname={escape(fsname)}", f"subtype={escape(self.subtype)}"]
        if as_root if self.allow_other is None else self.allow_other:
            words.append("allow_other")
        # libfuse starts from nosuid,nodev; an ordinary user's fusermount3 complains about being told either
        words += [word for word, wanted in (("dev", self.dev), ("suid", self.suid)) if wanted]
        if not self.exec:
            words.append("noexec")
        if self.auto_unmount:
            words.append("auto_unmount")
        return words


def parse_options(texts: Sequence[str]) -> MountOptions:
    """The options that the texts after each ``-o`` spell; later words win over earlier ones.

    Raises:
        InvalidArgumentError: for a word that is not known, or refused; it names the word.
    """
    options = MountOptions()
    for text in texts:
        for word in split_words(text):
            options = _apply(options, word)
    return options


def escape(value: str) -> str:
    """``value`` with backslashes and commas escaped, as libfuse and fusermount3 read them."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def split_words(text: str) -> Iterator[str]:
    """The words of one text as it follows ``-o``, without their escapes."""
    word: list[str] = []
    characters = iter(text)
    for character in characters:
        if character == "\\":
            word.append(next(characters, "\\"))
        elif character == ",":
            yield "".join(word)
            word.clear()
        else:
            word.append(character)
    yield "".join(word)


def _apply(options: MountOptions, word: str) -> MountOptions:
    match word.partition("="):
        case ("", "", "") | ("ro" | "default_permissions", "", ""):
            return options
        case ("allow_other", "", ""):
            return options._replace(allow_other=True)
        case ("dev" | "nodev", "", ""):
            return options._replace(dev=word == "dev")
        case ("suid" | "nosuid", "", ""):
            return options._replace(suid=word == "suid")
        case ("exec" | "noexec", "", ""):
            return options._replace(exec=word == "exec")
        case ("auto_unmount", "", ""):
            return options._replace(auto_unmount=True)
        case ("fsname" | "subtype" as name, "=", value):
            return _with_name(options, name, value)
        case (name, _, _) if name in _REFUSED:
            raise InvalidArgumentError(f"mount option {word!r} is not supported", hint=_REFUSED[name])
    if word in _WITHOUT_EFFECT or word.startswith(_FSTAB_PREFIXES):
        return options
    raise InvalidArgumentError(f"mount option {word!r} is not known", hint=f"-o takes {_KNOWN}")


def _with_name(options: MountOptions, name: str, value: str) -> MountOptions:
    if not value or "\0" in value:
        raise InvalidArgumentError(f"mount option {name}= needs a name", hint=f"for example {name}={SUBTYPE}")
    return options._replace(fsname=value) if name == "fsname" else options._replace(subtype=value)
