"""What is compared: changes of `deevo.evolve`'s keywords, each with the question that it asks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from deevo_ext.pools import difference_pool, sade_pool, shade_pool, trigonometric

TO_PBEST, RAND_1, TRIG = difference_pool()


@dataclass(frozen=True)
class Variant:
    """name; question: what it is there to answer; options: of `deevo.evolve`."""

    name: str
    question: str
    options: dict[str, Any] = field(default_factory=dict)


# The settings that the default preset was chosen from; variants change one thing each.
_BASE: dict[str, Any] = {
    "strategies": [TO_PBEST, RAND_1, TRIG],
    "f_init": 0.5,
    "f_std": 0.2,
    "f_max": 1.0,
    "cr_init": 0.9,
    "sinusoid_1_frequency": 0.1,
    "inject_soups": True,
}


def _but(**changes: Any) -> dict[str, Any]:
    return {**_BASE, **changes}


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("paper", "the authors' last programs", {"preset": "paper"}),
        Variant("default", "what this table supports", _BASE),
        Variant("no-soups", "does it matter that soups are members?", _but(inject_soups=False)),
        Variant(
            "paper-soups",
            "would that mend the paper's pool?",
            {"preset": "paper", "inject_soups": True},
        ),
        Variant("pbest", "one strategy, SHADE's", _but(strategies=[TO_PBEST])),
        Variant(
            "pbest-trig",
            "SHADE's and trigonometric mutation",
            _but(strategies=[TO_PBEST, TRIG]),
        ),
        Variant(
            "trig-adapted",
            "trigonometric mutation as SaDE adapts it",
            _but(strategies=[TO_PBEST, RAND_1, trigonometric()]),
        ),
        Variant("sade", "SaDE's pool", _but(strategies=sade_pool())),
        Variant(
            "archive",
            "differences to replaced parents",
            _but(strategies=[TO_PBEST, *shade_pool(), TRIG], archive_size=12),
        ),
        Variant("uniform-odds", "strategies drawn evenly", _but(adapt_strategies=False)),
        Variant("no-memories", "F and CR around their first values", _but(adapt_memories=False)),
        Variant(
            "constant-f",
            "neither memories nor a schedule",
            _but(adapt_memories=False, sinusoid="none"),
        ),
        Variant("arithmetic", "CR's memory by arithmetic means", _but(cr_mean="arithmetic")),
        Variant("no-sinusoid", "F from the memories alone", _but(sinusoid="none")),
        Variant("sinusoid-1", "the decreasing sinusoid alone", _but(sinusoid="decreasing")),
        Variant("sinusoid-2", "the increasing sinusoid alone", _but(sinusoid="increasing")),
        Variant("tensor", "whole tensors exchanged", _but(crossover_unit="tensor", cr_init=0.5)),
        Variant("channel", "whole channels exchanged", _but(crossover_unit="channel", cr_init=0.9)),
        Variant("cr-0.5", "half of each mutant's weights", _but(cr_init=0.5)),
        Variant("top1", "errors counted in place of the loss", _but(metric="top1")),
        Variant(
            "images-1000",
            "half the images, twice the generations",
            _but(images_per_batch=1000, generations=60),
        ),
        Variant(
            "images-4000",
            "twice the images, half the generations",
            _but(images_per_batch=4000, generations=15),
        ),
        Variant("fixed", "the same 2,000 images throughout", _but(generations_per_batch=1000)),
        Variant(
            "long",
            "four times the generations, and the passes",
            _but(generations=120, validate_every=30),
        ),
    )
}

# What gradients on the fitness images reach; `experiments.bounds`.
BOUNDS = ("learned-member", "learned-tensor", "tuned-soup")

# Search without evolution, at the same number of forward passes; `experiments.runs.random_soups`.
PEERS = ("random-soups",)
