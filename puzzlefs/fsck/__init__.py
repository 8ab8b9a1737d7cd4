"""Is a layout sound, what does it hit if not, and can it be mended: the operation behind ``puzzlefs fsck``.

A check goes down the chain of digests, as a reader does, but does not stop at the first thing that is wrong:

* ``survey``: index, manifests, metadata: which blobs there have to be, and what is recorded of each;
* ``hashing``: whether each is there and has its sha256 and its fs-verity digest, in a few threads;
* ``tree``: whether what intact metadata say can be: every inode decodes, every visible entry leads somewhere;
* ``uses``: which files a bad blob hits.

Two kinds of things can be wrong. A *bad blob* is missing, or its bytes are not those of its name: good bytes mend it,
and any source will do, since nothing is trusted before its digest agrees (``repair``, ``cutting``). What is *malformed*
is intact and yet says something that cannot be: no other bytes have that digest, so the image has to be built again.
"""

from puzzlefs.callable_module import make_callable
from puzzlefs.fsck.report import BadBlob, Fault, FsckReport, Hit, Malformed, Remark, State
from puzzlefs.fsck.run import fsck

__all__ = ["BadBlob", "Fault", "FsckReport", "Hit", "Malformed", "Remark", "State", "fsck"]

make_callable(__name__, fsck)
