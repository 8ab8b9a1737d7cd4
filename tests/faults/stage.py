"""Layouts in which commands are interrupted, and what has to be true of them afterwards."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from faulty_calls import Action, Done, Fault, FaultyCommand, Kind

from puzzlefs.blobs import Layout
from puzzlefs.collect import collect_garbage
from puzzlefs.digest import Digest
from puzzlefs.fsck import fsck
from puzzlefs_cli.exit_codes import ExitCode

NOTHING = Fault(kinds=Kind(0))
_BLOB_NAME = re.compile(r"[0-9a-f]{64}")
_CHANGES = frozenset(
    [
        "write",
        "pwrite",
        "ftruncate64",
        "fsync",
        "fdatasync",
        "syncfs",
        "rename",
        "renameat",
        "unlink",
        "unlinkat",
        "mkdir",
        "mkdirat",
    ]
)
_ERROR = re.compile(r"puzzlefs: .+; .+\n")


def make_tree(root: Path, seed: int, *, files: int = 3, size: int = 90_000) -> Path:
    """A small tree of a few chunks, with some of each kind of file."""
    root.mkdir()
    for number in range(files):
        (root / f"file-{number}").write_bytes(random.Random(f"{seed}/{number}").randbytes(size + 7000 * number))
    (root / "directory").mkdir()
    (root / "directory" / "text").write_text(f"all work and no play {seed}\n" * 300)
    (root / "link").symlink_to("directory/text")
    return root


def tags_of(layout: Path) -> dict[str, Digest]:
    """The tags, and the digests that they point to; none if there is no layout yet."""
    if not (layout / "oci-layout").exists():
        return {}
    with Layout.open(layout) as opened:
        return {tag: entry.digest for tag, entry in opened.read_index().tagged().items()}


def names_in(layout: Path) -> set[str]:
    """All names in the layout and beside its blobs."""
    found: set[str] = set()
    for directory in (layout, layout / "blobs" / "sha256"):
        if directory.is_dir():
            found.update(os.listdir(directory))
    return found


def left_behind(layout: Path) -> set[str]:
    """Whatever is neither a blob nor what the image specification names."""
    return {
        name
        for name in names_in(layout)
        if not _BLOB_NAME.fullmatch(name) and name not in ("oci-layout", "index.json", "blobs")
    }


@dataclass
class Case:
    """A command, and the layout that it changes.

    Attributes:
        name: what the test is called.
        words: its command line.
        layout: the directory whose calls fail.
        stdin: what it reads.
        makes_layout: whether there is none before.
        bad: names of blobs that are bad before and good afterwards.
        codes: what else it may end with when a call fails that only reads.
        keep: names that stay as they are, of a live mount for example.
        has_no_again: whether the command finds nothing to do once it has been done.
    """

    name: str
    words: Sequence[object]
    layout: Path
    stdin: Path | None = None
    makes_layout: bool = False
    bad: frozenset[str] = frozenset()
    codes: frozenset[int] = frozenset()
    keep: frozenset[str] = frozenset()
    has_no_again: bool = False
    before: dict[str, Digest] = field(default_factory=dict)
    after: dict[str, Digest] = field(default_factory=dict)
    blobs: frozenset[str] = frozenset()
    _contents: dict[str, bytes] = field(default_factory=dict)
    _checked: set[str] = field(default_factory=set)

    def prepare(self, command: FaultyCommand) -> None:
        """Note how the layout is, and how it is after the command."""
        self.keep = frozenset(left_behind(self.layout))
        self._contents = {
            str(path.relative_to(self.layout)): path.read_bytes()
            for path in self.layout.rglob("*")
            if path.is_file() and path.name not in self.keep
        }
        self.before = tags_of(self.layout)
        self._run_well(command)
        self.after = tags_of(self.layout)
        self._collect()
        self.blobs = frozenset(names_in(self.layout))
        self.restore()

    def restore(self) -> None:
        """Have the layout as it was."""
        if self.makes_layout:
            shutil.rmtree(self.layout, ignore_errors=True)
            return
        there = {str(path.relative_to(self.layout)): path for path in self.layout.rglob("*") if not path.is_dir()}
        for name, path in there.items():
            if name not in self._contents and path.name not in self.keep:
                path.unlink()
        for name, data in self._contents.items():
            path = self.layout / name
            if name not in there or path.is_symlink() or path.read_bytes() != data:
                path.unlink(missing_ok=True)
                path.write_bytes(data)

    def attempt(self, command: FaultyCommand, fault: Fault) -> list[str]:
        """Run the command with a fault; what is wrong afterwards. The layout is as before then."""
        done = command.run(self.layout, fault, *self.words, stdin=self.stdin)
        problems = [*self._wrong_answer(done, fault), *self.check(command, done.code == 0)]
        if done.hit and fault.action is Action.FAIL and "unlink" not in done.hit and not fault.stays:
            problems += [f"left behind: {name}" for name in left_behind(self.layout) - self.keep]
        problems += self.check_again(command)
        self.restore()
        what = f"{fault.action.name} {fault.at} {fault.number} {done.hit}"
        return [f"{what}: {problem}: {done.code}: {done.stderr.strip()}" for problem in problems]

    def _wrong_answer(self, done: Done, fault: Fault) -> list[str]:
        """What is wrong about how it ended."""
        if fault.action in (Action.KILL_BEFORE, Action.KILL_AFTER) and done.hit:
            return [] if done.code == -9 else ["it was not killed"]
        if done.code == 0 or fault.action is Action.SHORTEN or not done.hit:
            return [] if done.code == 0 else ["it failed"]
        problems = []
        if done.code not in {ExitCode.IO, *(() if done.hit.split()[0] in _CHANGES else self.codes)}:
            problems.append("an undocumented exit code")
        if done.code == ExitCode.IO:
            if not _ERROR.fullmatch(done.stderr):
                problems.append("not one line with an object and a next step")
            if os.strerror(fault.number) not in done.stderr:
                problems.append("it does not say which error")
            if str(self.layout) not in done.stderr:
                problems.append("it does not say where")
            if done.stdout:
                problems.append(f"it printed {done.stdout!r}")
        return problems

    def check(self, command: FaultyCommand, finished: bool) -> list[str]:
        """What is wrong about the layout after the command was interrupted, or has ended."""
        problems = []
        tags = tags_of(self.layout)
        if finished and tags != self.after:
            problems.append(f"it says it is done, and the tags are {tags}")
        if tags not in (self.before, self.after):
            problems.append(f"the tags are {tags}")
        state = self._state()
        if state in self._checked or not tags:
            return problems
        report = fsck(self.layout, workers=1)
        bad = {blob.digest.removeprefix("sha256:") for blob in report.bad}
        if not bad <= self.bad or (finished and bad) or report.malformed:
            problems.append(f"fsck: {report.bad} {report.malformed}")
        names = set(os.listdir(self.layout / "blobs" / "sha256"))
        for name in filter(_BLOB_NAME.fullmatch, names - self.bad):
            if hashlib.sha256((self.layout / "blobs" / "sha256" / name).read_bytes()).hexdigest() != name:
                problems.append(f"{name} is not what its name says")
        return problems

    def check_again(self, command: FaultyCommand) -> list[str]:
        """What is wrong about running it again."""
        state = self._state()
        if state in self._checked:
            return []
        problems = []
        try:
            if not (self.has_no_again and tags_of(self.layout) == self.after):
                self._run_well(command)
        except AssertionError as error:
            problems.append(f"again: {error}")
        else:
            if tags_of(self.layout) != self.after:
                problems.append(f"again: the tags are {tags_of(self.layout)}")
            self._collect()
            if names_in(self.layout) != self.blobs:
                problems.append(f"again: there are {names_in(self.layout) ^ self.blobs}")
            report = fsck(self.layout, workers=1)
            if str(report.state) != "clean":
                problems.append(f"again: fsck: {report.bad} {report.malformed}")
        if not problems:
            self._checked.add(state)
        return problems

    def _run_well(self, command: FaultyCommand) -> None:
        done = command.run(self.layout, NOTHING, *self.words, stdin=self.stdin)
        if done.code != 0 or done.stderr:
            raise AssertionError(f"{self.words}: {done}")

    def _collect(self) -> None:
        collect_garbage(self.layout, grace=0)

    def _state(self) -> str:
        """What the layout holds, as far as the next command can tell."""
        parts = []
        for path in sorted(self.layout.rglob("*")):
            name = re.sub(r"[0-9a-f]{16}|\d+$", "#", path.name) if path.name.startswith(".") else path.name
            parts.append(f"{name} {'' if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()}")
        return "\n".join(sorted(parts))


MakeCase = Callable[[Path], Case]


def tar_of(tree: Path, path: Path, *options: str) -> Path:
    """An archive of a tree."""
    subprocess.run(["tar", "-C", tree, *options, "-cf", path, "."], check=True)
    return path
