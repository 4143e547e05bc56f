"""Plot: an altair chart that is drawn here, without a browser, a script or the network.

It is drawn as SVG, and its few neutral colours (paper, ink, grid) follow the reader's light or dark setting by a style
sheet inside the drawing. A saved page therefore holds no JavaScript at all, nothing that could load anything, and text
from a trace in it is text: whatever markup it contains is shown, never run. The price is that nothing can be hovered.

Not covered: a notebook whose dark theme is its own and not the system's shows the light drawing, on its own paper.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.files import replacing

if TYPE_CHECKING:
    import altair

# The neutral colours, light and dark. Colours of data are chosen to be seen on both papers and stay as they are.
_LIGHT = {"paper": "#fdfdfc", "ink": "#20242a", "faint": "#5d6670", "grid": "#e3e6e8"}
_DARK = {"paper": "#15181c", "ink": "#e8eaed", "faint": "#9aa4ae", "grid": "#2d3339"}
_FONT = "Helvetica, Arial, sans-serif"
# A link could run what the text of a trace says, a picture could fetch it; neither is drawn. In text, "<" is escaped.
_LINK = re.compile(r'<(a|image|use) (?:xlink:)?href="[^"]*"')
# What XML forbids makes the drawing engine abort the whole process, and a line break in a title is a syntax error.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_UNDRAWABLE = re.compile("[\ud800-\udfff\ufffe\uffff]")
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<meta name="viewport" content="width=device-width">
<title>dspy-selfimprove</title>
<style>body {{ margin: 2rem; background: {light}; }} svg {{ max-width: 100%; height: auto; }}
@media (prefers-color-scheme: dark) {{ body {{ background: {dark}; }} }}</style>
{svg}
</html>
"""


@dataclass(frozen=True, slots=True, eq=False)
class Plot:
    """A chart to look at in a notebook, or to save.

    >>> import altair
    >>> plot = Plot(altair.Chart(altair.Data(values=[{"x": 1}])).mark_point().encode(x="x:Q"))
    >>> plot.to_svg().startswith("<svg"), "<script" in plot.to_html()
    (True, False)
    """

    chart: altair.TopLevelMixin

    def save(self, path: str | Path, *, dark: bool = False) -> Path:
        """Write the plot as its suffix says: .svg and .html, which follow the reader's setting, or .png.

        `dark` says which of the two a .png is to be. An existing file is replaced whole.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in (".svg", ".html", ".png"):
            raise UsageError(
                f"{path.name} does not say what kind of picture it is.", remedy="End it in .svg, .png or .html."
            )
        content = self.to_png(dark=dark) if suffix == ".png" else self._text(suffix).encode()
        with replacing(path) as part:
            part.write_bytes(content)
        return path

    def to_svg(self) -> str:
        """The drawing, light or dark as the reader's system is."""
        return _following(self._drawn(_LIGHT))

    def to_html(self) -> str:
        """A page of its own."""
        return _PAGE.format(light=_LIGHT["paper"], dark=_DARK["paper"], svg=self.to_svg())

    def to_png(self, *, dark: bool = False) -> bytes:
        """The drawing in pixels, two to a point."""
        import vl_convert

        png: bytes = vl_convert.svg_to_png(self._drawn(_DARK if dark else _LIGHT), scale=2.0)
        return png

    def _text(self, suffix: str) -> str:
        return self.to_html() if suffix == ".html" else self.to_svg()

    def _drawn(self, colours: dict[str, str]) -> str:
        import vl_convert

        svg: str = vl_convert.vegalite_to_svg(
            _drawable(self.chart.to_dict()), config=_config(colours), allowed_base_urls=[]
        )
        return _LINK.sub(r"<\1", svg)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"image/svg+xml": self.to_svg(), "text/plain": repr(self)}

    def __repr__(self) -> str:
        return "Plot(save it as .svg, .png or .html, or show it in a notebook)"


def _drawable(value: Any, holder: str = "") -> Any:
    """A specification without links, and without the characters that no drawing can hold."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key != "href" or holder not in ("encoding", "mark")}
        return {_plain(key): _drawable(each, key) for key, each in kept.items()}
    if isinstance(value, list):
        return [_drawable(each) for each in value]
    return _plain(value) if isinstance(value, str) else value


def _plain(text: str) -> str:
    return _UNDRAWABLE.sub("\ufffd", _CONTROL.sub(" ", text))


def _config(colours: dict[str, str]) -> dict[str, Any]:
    text = {"labelColor": colours["faint"], "titleColor": colours["ink"], "labelFont": _FONT, "titleFont": _FONT}
    return {
        "background": colours["paper"],
        "font": _FONT,
        "padding": 16,
        "view": {"stroke": None},
        "axis": {
            **text,
            "domainColor": colours["faint"],
            "tickColor": colours["grid"],
            "gridColor": colours["grid"],
            "titleFontWeight": "normal",
        },
        "legend": {**text, "titleFontWeight": "normal"},
        "title": {
            "color": colours["ink"],
            "subtitleColor": colours["faint"],
            "anchor": "start",
            "fontSize": 14,
            "subtitleFontSize": 12,
            "offset": 12,
        },
        "text": {"color": colours["ink"]},
    }


def _following(svg: str) -> str:
    """The light drawing, with rules that turn each neutral colour for a dark reader, and only in this drawing."""
    name = f"plot-{hashlib.sha256(svg.encode()).hexdigest()[:8]}"
    rules = "".join(
        f'.{name} [{attribute}="{colour}"]{{{attribute}:{_DARK[what]}}}'
        for what, colour in _LIGHT.items()
        for attribute in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    head, rest = svg.split(">", 1)
    head = head.replace('class="marks"', f'class="marks {name}"')
    return f"{head}>{style}{rest}"
