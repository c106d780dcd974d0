"""Lightning's Trainer: the network of each epoch is a member, and the end is evolved from them.

A table of 64 numbers a row (scikit-learn's digits), an MLP, a rate that stays high: no epoch's
network is as good as what they give together.

    python examples/lightning_snapshots.py        # needs lightning
"""

from __future__ import annotations

import copy
import logging
import warnings

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import deevo_ext as deevo

EPOCHS, FIRST = 14, 6


class Network(LightningModule):
    """An MLP, trained as Lightning has it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Evolve(Callback):
    """Keeps each epoch's network from FIRST on, and puts what is evolved of them in its place."""

    def __init__(self, fitness: TensorDataset, validation: TensorDataset) -> None:
        self.sets, self.states = (fitness, validation), []

    def on_train_epoch_end(self, trainer: Trainer, module: Network) -> None:
        if trainer.current_epoch >= FIRST:
            self.states.append(copy.deepcopy(module.net).cpu().state_dict())

    def on_fit_end(self, trainer: Trainer, module: Network) -> None:
        population = deevo.Population.from_state_dicts(module.net, self.states)
        loss = nn.CrossEntropyLoss()
        on = [deevo.DatasetFitness(module.net, population, s, loss) for s in self.sets]
        de = deevo.DifferentialEvolution(population, generations=40)
        self.run = deevo.Evolution(de, on[0], validation=deevo.FitnessValidation(on[1]))
        module.net.load_state_dict(self.run.run().state_dict(population))


def main() -> None:
    """Trains, evolves, and prints what both are worth on rows that nothing has read."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    seed_everything(0, verbose=False)
    digits = load_digits()
    rows = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
    train, fitness, validation, test = random_split(rows, [500, 450, 350, 497])
    network, evolve = Network(), Evolve(fitness, validation)
    trainer = Trainer(
        max_epochs=EPOCHS,
        callbacks=[evolve],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(network, DataLoader(train, batch_size=25, shuffle=True))
    x, y = (torch.stack(column) for column in zip(*test, strict=True))
    last = copy.deepcopy(network.net)
    last.load_state_dict(evolve.states[-1])
    for name, net in (("last epoch", last), ("evolved", network.net)):
        with torch.no_grad():
            logits = net(x)
        loss = float(nn.functional.cross_entropy(logits, y))
        print(f"{name}: loss {loss:.4f}, {float((logits.argmax(1) == y).float().mean()):.1%} right")


if __name__ == "__main__":
    main()
