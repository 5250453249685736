"""The same with timm's parts: its networks, optimizer, schedule and averaged weights.

python examples/timm_style.py [--steps 200]
"""

import argparse

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

import attention_transfer as at
from attention_transfer.experiments.demo import packaged_teacher


def main(steps: int) -> list[float]:
    """Trains; returns the loss of every step."""
    torch.manual_seed(0)
    data = at.data.load_data("cluttered-digits")
    # With ImageNet's classes: timm.create_model("resnet34", pretrained=True).
    teacher = at.models.load_run(packaged_teacher()).network
    student = timm.create_model("resnet10t", num_classes=10)
    images = torch.rand(1, 3, 64, 64)
    transfer = at.Transfer(
        student,
        teacher,
        terms=[at.CrossEntropy(), at.ActivationAttention(beta=1000.0)],
        example_input=images,  # to find the attention points of both networks and pair them
        student_normalization=at.Preprocessing(data.mean, data.std, size=(64, 64)),
        teacher_normalization=at.Preprocessing(data.mean, data.std, size=(32, 32)),
    )
    optimizer = create_optimizer_v2(transfer, opt="adamw", lr=2e-3, weight_decay=0.05)
    schedule = CosineLRScheduler(
        optimizer, t_initial=steps, warmup_t=steps // 10, t_in_epochs=False
    )
    average = ModelEmaV3(student, decay=0.99)
    losses: list[float] = []
    epoch = 0
    while True:
        order = at.data.epoch_order(len(data.train), seed=0, epoch=epoch)
        for batch in at.data.batches(data.train, order, 32, view=at.data.AugmentedView(0, epoch)):
            out = transfer(batch.images, batch.labels)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            schedule.step_update(len(losses))
            average.update(student)
            losses.append(out.loss.item())
            if len(losses) == steps:
                return losses
        epoch += 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    history = main(parser.parse_args().steps)
    print(f"loss {history[0]:.3f} -> {history[-1]:.3f}")
