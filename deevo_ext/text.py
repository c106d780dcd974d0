"""Tables for people, as aligned text and as GitHub's Markdown.

align: a sign for each column, as in a format specification, "<" for left and ">" for right; the
last one holds for all columns that follow. The cells are text.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

Rows = Sequence[Sequence[str]]


def text_table(header: Sequence[str], rows: Rows, align: str = "<>") -> str:
    """Lines with columns below one another, two blanks apart; without a header if it is empty."""
    lines = [header, *rows] if header else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    signs = align.ljust(len(widths), align[-1])
    return "\n".join(
        "  ".join(
            f"{cell:{sign}{width}}" for cell, sign, width in zip(line, signs, widths, strict=False)
        ).rstrip()
        for line in lines
    )


def markdown_table(
    header: Sequence[str], rows: Rows, align: str = "<>", bold: Container[int] = ()
) -> str:
    """The table as Markdown; bold: the numbers of the rows that are set in bold type."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rules = {"<": "---", ">": "---:"}
    rule = "|".join(rules[sign] for sign in align.ljust(len(header), align[-1])[: len(header)])
    body = [
        line([f"**{cell}**" for cell in row] if i in bold else row) for i, row in enumerate(rows)
    ]
    return "\n".join([line(header), f"|{rule}|", *body])
