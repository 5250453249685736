"""The same as a module of PyTorch Lightning (pip install lightning).

python examples/lightning_module.py [--steps 200]
"""

import argparse

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import attention_transfer as at
from attention_transfer.experiments.demo import packaged_teacher


class Student(lightning.LightningModule):
    """A student with its teacher; checkpoints hold the student alone."""

    def __init__(self, transfer: at.Transfer) -> None:
        super().__init__()
        self.transfer = transfer
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """One batch; every term is logged."""
        images, labels = batch
        out = self.transfer(images, labels)
        self.log_dict({f"train/{name}": value for name, value in out.terms.items()})
        self.losses.append(out.loss.item())
        return out.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The teacher's parameters are not among those of the transfer."""
        return torch.optim.SGD(self.transfer.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def main(steps: int) -> list[float]:
    """Trains; returns the loss of every step."""
    torch.manual_seed(0)
    data = at.data.load_data("cluttered-digits")
    images = at.data.as_input(data.train.pixels(torch.arange(len(data.train)).numpy()))
    loader = DataLoader(TensorDataset(images, data.train.labels), batch_size=64, shuffle=True)
    module = Student(
        at.Transfer(
            at.models.build("wrn-16-1", classes=10),
            at.models.load_run(packaged_teacher()).network,
            terms=[at.CrossEntropy(), at.ActivationAttention(beta=1000.0)],
            student_normalization=(data.mean, data.std),
            teacher_normalization=(data.mean, data.std),
        )
    )
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return module.losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    history = main(parser.parse_args().steps)
    print(f"loss {history[0]:.3f} -> {history[-1]:.3f}")
