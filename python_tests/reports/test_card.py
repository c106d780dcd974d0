"""Model card and report of a run: they say what the run's files say, and need nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import deevo_ext as deevo
from deevo_ext.reports.card import write_documents
from deevo_ext.reports.trackers import TensorBoard, Tracker
from deevo_ext.runs.comparison import Comparison
from deevo_ext.runs.contenders import compare_run
from support.evolution import images
from support.networks import Net, members
from support.recipe_runs import recipe_run, save_checkpoints


class Reader(HTMLParser):
    """Collects cells, sources and links, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.outside: list[str] = []
        self.pictures: list[bytes] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                assert value is not None
                self.outside.append(value[:22])
                self.pictures.append(base64.b64decode(value.partition(",")[2], validate=True))
        if tag in ("td", "th"):
            self.cells.append("")
        assert tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


@pytest.mark.parametrize("files", [True, False])
def test_documents_say_what_the_run_says(tmp_path: Path, files: bool) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "run"
    (tmp_path / "c").mkdir()
    for i, state in enumerate(members(Net, 6)):
        name = f"m{i}" if i else "m<script>x|\n[a](b)"
        save_file(state, tmp_path / "c" / f"{name}.safetensors")
    result = deevo.evolve(
        Net(),
        tmp_path / "c",
        images(300, 1),
        images(40, 2),
        images(60, 3, "test") if files else None,
        search="weights",
        run_dir=folder,
        generations=4,
        images_per_batch=128,
        micro_batch=16,
        racing=0.1,
        progress=False,
        engine="eager",
    )
    about = {"architecture": "Net <tiny> | one", "images": "300 of them, some for each purpose"}
    written = write_documents(result.run, result.comparison, about)
    assert {path.name for path in written} >= {"model_card.md", "report.html", "evolution.png"}
    card = (folder / "model_card.md").read_text()
    journal = (folder / "journal.jsonl").read_bytes()
    assert hashlib.sha256(journal).hexdigest() in card
    for path in (tmp_path / "c").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    configuration = card.partition("## Configuration\n\n```\n")[2].partition("\n```")[0]
    header = json.loads(journal.splitlines()[0])
    assert json.loads(configuration) == {k: header[k] for k in json.loads(configuration)}
    candidate = result.candidate
    for treatment, words in (
        ("classifier", "its classifier refitted"),
        ("statistics", "its Batch"),
    ):
        assert (words in card) == (candidate.treatment == treatment)
    assert ("by differential evolution:" in card) == (candidate.generation > 0)
    page = (folder / "report.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert reader.open == [] and "Net <tiny> | one" in reader.cells
    assert "<script>" not in card + page and "&lt;script&gt;" in card
    assert "| Net &lt;tiny&gt; \\| one |" in card
    assert reader.outside == ["data:image/png;base64,"]
    check_order(page, result.comparison)
    check_members(reader.cells, journal, result.run.population.names)
    assert reader.pictures == [(folder / "evolution.png").read_bytes()]
    assert "http" not in page and "Races: trials" in page
    if not files:
        assert not (folder / "table.json").exists()
        return
    assert result.comparison is not None
    for row in result.comparison.networks:
        cells = [row.name, f"{row.loss:.4f}", f"{row.top1:.4f}", str(row.gained), str(row.lost)]
        mark = "**" if row.returned else ""
        assert "| " + " | ".join(f"{mark}{cell}{mark}" for cell in cells) + " |" in card
        at = reader.cells.index(row.name)
        assert reader.cells[at : at + 5] == cells
    saved = json.loads((folder / "table.json").read_text())
    assert Comparison.load(folder / "table.json") == result.comparison and saved["about"] == about
    assert saved["returned"]["weights_sha256"] == result.candidate.digest
    model = Net()
    model.load_state_dict(torch.load(folder / "evolved.pth", weights_only=True))
    write_documents(result.run, None)  # as where the run went on without test images
    assert not (folder / "table.json").exists()


@pytest.mark.parametrize("count", [300, 2100])
def test_documents_of_a_search_of_coefficients(tmp_path: Path, count: int) -> None:
    folder = tmp_path / "run"
    writer = Tracker(TensorBoard(tmp_path / "events"))
    checkpoints = save_checkpoints(tmp_path / "members")
    run = recipe_run(checkpoints, folder, count=count, callbacks=(writer,))
    assert not (tmp_path / "events").exists()  # another process may be in the folder
    chosen = run.run()
    writer.close()
    comparison = compare_run(run, images(60, 3, "test"))
    before = {path.name for path in folder.iterdir()}
    written = {path.name for path in write_documents(run, comparison)}
    pictures = ["evolution.png", "recipe.png"]
    assert written == {"model_card.md", "report.html", "table.json", *pictures}
    assert {path.name for path in folder.iterdir()} == before | written
    card, page = ((folder / name).read_text() for name in ("model_card.md", "report.html"))
    reader = Reader()
    reader.feed(page)
    assert reader.open == [] and reader.outside == ["data:image/png;base64,"] * 2
    assert reader.pictures == [(folder / name).read_bytes() for name in pictures]
    assert card.startswith(f"# Model card\n\n{comparison.verdict}")
    assert f"deevo merge {folder}/recipe.yaml --out model.safetensors" in card
    assert f"deevo replay {folder} --out model.safetensors" in page
    assert all(f"]({name})" in card for name in pictures)
    assert chosen.digest in card and "| blocks | 2 by layer |" in card
    assert ("all 300 make the model" in card) == (count == 300)
    assert ("| images of a round | 500 make the model, " in card) == (count != 300)
    check_order(page, comparison)
    check_members(reader.cells, (folder / "journal.jsonl").read_bytes(), run.population.names)
    assert "mean coefficient" in reader.cells
    searched = check_rounds(folder, card, reader.cells)
    # Trials of all virtual generations: 2 evolutions of 12 generations of 64 in a round.
    at = reader.cells.index("last odds") + 1
    trials = [int(cell.replace(",", "")) for cell in reader.cells[at + 2 :: 6][:3]]
    assert sum(trials) == searched * 2 * 12 * 64
    columns = (folder / "metrics.csv").read_text().splitlines()
    assert len(columns) == 3 and columns[0].split(",") == list(run.history[0])
    assert {"validation/recipe", "virtual/strategy/trig/odds"} <= set(run.history[0])

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "events")).Reload()
    gains = [(scalar.step, scalar.value) for scalar in events.Scalars("gain")]
    rounds = [(m["round"], pytest.approx(m["gain"], rel=1e-6)) for m in run.history]
    assert gains == rounds


