"""Recipes for the teacher that comes with the package: what it errs on, and how sure it is.

    python benchmarks/teachers.py [--out runs/teachers]

A teacher that has memorised its training views says little beyond their labels. Each recipe is
trained on cluttered-digits with some seeds, and measured on augmented training views and on the
validation scenes; the test scenes are not read. Finished runs in the folder are reused, and
interrupted ones resumed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

import attention_transfer as at
from attention_transfer.data import Images
from attention_transfer.data.randomness import AugmentedView
from attention_transfer.environment import describe_machine, package_versions

COMMON: dict[str, Any] = {"lr": 0.3, "precision": "bf16"}
RECIPES: dict[str, tuple[dict[str, Any], range]] = {
    "40 epochs": ({"epochs": 40}, range(1)),
    "80 epochs, MixUp 0.4": ({"epochs": 80, "mixup": 0.4}, range(1)),
    "80 epochs, MixUp 1.0": ({"epochs": 80, "mixup": 1.0}, range(1)),
    "80 epochs, MixUp 0.4, weight decay 0.001": (
        {"epochs": 80, "mixup": 0.4, "weight_decay": 0.001},
        range(3),
    ),
}
"""Recipe -> its settings, and its seeds."""

VIEW = AugmentedView(0, 3)
"""The augmented view of the training scenes that is measured."""

BATCH = 256


def main() -> None:
    """Train the missing teachers, then print and write one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/teachers"))
    folder = parser.parse_args().out
    recipes = {}
    for name, (settings, seeds) in RECIPES.items():
        where = folder / name.replace(", ", "-").replace(" ", "-").lower()
        recipes[name] = {
            "settings": COMMON | settings,
            "seeds": {seed: measured(where / f"seed-{seed}", settings, seed) for seed in seeds},
        }
    document = {
        "what": (__doc__ or "").splitlines()[0],
        "machine": describe_machine(),
        "versions": package_versions(),
        "recipes": recipes,
    }
    text = json.dumps(document, indent=2)
    (folder / "teachers.json").write_text(text + "\n")
    print(text)


def measured(folder: Path, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the figures of one teacher, which is trained if it is missing."""
    at.train(
        "wrn-16-2",
        out=folder,
        seed=seed,
        **COMMON,
        **settings,
        test=False,
        report=False,
        probes=0,
        resume_or_start=True,
    )
    data = at.data.load_data("cluttered-digits")
    classifier = at.load(folder)
    return {
        "training_views": figures(classifier, data.train, VIEW),
        "validation": figures(classifier, data.validation, None),
    }


def figures(classifier: at.Classifier, images: Images, view: AugmentedView | None) -> Any:
    """Return error in percent, mean cross-entropy and mean entropy of the answers, in nats."""
    assert classifier.preprocessing is not None
    answers = []
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            indices = np.arange(start, min(len(images), start + BATCH))
            pixels = images.pixels(indices, view).permute(0, 3, 1, 2).float() / 255
            answers.append(classifier.network(classifier.preprocessing(pixels)))
    logits, labels = torch.cat(answers), images.labels
    probabilities = logits.softmax(dim=1)
    entropies = torch.special.entr(probabilities).sum(dim=1)
    return {
        "error": 100 * (logits.argmax(dim=1) != labels).float().mean().item(),
        "cross_entropy": functional.cross_entropy(logits, labels).item(),
        "entropy": entropies.mean().item(),
    }


if __name__ == "__main__":
    main()
