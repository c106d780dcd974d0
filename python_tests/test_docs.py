"""README and docs: links and anchors lead somewhere, code parses, commands and options exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token

import deevo_ext
from deevo_ext.cli import app
from support.paths import ROOT

PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "bench/results").glob("*.md")]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
README_LINES = 130


def tokens(page: Path) -> Iterator[Token]:
    """All tokens of a page, those inside paragraphs and cells too."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        yield token
        yield from token.children or ()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    parsed = MarkdownIt("commonmark").parse(page.read_text())
    for opening, heading in pairwise(parsed):
        if opening.type == "heading_open":
            parts = (child.content for child in heading.children or ())
            slug = re.sub(r"[^\w\- ]", "", "".join(parts).lower()).replace(" ", "-")
            repeated = (f"{slug}-{i}" for i in range(1, len(parsed)))
            found.add(slug if slug not in found else next(s for s in repeated if s not in found))
    return found


def dead_links(page: Path) -> list[str]:
    """The page's relative links without a file or without a heading of this name."""
    dead = []
    for token in tokens(page):
        target = token.attrs.get("href" if token.type == "link_open" else "src")
        if target is None or re.match(r"https?:", str(target)):
            continue
        path, _, anchor = unquote(str(target)).partition("#")
        file = (page.parent / path).resolve() if path else page
        there = file.is_file() and ROOT in file.parents
        if not there or (anchor and anchor not in anchors(file)):
            dead.append(str(target))
    return dead


def blocks(page: Path, language: str) -> list[str]:
    return [t.content for t in tokens(page) if t.type == "fence" and t.info == language]


def test_a_dead_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# Two `words`, twice\n\n## A\n\n## A\n")
    good = ["other.md", "other.md#two-words-twice", "other.md#a-1", "#here", "https://a.b/c"]
    bad = ["none.md", "other.md#two", "other.md#a-2", "#there", "../page.md"]
    cells = "".join(f"| [x]({target}) |\n" for target in good + bad)
    page.write_text(f"# Here\n\n| a |\n|---|\n{cells}\n`[x](code.md)`\n\n![x](none.png)\n")
    assert dead_links(page) == [*bad, "none.png"]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert dead_links(page) == []


def test_every_page_is_linked_from_the_readme_or_another_page() -> None:
    linked = {
        (page.parent / str(token.attrs["href"]).partition("#")[0]).resolve()
        for page in PAGES
        for token in tokens(page)
        if token.type == "link_open"
    }
    assert {page for page in PAGES if page.name != "README.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_of_the_pages_parses(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_of_the_pages_exist(page: Path) -> None:
    commands = typer.main.get_command(app()).commands  # type: ignore[attr-defined]
    for line in "".join(blocks(page, "")).splitlines():
        _, said, call = line.rpartition("deevo ")
        if not said or line.lstrip().startswith("#"):
            continue
        name, *arguments = shlex.split(call, comments=True)
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("-")} <= options, line


def test_the_reference_has_all_that_is_public() -> None:
    listed = re.findall(r"^::: deevo_ext\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted(listed) == sorted(set(deevo_ext.__all__) - {"__version__"})


def test_options_become_lists_and_prose_stays() -> None:
    pytest.importorskip("griffe", reason="the extra docs is not installed")
    spec = importlib.util.spec_from_file_location("option_lists", ROOT / "docs/option_lists.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = "a: one: two\n    and b: three\nb, **c: four"
    assert module.as_list(options) == "- `a`: one: two\n    and b: three\n- `b, **c`: four"
    for prose in ("a: one\nis prose", "Prose that says\na: one", "    code: 1", ""):
        assert module.as_list(prose) == prose


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES
