"""Hugging Face's Trainer: networks of some steps are members, and the end is evolved from them.

A small BERT tells whether more than half of ten symbols are among the first six of twelve. Nothing
is downloaded.

    python examples/trainer_snapshots.py        # needs transformers and accelerate
"""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import deevo_ext as deevo

STEPS, FIRST, EVERY = 160, 60, 14


class Sequences(Dataset[dict[str, Tensor]]):
    """Ten symbols of twelve; the label is whether more than half are below six."""

    def __init__(self, count: int, seed: int) -> None:
        self.ids = torch.randint(12, (count, 10), generator=torch.Generator().manual_seed(seed))
        self.labels = ((self.ids < 6).sum(dim=1) > 5).long()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


class Evolve(TrainerCallback):
    """Keeps the network every so many steps, and puts what is evolved of them in its place."""

    def __init__(self, fitness: Sequences, validation: Sequences) -> None:
        self.sets, self.states = (fitness, validation), []

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        if state.global_step >= FIRST and state.global_step % EVERY == 0:
            self.states.append(copy.deepcopy(model).cpu().state_dict())

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        population = deevo.Population.from_state_dicts(model, self.states)
        on = [deevo.DatasetFitness(model, population, s, lambda o, _: o.loss) for s in self.sets]
        de = deevo.DifferentialEvolution(population, generations=30)
        self.run = deevo.Evolution(de, on[0], validation=deevo.FitnessValidation(on[1]))
        model.load_state_dict(self.run.run().state_dict(population))


def main() -> None:
    """Trains, evolves, and prints what both are worth on sequences that nothing has read."""
    set_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=12,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=10,
        )
    )
    evolve, test = Evolve(Sequences(400, 2), Sequences(400, 3)), Sequences(2000, 4)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            per_device_train_batch_size=32,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(model, arguments, train_dataset=Sequences(4000, 1), callbacks=[evolve]).train()
    for name, state in (("last step", evolve.states[-1]), ("evolved", model.state_dict())):
        other = copy.deepcopy(model)
        other.load_state_dict(state)
        with torch.no_grad():
            output = other.eval()(input_ids=test.ids, labels=test.labels)
        right = float((output.logits.argmax(1) == test.labels).float().mean())
        print(f"{name}: loss {float(output.loss):.4f}, {right:.1%} right")


if __name__ == "__main__":
    main()
