"""How the benchmark suite compares rows: alternatives that tie, and two versions in turn."""

import re
import shutil
from pathlib import Path

import pytest

import deevo_ext
from support.benchmarks import bench, some_row
from support.paths import ROOT

pytestmark = pytest.mark.usefixtures("restored_threads")


def test_ties_are_alternatives_whose_ranges_meet():
    from bench.row import mark_ties

    rows = [
        some_row(instruction_set="avx512"),
        some_row(instruction_set="avx2", median_s=0.0515, p20_s=0.051, p80_s=0.052),
        some_row(instruction_set="baseline", median_s=0.09, p20_s=0.08, p80_s=0.10),
        some_row(np=50),  # no alternative to the others
        some_row(backend="x", skipped="why") | {"median_s": None},
    ]
    rows[4].pop("median_s")
    mark_ties(rows)
    assert [row.get("ties") for row in rows] == [["cpu avx2"], ["cpu avx512"], None, None, None]


# Two versions


def test_compare_calls_slower_what_every_pair_and_the_median_agree_on():
    from bench import compare

    def times(*values: float) -> dict:
        cases = ("trials", "commit", "plan", "tell")
        rows = [some_row(case=case) | {"ratio": v} for case, v in zip(cases, values, strict=True)]
        return compare.times_of([*rows, {"case": "memory", "ratio": 1.0}])

    pairs = [
        (times(1.0, 1.0, 1.0, 1.0), times(1.1, 1.3, 0.8, 1.04)),
        (times(2.0, 1.0, 1.0, 1.0), times(2.3, 1.3, 0.9, 1.03)),
        (times(1.0, 1.0, 1.0, 1.0), times(1.2, 0.9, 0.7, 1.02)),
    ]
    text, slower = compare.report(pairs)
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert slower == 1
    assert "1.150" in lines["trials"] and "SLOWER" in lines["trials"]
    assert "0.800" in lines["plan"] and "faster" in lines["plan"]
    for case in ("commit", "tell"):  # pairs do not agree; less than 5 %
        assert "SLOWER" not in lines[case]


def test_compare_measures_both_versions_in_turn_with_the_same_inputs(monkeypatch, capsys):
    from bench import compare

    calls = []

    def measure(tree: Path, options: list[str], seed: int) -> dict:
        calls.append((tree.name, tuple(options), seed))
        return compare.times_of([some_row(ratio=2.0 if tree.name == "b" else 1.0)])

    monkeypatch.setattr(compare, "tree_of", Path)
    monkeypatch.setattr(compare, "used_share", lambda: 0.0)
    monkeypatch.setattr(compare, "_measure", measure)
    assert bench("compare", "a", "b", "--pairs", 3, "--case", "trials") == 3
    options = ("--case", "trials")
    orders = (("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2))
    assert calls == [(tree, options, seed) for tree, seed in orders]
    assert re.search(r"trials cpu .*2\.000 +2\.000 to 2\.000 +SLOWER", capsys.readouterr().out)
    for words in (("--seed", 3), ("--json=rows.json",)):
        with pytest.raises(SystemExit, match="2"):
            bench("compare", "a", "b", *words)
    assert len(calls) == 6 and "--json: each pair" in capsys.readouterr().err


def test_compare_measures_the_version_in_a_folder(tmp_path):
    """A copy of the installed package is what its process imports."""
    from bench import compare

    shutil.copytree(Path(deevo_ext.__file__).parent, tmp_path / "deevo_ext")
    file = tmp_path / "deevo_ext" / "__init__.py"
    file.write_text(f"{file.read_text()}\nopen({str(tmp_path / 'imported')!r}, 'w').close()\n")
    assert compare.tree_of(str(tmp_path)) == tmp_path
    times = compare._measure(tmp_path, ["--quick", "--case", "plan", "--np", "20"], 3)
    assert [key[0] for key in times] == ["plan"] and (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such-commit", "HEAD"), "'no-such-commit' is neither a commit of"),
        ((ROOT, ROOT, "--pairs", 2), "at least 3"),
    ],
)
def test_compare_refuses(arguments, message, capsys, monkeypatch):
    from bench import compare

    monkeypatch.setattr(compare, "used_share", lambda: 0.0)
    with pytest.raises(SystemExit) as refused:
        bench("compare", *arguments)
    assert message in f"{refused.value} {capsys.readouterr().err}"


def test_compare_refuses_a_machine_that_others_use():
    from bench import compare

    compare.refuse_company(lambda: 0.09)
    with pytest.raises(SystemExit, match="other processes keep"):
        compare.refuse_company(lambda: 0.5)
