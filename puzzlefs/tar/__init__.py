"""Images as tar archives: written straight out of an image, and read without making the tree.

``export_tar`` walks the image (``export``) and writes the headers (``encode``) and the chunks, loaded and verified a
little ahead (``ahead``). ``import_tar`` goes the other way: ``uncompress`` finds out what the archive is wrapped in,
``archive`` cuts it into members by what ``records`` decodes, ``tree`` plays these as unpacking would, in memory,
``spool`` keeps what is in the files, ``feed`` puts that into the builder's stream in the order of the image, and
``load`` drives it.

Archives are read here and not by the standard library's module: names and attributes are bytes, every number is
bounded before it is used, and one pass over a pipe has to do. The tests hold one against the other.
"""

from puzzlefs.tar.export import ExportReport, export_tar
from puzzlefs.tar.load import ImportReport, import_tar
from puzzlefs.tar.tree import WhiteoutRule

__all__ = ["ExportReport", "ImportReport", "WhiteoutRule", "export_tar", "import_tar"]
