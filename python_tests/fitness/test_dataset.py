"""Any model on any data: tables, many labels, sequences, dicts; in a run with validation."""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import deevo_ext as deevo
from deevo_ext.errors import DeevoError

N = 50  # no multiple of a micro-batch


class Recurrent(nn.Module):
    """Reads a sequence of symbols up to its length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(7, 4), nn.GRU(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, symbols: Tensor, lengths: Tensor) -> Tensor:
        states = self.read(self.embed(symbols))[0]
        return self.head(states[torch.arange(len(symbols)), lengths - 1])


class Named(nn.Module):
    """Takes a batch by names and gives loss and logits, as Hugging Face's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(values)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Writing(nn.Module):
    """Writes to its input, as some do to normalise it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(values.sub_(0.5))


class Rows(IterableDataset):  # type: ignore[type-arg]
    """The rows of a table, one after the other."""

    def __init__(self, *columns: Tensor) -> None:
        self.columns = columns

    def __iter__(self) -> Iterator[Any]:
        return zip(*self.columns, strict=True)


def table(targets: Callable[[Tensor], Tensor]) -> TensorDataset:
    """A table of three columns, and what is to be found."""
    values = torch.randn(N, 3, generator=torch.Generator().manual_seed(2))
    return TensorDataset(values, targets(values))


def mlp(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, outputs))


def networks(model: Callable[[], nn.Module], count: int = 6) -> list[dict[str, Tensor]]:
    """State dicts of networks near each other, their statistics differing, too."""
    torch.manual_seed(3)
    state = model().state_dict()
    return [
        {
            name: value + 0.2 * torch.randn_like(value).abs()
            if value.is_floating_point()
            else value
            for name, value in state.items()
        }
        for _ in range(count)
    ]


def correlation(outputs: Tensor, targets: Tensor) -> Tensor:
    """Minus the correlation, which is no mean of micro-batches'."""
    return -torch.corrcoef(torch.stack([outputs.flatten(), targets.flatten()]))[0, 1]


def regression() -> TensorDataset:
    return table(lambda values: values.sum(dim=1, keepdim=True).sin())


@pytest.mark.parametrize("batchnorm", ["evolve", "inherit"])
@pytest.mark.parametrize("form", ["dataset", "loader", "iterable"])
def test_a_fitness_is_the_loss_of_the_module(form: str, batchnorm: str) -> None:
    model, data = mlp(1), regression()
    states = networks(lambda: mlp(1))
    population = deevo.Population.from_state_dicts(model, states, batchnorm=batchnorm)
    given = {
        "dataset": data,
        "loader": DataLoader(data, batch_size=7),
        "iterable": Rows(*data.tensors),
    }[form]
    fitness = deevo.DatasetFitness(model, population, given, nn.MSELoss(), micro_batch=16)
    found = fitness(population.rows, torch.arange(6), 0)
    for i, state in enumerate(states):
        network = mlp(1)
        network.load_state_dict(state)
        with torch.no_grad():
            expected = float(nn.MSELoss()(network.eval()(data.tensors[0]), data.tensors[1]))
        # N float32 squares, each of a sum of some products: far below 1e-5 of their mean.
        assert found[i] == pytest.approx(expected, rel=1e-5)
        inherited = population.statistics[i] if batchnorm == "inherit" else None
        assert fitness.score(population.rows[i], inherited) == found[i]
    assert model.training  # the module is left alone


def test_a_model_that_writes_to_its_input_writes_to_a_copy() -> None:
    data = table(lambda values: (values[:, 0] > 0).long())
    model, loss = Writing(), nn.CrossEntropyLoss()
    states = networks(Writing)
    population = deevo.Population.from_state_dicts(model, states)
    fitness = deevo.DatasetFitness(model, population, data, loss, micro_batch=16)
    digest = fitness.describe()["sha256"]
    found = fitness(population.rows, torch.arange(6), 0)
    for value, state in zip(found, states, strict=True):
        model.load_state_dict(state)
        with torch.no_grad():
            expected = float(loss(model(data.tensors[0].clone()), data.tensors[1]))
        assert value == pytest.approx(expected, rel=1e-5)  # as above
    assert fitness.describe()["sha256"] == digest


