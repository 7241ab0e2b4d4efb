"""Tables: what stands in which row and column, once, for the terminal, a page, Markdown, LaTeX and CSV files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from rich import box
from rich import table as rich_table
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from softgate.errors import printable
from softgate.rounding import rounded

WIDTH = 120
"""Columns of the terminal that a table is drawn for where its output goes to a file or a pipe."""

Mark = Literal["better", "worse", "pending"]

STYLES: dict[Mark, str] = {"better": "green", "worse": "red", "pending": "yellow"}
"""How a terminal shows a mark; pages have classes of these names."""


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    Attributes:
        text: What a reader sees.
        value: What a CSV file holds, such as the number that was rounded for the text; None for the text.
        mark: Picks a colour; None for that of all text.
        link: An address that a page links the text to; None for none.
    """

    text: str
    value: float | str | None = None
    mark: Mark | None = None
    link: str | None = None


@dataclass(frozen=True)
class Table:
    """Words and numbers in rows and columns. Nothing in a cell is ever taken for markup.

    Attributes:
        heads: Of the columns; with none but empty ones, the table has no head.
        rows: From the top; a word stands for a cell of this text.
        title: Above it.
        align: A letter for each column, l or r; "" is the first column to the left and all others to the right.

    Raises:
        ValueError: If a row has more or fewer cells than there are heads, or `align` is not one of l and r for each.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    title: str = ""
    align: str = ""

    def __post_init__(self) -> None:
        if not self.align:
            object.__setattr__(self, "align", "l" + "r" * (len(self.heads) - 1))
        if len(self.align) != len(self.heads) or set(self.align) - {"l", "r"}:
            raise ValueError(f"align={self.align}: l or r for each of {len(self.heads)} columns is needed.")
        for row in self.rows:
            if len(row) != len(self.heads):
                raise ValueError(f"a row has {len(row)} cells, the table {len(self.heads)} columns.")

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, with a cell for each word."""
        return [[Cell(each) if isinstance(each, str) else each for each in row] for row in self.rows]

    @property
    def texts(self) -> list[list[str]]:
        """What a reader sees of the rows."""
        return [[each.text for each in row] for row in self.cells]

    @property
    def headed(self) -> bool:
        """Whether any column has a head."""
        return any(self.heads)

    def rich(self, whole: bool = False) -> rich_table.Table:
        """For a terminal.

        Args:
            whole: Never break the words of the first column into lines.
        """
        made = rich_table.Table(
            title=Text(self.title, style="bold") if self.title else None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            show_header=self.headed,
        )
        for place, (head, side) in enumerate(zip(self.heads, self.align, strict=True)):
            made.add_column(
                Text(head), justify="left" if side == "l" else "right", no_wrap=whole and place == 0, overflow="fold"
            )
        for row in self.cells:
            made.add_row(*(Text(cell.text, style=STYLES[cell.mark] if cell.mark else "") for cell in row))
        return made

    def markdown(self) -> str:
        """As a pipe table, without the title. A cell may hold code in backticks."""
        rule = ["---" if side == "l" else "---:" for side in self.align]
        lines = [_markdown(self.heads), rule, *map(_markdown, self.texts)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def latex(self, fit: bool = False) -> str:
        r"""As a `table` with the title as its caption, for a document that has `\usepackage{booktabs}`.

        Args:
            fit: Shrink a table that is wider than the text; the document needs `\usepackage{graphicx}` too.
        """
        head = [" & ".join(map(escaped, self.heads)) + r" \\", r"\midrule"] if self.headed else []
        rows = [" & ".join(_marked(cell) for cell in row) + r" \\" for row in self.cells]
        caption = [rf"\caption{{{escaped(self.title)}}}"] if self.title else []
        tabular = [rf"\begin{{tabular}}{{{self.align}}}", r"\toprule", *head, *rows, r"\bottomrule", r"\end{tabular}"]
        if fit:
            width = r"\ifdim\width>\linewidth\linewidth\else\width\fi"
            tabular = [rf"\resizebox{{{width}}}{{!}}{{%", *tabular[:-1], tabular[-1] + "}"]
        return "\n".join([r"\begin{table}", r"\centering", *caption, *tabular, r"\end{table}"]) + "\n"

    def html(self) -> str:
        """As a `<table>`, without the title; no cell is taken for markup."""
        sides = [self._side(place) for place in range(len(self.heads))]
        heads = "".join(f"<th{side}>{escape(head)}</th>" for head, side in zip(self.heads, sides, strict=True))
        rows = (
            "".join(
                f"<td{side}{f' class={cell.mark}' if cell.mark else ''}>{_linked(cell)}</td>"
                for cell, side in zip(row, sides, strict=True)
            )
            for row in self.cells
        )
        body = "\n".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table>\n{f'<thead><tr>{heads}</tr></thead>' if self.headed else ''}<tbody>\n{body}\n</tbody></table>"

    def _side(self, place: int) -> str:
        """Where the words of a column stand, for pages of which the style is not ours, such as notebooks."""
        left = self.align[place] == "l"
        return f" style='text-align: {'left' if left else 'right'}'" if left or place == 0 else ""

    def records(self) -> list[dict[str, float | str]]:
        """For a CSV file, under the heads, which must differ: values where cells have them, texts elsewhere."""
        return [
            {head: cell.text if cell.value is None else cell.value for head, cell in zip(self.heads, row, strict=True)}
            for row in self.cells
        ]


class Terminal(Console):
    """Where everything is printed: no text in what is shown reaches the terminal as a command to it."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """The parts of what is shown, without control characters; the styles come later and stay."""
        for part in super().render(renderable, options):
            own = part.control or part.text == "\r"  # the end of a line that is to be written over
            yield part if own else Segment(printable(part.text), part.style)


def console(width: int = WIDTH) -> Terminal:
    """Standard output: as wide as the terminal, or `width` columns where it is none."""
    found = Terminal()
    return found if found.is_terminal else Terminal(width=width)


def cell(value: Any) -> Cell:
    """A cell of any value; a float is shown rounded and kept whole."""
    return Cell(rounded(value), value) if isinstance(value, float) else Cell(str(value))


def _markdown(words: Sequence[str]) -> list[str]:
    return [word.replace("|", r"\|").replace("<", "&lt;").replace("\n", "<br>") for word in words]


def _linked(cell: Cell) -> str:
    return f"<a href='{escape(cell.link)}'>{escape(cell.text)}</a>" if cell.link else escape(cell.text)


def _marked(cell: Cell) -> str:
    return rf"\textbf{{{escaped(cell.text)}}}" if cell.mark in ("better", "worse") else escaped(cell.text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",
    "`": r"\textasciigrave{}",
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    "[": "{[}",  # after the end of a row it would begin an option of it
    "*": "{*}",
    "\n": " ",
    "–": "--",
    "…": r"\ldots{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
}
"""What a sign is in LaTeX, where it is not itself."""

_SIGNS = re.compile("|".join(map(re.escape, _LATEX)))


def escaped(words: str) -> str:
    """Words as LaTeX sets them."""
    apart = re.sub("-(?=-)", "-\0", words)  # two of them together would be set as a dash
    return _SIGNS.sub(lambda found: _LATEX[found[0]], apart).replace("\0", "{}")
