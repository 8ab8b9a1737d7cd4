"""Names of a package that are loaded when somebody asks for them first.

A mount waits for every module that is loaded on the way, so a package whose ``__init__`` would load what only builders
need says instead where it is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping


def late(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """The ``__getattr__`` of a package (PEP 562).

    Args:
        package: its ``__name__``.
        homes: names, and the modules in the package that define them.
    """

    def load(name: str) -> object:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{home}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