class Held:
    """Holds targets as a graph or a list of boxes does, and says little of them."""

    def __init__(self, targets: Any) -> None:
        self.targets, self.owner = targets, self

    def __repr__(self) -> str:
        return f"Held of {len(self.targets)}"


@pytest.mark.parametrize(
    "collected",
    [
        lambda targets: targets,
        lambda targets: targets.numpy(),
        lambda targets: np.array([*targets.tolist(), None]),
        lambda targets: Image.fromarray(targets.to(torch.uint8).reshape(40, 50).numpy()),
        Held,
        lambda targets: {"names": ["a"], "held": [Held(targets.numpy())]},
    ],
    ids=["tensor", "array", "array-of-objects", "picture", "object", "nested"],
)
def test_the_digest_is_of_what_targets_hold(collected: Callable[[Tensor], Any]) -> None:
    population = deevo.Population.from_state_dicts(mlp(1), networks(lambda: mlp(1)))

    def digest(targets: Tensor) -> str:
        data = DataLoader([(torch.zeros(N, 3), collected(targets))], batch_size=None)
        fitness = deevo.DatasetFitness(mlp(1), population, data, nn.MSELoss())
        return str(fitness.describe()["sha256"])

    targets = torch.arange(2000) % 7
    assert digest(targets) == digest(targets.clone())
    other = targets.clone()
    other[1000] += 1  # far from what a text of them shows
    assert digest(other) != digest(targets)


def test_other_outputs_and_inputs() -> None:
    symbols = torch.randint(7, (N, 9), generator=torch.Generator().manual_seed(4))
    lengths = 1 + symbols[:, 0]
    labels = symbols[:, 1] % 2
    cases: list[tuple[Callable[[], nn.Module], Any, Callable[[Any, Any], Any], Any]] = [
        # several labels an item, with a score an item
        (
            lambda: mlp(5),
            table(lambda v: (v[:, :1] + torch.arange(5.0) / 5 > 0.5).float()),
            lambda o, t: functional.binary_cross_entropy_with_logits(o, t, reduction="none"),
            None,
        ),
        # sequences of several lengths
        (
            Recurrent,
            DataLoader(
                TensorDataset(symbols, lengths, labels),
                batch_size=8,
                collate_fn=lambda items: (
                    tuple(torch.stack(each) for each in list(zip(*items, strict=True))[:2]),
                    torch.stack([item[2] for item in items]),
                ),
            ),
            nn.CrossEntropyLoss(),
            lambda model: functional.cross_entropy(model(symbols, lengths), labels),
        ),
        # batches by name, of a type that is a Mapping only
        (
            Named,
            DataLoader(
                table(lambda v: v.argmax(dim=1)),
                batch_size=8,
                collate_fn=lambda items: UserDict(
                    values=torch.stack([v for v, _ in items]),
                    labels=torch.stack([label for _, label in items]),
                ),
            ),
            lambda outputs, batch: outputs["loss"],
            lambda model: model(
                *(values := table(lambda v: v.argmax(dim=1)).tensors)[:1], values[1]
            )["loss"],
        ),
    ]
    for make, data, loss, oracle in cases:
        states = networks(make)
        population = deevo.Population.from_state_dicts(make(), states)
        found = deevo.DatasetFitness(make(), population, data, loss)(
            population.rows, torch.arange(6), 0
        )
        for value, state in zip(found, states, strict=True):
            model = make().eval()
            model.load_state_dict(state)
            with torch.no_grad():
                expected = (
                    loss(model(data.tensors[0]), data.tensors[1]).mean()
                    if oracle is None
                    else oracle(model)
                )
            assert value == pytest.approx(float(expected), rel=1e-5)


