"""What is in images, what it weighs, and what they share: ``inspect_image``, ``disk_usage``, ``layout_statistics``.

All of it is told from metadata and from the sizes of the blobs' files; contents are never read.
"""

from puzzlefs.usage.decoded import bytes_to_text, inode_in_layers, manifest_text, rootfs_text
from puzzlefs.usage.folders import Usage, UsageReport, disk_usage
from puzzlefs.usage.inspection import Inspection, inspect_image
from puzzlefs.usage.statistics import EntryStatistics, LayoutStatistics, layout_statistics

__all__ = [
    "EntryStatistics",
    "Inspection",
    "LayoutStatistics",
    "Usage",
    "UsageReport",
    "bytes_to_text",
    "disk_usage",
    "inode_in_layers",
    "inspect_image",
    "layout_statistics",
    "manifest_text",
    "rootfs_text",
]
