"""Links in a layout whose owner is not the one who reads it: nothing outside is opened for him, and nothing shown.

What may be a link is the directory of blobs as a whole (format/README.md), and the path of the layout, which is the
reader's own word.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import forge as f
from support.examine import Outcome, examine, examine_limited
from support.forge import Forge

from puzzlefs.blobs import Layout, layout
from puzzlefs.errors import BlobNotFoundError, FormatError, IntegrityError, PuzzlefsError
from puzzlefs.image import open_image
from puzzlefs.oci import Dialect

pytestmark = pytest.mark.hostile

SECRET = "hunter2-is-not-a-password"
DOCUMENTS = ("oci-layout", "index.json")


def image_of(forge: Forge, content: bytes = b"content\n" * 1000) -> str:
    return forge.image([f.directory(1, {b"file": 2}), f.regular(2, forge.chunk(content))])


def chunk_path(forge: Forge) -> Path:
    with open_image(forge.reference()) as image:
        (piece,) = image.tree.plan(2, 0, 1).pieces
        return forge.blob_path(piece.blob)


def content_of(reference: str) -> bytes:
    with open_image(reference) as image:
        return image.read(2, 0, 100)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that is none of the image's business; as JSON as a document has to be, so that it could be quoted."""
    path = tmp_path / "secret"
    path.write_text(f'{{"imageLayoutVersion":"{SECRET}","schemaVersion":"{SECRET}","manifests":"{SECRET}"}}')
    path.chmod(0o600)
    return path


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    forge = Forge(tmp_path / "layout")
    image_of(forge)
    return forge


def refused(outcome: Outcome) -> None:
    assert outcome.opening == "FormatError", outcome.messages
    assert all("is a symbolic link" in message for message in outcome.messages)
    assert not any(SECRET in message for message in outcome.messages)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_is_not_read_through_a_link(forge: Forge, secret: Path, document: str) -> None:
    path = forge.path / document
    path.rename(forge.path / "blobs" / document)
    for target in (f"blobs/{document}", str(secret), "/dev/zero", "/proc/self/environ", "/proc/self/fd/0", "nowhere"):
        path.symlink_to(target)
        refused(examine_limited(forge.reference()))
        path.unlink()
    (forge.path / "blobs" / document).rename(path)
    assert examine(forge.reference()).problems == {}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_made_of_a_layout_is_not_written_through_a_link(forge: Forge, secret: Path, document: str) -> None:
    before = secret.read_bytes()
    (forge.path / document).unlink()
    (forge.path / document).symlink_to(secret)
    with pytest.raises(PuzzlefsError), Layout.open_or_create(forge.path, Dialect.OCI) as opened:
        opened.update_index(lambda index: index)
    assert secret.read_bytes() == before
    assert (forge.path / document).is_symlink()


def test_blobs_are_shared_and_a_blob_is_not_a_link(forge: Forge, tmp_path: Path) -> None:
    """Also in the directory that the link leads to, whoever that belongs to."""
    blobs = forge.path / "blobs" / "sha256"
    blobs.rename(tmp_path / "shared")
    (tmp_path / "way").symlink_to(tmp_path / "shared")
    blobs.symlink_to("../../way")
    assert examine(forge.reference()).problems == {}
    chunk = chunk_path(forge)
    chunk.resolve().rename(tmp_path / "elsewhere")
    for target in (tmp_path / "elsewhere", Path("../elsewhere"), Path("/dev/zero"), Path("/proc/self/environ")):
        chunk.symlink_to(target)
        outcome = examine_limited(forge.reference())
        assert outcome.problems == {b"file": "FormatError"}
        assert any("is a symbolic link" in message for message in outcome.messages)
        chunk.unlink()


@pytest.mark.parametrize("target", ["/proc/self/fd", "/proc/self/task", "/dev", "/etc", "/"])
def test_a_directory_without_such_blobs_gives_nothing(forge: Forge, target: str) -> None:
    blobs = forge.path / "blobs" / "sha256"
    blobs.rename(forge.path / "moved")
    blobs.symlink_to(target)
    with pytest.raises(BlobNotFoundError):
        open_image(forge.reference())


def test_a_hard_link_gives_away_nothing(forge: Forge, secret: Path) -> None:
    """A file under a name that is not its SHA-256: neither a byte of it nor anything that was parsed of it."""
    with open_image(forge.reference()) as image:
        assert image.manifest is not None
        used = [forge.blob_path(digest) for digest in (image.manifest_digest, image.manifest.rootfs().digest)]
    for path in (*used, chunk_path(forge)):
        kept = path.with_name("kept")
        path.rename(kept)
        os.link(secret, path)
        outcome = examine_limited(forge.reference())
        assert IntegrityError.__name__ in {outcome.opening, *outcome.problems.values()}
        assert not any(SECRET in message for message in outcome.messages)
        kept.replace(path)


def test_the_path_of_the_layout_is_the_readers_own(forge: Forge, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(forge.path)
    assert content_of(f"{tmp_path / 'link'}:hostile") == b"content\n" * 12 + b"cont"


# ---- a layout that is replaced meanwhile


@pytest.mark.parametrize("moment", ["_open_directory", "_read_dialect", "_open_blobs"])
def test_a_layout_is_one_from_beginning_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Whatever is put in its place while it is opened, by rename or as a link, is not mixed with it."""
    first, second = Forge(tmp_path / "layout"), Forge(tmp_path / "second")
    image_of(first, b"first\n" * 1000)
    image_of(second, b"second\n" * 1000)
    step = getattr(layout, moment)
    swaps: list[str] = []

    def swap(*words: object) -> object:
        result = step(*words)
        if not swaps:
            swaps.append(moment)
            first.path.rename(tmp_path / "first")
            first.path.symlink_to(second.path)
        return result

    monkeypatch.setattr(layout, moment, swap)
    assert content_of(first.reference()).startswith(b"first\n")
    assert swaps == [moment]
    assert content_of(first.reference()).startswith(b"second\n")


def test_lock_and_index_are_those_of_the_layout_that_was_opened(tmp_path: Path) -> None:
    first, second = Forge(tmp_path / "layout"), Forge(tmp_path / "second")
    image_of(first)
    image_of(second)
    untouched = (second.path / "index.json").stat().st_ino
    with Layout.open(first.path) as opened:
        before = opened.read_index().tags()
        first.path.rename(tmp_path / "first")
        first.path.symlink_to(second.path)
        opened.update_index(lambda index: index.with_tag("another", index.manifests[0]))
        assert set(opened.read_index().tags()) == {*before, "another"}
    with Layout.open(tmp_path / "first") as moved:
        assert "another" in moved.read_index().tags()
    assert (second.path / "index.json").stat().st_ino == untouched


def test_a_blob_that_turns_into_a_link_is_refused(forge: Forge, tmp_path: Path) -> None:
    """Also when the image is open, as that of a mount is: each blob is looked at when it is opened."""
    chunk = chunk_path(forge)
    with open_image(forge.reference()) as image:
        chunk.rename(tmp_path / "elsewhere")
        chunk.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FormatError, match="is a symbolic link"):
            image.read(2, 0, 10)
