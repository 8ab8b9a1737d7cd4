"""fs-verity: the digest of a file that a kernel can hold it to.

``digest`` computes in user space what the kernel would compute; ``kernel`` asks the kernel: enable, measure.
Neither knows about images. What the words mean is in the kernel's Documentation/filesystems/fsverity.rst.
"""

from puzzlefs.verity.digest import VerityHasher, verity_digest, verity_digest_of_file
from puzzlefs.verity.kernel import enable, find_measurement, is_available, measure

__all__ = [
    "VerityHasher",
    "enable",
    "find_measurement",
    "is_available",
    "measure",
    "verity_digest",
    "verity_digest_of_file",
]
