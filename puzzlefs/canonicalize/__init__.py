"""The canonical form of an image: what ``build`` would make of the tree that it shows, without making that tree.

A stack of metadata layers shows a tree; a fresh build of that tree has one metadata layer, numbers inodes in the order
of their names and cuts one stream of all files. ``canonicalize`` makes the same image, to the bit, from the stack:
``renumber`` walks the merged tree in the order of a scan, ``content`` streams the files out of their old chunks into
the builder's cutter, which takes over every stored chunk that comes out of it again, ``way`` finds out how the image
was built, and ``run`` drives all of it.
"""

from puzzlefs.callable_module import make_callable
from puzzlefs.canonicalize.run import CanonicalReport, canonicalize

__all__ = ["CanonicalReport", "canonicalize"]

make_callable(__name__, canonicalize)
