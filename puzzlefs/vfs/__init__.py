"""What an image looks like as a file system: defined here and only here. FUSE, extract and the rest are adapters."""

from puzzlefs.vfs.attributes import Attributes, file_type_to_kind, kind_to_file_type
from puzzlefs.vfs.plan import Piece, ReadPlan
from puzzlefs.vfs.tree import Entry, Totals, Tree

__all__ = ["Attributes", "Entry", "Piece", "ReadPlan", "Totals", "Tree", "file_type_to_kind", "kind_to_file_type"]
