"""What is compared: keywords of `deevo.evolve` that change one thing, with the question asked.

All variants search weights but `RECIPES`, which are the other search as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from deevo_ext.runs.given import Keywords
from deevo_ext.search.pools import difference_pool, sade_pool, shade_pool, trigonometric

from .rivals import RIVALS

TO_PBEST, RAND_1, TRIG = difference_pool()


SADE_2009 = (
    ("rand/1", "r1 + F*(r2 - r3)", "bin"),
    ("rand-to-best/2", "target + F*(best - target) + F*(r1 - r2) + F*(r3 - r4)", "bin"),
    ("rand/2", "r1 + F*(r2 - r3) + F*(r4 - r5)", "bin"),
    ("current-to-rand/1", "target + U*(r1 - target) + F*(r2 - r3)", "none"),
)
"""Qin et al.'s whole pool."""


@dataclass(frozen=True)
class Variant:
    """What differs from the default: options of `deevo.evolve`, and the question they answer.

    members: how many, as in `case_of`.
    """

    name: str
    question: str
    options: Keywords = field(default_factory=Keywords)
    members: int | None = None


_RECIPE: Keywords = dict(search="coefficients", passes=1_300_000)

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("paper", "the authors' last programs", dict(preset="paper")),
        Variant("default", "what this table supports"),
        Variant("coefficients", "a recipe in place of weights", _RECIPE),
        Variant("coefficients-24", "do more than twelve members help?", _RECIPE, members=24),
        Variant("coefficients-8", "how many does it take?", _RECIPE, members=8),
        Variant("coefficients-4", "fewer still", _RECIPE, members=4),
        Variant("no-soups", "does it matter that soups are members?", dict(inject_soups=False)),
        Variant(
            "paper-soups",
            "would that mend the paper's pool?",
            dict(preset="paper", inject_soups=True),
        ),
        Variant("pbest", "one strategy, SHADE's", dict(strategies=[TO_PBEST])),
        Variant(
            "pbest-trig",
            "SHADE's and trigonometric mutation",
            dict(strategies=[TO_PBEST, TRIG]),
        ),
        Variant(
            "trig-adapted",
            "trigonometric mutation as SaDE adapts it",
            dict(strategies=[TO_PBEST, RAND_1, trigonometric()]),
        ),
        Variant("sade", "SaDE's pool", dict(strategies=sade_pool())),
        Variant(
            "de-rand-1",
            "the classic: DE/rand/1/bin with F = 0.5 and CR = 0.9",
            dict(strategies=[RAND_1], adapt_memories=False, sinusoid="none", f_std=0.0, cr_std=0.0),
        ),
        Variant(
            "sade-2009",
            "SaDE's four strategies with its F, CR and odds; SHADE's memories",
            dict(
                strategies=list(SADE_2009),
                sinusoid="none",
                adapt_start=10,
                **{"f_init": 0.5, "f_std": 0.3, "f_min": -0.4, "f_max": 1.4},
                **{"cr_init": 0.5, "cr_std": 0.1, "cr_max": 1.0},
            ),
        ),
        Variant(
            "shade",
            "SHADE, with an archive of replaced parents",
            dict(preset="shade"),
        ),
        Variant(
            "l-shade",
            "L-SHADE: as many passes in more generations of fewer members",
            dict(
                preset="l-shade",
                **{"archive_size": 36, "evaluations": 434},
                **{"generations": 53, "validate_every": 27},
            ),
        ),
        Variant(
            "archive",
            "differences to replaced parents",
            dict(strategies=[TO_PBEST, *shade_pool(), TRIG], archive_size=12),
        ),
        Variant("uniform-odds", "strategies drawn evenly", dict(adapt_strategies=False)),
        Variant("no-memories", "F and CR around their first values", dict(adapt_memories=False)),
        Variant(
            "constant-f",
            "neither memories nor a schedule",
            dict(adapt_memories=False, sinusoid="none"),
        ),
        Variant("arithmetic", "CR's memory by arithmetic means", dict(cr_mean="arithmetic")),
        Variant("no-sinusoid", "F from the memories alone", dict(sinusoid="none")),
        Variant("sinusoid-1", "the decreasing sinusoid alone", dict(sinusoid="decreasing")),
        Variant("sinusoid-2", "the increasing sinusoid alone", dict(sinusoid="increasing")),
        Variant("tensor", "whole tensors exchanged", dict(crossover_unit="tensor", cr_init=0.5)),
        Variant("channel", "whole channels exchanged", dict(crossover_unit="channel", cr_init=0.9)),
        Variant("cr-0.5", "half of each mutant's weights", dict(cr_init=0.5)),
        Variant("top1", "errors counted in place of the loss", dict(metric="top1")),
        Variant(
            "images-1000",
            "half the images, twice the generations",
            dict(images_per_batch=1000, generations=60),
        ),
        Variant(
            "images-4000",
            "twice the images, half the generations",
            dict(images_per_batch=4000, generations=15),
        ),
        Variant("fixed", "the same 2,000 images throughout", dict(generations_per_batch=1000)),
        Variant(
            "long",
            "four times the generations, and the passes",
            dict(generations=120, validate_every=30),
        ),
    )
}

# What gradients on the fitness images reach; `experiments.bounds`.
BOUNDS = ("learned-member", "learned-tensor", "tuned-soup")

# Other searches at the same number of forward passes; `experiments.runs` and `experiments.rivals`.
PEERS = ("random-soups", *RIVALS)

# The variants whose generations are kept for the plot of diversity, which has room for a few, and
# those whose successes by strategy are kept too.
DEFAULT, PAPER, RECIPE = "default", "paper", "coefficients"
RECIPES = (RECIPE, "coefficients-24", "coefficients-8", "coefficients-4")
PLOTTED = (PAPER, DEFAULT, "no-soups", "trig-adapted", "archive", "tensor")
RATED = (PAPER, DEFAULT)
