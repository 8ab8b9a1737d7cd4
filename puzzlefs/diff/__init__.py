"""What differs between two trees, each an image or a directory of the host, without unpacking either.

The trees are walked together, directory by directory, so what is compared is what has one path in both. What each step
need not look at:

* *Metadata layers that both images have* in the same blobs (versions 1 and 2; in version 3, all of them if the rootfs
  blob is the same): only inodes that a layer above mentions can differ, so of the directories the numbers are followed
  and nothing else is read. In version 3 layers are parts of one blob, whose equality does not prove that what hangs on
  an inode is the same; there, as between any two images, ``wire.Likeness`` compares the words of each pair of inodes.
* *Content*: equal lists of chunks are equal content. Where chunks begin and end elsewhere, bytes are read, only there,
  and verified as always. A directory's files are read, and must not change meanwhile.

What is in one tree only is told entry by entry, and then as a rename where it is the same inode (images stacked on a
layer that both have; two directories of one file system), or the same content.

``side`` is what a tree must answer, ``image_side`` and ``host_side`` are those who do, ``relation`` what two images
have in common, ``walk`` walks, ``renames`` finds those, ``needed`` says which chunks one image has and the other has
not, and ``run`` puts all of it together. All paths are bytes, relative to the root, without a slash in front.
"""

from puzzlefs.callable_module import make_callable
from puzzlefs.diff.report import Difference, DiffReport, EntryState, Needed
from puzzlefs.diff.run import diff

__all__ = ["DiffReport", "Difference", "EntryState", "Needed", "diff"]

make_callable(__name__, diff)
