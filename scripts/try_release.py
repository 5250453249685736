"""Tries a wheel as its users do: python scripts/try_release.py dist/*.whl

In new environments outside of the checkout, it installs the wheel, runs the demo, classifies images
with the trained student, exports it, and classifies the same images by the exported script with
numpy, onnxruntime and pillow alone. The probabilities have to agree to 1e-4.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"

IMAGES = """
from PIL import Image
import attention_transfer as at
test = at.data.load_data("cluttered-digits").test
for index in range(8):
    Image.fromarray(test.images[index].numpy()).save(f"scene-{index}.png")
"""


def main(wheel: Path) -> None:
    """Try all that a user of the wheel does first."""
    folder = Path(tempfile.mkdtemp(prefix="release-"))
    full = environment(folder / "full", f"{wheel}[demo,onnx]")
    bare = environment(folder / "bare", "numpy", "onnxruntime", "pillow")
    product = full.with_name("attention-transfer")
    say(run(folder, product, "--version"))
    say(run(folder, product, "demo", "--out", "demo"))
    run(folder, full, "-c", IMAGES)
    images = sorted(path.name for path in folder.glob("scene-*.png"))
    predicted = json.loads(run(folder, product, "predict", "demo/at+kd", *images, "--json"))
    whole = {image["image"]: image["probability"] for image in predicted["predictions"]}
    say(run(folder, product, "export", "demo/at+kd", "--out", "export"))
    lines = run(folder, bare, "export/classify.py", *images).splitlines()
    alone = {image: float(share) for image, _, share in (line.split("\t") for line in lines)}
    assert sorted(whole) == sorted(alone) == images
    furthest = max(abs(whole[image] - alone[image]) for image in images)
    say(f"the script alone differs from predict by at most {furthest:.1e} in {len(images)} images")
    assert furthest < 1e-4
    shutil.rmtree(folder)


def environment(folder: Path, *packages: str) -> Path:
    """Return the Python of a new environment with some packages."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS), *packages]
    subprocess.run([str(python), *install], check=True)
    return python


def run(folder: Path, program: Path, *arguments: str) -> str:
    """Return what a program prints; whatever it says beside goes to the terminal."""
    command = [str(program), *arguments]
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def say(text: str) -> None:
    """Print some lines at once."""
    print(text.strip(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
