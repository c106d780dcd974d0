"""Options of `deevo evolve` that `deevo_ext.evolve` takes under the same name and as they are.

Their defaults are those of `deevo_ext.evolve`.
"""

from typing import Annotated, Any

import typer

NETWORKS, IMAGES = "What is evolved", "Images and fitness"
RUNNING, EVOLUTION = "Where and how it runs", "Parameters of the evolution"


def _option(panel: str | None, text: str, *flags: str, least: int | None = None) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=panel, min=least)


PASSED: dict[str, Any] = {
    "generations": Annotated[int, _option(None, "Number of generations.", least=1)],
    "seed": Annotated[
        int, _option(None, "Seed of the evolution and of the fitness batches.", least=0)
    ],
    "preset": Annotated[
        str, _option(EVOLUTION, 'Set of parameters to begin with: "sa-shade-tri-ensin" or "paper".')
    ],
    "batchnorm": Annotated[
        str,
        _option(
            NETWORKS, 'What becomes of BatchNorm statistics: "evolve", "inherit" or "recalibrate".'
        ),
    ],
    "inject_soups": Annotated[
        bool | None,
        _option(
            NETWORKS,
            "Whether the uniform and the greedy soup become members. They do by default, unless "
            'the preset is "paper".',
        ),
    ],
    "checkpoint_key": Annotated[
        str | None, _option(NETWORKS, "Key under which each file holds the weights.")
    ],
    "generations_per_batch": Annotated[
        int, _option(IMAGES, "Generations until the next batch is drawn.", least=1)
    ],
    "sampling": Annotated[
        str, _option(IMAGES, 'How batches are drawn: "stratified" or "importance".')
    ],
    "augment": Annotated[
        str | None,
        _option(
            IMAGES,
            "What is done to the images of each batch: mirror, shift:PIXELS, crop:SHARE, or "
            "several with commas between.",
        ),
    ],
    "label_smoothing": Annotated[
        float, _option(IMAGES, "Label smoothing of the loss that is the fitness.")
    ],
    "racing": Annotated[
        float | None,
        _option(
            IMAGES,
            "Drop losing trials before they have seen all images. A trial that would win is lost "
            "at this error rate.",
        ),
    ],
    "racing_first": Annotated[
        float, _option(IMAGES, "Share of the images that a race's first look waits for.")
    ],
    "validate_every": Annotated[
        int, _option(IMAGES, "Generations from one validation to the next.", least=1)
    ],
    "population_device": Annotated[
        str, _option(RUNNING, "Device that holds the population and evolves it.")
    ],
    "micro_batch": Annotated[int, _option(RUNNING, "Images per forward pass.", least=1)],
    "chunk": Annotated[int, _option(RUNNING, "Networks evaluated together.", least=1)],
    "precision": Annotated[
        str,
        _option(RUNNING, "Precision of forward passes: auto, float32, tf32, bfloat16 or float16."),
    ],
    "engine": Annotated[
        str, _option(RUNNING, "What computes them: auto, fused, triton, compile or eager.")
    ],
    "force_precision": Annotated[
        bool,
        _option(RUNNING, "Evolve in a precision even if its check failed.", "--force-precision"),
    ],
    "progress": Annotated[bool, _option(RUNNING, "Show a progress bar.")],
}
