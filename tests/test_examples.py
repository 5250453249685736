"""The files in examples/ do what they say."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

import attention_transfer as at
from attention_transfer.experiments.demo import packaged_teacher

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    "name", ["plain_loop", "accelerate_loop", "lightning_module", "timm_style"]
)
def test_the_loss_falls_in_any_loop(name: str) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--steps", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"loss ([\d.]+) -> ([\d.]+)", done.stdout)
    assert found is not None
    first, last = map(float, found.groups())
    assert last < 0.95 * first


@pytest.mark.parametrize("name", ["segmentation", "detection", "own_term"])
def test_any_task_and_a_term_of_ones_own(name: str) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    expected = {
        "segmentation": "logits: (2, 4, 64, 64)",
        "detection": "'body.layer4:body.layer4'] logits: None",
        "own_term": "'similarity_preserving': 0.",
    }
    assert expected[name] in done.stdout


def test_the_paper_in_plain_pytorch_has_the_librarys_losses() -> None:
    """examples/whole_paper.py imports nothing of this library, and computes the same numbers."""
    path = EXAMPLES / "whole_paper.py"
    assert "attention_transfer" not in path.read_text(encoding="utf-8")
    assert len(path.read_text(encoding="utf-8").splitlines()) < 100
    paper = runpy.run_path(str(path))
    torch.manual_seed(1)
    student, teacher = paper["Network"](4).double(), paper["Network"](8).double().eval()
    images, labels = torch.rand(6, 3, 32, 32, dtype=torch.float64), torch.randint(10, (6,))
    targets, logits = teacher(images).detach(), student(images)
    expected = {
        "cross_entropy": 0.1 * torch.nn.functional.cross_entropy(logits, labels),
        "knowledge_distillation": 0.9 * paper["distillation_loss"](logits, targets),
        "activation_attention": paper["attention_loss"](student.features, teacher.features),
        "gradient_attention": paper["gradient_loss"](
            paper["input_gradient"](student, images, labels, keep=True),
            paper["input_gradient"](teacher, images, labels, keep=False),
            beta=0.01,
        ),
    }
    student.zero_grad()
    sum(expected.values()).backward()
    gradients = [parameter.grad.clone() for parameter in student.parameters()]
    student.zero_grad()
    pairs = "groups.0:groups.0,groups.1:groups.1,groups.2:groups.2"
    terms = [
        *at.distillation_terms(alpha=0.9, temperature=4.0),
        at.ActivationAttention(beta=1000.0, pairs=pairs),
        at.GradientAttention(beta=0.01),
    ]
    out = at.Transfer(student, teacher, terms)(images, labels)
    for name, value in expected.items():
        torch.testing.assert_close(out.terms[name], value)
    out.loss.backward()
    for parameter, gradient in zip(student.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert paper["main"](steps=20) < paper["main"](steps=1)


def test_the_page_on_extending_works_as_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its three modules are saved under their names, and its commands run."""
    page = (EXAMPLES.parent / "docs" / "extending.md").read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        name = re.match(r"# (\w+\.py)\n", code)
        if name is None:
            continue  # a loop, which the documents' own test runs
        assert len([line for line in code.splitlines() if line]) < 30
        (tmp_path / name[1]).write_text(code, encoding="utf-8")
    commands = re.findall(r"^(attention-transfer (?:.*\\\n)*.*)$", page, re.MULTILINE)
    assert len(commands) == 2
    python_path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    for command in commands:
        done = subprocess.run(
            command.replace("attention-transfer", f"{sys.executable} -m attention_transfer", 1),
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": python_path},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    run = at.Run(tmp_path / "runs" / "small")
    assert "channel_means" in run.metrics[-1].terms
    assert run.config.terms == ("my_terms:ChannelMeans(weight=0.1)",)
    assert not any(
        "channel" in name for name in run.load(trust=["my_networks:small"]).network.state_dict()
    )


def test_a_teacher_from_a_package_works_offline_and_looks_at_the_object(tmp_path: Path) -> None:
    """EfficientNet-Lite0 knows the photographs, and its top level lies on what they show."""
    command = [sys.executable, str(EXAMPLES / "pretrained_teacher.py"), "--out", str(tmp_path)]
    subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    assert (tmp_path / "attention.png").stat().st_size > 10_000
    name = f"timm:tf_efficientnet_lite0@{tmp_path / 'weights.safetensors'}"
    model = at.models.load(name, classes=3, trained=True)
    assert model.preprocessing is not None
    from sklearn.datasets import load_sample_images

    china, flower = (picture[:420, 110:530] for picture in load_sample_images().images)
    images = torch.from_numpy(np.stack([china, flower])).permute(0, 3, 1, 2) / 255
    own = model.preprocessing
    with torch.no_grad():
        answers = model.network.eval()(own(images)).argmax(dim=1)
    assert answers.tolist() == [698, 985]  # palace, daisy
    top = at.attention_maps(model.network, images, ["blocks.6"], normalization=own)["blocks.6"]
    shares = top / top.sum((1, 2), keepdim=True)
    tower, blossom = shares[0, :, :4], shares[1, 1:6, 1:6]
    assert float(tower.sum()) > 0.75
    assert float(blossom.sum()) > 0.75


def test_the_papers_figure_is_drawn_from_runs(tmp_path: Path) -> None:
    """Of runs that are there already; the picture in the docs is one of such, and small."""
    for name in ("alone", "nin-thin"):
        shutil.copytree(packaged_teacher(), tmp_path / "runs" / name)
    command = [sys.executable, str(EXAMPLES / "paper_figure.py")]
    command += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "docs" / "figure.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "training" not in done.stdout
    for picture in (tmp_path / "docs" / "figure.png", EXAMPLES.parent / "docs/paper_figure.png"):
        assert picture.stat().st_size < 700_000
        with Image.open(picture) as opened:
            assert opened.width > 1_000


def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(EXAMPLES / "attention_transfer.ipynb", 4)
    (runs,) = (cell for cell in notebook.cells if '"epochs": 4' in cell.source)
    runs.source = runs.source.replace('"epochs": 4', '"epochs": 1')
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=280, resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert re.search(r"test error alone: [\d.]+ %, taught: [\d.]+ %", printed)
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(drawn) == 2
    assert at.Run(tmp_path / "runs/taught").is_finished
