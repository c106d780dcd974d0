"""Tables as text and as Markdown."""

from __future__ import annotations

from deevo_ext.text import markdown_table, text_table

HEADER = ("name", "loss", "top-1")
ROWS = [("a", "0.5", "1"), ("b|c", "12.25", "0")]


def test_columns_lie_below_one_another() -> None:
    assert text_table(HEADER, ROWS).splitlines() == [
        "name   loss  top-1",
        "a       0.5      1",
        "b|c   12.25      0",
    ]
    assert text_table(HEADER, ROWS, "<").splitlines()[1] == "a     0.5    1"
    assert text_table((), ROWS, ">").splitlines() == ["  a    0.5  1", "b|c  12.25  0"]


def test_markdown_escapes_bars_and_sets_rows_in_bold_type() -> None:
    assert markdown_table(HEADER, ROWS, "<>", bold={1}).splitlines() == [
        "| name | loss | top-1 |",
        "|---|---:|---:|",
        "| a | 0.5 | 1 |",
        "| **b\\|c** | **12.25** | **0** |",
    ]
    assert markdown_table(("one", "two"), [], "<<>").splitlines()[1] == "|---|---|"


def test_markdown_shows_cells_as_they_are() -> None:
    cell = "<script>x</script>\n| `a` [b](c) \\"
    (line,) = markdown_table(("name",), [(cell,)]).splitlines()[2:]
    assert line == r"| &lt;script&gt;x&lt;/script&gt; \| \`a\` \[b\](c) \\ |"
