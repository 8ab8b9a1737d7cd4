"""New metadata layers on top of an image: from a whole tree, or from the upper directory of an overlayfs.

``whole_tree`` and ``upper`` find out what differs and make a ``layer``; ``overlay`` knows the marks of overlayfs;
``run`` stores the content of what is new by the builder's means, and commits.
"""

from puzzlefs.delta.run import build_from_tree, build_from_upper, is_compressed

__all__ = ["build_from_tree", "build_from_upper", "is_compressed"]