def check_order(page: str, comparison: Comparison | None) -> None:
    """First the verdict, then the picture and the table; last the configuration."""
    parts = ["<img", "How to use it", "How it went", "SHA-256", "<h2>Configuration</h2>"]
    if comparison is not None:
        parts = [html.escape(comparison.verdict), "<img", "test images</h2>", *parts[1:]]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert page.endswith("}</pre>\n</body>\n</html>\n")
    assert 'name="viewport" content="width=device-width' in page


def check_members(cells: list[str], journal: bytes, names: list[str]) -> None:
    """Each member's own score is the journal's of generation 0."""
    records = [json.loads(line) for line in journal.splitlines()]
    scores = next(r for r in records if r.get("generation") == 0)["validation"]["scores"]
    for name, score in zip(names, scores, strict=False):
        assert cells[cells.index(name) + 1] == f"{float.fromhex(score):.5f}"


def check_rounds(folder: Path, card: str, cells: list[str]) -> int:
    """Card and report say of the rounds what the journal says; returns how many proposed steps."""
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    rounds = [record for record in lines if "round" in record]
    assert len(rounds) == 2 and rounds[0]["accepted"]
    taken = {"convex": 0, "de": 0}
    names = {"convex": "convex fit", "de": "differential evolution"}
    for record in rounds:
        best = record["proposals"][record["best"]] if record["proposals"] else None
        score = f"{float.fromhex(record['score']):.5f}" if record["accepted"] else "-"
        expected = [
            str(record["round"]),
            record.get("directions", "blocks"),
            f"{-float.fromhex(best['predicted']):.5f}" if best else "-",
            f"{float.fromhex(record['gain']):.5f}",
            f"{float.fromhex(record['standard_error']):.5f}",
            "taken" if record["accepted"] else "none",
            names[best["proposer"]] if best else "-",
            f"{float.fromhex(best['length']):.2g}" if best else "-",
            f"{float.fromhex(record['radius']):.3g}",
            str(len(record["left_out"])),
            f"{record['forward_passes']:,}",
            f"{record['seconds']:.1f}",
            score,
        ]
        if record["accepted"]:
            taken[best["proposer"]] += 1
        at = cells.index(expected[3])
        assert cells[at - 3 : at + 10] == expected
        mark = "**" if record["accepted"] else ""
        assert "| " + " | ".join(f"{mark}{cell}{mark}" for cell in expected) + " |" in card
    said = f"{taken['convex']} by the convex fit, {taken['de']} by the differential evolution"
    assert f"| 2; steps taken: {sum(taken.values())} ({said}) |" in card
    return sum(bool(record["proposals"]) for record in rounds)
