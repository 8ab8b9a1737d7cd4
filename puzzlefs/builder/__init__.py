"""Building an image from a directory of the host.

The road: ``source`` reaches the host's files, ``scan`` numbers and describes them, ``stream`` reads and cuts
them into chunks, ``pipeline`` stores those, ``chunks`` remembers which file lies where, and ``run`` drives
all of it and has the result committed under a tag.
"""

from puzzlefs.builder.report import BuildReport, Progress
from puzzlefs.builder.run import VERSIONS, Timestamps, build
from puzzlefs.builder.storage import StorageOptions

__all__ = ["VERSIONS", "BuildReport", "Progress", "StorageOptions", "Timestamps", "build"]
