"""What cases of the benchmark suite measure: traffic, peers, networks, probes, images, GPUs."""

import pytest
import torch

from support.benchmarks import COMMON, TIMES, rows_of

pytestmark = pytest.mark.usefixtures("restored_threads")


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


def test_cases_that_are_measured_by_name_alone(tmp_path):
    rows = rows_of(tmp_path, "--case", "plan+tell,trials-six,graph", "--np", 9)
    assert [row["case"] for row in rows] == ["plan+tell", "trials-six"]  # the CPU has no graphs


def test_virtual_evaluations_stand_beside_real_ones(tmp_path):
    (row,) = rows_of(tmp_path, "--case", "linear_scores")
    assert row["virtual_per_s"] == pytest.approx(64 / row["median_s"])
    assert 0 < row["real_per_s"] < row["virtual_per_s"]


def test_images_are_decoded_and_fed(tmp_path):
    decode, feed = rows_of(tmp_path, "--case", "decode,feed")
    assert decode["bytes"] == decode["batch"] * 224 * 224 * 3 and decode["images_per_s"] > 0
    assert feed["bytes"] == feed["batch"] * 3 * 32 * 32 and feed["median_s"] > 0


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


# Networks


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


# GPUs


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
