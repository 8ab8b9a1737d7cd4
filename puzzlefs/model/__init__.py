"""What an image says, as values: inodes, metadata layers, the root file system. No I/O, no Cap'n Proto.

Everything here is immutable, so it may be shared between threads freely. File names, symlink targets and xattrs are
``bytes``: an image knows no encoding. The model has no format versions in it; ``puzzlefs.wire`` maps versions to it.
"""

from puzzlefs.model.inode import (
    KIND_NAMES,
    MAX_FILE_SIZE,
    NO_OWNER,
    BlobRef,
    BlockDevice,
    CharDevice,
    Content,
    Directory,
    DirEntry,
    Fifo,
    FileChunk,
    Inode,
    Kind,
    RegularFile,
    Socket,
    Symlink,
    Whiteout,
    Xattr,
    kind_of,
)
from puzzlefs.model.rootfs import ROOT_INO, Glance, InodeTable, MetadataLayer, Resident, Rootfs, chunks_of

__all__ = [
    "KIND_NAMES",
    "MAX_FILE_SIZE",
    "NO_OWNER",
    "ROOT_INO",
    "BlobRef",
    "BlockDevice",
    "CharDevice",
    "Content",
    "DirEntry",
    "Directory",
    "Fifo",
    "FileChunk",
    "Glance",
    "Inode",
    "InodeTable",
    "Kind",
    "MetadataLayer",
    "RegularFile",
    "Resident",
    "Rootfs",
    "Socket",
    "Symlink",
    "Whiteout",
    "Xattr",
    "chunks_of",
    "kind_of",
]
