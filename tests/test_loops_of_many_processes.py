"""Transfers in the loops of others, by two processes: the weights are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TERMS = ("plain", "gradient", "own", "auto")
LOOPS = ("plain", "static_graph", "find_unused_parameters", "gradient_as_bucket_view", "no_sync")

SCRIPT = """
import json, sys
import torch
import torch.distributed as distributed
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
import attention_transfer as at
from conftest import small_data

TERMS, LOOPS, OUT = json.loads(sys.argv[1])
distributed.init_process_group("gloo")
rank = distributed.get_rank()
images = torch.rand(8, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
labels = torch.arange(8) % 3
everything = torch.arange(8)
mine = everything[rank::2]
PAIRS = "1:1,3:3"


def network(width):
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.Tanh(), nn.Conv2d(width, 2 * width, 3, 2), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 3),
    )


class Scaled(at.Term):
    name = "scaled"
    needs_logits = True

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(3, 1).double()

    def forward(self, inputs):
        return self.scale(inputs.logits).square().mean()


class Unused(nn.Module):
    def __init__(self, transfer):
        super().__init__()
        self.transfer, self.unused = transfer, nn.Linear(2, 2)

    def forward(self, *inputs):
        return self.transfer(*inputs)


def transfer_of(name):
    torch.manual_seed(3)
    terms = {
        "plain": lambda: [at.KnowledgeDistillation(), at.ActivationAttention(100.0, pairs=PAIRS)],
        "gradient": lambda: [at.GradientAttention(1.0)],
        "own": lambda: [Scaled(), at.FullActivation(pairs=PAIRS)],
        "auto": lambda: [at.ActivationAttention("auto", pairs=PAIRS)],
    }[name]()
    student, teacher = network(3).double(), network(5).double()
    return at.Transfer(student, teacher, [at.CrossEntropy(), *terms], example_input=images[:2])


def trained(transfer, model, chosen, halves=False):
    optimizer = torch.optim.SGD(transfer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        if halves:
            with model.no_sync():
                (model(images[chosen[:2]], labels[chosen[:2]]).loss / 2).backward()
            (model(images[chosen[2:]], labels[chosen[2:]]).loss / 2).backward()
        else:
            model(images[chosen], labels[chosen]).loss.backward()
        optimizer.step()
    weights = [weight.detach() for weight in transfer.parameters()]
    return [one.full_tensor() if hasattr(one, "full_tensor") else one for one in weights]


def compared(weights, expected):
    furthest = max((one - two).abs().max().item() for one, two in zip(weights, expected))
    sums = [None, None]
    distributed.all_gather_object(sums, [one.sum().item() for one in weights])
    return {"furthest": furthest, "equal on all ranks": sums[0] == sums[1]}


found = {}
for terms in TERMS:
    alone = transfer_of(terms)
    expected = trained(alone, alone, everything)
    for loop in LOOPS:
        transfer = transfer_of(terms)
        wrapped = Unused(transfer) if loop == "find_unused_parameters" else transfer
        options = {} if loop in ("plain", "no_sync") else {loop: True}
        model = DistributedDataParallel(wrapped, **options)
        weights = trained(transfer, model, mine, halves=loop == "no_sync")
        found[f"{terms} {loop}"] = compared(weights, expected)
    if terms in ("plain", "auto"):
        transfer = transfer_of(terms)
        fully_shard(transfer.student)
        found[f"{terms} fully_shard"] = compared(trained(transfer, transfer, mine), expected)

masks = []


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.network, self.dropout = network(3), nn.Dropout(0.5)

    def forward(self, images):
        if self.training:
            masks.append(self.dropout(torch.ones(64)).tolist())
        return self.network(images)


at.train(Dropping(), data=small_data(), out=OUT, epochs=1, batch_size=8, probes=0, report=False)
both = [None, None]
distributed.all_gather_object(both, masks)
found["masks"] = both
if rank == 0:
    with open(OUT + "/found.json", "w") as file:
        json.dump(found, file)
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "script.py").write_text(SCRIPT)
    arguments = json.dumps([TERMS, LOOPS, str(folder / "run")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(folder / "script.py"), arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads((folder / "run" / "found.json").read_text())
    return result


CASES = [f"{terms} {loop}" for terms in TERMS[:3] for loop in LOOPS]
# Gradient terms are refused there, and the weights of terms themselves are not sharded.
CASES.append("plain fully_shard")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_does(found: dict[str, Any], case: str) -> None:
    result = found[case]
    assert result["furthest"] < 1e-12
    assert result["equal on all ranks"]


@pytest.mark.parametrize("loop", [*LOOPS, "fully_shard"])
def test_an_automatic_beta_is_of_each_process_and_the_weights_are_equal(
    found: dict[str, Any], loop: str
) -> None:
    result = found[f"auto {loop}"]
    assert result["furthest"] < 1e-2
    assert result["equal on all ranks"]


def test_each_process_drops_other_units(found: dict[str, Any]) -> None:
    ours, theirs = found["masks"]
    assert len(ours) == len(theirs) > 2
    assert all(one != two for one, two in zip(ours, theirs, strict=True))
