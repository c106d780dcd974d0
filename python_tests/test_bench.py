"""The benchmark suite: that its rows are complete and that it times no wrong result."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deevo_ext
from support.paths import ROOT, import_from_checkout

import_from_checkout("bench")

COMMON = {
    "case", "backend", "device", "dtype", "size", "np", "d", "threads", "instruction_set", "seed",
    "command", "cpu", "cores", "cpu_mhz", "omp_num_threads", "python", "torch", "deevo_ext",
    "commit", "date", "load_average",
}  # fmt: skip
TIMES = {
    "median_s", "p20_s", "p80_s", "repetitions", "bytes", "limit_s", "ratio", "bytes_per_s",
    "copy_bytes_per_s", "of_limit", "bound", "clock", "cold", "note",
}  # fmt: skip
FLOPS = {"flops", "flops_per_s", "flop_limit_s"}
MEMORY = {"peaks", "peak_bytes", "floor_bytes", "limit_bytes", "chunk", "ratio", "note"}


@pytest.fixture(autouse=True)
def threads():
    """The suite leaves the number of threads as it was."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def bench(*arguments: object) -> int:
    from bench.command import main

    return main([str(argument) for argument in arguments])


def rows_of(tmp_path: Path, *arguments: object) -> list[dict]:
    assert bench("--quick", "--seed", 7, *arguments, "--json", tmp_path / "rows.json") == 0
    return json.loads((tmp_path / "rows.json").read_text())


def some_row(**fields: object) -> dict:
    """A row as the suite writes it, for what reads rows."""
    row = {name: None for name in (*COMMON, *TIMES)} | {
        "case": "trials", "backend": "cpu", "device": "cpu", "dtype": "float32", "size": "resnet18",
        "np": 20, "d": 11_689_512, "threads": 2, "instruction_set": "avx512", "median_s": 0.050,
        "p20_s": 0.049, "p80_s": 0.051, "limit_s": 0.048, "ratio": 0.050 / 0.048, "bytes": 10**9,
        "bytes_per_s": 2e10, "copy_bytes_per_s": 2.1e10, "of_limit": 0.96, "bound": "memory",
        "cores": 2, "cpu": "Some CPU", "load_average": 0.5, "date": "2030-01-01T00:00:00+00:00",
        "note": "",
    }  # fmt: skip
    return row | fields


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


def test_traffic_is_what_the_cases_cannot_do_without(tmp_path):
    cases = "trials,commit,generation,fold,head"
    rows = rows_of(tmp_path, "--case", cases, "--size", 6400, "--np", 12, "--dtype", "float16")
    found = {row["case"]: row for row in rows}
    for case, rows_moved in (("trials", 12 + 12), ("commit", 12 + 4), ("generation", 24 + 16)):
        assert found[case]["bytes"] == rows_moved * 6400 * 2
        assert found[case]["bytes_per_weight"] == pytest.approx(rows_moved * 2 / 12)
    # Two convolutions of 16 channels (2,368 weights with their norms) fit 6,400 weights.
    written = 8 * 2 * (9 * 16 * 16 * 2 + 16 * 4)
    assert found["fold"]["bytes"] == 8 * 6400 * 2 + written
    assert found["head"]["bytes"] == (64 * 49 * 2048 + 1000 * 2048) * 2


def test_the_memory_case_counts_rows(tmp_path):
    rows = rows_of(tmp_path, "--case", "memory", "--size", 10_000, "--np", 6, "--dtype", "bfloat16")
    (row,) = rows
    assert row["floor_bytes"] == (6 + 8) * 10_048 * 2  # rows start at multiples of 64 weights
    assert row["limit_bytes"] == row["floor_bytes"] + 64 * 2**20
    assert row["peak_bytes"] == max(row["peaks"]) > row["floor_bytes"]


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


# What rows are held against


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
    import deevo_ext
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


# Wrong results

