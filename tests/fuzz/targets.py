"""All targets by their names."""

from __future__ import annotations

from fuzz import archives, chunks, documents, graphs, images, metadata
from fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target for room in (metadata, graphs, documents, chunks, archives, images) for target in room.TARGETS
}
