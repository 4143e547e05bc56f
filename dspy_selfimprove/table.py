"""Table: figures with their intervals, the same in a terminal, in a notebook and in a file.

A cell is text, or a `Bar`: an interval drawn on the range it lies in. Names of metrics and clusters are users' words,
so nothing in a cell is read as markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from rich.console import Group

WIDTH: Final = 12  # characters of a bar
_NAME: Final = 12  # characters that the first column keeps in a narrow terminal
_COLOURS: Final = {"good": "green", "bad": "red", "weak": "dim"}
_SPACED: Final = "padding:2px 12px 2px 0"
_HUES: Final = {"good": "color:#2e9e4f", "bad": "color:#d1453b", "weak": "opacity:.6"}


@dataclass(frozen=True, slots=True)
class Bar:
    """An interval and the value inside it, drawn between `start` and `end`; `mark` is a place worth seeing."""

    value: float
    low: float
    high: float
    start: float = 0.0
    end: float = 1.0
    mark: float | None = None

    def __str__(self) -> str:
        if math.isnan(self.value):
            return ""
        cells = ["·"] * WIDTH
        cells[self._place(self.low) : self._place(self.high) + 1] = "─" * (
            self._place(self.high) - self._place(self.low) + 1
        )
        if self.mark is not None:
            at = self._place(self.mark)
            cells[at] = "┼" if cells[at] == "─" else "┊"
        cells[self._place(self.value)] = "●"
        return "".join(cells)

    def _place(self, number: float) -> int:
        return min(WIDTH - 1, int(self._share(number) * WIDTH))

    def _share(self, number: float) -> float:
        return min(1.0, max(0.0, (number - self.start) / (self.end - self.start)))

    def to_html(self) -> str:
        if math.isnan(self.value):
            return ""
        low, value, high = (100 * self._share(number) for number in (self.low, self.value, self.high))
        lines = [_line(0, 100, 8, 8, 1, 0.2), _line(low, high, 8, 8, 2, 1.0)]
        if self.mark is not None:
            at = 100 * self._share(self.mark)
            lines.insert(1, _line(at, at, 2, 14, 1, 0.5))
        return (
            "<svg width='120' height='16' viewBox='-4 0 108 16' role='img'>"
            f"{''.join(lines)}<circle cx='{value:.1f}' cy='8' r='3.5' fill='currentColor'/></svg>"
        )


def _line(x1: float, x2: float, y1: float, y2: float, width: int, opacity: float) -> str:
    ends = f"x1='{x1:.1f}' x2='{x2:.1f}' y1='{y1:g}' y2='{y2:g}'"
    return f"<line {ends} stroke='currentColor' stroke-width='{width}' opacity='{opacity:g}'/>"


@dataclass(frozen=True, slots=True)
class Cell:
    """Text with a meaning: `good`, `bad` or `weak`."""

    text: str
    meaning: str = ""


Content: TypeAlias = str | Cell | Bar


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a title. `notes` must be seen, `foot` is for the curious. The first column is what a row is about."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Sequence[Content], ...]
    notes: tuple[str, ...] = ()
    foot: tuple[str, ...] = ()

    def __rich__(self) -> Group:
        from rich import box
        from rich.console import Group
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for number, column in enumerate(self.columns):
            grid.add_column(
                Text(column),
                justify="right" if number and self._is_number(number) else "left",
                no_wrap=number > 0,
                min_width=None if number else min(_NAME, max((len(_text(row[0])) for row in self.rows), default=0)),
            )
        for row in self.rows:
            grid.add_row(*(_rich(cell) for cell in row))
        notes = [Text(note, style="yellow") for note in self.notes] + [Text(line, style="dim") for line in self.foot]
        return Group(Text(self.title, style="bold"), *([grid] if self.rows else []), *notes)

    def _is_number(self, column: int) -> bool:
        return all(
            not isinstance(row[column], Bar) and _text(row[column]).strip("-+0123456789., %$[]") == ""
            for row in self.rows
        )

    def __str__(self) -> str:
        from rich.console import Console

        written = StringIO()
        Console(file=written, width=110, color_system=None, force_terminal=False).print(self)
        return "\n".join(line.rstrip() for line in written.getvalue().splitlines())

    def to_html(self) -> str:
        left, right = "text-align:left", "text-align:right"
        aligned = [right if number and self._is_number(number) else left for number in range(len(self.columns))]
        head = "".join(f"<th style='{side};{_SPACED}'>{self._head(number)}</th>" for number, side in enumerate(aligned))
        body = "".join(
            "<tr>" + "".join(_html(cell, side) for cell, side in zip(row, aligned, strict=True)) + "</tr>"
            for row in self.rows
        )
        notes = "".join(f"<div style='color:#b7791f'>{escape(note)}</div>" for note in self.notes)
        notes += "".join(f"<div style='opacity:.6'>{escape(line)}</div>" for line in self.foot)
        grid = (
            f"<table style='border-collapse:collapse'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            if self.rows
            else ""
        )
        return f"<div><b>{escape(self.title)}</b>{grid}{notes}</div>"

    def _head(self, column: int) -> str:
        name = self.columns[column]
        if not any(isinstance(row[column], Bar) for row in self.rows):
            return escape(name)
        ends = "".join(f"<span>{escape(end)}</span>" for end in name.split())
        return f"<div style='display:flex;justify-content:space-between;width:120px'>{ends}</div>"


class Tabled:
    """What shows itself as its `table()`: in a terminal, as text, in a notebook."""

    def table(self) -> Table:
        raise NotImplementedError

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Group:
        return self.table().__rich__()

    def _repr_html_(self) -> str:
        return self.table().to_html()


def scale(start: float, end: float) -> str:
    """The head of a column of bars."""
    ends = f"{start:g}", f"{end:g}"
    return ends[0] + " " * (WIDTH - len(ends[0]) - len(ends[1])) + ends[1]


def _text(cell: Content) -> str:
    return cell.text if isinstance(cell, Cell) else str(cell)


def _rich(cell: Content) -> Any:
    from rich.text import Text

    style = _COLOURS.get(cell.meaning, "") if isinstance(cell, Cell) else "cyan" if isinstance(cell, Bar) else ""
    return Text(_text(cell), style=style)


def _html(cell: Content, side: str) -> str:
    if isinstance(cell, Bar):
        return f"<td style='{_SPACED}'>{cell.to_html()}</td>"
    style = f"{side};{_HUES[cell.meaning]}" if isinstance(cell, Cell) and cell.meaning else side
    return f"<td style='{style};{_SPACED}'>{escape(_text(cell))}</td>"
