"""Documents in blocks, as Markdown and as one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 or 2."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text to be shown as it is."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is left-aligned, the others right. marked: bold rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A PNG: its bytes, the file that holds it beside the Markdown, and what it shows."""

    png: bytes
    file: str
    caption: str


Block = Heading | Paragraph | Code | Table | Picture


def to_markdown(blocks: Sequence[Block]) -> str:
    """GitHub's Markdown; pictures are links to their files."""
    parts = []
    for block in blocks:
        match block:
            case Heading():
                parts.append(f"{'#' * block.level} {block.text}")
            case Paragraph():
                parts.append(block.text)
            case Code():
                parts.append(f"```\n{block.text}\n```")
            case Picture():
                parts.append(f"![{block.caption}]({block.file})")
            case Table():
                parts.append(_markdown_table(block))
    return "\n\n".join(parts) + "\n"


def to_html(blocks: Sequence[Block], title: str) -> str:
    """One file: styles inline, pictures as data URIs, no script."""
    body = []
    for block in blocks:
        match block:
            case Heading():
                body.append(f"<h{block.level}>{html.escape(block.text)}</h{block.level}>")
            case Paragraph():
                body.append(f"<p>{html.escape(block.text)}</p>")
            case Code():
                body.append(f"<pre>{html.escape(block.text)}</pre>")
            case Picture():
                data = base64.b64encode(block.png).decode("ascii")
                caption = html.escape(block.caption)
                body.append(
                    f'<figure><img src="data:image/png;base64,{data}" alt="{caption}">'
                    f"<figcaption>{caption}</figcaption></figure>"
                )
            case Table():
                body.append(_html_table(block))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _markdown_table(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.strip().replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join("---" if i == 0 else "---:" for i in range(len(table.head))) + "|"
    rows = [
        line([f"**{cell.strip()}**" for cell in row] if i in table.marked else row)
        for i, row in enumerate(table.rows)
    ]
    return "\n".join([line(table.head), rule, *rows])


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    rows = []
    for i, row in enumerate(table.rows):
        mark = ' class="marked"' if i in table.marked else ""
        cells = "".join(f"<td>{html.escape(cell.strip())}</td>" for cell in row)
        rows.append(f"<tr{mark}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#222}table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .75rem;"
    "border-bottom:1px solid #ddd;text-align:right}th:first-child,td:first-child{text-align:left}"
    "tr.marked{font-weight:bold;background:#eef6ee}img{max-width:100%}figure{margin:1rem 0}"
    "pre{background:#f6f6f6;padding:1rem;overflow-x:auto}"
)
