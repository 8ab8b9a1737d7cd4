"""Images in another layout: everything that their tags lead to, as it is, and only what is not there yet.

* *What is copied* (``survey``): the blob that the tag points to, and whatever that names, through nested indexes and
  manifests of any kind. Of an image of ours that is its metadata, what its manifest lists, and every chunk that an
  inode of any metadata layer refers to. Chunks that are missing and that no visible inode needs are left out, as for
  every reader. Manifests that refer to what is copied (``subject``; or a tag that begins with its digest, for
  registries that know no referrers) go along: signatures, bills of materials.
* *How*: a blob that is there with the right size is left alone; with ``check_existing`` it is hashed first. Any other
  is linked, cloned or copied, and hashed on the way (``blobs.transfer``). Blobs get their names a batch at a time, what
  names others after what it names; so whoever starts again after an interruption goes on where it ended.
* *When it counts*: tags move last, all at once, under the lock of the layout. Until then the writer's lease keeps what
  is there from being collected as garbage.

Nothing is converted: a layout of the other kind is refused.
"""

from puzzlefs.callable_module import make_callable
from puzzlefs.copy_image.run import CopyReport, copy_all, copy_image

__all__ = ["CopyReport", "copy_all", "copy_image"]

make_callable(__name__, copy_image)
