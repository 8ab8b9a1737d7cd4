"""Pictures: they show what the reports say, are the same each time, and say what is missing."""

from __future__ import annotations

import importlib.util
import random
import struct
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import forge as f
from support.forge import Forge

from puzzlefs.errors import InvalidArgumentError, StorageError, UnsupportedError
from puzzlefs.plots import check_plot, plot_image, plot_layout
from puzzlefs.plots.treemap import Rectangle, squarify
from puzzlefs.usage import disk_usage, inspect_image, layout_statistics

pytestmark = pytest.mark.unit

DATA = random.Random(8).randbytes(100_000)
_SVG = "{http://www.w3.org/2000/svg}"


def a_layout(path: Path, tags: int = 3) -> Forge:
    forge = Forge(path / "layout")
    for number in range(tags):
        names = {b"usr": 2, b"$odd$ \xff\n": 3, b"small": 4}
        chunks = [forge.chunk(DATA[:50_000]), forge.chunk(DATA[50_000 : 70_000 + number]), forge.chunk(b"1")]
        forge.image(
            [
                f.directory(1, names),
                *(f.directory(ino, {b"f": ino + 10}) for ino in names.values()),
                *(f.regular(ino + 10, chunk) for ino, chunk in zip(names.values(), chunks, strict=True)),
            ],
            tag=f"tag-{number}",
        )
    return forge


def texts_of(path: Path) -> str:
    """The texts of a picture, which matplotlib leaves as comments beside the shapes that it draws for them."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    root = ElementTree.parse(path, parser).getroot()
    assert root.tag == f"{_SVG}svg"
    return "\n".join(str(element.text) for element in root.iter() if element.tag is ElementTree.Comment)


def test_a_picture_of_an_image(tmp_path: Path) -> None:
    reference = a_layout(tmp_path).reference("tag-0")
    picture = tmp_path / "image.svg"
    plot_image(inspect_image(reference), disk_usage(reference), picture)
    texts = texts_of(picture)
    for text in ("3 chunks", "≤ 64 KiB", "usr", "48.8 KiB", "$odd$", "(metadata)"):
        assert text in texts, text
    assert "small" not in texts  # less than can be seen


def test_a_picture_of_a_layout(tmp_path: Path) -> None:
    report = layout_statistics(a_layout(tmp_path).path)
    picture = tmp_path / "layout.svg"
    plot_layout(report, picture)
    texts = texts_of(picture)
    for text in ("tag-0", "tag-1", "tag-2", "100%", "without sharing", "stored, KiB"):
        assert text in texts, text
    part = report.shared_bytes[0][1] / report.entries[0].stored_bytes
    assert f"{part:.0%}" in texts


@pytest.mark.parametrize("suffix", ["svg", "png", "SVG"])
def test_the_same_numbers_give_the_same_picture(tmp_path: Path, suffix: str) -> None:
    report = layout_statistics(a_layout(tmp_path).path)
    pictures = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for picture in pictures:
        plot_layout(report, picture)
    one, other = (picture.read_bytes() for picture in pictures)
    assert one == other
    if suffix == "png":
        assert one.startswith(b"\x89PNG")
        assert min(struct.unpack(">II", one[16:24])) > 500
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("tags", [0, 1, 20, 70])
def test_any_number_of_tags(tmp_path: Path, tags: int) -> None:
    picture = tmp_path / "layout.svg"
    plot_layout(layout_statistics(a_layout(tmp_path, tags).path), picture)
    texts = texts_of(picture)
    assert texts.count("tag-") == 3 * min(tags, 60)
    assert (" tag-0 " in texts) is (0 < tags <= 60)


def test_an_image_without_anything(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    reference = forge.image([f.directory(1)])
    plot_image(inspect_image(reference), disk_usage(reference), tmp_path / "image.svg")
    assert "no chunks" in texts_of(tmp_path / "image.svg")


def test_names_of_files(tmp_path: Path) -> None:
    for name in ("picture", "picture.jpg", "svg"):
        with pytest.raises(InvalidArgumentError, match=r"\.svg or \.png"):
            check_plot(tmp_path / name)


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    with pytest.raises(UnsupportedError, match=r"puzzlefs\[plot\]"):
        plot_layout(layout_statistics(a_layout(tmp_path, 1).path), tmp_path / "layout.svg")
    assert not (tmp_path / "layout.svg").exists()


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    report = layout_statistics(a_layout(tmp_path, 1).path)
    with pytest.raises(StorageError, match=r"nowhere/layout\.png"):
        plot_layout(report, tmp_path / "nowhere" / "layout.png")
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(StorageError):
        plot_layout(report, tmp_path / "folder.svg")
    assert not list(tmp_path.glob(".tmp-*"))


@given(
    weights=st.lists(st.integers(1, 10**6), max_size=40),
    width=st.floats(0.1, 1e4),
    height=st.floats(0.1, 1e4),
)
def test_a_treemap_fills_its_place(weights: list[int], width: float, height: float) -> None:
    weights.sort(reverse=True)
    place = Rectangle(3.0, -2.0, width, height)
    rectangles = squarify(weights, place)
    assert len(rectangles) == len(weights)
    slack = 1e-6 * (width + height)
    for weight, rectangle in zip(weights, rectangles, strict=True):
        assert rectangle.width * rectangle.height == pytest.approx(weight / sum(weights) * width * height, rel=1e-6)
        assert place.x - slack <= rectangle.x
        assert rectangle.x + rectangle.width <= place.x + width + slack
        assert place.y - slack <= rectangle.y
        assert rectangle.y + rectangle.height <= place.y + height + slack
    for number, one in enumerate(rectangles):  # no two of them overlap
        for other in rectangles[:number]:
            across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
            down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
            assert across <= slack or down <= slack


def test_a_treemap_without_room_or_weights() -> None:
    assert squarify([], Rectangle(0, 0, 1, 1)) == []
    flat = squarify([2.0, 1.0], Rectangle(0, 0, 5, 0))
    assert [rectangle.width * rectangle.height for rectangle in flat] == [0, 0]


def test_a_treemap_is_made_of_squares_where_it_can_be() -> None:
    rectangles = squarify([1.0] * 16, Rectangle(0, 0, 1, 1))
    assert all(rectangle.width == pytest.approx(rectangle.height) for rectangle in rectangles)
