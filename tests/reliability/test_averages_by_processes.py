"""Averages of weights and early stopping, by two processes of torchrun as by one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attention_transfer.runs import Run

PROCESSES = """
import sys
import torch
import attention_transfer as at
from attention_transfer import network_inputs
sys.path.insert(0, {tests!r})
from conftest import small_data
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
network_inputs.load_data = lambda *_, **__: small_data()
at.train(
    "nin-thin-nobn", out={out!r}, epochs=8, batch_size=10, precision="fp32", report=False,
    optimizer="adamw", ema=0.5, early_stopping=1,
)
"""


@pytest.mark.slow
def test_two_processes_average_and_stop_as_one_does(tmp_path: Path) -> None:
    runs = []
    for processes in (1, 2):
        out = tmp_path / f"run-{processes}"
        script = tmp_path / "script.py"
        script.write_text(PROCESSES.format(tests=str(Path(__file__).parents[1]), out=str(out)))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", str(script)]
        done = subprocess.run(command, timeout=200, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        runs.append(Run(out))
    one, two = runs
    assert len(one.metrics) == len(two.metrics) == one.record.trained_epochs < 8
    assert [row.ema["validation_error"] for row in one.metrics] == [
        row.ema["validation_error"] for row in two.metrics
    ]
    averages = [load_file(run.averaged_folder / "model.safetensors") for run in runs]
    for name, value in averages[0].items():
        assert torch.allclose(value, averages[1][name], rtol=1e-7, atol=1e-9), name
