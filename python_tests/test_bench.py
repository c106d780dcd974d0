"""The benchmark suite: options select its rows, which are complete, and the report shows them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.benchmarks import COMMON, TIMES, bench, rows_of, some_row
from support.paths import ROOT

pytestmark = pytest.mark.usefixtures("restored_threads")

FLOPS = {"flops", "flops_per_s", "flop_limit_s"}
MEMORY = {"peaks", "peak_bytes", "floor_bytes", "limit_bytes", "chunk", "ratio", "note"}
WITH_FLOPS = ("peak", "matmul", "head", "linear_scores", "layers", "forward", "evolve", "racing")


@pytest.mark.slow
def test_quick_measures_everything_and_its_rows_are_complete(tmp_path):
    command = [sys.executable, "-m", "bench", "--quick", "--seed", "7", "--json"]
    file = tmp_path / "rows.json"
    result = subprocess.run([*command, file], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = json.loads(file.read_text())
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]][: len(rows)] == [
        row["case"] for row in rows
    ]
    from bench.cases import standard

    assert {row["case"] for row in rows} == set(standard())
    for row in rows:
        assert "skipped" not in row, row
        assert set(row) >= COMMON
        assert row["seed"] == 7 and "--seed 7" in row["command"]
        assert row["command"].startswith(f"python -m bench --case {row['case']} ")
        if row["case"] == "memory":
            assert set(row) == COMMON | MEMORY
            continue
        assert set(row) >= COMMON | TIMES, row["case"]
        assert 0 < row["p20_s"] <= row["median_s"] <= row["p80_s"]
        assert row["ratio"] == pytest.approx(row["median_s"] / row["limit_s"])
        assert row["copy_bytes_per_s"] == pytest.approx(row["bytes"] / row["limit_s"])
        slower = max(row["limit_s"], row.get("flop_limit_s", 0.0))
        assert row["of_limit"] == pytest.approx(slower / row["median_s"])
        assert (row["bound"] == "compute") == (slower > row["limit_s"])
        if row["case"] in WITH_FLOPS:
            assert set(row) >= FLOPS
    by_case = {row["case"]: row for row in rows}
    assert by_case["forward"]["member_images_per_s"] > 0
    assert 0 < by_case["racing"]["image_share"] <= 1
    # SmallResNet's layers: stem, 3 blocks of two convolutions, two shortcuts, the classifier.
    assert sum(row["case"] == "layers" for row in rows) == 1 + 6 + 2 + 1
    assert {row["d"] for row in rows if row["case"] == "scaling"} == {3000, 30000}
    check_page(tmp_path, rows)


def check_page(tmp_path: Path, rows: list[dict]) -> None:
    """The report of these rows: a line each, and pictures."""
    from bench import report

    folder = tmp_path / "results" / "some-cpu"
    folder.mkdir(parents=True)
    (folder / "rows.json").write_text(json.dumps(rows))
    options = ["--results", str(tmp_path / "results")]
    assert report.main([*options, "--check"]) == 1
    assert report.main(options) == 0
    assert report.main([*options, "--check"]) == 0
    page = (tmp_path / "results/REPORT.md").read_text()
    for row in rows:
        assert re.search(rf"^\| {re.escape(row['case'])} +\| {row['backend']} ", page, re.M)
    assert "seconds per generation grow as D^" in page
    for picture in ("bandwidth", "peers", "roofline"):
        data = (folder / f"{picture}.png").read_bytes()
        assert data.startswith(b"\x89PNG") and f"({folder.name}/{picture}.png)" in page
    assert "6 members of resnet8" in page


def test_the_stored_page_is_what_the_stored_rows_give():
    result = subprocess.run(
        [sys.executable, "-m", "bench.report", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


def test_options_select_and_the_command_of_a_row_gives_the_row_again(tmp_path):
    cases = ("--case", "trials,commit,plan", "--size", "20001,resnet8", "--np", 9)
    rows = rows_of(tmp_path, *cases, "--dtype", "float32,float16", "--threads", 1)
    assert len(rows) == 2 * 2 * 2 + 1  # plan has neither size nor dtype
    assert {row["d"] for row in rows} == {0, 20_001, 78_042}
    assert {row["np"] for row in rows} == {9}
    from bench import options

    for row in rows:
        (job,) = options.parse(row["command"].split()[3:]).jobs
        assert job.command == row["command"]


def test_errors_name_what_is_wrong(capsys):
    for arguments, named in (
        (("--case", "trails"), "trails"),
        (("--size", "resnet19"), "resnet19"),
        (("--case", "plan", "--backend", "evox-de"), "nothing to measure"),
        (("--case", "layers", "--size", "vit_b"), "nothing to measure"),
        (("--repetitions", "4"), "at least 5"),
    ):
        with pytest.raises(SystemExit) as error:
            bench(*arguments)
        assert error.value.code == 2
        assert named in capsys.readouterr().err


def test_rows_that_are_not_begun_in_time_say_so(tmp_path):
    rows = rows_of(tmp_path, "--case", "plan,tell", "--limit", 0)
    assert {row["skipped"] for row in rows} == {"--limit 0 was over"}


def test_kept_rows_are_of_one_commit(monkeypatch):
    from bench import machine

    for commit in (None, "0123abc-dirty"):
        monkeypatch.setattr(machine, "_commit", lambda commit=commit: commit)
        with pytest.raises(SystemExit, match="commit first, or write elsewhere"):
            bench("--case", "plan", "--quick", "--json", ROOT / "bench/results/some/rows.json")


def test_exponents_are_those_of_the_law_behind_the_points():
    from bench import fits

    d = [some_row(case="scaling", np=8, d=d, median_s=3e-9 * d**1.5) for d in (10, 100, 1000, 9000)]
    n = [some_row(case="scaling", np=n, d=500, median_s=2e-6 * n) for n in (16, 32, 64)]
    memory = [some_row(case="memory", np=n, d=100, peak_bytes=2**20 + n * 440) for n in (8, 32, 99)]
    for row in memory:
        row.pop("median_s")
    lines = fits.fits(d + n + memory)
    assert "grow as D^1.50 from 10 to 9000 at NP = 8" in lines[0]
    assert "grow as NP^1.00 from 16 to 64 at D = 500" in lines[1]
    assert "is 1 MiB and 1.100 float32 rows a member" in lines[2]


def test_a_run_is_held_against_what_has_as_many_threads():
    from bench.headlines import headlines

    def evolve(backend, threads, median, case="evolve"):
        return some_row(
            case=case, backend=backend, threads=threads, median_s=median, size="resnet8",
            np=12, batch=512,
        )  # fmt: skip

    rows = [evolve("fused", 1, 0.7), evolve("fused", 2, 0.4), evolve("eager", 1, 0.9)]
    [(_, value, beside)] = headlines(rows)
    assert (value, beside) == ("400.00 ms", "")
    rows += [evolve("eager", 2, 1.5), evolve("fused", 2, 0.3, case="racing")]
    [(_, value, beside)] = headlines(rows)
    assert beside == "by hand in PyTorch 1.50 s, with racing 300.00 ms"
