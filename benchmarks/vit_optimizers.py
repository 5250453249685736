"""A vision transformer taught by EfficientNet-Lite0 with ImageNet weights: AdamW and EMA, or SGD.

    python benchmarks/vit_optimizers.py [--seeds 3] [--out runs/vit-optimizers]

The data are a folder of grey crops of photographs of scikit-image and scikit-learn; the class is
the photograph. Training crops are from the left 65 % of each photograph, test crops from the right
30 %. The student, timm's ViT-tiny with random weights at 64 pixels, learns by the labels and by
activation attention, whose weight is "auto"; the teacher knows other classes, so there is no
distillation. Each arm is trained with ``--seed`` 0, 1, ...; the test crops are evaluated once, at
the end of a run. The first run by AdamW is trained once more, interrupted by a signal and resumed,
and compared bit by bit.
Finished runs in the folder are reused.
"""

import argparse
import json
import os
import signal
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

import attention_transfer as at
from attention_transfer.environment import describe_machine, package_versions
from attention_transfer.errors import Interrupted, TrainingError
from attention_transfer.experiments.photographs import (
    SIZE,
    crops_by_split,
    efficientnet_lite0,
    photographs,
)
from attention_transfer.runs import Run
from attention_transfer.training import RunProgress
from attention_transfer.training.monitoring.live_view import StepFigures

STUDENT = "timm:vit_tiny_patch16_224"
TEACHER = "timm:tf_efficientnet_lite0"
ARMS: dict[str, dict[str, Any]] = {
    "AdamW by default, with EMA": {"ema": 0.999},
    "SGD at 0.03, its default for transformers": {"optimizer": "sgd"},
    "SGD at 0.1, clipped": {"optimizer": "sgd", "lr": 0.1},
    "SGD at 0.4, as for convolutional networks": {
        "optimizer": "sgd",
        "lr": 0.4,
        "clip_gradient": None,
    },
}


def main() -> None:
    """Train the missing runs, then print and write one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/vit-optimizers"))
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--images", type=int, default=40, help="training crops of a photograph")
    parsed = parser.parse_args()
    settings = {
        "student": STUDENT,
        "teacher": f"{TEACHER}@{teacher_weights(parsed.out)}",
        "data": f"folder:{crops_folder(parsed.out / 'crops', parsed.images)}",
        "image_size": SIZE,
        "beta": "auto",
        "epochs": parsed.epochs,
        "batch_size": 32,
        "cache": parsed.out / "cache",
        "cache_views": 4,
        "report": False,
        "workers": 0,
    }
    train = partial(at.distill, **settings)
    runs = {
        arm: [
            trained(train, parsed.out / f"{number}-{seed}", seed=seed, **choices)
            for seed in range(parsed.seeds)
        ]
        for number, (arm, choices) in enumerate(ARMS.items())
    }
    arm, choices = next(iter(ARMS.items()))
    first = runs[arm][0]
    assert first is not None, "AdamW diverged"
    again = interrupted_and_resumed(train, parsed.out / "resumed", seed=0, **choices)
    document = {
        "what": str(__doc__).partition("\n")[0],
        "machine": describe_machine(),
        "versions": package_versions(),
        "settings": {name: str(value) for name, value in settings.items()},
        "arms": {arm: figures(found) for arm, found in runs.items()},
        "resumed_bit_equal": all(
            equal_weights(*pair)
            for pair in (
                (first.folder, again.folder),
                (first.averaged_folder, again.averaged_folder),
            )
        ),
    }
    text = json.dumps(document, indent=2)
    (parsed.out / "vit_optimizers.json").write_text(text + "\n")
    print(text)


def trained(train: Any, folder: Path, **settings: Any) -> Run | None:
    """Return the run in a folder, trained or resumed if need be; None if it diverges."""
    progress = RunProgress(Console(stderr=True))
    try:
        finished: Run = train(out=folder, resume_or_start=True, progress=progress, **settings)
    except TrainingError as error:
        progress.write_line(str(error))
        return None
    return finished


class Interrupting(RunProgress):
    """Sends this process a signal in the middle of a run."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def step(self, images: int, figures: StepFigures) -> None:
        """Count a step; the last one gets the signal."""
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def interrupted_and_resumed(train: Any, folder: Path, **settings: Any) -> Run:
    """Return a run that was interrupted within an epoch and resumed."""
    if not (folder / "config.yaml").is_file():
        try:
            train(out=folder, progress=Interrupting(50), **settings)
        except Interrupted as stopped:
            print(stopped)
    run = Run(folder)
    return run if run.is_finished else at.resume(folder)


def equal_weights(first: Path, second: Path) -> bool:
    """Return whether the networks in two folders have the same weights, bit by bit."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (first, second))
    return all(torch.equal(weights[key], others[key]) for key in weights)


def figures(found: list[Run | None]) -> dict[str, Any]:
    """Return the settings that an arm's runs took, and their errors."""
    runs = [run for run in found if run is not None]
    if not runs:
        return {"diverged": len(found)}
    config = runs[0].config
    chosen = ("optimizer", "lr", "schedule", "warmup", "weight_decay", "clip_gradient", "ema")
    errors = {"test_errors": [run.test_error for run in runs]}
    averages = [run.record.ema for run in runs]
    averaged = [average.final.held_out.error for average in averages if average is not None]
    if averaged:
        errors["test_errors_of_averaged_weights"] = averaged
    return {
        "diverged": len(found) - len(runs),
        "settings": {name: getattr(config, name) for name in chosen},
        **errors,
        **{f"mean_of_{name}": statistics.mean(values) for name, values in errors.items()},
        "train_errors": [run.metrics[-1].train_error for run in runs],
        "seconds": [run.record.seconds for run in runs],
    }


def teacher_weights(folder: Path) -> Path:
    """Return the file of the teacher's weights, which a package has."""
    file = folder / "efficientnet-lite0.safetensors"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(efficientnet_lite0().state_dict(), file)
    return file


def crops_folder(folder: Path, images: int) -> Path:
    """Write the folder of crops, unless it is there, and return it."""
    if folder.is_dir():
        return folder
    names = list(photographs())
    for split, (found, labels) in crops_by_split(images).items():
        count = images if split == "train" else images // 2
        for index, (pixels, label) in enumerate(zip(found, labels, strict=True)):
            place = folder / split / names[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{index % count:03d}.png")
    return folder


if __name__ == "__main__":
    main()
