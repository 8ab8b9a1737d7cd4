"""``puzzlefs completion``: completion for the shell; and what it offers: verbs, options, images, paths inside of them.

The shell starts the program for each Tab, with the line in its environment (argcomplete's protocol). Whatever goes
wrong offers nothing: a half-typed line is no error.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from puzzlefs_cli.arguments import HelpFormatter

_EPILOG: Final = """\
examples:
  puzzlefs completion bash > /etc/bash_completion.d/puzzlefs
  puzzlefs completion zsh > ~/.zfunc/_puzzlefs            (a directory in $fpath)
  puzzlefs completion fish > ~/.config/fish/completions/puzzlefs.fish
"""

_INSIDE: Final = frozenset({"ls", "stat", "tree", "find", "cat", "du", "export", "diff"})
"""Verbs that take paths inside of an image behind it."""
_MAX_OFFERS: Final = 1000


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "completion",
        help="completion for bash, zsh or fish",
        description="Print what makes a shell complete the words of puzzlefs: commands, options, tags, and paths "
        "inside of images.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do what the command line says."""
    from argcomplete.shell_integration import shellcode  # noqa: PLC0415  other verbs should not pay for it

    print(shellcode(["puzzlefs"], shell=args.shell).strip())
    return 0


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions, and end the process; return if none asks."""
    import argcomplete  # noqa: PLC0415

    for verb, verb_parser in _verbs(parser):
        for action in verb_parser._actions:
            if not action.option_strings and action.choices is None:
                action.completer = _Words(verb)  # type: ignore[attr-defined]
            elif action.metavar == "TAG":
                action.completer = _tags_of_layout  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)


def _verbs(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


class _Words:
    """What can stand in the place of a word that is no option."""

    def __init__(self, verb: str) -> None:
        self._verb = verb

    def __call__(self, prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        """The words that begin with ``prefix``."""
        try:
            words = [word for word in _typed(parsed_args) if word != prefix]
            image = next((word for word in words if _is_image(word)), None)
            if self._verb in _INSIDE and image is not None:
                return list(_inside(image, prefix))
            return [*_images(prefix), *_files(prefix)][:_MAX_OFFERS]
        except Exception:  # noqa: BLE001  a line that is being typed is no place for errors
            return []


def _typed(args: argparse.Namespace) -> list[str]:
    """All words that were typed so far."""
    found: list[str] = []
    for value in vars(args).values():
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list):
            found += [item for item in value if isinstance(item, str)]
    return found


def _is_image(word: str) -> bool:
    layout, _, tag = word.rpartition(":")
    return bool(tag) and _is_layout(layout)


def _is_layout(path: str) -> bool:
    return bool(path) and (Path(path) / "oci-layout").is_file()


def _images(prefix: str) -> Iterable[str]:
    """``OCI_DIR:TAG`` for what may be meant."""
    layout, colon, tag = prefix.rpartition(":")
    if colon:
        return [f"{layout}:{name}" for name in _tags(layout) if name.startswith(tag)]
    found: list[str] = []
    for directory in _directories(prefix):
        if _is_layout(directory):
            found += [f"{directory}:{name}" for name in _tags(directory)]
    return found


def _tags(layout: str) -> list[str]:
    from puzzlefs.blobs import Layout  # noqa: PLC0415

    with Layout.open(Path(layout)) as opened:
        return sorted(opened.read_index().tags())


def _tags_of_layout(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Tags of the layout that was named."""
    try:
        for word in _typed(parsed_args):
            layout = word if _is_layout(word) else word.rpartition(":")[0]
            if _is_layout(layout):
                return [name for name in _tags(layout) if name.startswith(prefix)]
    except Exception:  # noqa: BLE001
        return []
    return []


def _directories(prefix: str) -> list[str]:
    return [path for path in _paths(prefix) if Path(path).is_dir()]


def _files(prefix: str) -> list[str]:
    return [f"{path}/" if Path(path).is_dir() else path for path in _paths(prefix)]


def _paths(prefix: str) -> list[str]:
    head, slash, tail = prefix.rpartition("/")
    names = sorted(os.listdir(head + slash or "."))
    return [head + slash + name for name in names if name.startswith(tail) and (tail or not name.startswith("."))]


def _inside(image: str, prefix: str) -> Iterator[str]:
    """Paths inside of an image."""
    from puzzlefs.image import open_image  # noqa: PLC0415
    from puzzlefs.model import Kind  # noqa: PLC0415

    head, slash, tail = prefix.rpartition("/")
    with open_image(image) as opened:
        ino = opened.tree.root
        for name in filter(None, os.fsencode(head).split(b"/")):
            ino = opened.tree.lookup(ino, name).ino
        for entry in opened.tree.entries(ino)[:_MAX_OFFERS]:
            if entry.name.startswith(os.fsencode(tail)):
                yield f"{head}{slash}{os.fsdecode(entry.name)}{'/' if entry.kind is Kind.DIRECTORY else ''}"
