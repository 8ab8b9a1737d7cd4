"""An image in another version of the format: decode the metadata as one version has them, encode them as another.

What an image says is the same in all versions, metadata layers and times included, so nothing is lost that a reader
sees. What versions differ in:

* *Compressed chunks* have a seek table in version 3 and none before (``compression.framing``). Such a chunk gets
  another name, and the references to it, its fs-verity digest and its place in the manifest follow. All others keep
  their blobs, which are not even read where they stay in one directory.
* *The layout*: images of versions 1 and 2 and those of version 3 cannot share one. Blobs are linked, cloned or copied
  to the other, hashed on the way (``blobs.transfer``).
* *The OCI manifest* of version 3, whose list of chunks is made anew (``stack``).

So from any version to another and back an image has its digest again, if this program wrote it, or the original did
and it is not one of these: compressed images of version 3 (other frames, other media types), deltas of version 3
(another list of chunks). Compressed metadata of version 3 are uncompressed once they were in another version.

``chunks`` has each chunk in the new layout, ``stack`` encodes metadata layers for version 3, ``run`` drives both.
"""

from puzzlefs.callable_module import make_callable
from puzzlefs.convert.run import ConvertReport, convert

__all__ = ["ConvertReport", "convert"]

make_callable(__name__, convert)
