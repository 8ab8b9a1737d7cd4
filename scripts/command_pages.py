#!/usr/bin/env python3
"""A page for each command, from the parsers that ``-h`` shows: ``docs/commands/*.md`` and ``docs/man/*.1``.

    python scripts/command_pages.py           # write them
    python scripts/command_pages.py --check   # are they what the commands say? exit code 1 if not

Nothing in them is written by hand, so they are true as long as this was run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from puzzlefs_cli.main import make_parser

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100


def verbs(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Each verb with its line of help, and its parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            help_of = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for verb, verb_parser in action.choices.items():
                yield verb, help_of.get(verb, ""), verb_parser


def arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """How each argument is written, and what it means."""
    formatter = argparse.HelpFormatter(parser.prog, width=WIDTH)
    for group in parser._action_groups:
        for action in group._group_actions:
            if action.help is not argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction):
                written = formatter._format_action_invocation(action)
                yield written, formatter._expand_help(action) if action.help else ""


def usage(parser: argparse.ArgumentParser) -> str:
    """The usage, without the word."""
    return parser.format_usage().removeprefix("usage: ").strip()


def markdown(verb: str, parser: argparse.ArgumentParser) -> str:
    """The page of a verb for the web."""
    lines = [f"# puzzlefs {verb}", "", "```", usage(parser), "```", "", parser.description or "", ""]
    lines += ["| argument | meaning |", "|---|---|"]
    for written, meaning in arguments(parser):
        lines.append(f"| `{written}` | {' '.join(meaning.split())} |".replace("|-", "\\|-"))
    if parser.epilog:
        lines += ["", "```", parser.epilog.strip(), "```"]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def roff(text: str) -> str:
    """Text as roff takes it literally."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in text.splitlines())


def man(name: str, title: str, parser: argparse.ArgumentParser, more: list[str]) -> str:
    """The manual page of a verb, or of the whole command."""
    lines = [f'.TH "{name.upper()}" 1 "" "puzzlefs" "User Commands"', ".SH NAME", f"{roff(name)} \\- {roff(title)}"]
    lines += [".SH SYNOPSIS", ".nf", roff(usage(parser)), ".fi"]
    if parser.description:
        lines += [".SH DESCRIPTION", roff(parser.description.strip())]
    found = list(arguments(parser))
    if found:
        lines.append(".SH OPTIONS")
    for written, meaning in found:
        lines += [".TP", f".B {roff(written)}", roff(" ".join(meaning.split()))]
    lines += more
    if parser.epilog:
        lines += [".SH NOTES", ".nf", roff(parser.epilog.strip()), ".fi"]
    return "\n".join([*lines, ""])


def pages() -> dict[Path, str]:
    """Every page by its path below the project's root."""
    parser = make_parser()
    found: dict[Path, str] = {}
    index = ["# Commands", "", "Made by `scripts/command_pages.py` from what `puzzlefs COMMAND -h` says.", ""]
    index += ["| command | |", "|---|---|"]
    listed = [".SH COMMANDS"]
    for verb, title, verb_parser in verbs(parser):
        found[Path("docs/commands") / f"{verb}.md"] = markdown(verb, verb_parser)
        found[Path("docs/man") / f"puzzlefs-{verb}.1"] = man(f"puzzlefs-{verb}", title, verb_parser, [])
        index.append(f"| [{verb}]({verb}.md) | {title} |")
        listed += [".TP", f".BR puzzlefs\\-{roff(verb)} (1)", roff(title)]
    found[Path("docs/commands/README.md")] = "\n".join([*index, ""])
    found[Path("docs/man/puzzlefs.1")] = man("puzzlefs", "container images that share chunks", parser, listed)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    args = parser.parse_args()
    made = pages()
    wrong = [path for path, text in made.items() if not (ROOT / path).is_file() or (ROOT / path).read_text() != text]
    old = {path.relative_to(ROOT) for place in ("commands", "man") for path in (ROOT / "docs" / place).glob("*")}
    stale = sorted(old - set(made))
    if args.check:
        for path in [*wrong, *stale]:
            print(f"{path} is not what the command says; run scripts/command_pages.py", file=sys.stderr)
        return 1 if wrong or stale else 0
    for path in stale:
        (ROOT / path).unlink()
    for path in wrong:
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(made[path])
    return 0


if __name__ == "__main__":
    os.environ["COLUMNS"] = str(WIDTH)
    sys.exit(main())