def test_a_loss_of_the_whole_set_sees_it_whole() -> None:
    data, model = regression(), mlp(1)
    states = networks(lambda: mlp(1))
    population = deevo.Population.from_state_dicts(model, states)
    whole = deevo.DatasetFitness(
        model, population, data, correlation, micro_batch=8, whole_set=True
    )(population.rows, torch.arange(6), 0)
    parts = deevo.DatasetFitness(model, population, data, correlation, micro_batch=8)(
        population.rows, torch.arange(6), 0
    )
    for i, state in enumerate(states):
        model.load_state_dict(state)
        with torch.no_grad():
            expected = float(correlation(model.eval()(data.tensors[0]), data.tensors[1]))
        assert whole[i] == pytest.approx(expected, abs=1e-5)
        assert abs(parts[i] - expected) > 1e-3


@pytest.mark.parametrize("micro_batch", [25, 8])  # N is a multiple of one of them
def test_what_cannot_be_joined_is_refused(micro_batch: int) -> None:
    def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Any]:
        return torch.stack([x for x, _ in items]), [f"item {float(y)}" for _, y in items]

    def wide(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        values = torch.stack([x for x, _ in items])
        return values, torch.zeros(len(items), round(1e3 * float(values.abs().max())))

    population = deevo.Population.from_state_dicts(mlp(1), networks(lambda: mlp(1)))
    for way in (collate, wide):
        data = DataLoader(regression(), batch_size=micro_batch, collate_fn=way)
        fitness = deevo.DatasetFitness(mlp(1), population, data, correlation, whole_set=True)
        with pytest.raises(DeevoError, match="whole_set=True joins"):
            fitness(population.rows, torch.arange(6), 0)


def test_micro_batches_take_turns() -> None:
    model = mlp(1)
    population = deevo.Population.from_state_dicts(model, networks(lambda: mlp(1)))
    fitness = deevo.DatasetFitness(
        model, population, regression(), nn.MSELoss(), micro_batch=5, micro_batches=2
    )
    assert [fitness.batch_of(g) for g in range(8)] == [0, 0, 0, 0, 1, 1, 1, 2]
    for epoch in range(3):
        seen = [i for batch in range(5 * epoch, 5 * epoch + 5) for i in fitness.chosen(batch)]
        assert sorted(seen) == list(range(10))
    assert fitness.chosen(0) != fitness.chosen(5)
    whole = [fitness(population.rows, torch.arange(6), batch) for batch in range(5)]
    for i, row in enumerate(population.rows):  # equal parts of all: their mean is the whole's
        mean = sum(values[i] for values in whole) / 5
        assert fitness.score(row, None) == pytest.approx(mean, rel=1e-12)


def run(folder: Path | None, **options: Any) -> deevo.Evolution:
    """Evolves for the first half of the table, chosen by the second."""
    x, y = regression().tensors
    model = mlp(1)
    population = deevo.Population.from_state_dicts(model, networks(lambda: mlp(1)))
    fitness, other = (
        deevo.DatasetFitness(model, population, TensorDataset(x[part], y[part]), nn.MSELoss())
        for part in (slice(0, 25), slice(25, N))
    )
    de = deevo.DifferentialEvolution(population, generations=8, seed=1)
    validation = deevo.FitnessValidation(other, every=3)
    return deevo.Evolution(
        de, fitness, validation=validation, run_dir=folder, progress=False, **options
    )


def test_a_run_chooses_by_validation_and_resumes(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    chosen = whole.run()
    x, y = regression().tensors
    model = mlp(1).eval()
    model.load_state_dict(chosen.state_dict(whole.population))
    with torch.no_grad():
        score = float(nn.MSELoss()(model(x[25:]), y[25:]))
    assert chosen.score == pytest.approx(score, rel=1e-5)
    assert chosen.score <= min(
        one.score for one in (*whole.state.initial.values(), *whole.state.evolved.values())
    )

    def interrupt(metrics: dict[str, float]) -> None:
        if metrics["generation"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", callbacks=[interrupt]).run()
    assert run(tmp_path / "cut").run().digest == chosen.digest
    assert deevo.replay(tmp_path / "cut").candidate.digest == chosen.digest


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (DataLoader(regression(), shuffle=True), "shuffles; give one with shuffle=False"),
        (TensorDataset(torch.zeros(4, 3)), "list of 1; expected pairs"),
        (TensorDataset(*[torch.zeros(4, 3)] * 3), "list of 3; expected pairs"),
        (torch.zeros(4, 3), "Tensor; expected pairs"),
        ([("a", "b")], "hold no tensor"),
        (DataLoader(regression(), batch_size=100, drop_last=True), "data is empty"),
        (3, "data is 3; expected a torch Dataset"),
    ],
)
def test_data_of_another_form_are_refused(data: Any, match: str) -> None:
    population = deevo.Population.from_state_dicts(mlp(1), networks(lambda: mlp(1)))
    with pytest.raises(DeevoError, match=match):
        deevo.DatasetFitness(mlp(1), population, data, nn.MSELoss())


def test_what_cannot_be_scored_is_refused() -> None:
    model, states = mlp(1), networks(lambda: mlp(1))
    population = deevo.Population.from_state_dicts(model, states)
    with pytest.raises(DeevoError, match="micro_batches is 0; expected at least 1"):
        deevo.DatasetFitness(model, population, regression(), nn.MSELoss(), micro_batches=0)
    with pytest.raises(DeevoError, match=r"differ in tensor '4\.bias'"):
        other = nn.Sequential(*mlp(1), nn.Linear(1, 1))
        deevo.DatasetFitness(other, population, regression(), nn.MSELoss())
    again = deevo.Population.from_state_dicts(model, states, batchnorm="recalibrate")
    with pytest.raises(DeevoError, match='"recalibrate", which needs images'):
        deevo.DatasetFitness(model, again, regression(), nn.MSELoss())
    for value in (None, "one", [], torch.ones(2, dtype=torch.cfloat)):
        fitness = deevo.DatasetFitness(
            model, population, regression(), lambda outputs, targets, value=value: value
        )
        with pytest.raises(DeevoError, match=r"the loss .*lambda.* returned .*; expected a number"):
            fitness(population.rows, torch.arange(6), 0)
    fitness = deevo.DatasetFitness(model, population, regression(), nn.MSELoss())
    with pytest.raises(DeevoError, match="validate_every is 0"):
        deevo.FitnessValidation(fitness, every=0)


def test_a_network_whose_validation_is_nan_is_never_chosen() -> None:
    whole = run(None)
    validation = whole.validation
    assert isinstance(validation, deevo.FitnessValidation)
    whole.population.rows[0].fill_(math.nan)  # the first, which `min` would keep
    assert math.isnan(validation.fitness.score(whole.population.rows[0], None))
    record = whole.state.validate(validation.score)
    assert record.scores[0] == math.inf and record.member.members != [0]
    assert math.isfinite(whole.state.initial["soup"].score)


def test_a_validation_of_minus_infinity_is_refused() -> None:
    def log_of_error(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.zeros(()).log()  # as of a network without an error

    whole = run(None)
    validation = whole.validation
    assert isinstance(validation, deevo.FitnessValidation)
    validation.fitness.loss = log_of_error
    with pytest.raises(DeevoError, match=r"the loss .*log_of_error of a network .* is -inf; exp"):
        whole.run()


@pytest.mark.parametrize("part", ["fitness", "validation"])
def test_a_fitness_of_another_population_is_refused(part: str) -> None:
    states = networks(lambda: mlp(1))
    own, other = (
        deevo.Population.from_state_dicts(mlp(1), some, batchnorm="inherit")
        for some in (states, states[::-1])
    )
    made = {
        name: deevo.DatasetFitness(
            mlp(1), other if name == part else own, regression(), nn.MSELoss()
        )
        for name in ("fitness", "validation")
    }
    de = deevo.DifferentialEvolution(own, generations=1)
    with pytest.raises(DeevoError, match=r"the DatasetFitness was made for another population"):
        deevo.Evolution(de, made["fitness"], validation=deevo.FitnessValidation(made["validation"]))
