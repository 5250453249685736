"""Every optimizer of timm's list: it takes steps on a CPU, or a run refuses it and says why."""

import re

import pytest
import torch
from timm.optim import list_optimizers
from torch.nn import functional

from attention_transfer.config import RunConfig
from attention_transfer.errors import InputError
from attention_transfer.training.optimization import resolve_optimization
from attention_transfer.training.optimizers import check_optimizer, make_optimizer
from test_optimizers import small_network


def refusal_of(config: RunConfig) -> str | None:
    try:
        check_optimizer(config)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", sorted(map(str, list_optimizers())))
def test_an_optimizer_takes_steps_here_or_is_refused_with_a_reason(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = RunConfig(student="network", optimizer=name)
    refusal = refusal_of(config)
    if refusal is not None:
        assert re.match(rf"optimizer {name} .*; give another, such as sgd", refusal)
        return
    network = small_network()
    config, _ = resolve_optimization(config, network, trained=False)
    parameters = list(network.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = make_optimizer(config, [{"params": parameters}], torch.device("cpu"))
    for _ in range(3):
        logits = network(torch.randn(4, 3, 8, 8))
        functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(bool(parameter.isfinite().all()) for parameter in parameters)
    assert any(not torch.equal(one, other) for one, other in zip(before, parameters, strict=True))
