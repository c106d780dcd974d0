"""Tables as aligned text, as GitHub's Markdown and as HTML for people, and as CSV for programs.

align: a sign for each column, as in a format specification, "<" for left and ">" for right; the
last one holds for all columns that follow. The cells are text.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

Lines = Sequence[Sequence[str]]


def text_table(header: Sequence[str], lines: Lines, align: str = "<>") -> str:
    """Returns lines with aligned columns, two blanks apart; an empty header is left out."""
    lines = [header, *lines] if header else lines
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    signs = align.ljust(len(widths), align[-1])
    return "\n".join(
        "  ".join(
            f"{cell:{sign}{width}}" for cell, sign, width in zip(line, signs, widths, strict=False)
        ).rstrip()
        for line in lines
    )


def csv_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns lines, which all have the first one's columns, as CSV; "" where there is none."""
    text = io.StringIO(newline="")
    if lines:
        writer = csv.DictWriter(text, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return text.getvalue()


def markdown_table(
    header: Sequence[str],
    lines: Lines,
    align: str = "<>",
    bold: Container[int] = (),
) -> str:
    """Returns the table as Markdown; bold: the numbers of the lines that are set in bold type.

    Cells are shown as they are, whatever tags, links, code or lines they hold.
    """

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def shown(cell: str) -> str:
        one_line = html.escape(" ".join(cell.splitlines()), quote=False)
        return re.sub(r"([\\|`\[\]])", r"\\\1", one_line)

    rules = {"<": "---", ">": "---:"}
    rule = "|".join(rules[sign] for sign in align.ljust(len(header), align[-1])[: len(header)])
    body = [
        line([f"**{shown(cell)}**" if i in bold else shown(cell) for cell in cells])
        for i, cells in enumerate(lines)
    ]
    return "\n".join([line([shown(cell) for cell in header]), f"|{rule}|", *body])


def html_table(
    header: Sequence[str],
    lines: Lines,
    align: str = "<>",
    bold: Container[int] = (),
) -> str:
    """Returns the table as HTML, as notebooks show it; the arguments are `markdown_table`'s."""
    sides = {"<": "left", ">": "right"}
    signs = align.ljust(len(header), align[-1])

    def line(tag: str, cells: Sequence[str]) -> str:
        shown = (
            f'<{tag} style="text-align: {sides[sign]}">{html.escape(cell)}</{tag}>'
            for cell, sign in zip(cells, signs, strict=False)
        )
        return f"<tr>{''.join(shown)}</tr>"

    body = (line("th" if i in bold else "td", cells) for i, cells in enumerate(lines))
    return f"<table><thead>{line('th', header)}</thead><tbody>{''.join(body)}</tbody></table>"
