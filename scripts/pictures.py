"""Draws the pictures of README.md and docs/, all of one run of the demo, and runs the notebook.

    python scripts/pictures.py

The demo is run with its defaults in runs/pictures, once; delete that folder to run it again. The
pictures show its networks: the teacher, the student alone and the students with attention transfer.
"""

import base64
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image
from playwright.sync_api import sync_playwright

import attention_transfer as at

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DEMO = ROOT / "runs" / "pictures"
NOTEBOOK = ROOT / "examples" / "attention_transfer.ipynb"

COLOURS = 96
"""Of a picture in the notebook, whose file is to stay small."""


def main() -> None:
    """Run what is missing, and draw everything."""
    if not (DEMO / "demo.json").exists():
        command([sys.executable, "-m", "attention_transfer", "demo", "--out", str(DEMO)])
    shutil.copy(DEMO / "attention.png", DOCS / "attention.png")
    figure = ["--runs", str(DEMO), "--out", str(DOCS / "paper_figure.png")]
    command([sys.executable, str(ROOT / "examples" / "paper_figure.py"), *figure])
    draw_report(DOCS / "report.png")
    run_notebook()


def draw_report(path: Path) -> None:
    """Draw the top of the report's page, with the viewer of attention maps at the last epoch."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "report.html"
        at.write_report([DEMO / name for name in ("alone", "at", "at+kd")], page_file)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": 1100, "height": 1320}, reduced_motion="reduce", color_scheme="light"
        )
        page.goto(page_file.as_uri())
        page.wait_for_selector("[data-ready]")
        page.locator("input[type=range]").first.press("End")
        page.screenshot(path=path)
        browser.close()
    smaller(path)


def run_notebook() -> None:
    """Run the notebook's cells and keep what they show."""
    notebook = nbformat.read(NOTEBOOK, 4)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=900, resources=where).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            drawn = output.get("data", {}).get("image/png")
            if drawn is not None:
                output["data"]["image/png"] = in_few_colours(drawn)
    nbformat.write(notebook, NOTEBOOK)  # type: ignore[no-untyped-call]


def in_few_colours(drawn: str) -> str:
    """Return a PNG in base64 at half its width and height, in few colours."""
    png = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(drawn))) as image:
        half = image.convert("RGB").reduce(2)
        half.quantize(COLOURS, dither=Image.Dither.NONE).save(png, "png", optimize=True)
    return base64.b64encode(png.getvalue()).decode()


def smaller(path: Path) -> None:
    """Write a PNG again, in colours that cannot be told from its own."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    Image.fromarray(pixels // 4 * 4 + 2).save(path, optimize=True)


def command(words: list[str]) -> None:
    """Run a command; its failure is this script's."""
    print(*words, flush=True)
    subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
