"""Plots: drawn here, self-contained, inert whatever the text, legible in the light and in the dark."""

from __future__ import annotations

import re
import socket
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from html.parser import HTMLParser
from pathlib import Path

import altair
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.plot import Plot

EVIL = "</svg><script>alert(1)</script><img src=x onerror=alert(1)><!-- ]]> \" ' & {{x}} \x00"


def chart(text: str = "a", link: bool = False) -> Plot:
    data = altair.Data(values=[{"x": 1, "y": 3, "name": text}, {"x": 2, "y": 1, "name": "b"}])
    base = altair.Chart(data, title=altair.Title(f"Title {text}", subtitle=text)).mark_circle(size=200)
    color = altair.Color("name:N", title=text)
    encoded = base.encode(x="x:Q", y=altair.Y("y:Q", title=text), color=color, tooltip="name:N")
    return Plot(encoded.encode(href="name:N") if link else encoded)


class Page(HTMLParser):
    """The tags and attributes a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")


def pixels(png: bytes) -> tuple[int, int, set[bytes]]:
    """Width, height and the colours of the first row of a PNG without interlacing, whose filter is simple there."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert (depth, kind) == (8, 6)
    packed, place = b"", 8
    while place < len(png):
        length, name = struct.unpack(">I4s", png[place : place + 8])
        if name == b"IDAT":
            packed += png[place + 8 : place + 8 + length]
        place += 12 + length
    row = bytearray(zlib.decompress(packed)[: 1 + width * 4])
    if row[0] == 1:  # each pixel as its difference from the one before
        for i in range(5, len(row)):
            row[i] = (row[i] + row[i - 4]) % 256
    return width, height, {bytes(row[i : i + 4]) for i in range(1, len(row), 4)}


@pytest.mark.parametrize("suffix", [".svg", ".html", ".png", ".PNG"])
def test_the_suffix_says_what_is_written(tmp_path: Path, suffix: str) -> None:
    path = chart().save(tmp_path / "new" / f"plot{suffix}")
    content = path.read_bytes()
    begins = {".svg": b"<svg", ".html": b"<!doctype html>", ".png": b"\x89PNG"}[suffix.lower()]
    assert content.startswith(begins)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    for name in ("plot", "plot.pdf", "plot.svg.exe"):
        with pytest.raises(UsageError, match=r"End it in \.svg"):
            chart().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@given(
    st.one_of(
        st.text(max_size=30),
        st.just(EVIL),
        st.just("javascript:alert(1)"),
        st.just("\ud800\ufffe\x1f\n"),
        st.just("https://example.com"),
    )
)
@settings(max_examples=25)
def test_text_is_text(text: str) -> None:
    page = Page(chart(text, link=True).to_html())
    assert not {"script", "img", "image", "iframe", "object", "link", "foreignobject"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on") or name.endswith(("href", "src"))]
    assert "default-src 'none'" in page.attributes["content"][0]


def test_a_drawing_is_sound_xml_and_shows_the_text() -> None:
    tree = ElementTree.fromstring(chart("<b>bold</b> & more").to_svg())
    assert any("<b>bold</b> & more" in (node.text or "") for node in tree.iter())


def test_nothing_is_asked_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plot opened a connection")

    monkeypatch.setattr(socket, "create_connection", refuse)
    page = chart().to_html()
    assert set(re.findall(r"https?://[^\"' )]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    with pytest.raises(ValueError, match=r"data\.json"):
        Plot(altair.Chart("http://127.0.0.1:9/data.json").mark_point().encode(x="x:Q")).to_svg()


def test_the_drawing_follows_the_reader_and_leaves_the_page_alone() -> None:
    svg = chart().to_svg()
    name = re.search(r'class="marks (plot-[0-9a-f]{8})"', svg)
    assert name
    rules = re.search(r"<style>@media \(prefers-color-scheme: dark\)\{(.*?)\}</style>", svg)
    assert rules
    selectors = re.findall(r"([^{}]+)\{", rules[1])
    assert selectors
    assert all(selector.startswith(f".{name[1]} [") for selector in selectors)
    # Every neutral colour that is drawn has its rule; what remains is the data's.
    drawn = set(re.findall(r'(?:fill|stroke)="(#[0-9a-f]{6})"', svg.replace(rules[0], "")))
    ruled = set(re.findall(r'="(#[0-9a-f]{6})"', rules[1]))
    assert "#000000" not in drawn - ruled
    assert len(drawn & ruled) >= 3


def test_light_and_dark_pictures_have_their_own_paper() -> None:
    light, dark = pixels(chart().to_png()), pixels(chart().to_png(dark=True))
    assert light[:2] == dark[:2]
    assert light[2] == {b"\xfd\xfd\xfc\xff"}
    assert dark[2] == {b"\x15\x18\x1c\xff"}


def test_a_notebook_gets_the_drawing_itself() -> None:
    shown = chart()._repr_mimebundle_()
    assert shown["image/svg+xml"].startswith("<svg")
    assert "<script" not in "".join(shown.values())
    assert "Plot(" in shown["text/plain"]
