"""The same with Hugging Face's Accelerate: any devices, any number of processes.

accelerate launch examples/accelerate_loop.py [--steps 200]
"""

import argparse

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import attention_transfer as at
from attention_transfer.experiments.demo import packaged_teacher


def main(steps: int) -> list[float]:
    """Trains; returns the loss of every step."""
    torch.manual_seed(0)
    accelerator = Accelerator()
    data = at.data.load_data("cluttered-digits")
    images = at.data.as_input(data.train.pixels(torch.arange(len(data.train)).numpy()))
    loader = DataLoader(TensorDataset(images, data.train.labels), batch_size=64, shuffle=True)
    transfer = at.Transfer(
        at.models.build("wrn-16-1", classes=10),
        at.models.load_run(packaged_teacher()).network,
        terms=[at.CrossEntropy(), at.ActivationAttention(beta=1000.0)],
        student_normalization=(data.mean, data.std),
        teacher_normalization=(data.mean, data.std),
    )
    # The whole objective is prepared, so that its own parameters are synchronised too.
    optimizer = torch.optim.SGD(transfer.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    prepared, optimizer, loader = accelerator.prepare(transfer, optimizer, loader)
    losses: list[float] = []
    while True:
        for inputs, labels in loader:
            out = prepared(inputs, labels)
            optimizer.zero_grad()
            accelerator.backward(out.loss)
            optimizer.step()
            losses.append(out.loss.item())
            if len(losses) == steps:
                return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    history = main(parser.parse_args().steps)
    print(f"loss {history[0]:.3f} -> {history[-1]:.3f}")
