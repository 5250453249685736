"""Attention transfer in a PyTorch loop of one's own.

python examples/plain_loop.py [--steps 200]
"""

import argparse

import torch

import attention_transfer as at
from attention_transfer.experiments.demo import packaged_teacher


def main(steps: int) -> list[float]:
    """Trains; returns the loss of every step."""
    torch.manual_seed(0)
    data = at.data.load_data("cluttered-digits")
    teacher = at.models.load_run(packaged_teacher())
    student = at.models.build("wrn-16-1", classes=10)
    transfer = at.Transfer(
        student,
        teacher.network,
        terms=[*at.distillation_terms(alpha=0.9), at.ActivationAttention(beta=1000.0)],
        student_normalization=(data.mean, data.std),
        teacher_normalization=(data.mean, data.std),
    )
    optimizer = torch.optim.SGD(transfer.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    losses: list[float] = []
    epoch = 0
    while True:
        order = at.data.epoch_order(len(data.train), seed=0, epoch=epoch)
        for batch in at.data.batches(data.train, order, 64, view=at.data.AugmentedView(0, epoch)):
            out = transfer(batch.images, batch.labels, progress=len(losses) / steps)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            losses.append(out.loss.item())
            if len(losses) == steps:
                return losses
        epoch += 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    history = main(parser.parse_args().steps)
    print(f"loss {history[0]:.3f} -> {history[-1]:.3f}")
