"""Modules that are also the function they are named after.

``puzzlefs.mount`` and ``puzzlefs.extract`` are what users call, and rooms of the house as well. Python binds a module
under its name in its package whenever it is first imported, in place of a function of that name; so these two modules
can be called, and mean the same either way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType


def make_callable(name: str, function: Callable[..., object]) -> None:
    """Have the module ``name``, which is being imported, pass calls on to ``function``."""

    class CallableModule(ModuleType):
        __doc__ = function.__doc__

        def __call__(self, *arguments: object, **named: object) -> object:
            return function(*arguments, **named)

    sys.modules[name].__class__ = CallableModule
