"""Options as dataclasses and as keywords: one list of names, types, defaults and texts."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.runs.given import GROUPS, Keywords, Options
from deevo_ext.runs.options import FitnessOptions, RunOptions
from deevo_ext.search.parameters import Parameters
from support.paths import child_environment


def hints_of(*classes: type[Any]) -> dict[str, Any]:
    return {name: hint for each in classes for name, hint in typing.get_type_hints(each).items()}


def test_keywords_have_the_types_of_the_fields() -> None:
    parameters = typing.get_type_hints(Parameters)
    of_fields = hints_of(deevo.Configuration)
    assert parameters.keys() == of_fields.keys()
    del parameters["strategies"], of_fields["strategies"]  # which may be given in several forms
    assert parameters == of_fields
    every = hints_of(deevo.Configuration, *GROUPS)
    keywords = typing.get_type_hints(Keywords)
    assert every["generations"] == keywords["generations"] | None  # of which a time may decide
    others = {name: every[name] for name in ("strategies", "generations")}
    assert {**keywords, **others} == every


def test_a_name_is_in_one_group() -> None:
    names = [field.name for group in GROUPS for field in dataclasses.fields(group)]
    assert len(set(names)) == len(names)


def test_signature_and_documentation_list_every_option() -> None:
    signature = inspect.signature(deevo.evolve).parameters
    said = inspect.getdoc(deevo.evolve) or ""
    for group in (*GROUPS, deevo.Configuration):
        for field in dataclasses.fields(group):
            help = field.metadata["help"]
            assert help and not help.endswith(".") and not help[0].isspace(), field.name
            assert f"\n{field.name}: {help.split()[0]}" in (inspect.getdoc(group) or "")
            if group is not deevo.Configuration:
                assert signature[field.name].default == field.default
                assert f"\n{field.name}: {help.split()[0]}" in said
    assert max(map(len, said.splitlines())) <= 96


def test_a_keyword_replaces_what_a_group_says() -> None:
    groups = [FitnessOptions(metric="top1"), RunOptions(rounds=3, seed=5)]
    options = Options.of(groups, {"seed": 7, "chunk": 2, "f_init": 0.4})
    assert (options.fitness.metric, options.run.rounds, options.run.seed) == ("top1", 3, 7)
    assert options.evaluation.chunk == 2 and options.configuration(9).f_init == 0.4
    assert options.configuration(9).generations == 9
    assert Options.of((), {}) == Options.of([group() for group in GROUPS], {})


@pytest.mark.parametrize(
    ("groups", "keywords", "message"),
    [
        ((), {"generatons": 3}, "no option 'generatons'; the nearest is 'generations'"),
        ((), {"f_int": 0.5}, "no option 'f_int'; the nearest is 'f_init'"),
        ([RunOptions(), RunOptions()], {}, "at most one each of MemberOptions, FitnessOptions"),
        ([3], {}, "options has 3; expected"),
        ([RunOptions(search="weights")], {"rounds": 3}, "rounds belongs to search='coefficients'"),
        ((), {"generations": 3}, r"generations belongs to .* \(--search weights\)"),
        ((), {"crossover_unit": "weight"}, "crossover_unit belongs to search='weights'"),
        ((), {"upper": 0.1}, "upper belongs to search='weights'"),
        ((), {"population_min": 100}, "recipe has 64 members: population_min is 100"),
        ((), {"population_min": 4, "evaluations": 10}, "64 members: evaluations is 10"),
        ((), {"seconds": -1.0}, "seconds is -1.0; expected a finite number, at least 1e-09"),
        ((), {"racing_first": 0.1, "search": "weights"}, "which nothing uses without racing"),
        (
            (),
            {"search": "weights", "images_per_batch": None, "generations_per_batch": 2},
            "generations_per_batch is 2, which nothing uses without a number of images_per_batch",
        ),
        ((), {"chunk": 1.5}, "chunk is 1.5, of type float; expected a whole number"),
        ((), {"basin": "maybe"}, "basin is 'maybe'; expected one of warn, refuse, ignore"),
        ((), {"batchnorm": "inherit"}, 'batchnorm is "inherit", which is for search="weights"'),
        ((), {"run_dir": "r", "metric": lambda z, y: z}, "metric is a lambda"),
    ],
)
def test_what_is_no_option_or_does_not_fit_is_refused(
    groups: Any, keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeevoError, match=message):
        Options.of(groups, keywords)


CHECKED = """
import torch
import deevo_ext as deevo

images = (torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))
model = torch.nn.Linear(1, 1)
deevo.evolve(model, "runs", images, rounds=3, f_init=0.5, options=[deevo.RunOptions(seed=1)])
deevo.evolve(model, "runs", images, generatons=3)  # Unexpected keyword argument "generatons"
deevo.evolve(model, "runs", images, rounds="three")  # Argument "rounds" to "evolve" has
deevo.RunOptions(rouns=3)  # Unexpected keyword argument "rouns"
population = deevo.Population.from_rows(torch.zeros(4, 3))
deevo.DifferentialEvolution(population, f_init=0.5)
deevo.DifferentialEvolution(population, f_int=0.5)  # Unexpected keyword argument "f_int"
"""


@pytest.mark.slow
def test_mypy_sees_a_misspelt_keyword(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="the extra test is not installed")
    (tmp_path / "calls.py").write_text(CHECKED)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", "calls.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=child_environment(),
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    expected = [
        f"calls.py:{number}: error: {line.partition('# ')[2]}"
        for number, line in enumerate(CHECKED.splitlines(), 1)
        if "# " in line
    ]
    assert len(errors) == len(expected) == 4, done.stdout
    assert all(map(str.startswith, errors, expected)), done.stdout