# Backends whose result is wrong in one bit of the first or the last weight of the last row.
WRONG = """
import contextlib, io, json, sys
import bench
bench.prefer_installed()
import torch
from bench.command import main
from deevo_ext.backends.native import cpu

OUTPUT = {"trials": 12, "commit": 0, "plan": 9, "tell": 6}

def spoilt(operator, position):
    right = getattr(cpu, operator)
    def wrong(*arguments):
        right(*arguments)
        output = arguments[OUTPUT[operator]]
        row = output[-1] if output.dim() == 2 else output
        row.view(torch.int32)[position] ^= 1
    return right, wrong

results = []
for operator, position, case in json.loads(sys.argv[1]):
    right, wrong = spoilt(operator, position)
    setattr(cpu, operator, wrong)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["--quick", "--case", case, "--size", "9003", "--dtype", "float32"])
    setattr(cpu, operator, right)
    results.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


def test_a_wrong_result_is_not_timed():
    spoilt = [
        ("trials", 0, "trials"),
        ("trials", -1, "trials"),
        ("commit", 0, "commit"),
        ("commit", -1, "commit"),
        ("plan", 0, "plan"),
        ("tell", 0, "tell"),
        ("commit", -1, "generation"),
        ("tell", 0, "generation"),
    ]
    command = [sys.executable, "-c", WRONG, json.dumps(spoilt)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for (operator, position, case), (status, out, err) in zip(
        spoilt, json.loads(result.stdout), strict=True
    ):
        assert status == 1, (operator, position, case, out)
        assert f"wrong result: {case}" in err
        assert not out


def test_networks_and_layers_that_compute_something_else_are_refused(monkeypatch):
    from dataclasses import replace

    from bench import forward, layers, networks, options
    from bench.job import WrongResult

    arguments = ["--quick", "--case", "layers", "--size", "resnet8/conv1", "--seed", "3"]
    (job,) = options.parse(arguments).jobs
    subject = networks.subject_of(replace(job, members=2))
    losses = forward.eager(subject, subject.rows)()
    forward.check(replace(job, members=2), subject, losses)
    wrong = losses.clone()
    wrong[1, -1] += 0.01 * losses.max()
    with pytest.raises(WrongResult, match="losses of resnet8"):
        forward.check(replace(job, members=2), subject, wrong)
    graph, _ = networks.graph_of(job)
    layer = graph.layers[0]
    assert layers.time_layer(job, layer)["median_s"] > 0
    engine = layers.ENGINES[layer.engine]
    bound = engine.bind(layer)
    run = lambda *given: bound.run(*given) * 1.001  # noqa: E731
    monkeypatch.setattr(type(engine), "bind", lambda self, layer: replace(bound, run=run))
    with pytest.raises(WrongResult, match="conv1"):
        layers.time_layer(job, layer)


def test_a_source_tree_without_compiled_code_does_not_hide_the_installed_package(tmp_path):
    tree, site = tmp_path / "tree", tmp_path / "site"
    shutil.copytree(ROOT / "bench", tree / "bench")
    (tree / "deevo_ext").mkdir()
    (tree / "deevo_ext" / "__init__.py").write_text("raise RuntimeError('the source tree')")
    shutil.copytree(Path(deevo_ext.__file__).parent, site / "deevo_ext")
    result = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--case", "plan"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert f"measures {site / 'deevo_ext'}," in result.stderr


# Peers


def test_handwritten_peers_make_trials_of_the_right_parents():
    from bench import handwritten

    torch.manual_seed(0)
    population = torch.randn(6, 500)
    start = population.clone()
    chosen = handwritten.donors(6, "cpu")
    for i, row in enumerate(chosen.T.tolist()):
        assert len({i, *row}) == 4
    a, b, c = (start[row] for row in chosen)
    mutants = a + 0.5 * (b - c)
    accepted = torch.tensor([True, False, True, False, False, False])
    found = handwritten.vectorised(population, chosen, accepted, 1.0)
    assert torch.allclose(found, torch.where(accepted[:, None], mutants, start))
    assert torch.equal(handwritten.vectorised(population, chosen, accepted, 0.0), start)

    loop = handwritten.Loop(population, cr=1.0)
    torch.manual_seed(1)
    loop.make_trials()
    torch.manual_seed(1)
    a, b, c = (start[row] for row in handwritten.donors(6, "cpu"))
    assert torch.allclose(loop.trials, a + 0.5 * (b - c), atol=1e-6)
    loop.keep(accepted)
    assert torch.equal(population, torch.where(accepted[:, None], loop.trials, start))
    assert int(handwritten.better(9, "cpu").sum()) == 3


def test_peers_are_rows_or_say_why_not(tmp_path):
    backends = "torch-loop,evox-de"
    rows = rows_of(tmp_path, "--case", "generation", "--size", 5000, "--backend", backends)
    found = {row["backend"]: row for row in rows}
    loop = found["torch-loop"]
    assert loop["peak_bytes"] > 0 and loop["median_s"] > 0
    assert loop["bytes"] == (3 * 20 + 6) * 5056 * 4
    try:
        import evox  # noqa: F401
    except ImportError:
        assert "No module named 'evox'" in found["evox-de"]["skipped"]
        assert "pip install" in found["evox-de"]["skipped"]
    else:
        assert found["evox-de"]["peer"].startswith("EvoX ")


@pytest.mark.slow
def test_ways_of_torch_agree_with_the_network_graph(tmp_path):
    ways = "channels-last,compile,vmap"  # --quick has the others
    rows = rows_of(tmp_path, "--case", "forward", "--backend", ways, "--dtype", "float32")
    assert {row["backend"] for row in rows if "median_s" in row} == set(ways.split(","))


def test_the_networks_are_the_published_ones():
    from bench.cases import SIZES
    from bench.networks import NETWORKS

    for name, network in NETWORKS.items():
        model = network.make()
        assert sum(p.numel() for p in model.parameters()) == SIZES[name]


def test_cases_that_are_measured_by_name_alone(tmp_path):
    rows = rows_of(tmp_path, "--case", "plan+tell,trials-six,graph", "--np", 9)
    assert [row["case"] for row in rows] == ["plan+tell", "trials-six"]  # the CPU has no graphs


def test_probes_of_a_round_share_prefixes_or_run_whole(tmp_path):
    ways = "fused,unshared,eager"
    shared, *others = rows_of(tmp_path, "--case", "round", "--backend", ways, "--np", 3)
    assert 0.4 < shared["image_share"] < 0.65
    assert shared["note"] == "20 probes of 10 blocks, 32 images"
    assert [row["backend"] for row in others] == ["unshared", "eager"]
    for whole in others:
        assert whole["image_share"] == 1.0
        assert shared["flops"] == pytest.approx(whole["flops"] * shared["image_share"])
        assert whole["note"].startswith(shared["note"])


@pytest.mark.slow
def test_probes_of_a_round_by_torch_compile(tmp_path):
    (row,) = rows_of(tmp_path, "--case", "round", "--backend", "compile", "--np", 3)
    assert "skipped" in row or row["image_share"] == 1.0


def test_virtual_evaluations_stand_beside_real_ones(tmp_path):
    (row,) = rows_of(tmp_path, "--case", "linear_scores")
    assert row["virtual_per_s"] == pytest.approx(64 / row["median_s"])
    assert 0 < row["real_per_s"] < row["virtual_per_s"]


def test_images_are_decoded_and_fed(tmp_path):
    decode, feed = rows_of(tmp_path, "--case", "decode,feed")
    assert decode["bytes"] == decode["batch"] * 224 * 224 * 3 and decode["images_per_s"] > 0
    assert feed["bytes"] == feed["batch"] * 3 * 32 * 32 and feed["median_s"] > 0


@pytest.mark.gpu
@pytest.mark.slow
def test_rows_of_a_gpu(tmp_path):
    cases = "copy,matmul,trials,commit,tell,plan,plan+tell,trials-six,generation"
    backends = "cuda,triton,torch-loop"
    rows = rows_of(
        tmp_path, "--device", "cuda", "--case", cases, "--np", 9, "--dtype", "float32", "--backend",
        backends,
    )  # fmt: skip
    assert {row["backend"] for row in rows} == {"cuda", "triton", "torch-loop"}
    for row in rows:
        gpu = {"gpu", "driver", "torch_cuda", "cuda", "triton", "gpu_clocks"}
        assert set(row) >= COMMON | TIMES | gpu
        assert row["device"] == "cuda" and row["gpu"]


@pytest.mark.gpu
@pytest.mark.slow
def test_networks_on_a_gpu(tmp_path):
    rows = rows_of(
        tmp_path, "--device", "cuda", "--case", "forward,layers,evolve", "--size", "resnet8",
        "--dtype", "float16", "--backend", "fused,members,eager",
    )  # fmt: skip
    assert {row["case"] for row in rows} == {"forward", "layers", "evolve"}
    assert all(row["median_s"] > 0 for row in rows)


def test_kept_rows_are_of_one_commit(monkeypatch):
    from bench import machine

    for commit in (None, "0123abc-dirty"):
        monkeypatch.setattr(machine, "_commit", lambda commit=commit: commit)
        with pytest.raises(SystemExit, match="commit first, or write elsewhere"):
            bench("--case", "plan", "--quick", "--json", ROOT / "bench/results/some/rows.json")
