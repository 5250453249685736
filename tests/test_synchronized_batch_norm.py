"""Batch normalisation by all processes' images, against one process with all of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from attention_transfer.config import DistillConfig
from attention_transfer.errors import InputError

PROCESSES = """
import torch
import torch.distributed as dist
from torch import nn
from attention_transfer.double_backward import DoubleBackward, SynchronizedBatchNorm

def results(images, shares):
    '''Outputs, gradients and second derivatives of shares of a batch, and running statistics.'''
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.BatchNorm2d(4))
    network.double()
    loss = 0
    for share in shares:
        inputs = images[share].requires_grad_()
        with DoubleBackward() as double:
            outputs = network(inputs)
            first = double.gradient(outputs.pow(3).sum() , inputs)
        loss = loss + outputs.square().sum() + first.pow(3).sum()
    loss.backward()
    gradients = torch.cat([weight.grad.flatten() for weight in network.parameters()])
    return outputs.detach(), gradients, list(network.buffers())

dist.init_process_group("gloo")
images = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()
whole = results(images, [slice(0, 7)])
share = slice(0, 3) if dist.get_rank() == 0 else slice(3, 7)
with SynchronizedBatchNorm():
    outputs, gradients, buffers = results(images, [share])
dist.all_reduce(gradients)
assert torch.allclose(outputs, whole[0][share], rtol=1e-10), "outputs"
assert torch.allclose(gradients, whole[1], rtol=1e-8, atol=1e-10), "gradients"
for own, expected in zip(buffers, whole[2], strict=True):
    assert torch.allclose(own.double(), expected.double(), rtol=1e-10), "running statistics"
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_normalise_as_one_does_with_both_shares(tmp_path: Path) -> None:
    """Outputs, gradients through the input's gradient, and running statistics; uneven shares."""
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script)], timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("other", ["compile", "grad_checkpoint"])
def test_it_does_not_go_with_what_runs_batch_norm_elsewhere(other: str) -> None:
    with pytest.raises(InputError, match=f"does not go with {other}"):
        DistillConfig.checked(
            {"sync_batch_norm": True, other: True, "student": "wrn-10-1", "teacher": "x"}
        )
