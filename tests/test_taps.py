"""Taps read what a module puts out, whatever comes after it, and leave nothing behind."""

import pytest
import torch
from torch import Tensor, nn

import attention_transfer as at
from attention_transfer.errors import InputError
from attention_transfer.taps import Taps, evaluating, unwrapped

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def network(inplace: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace), nn.Conv2d(4, 2, 1), nn.Flatten()
    )


def hooks(module: nn.Module) -> int:
    return sum(len(inner._forward_hooks) for inner in module.modules())


@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_an_in_place_layer_after_the_point_changes_nothing(inference: type[torch.no_grad]) -> None:
    plain, overwriting = network(False), network(True)
    expected = plain[0](IMAGES)
    taps = Taps(overwriting, ["0", "2"])
    for _ in range(3):
        with inference(), taps as features:
            overwriting(IMAGES)
        assert torch.equal(features["0"], expected)
        assert (features["0"] < 0).any()


def test_gradients_through_an_overwritten_point_are_right() -> None:
    gradients = []
    for inplace in (False, True):
        net = network(inplace)
        taps = Taps(net, ["0"])
        for _ in range(2):
            net.zero_grad()
            with taps as features:
                logits = net(IMAGES)
            (features["0"].square().sum() + logits.sum()).backward()
        gradients.append(net[0].weight.grad)
    assert torch.equal(*gradients)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.body(images)
        out += images
        return out


def test_a_residual_sum_in_place_changes_nothing() -> None:
    net = Residual()
    taps = Taps(net, ["body"])
    for _ in range(2):
        with taps as features:
            net(IMAGES)
        assert torch.equal(features["body"], net.body(IMAGES))


def test_only_overwritten_outputs_are_copied_after_the_first_pass() -> None:
    net = network(True)
    seen: list[Tensor] = []
    net[2].register_forward_hook(lambda _m, _i, output: seen.append(output))
    taps = Taps(net, ["0", "2"])
    for _ in range(2):
        with taps as features:
            net(IMAGES)
    assert features["2"] is seen[1]
    assert taps._copied == {"0"}


def test_an_output_overwritten_later_than_the_first_pass_is_noticed() -> None:
    net = network(False)
    taps = Taps(net, ["0"])
    with taps:
        net(IMAGES)
    net[1].inplace = True  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match=r"overwritten in place.*run the pass again"), taps:
        net(IMAGES)
    with taps as features:
        net(IMAGES)
    assert torch.equal(features["0"], net[0](IMAGES))


def test_hooks_live_as_long_as_the_block() -> None:
    net = network(False)
    taps = Taps(net, ["0", "2"])
    assert hooks(net) == 0
    with taps:
        net(IMAGES)
        assert hooks(net) == 2
    assert hooks(net) == 0
    with pytest.raises(ZeroDivisionError), taps:
        net(IMAGES)
        raise ZeroDivisionError
    assert hooks(net) == 0
    with pytest.raises(InputError, match="ran more than once"), taps:
        net(IMAGES)
        net(IMAGES)
    assert hooks(net) == 0


def test_taps_open_once() -> None:
    taps = Taps(network(False), ["0"])
    with pytest.raises(RuntimeError, match="already open"), taps, taps:
        pass


def test_names_that_are_no_points_get_the_nearest() -> None:
    with pytest.raises(InputError, match="no point 'bdoy'; did you mean body"):
        Taps(Residual(), ["bdoy"])
    with pytest.raises(InputError, match="no point ''"):
        Taps(Residual(), [""])


def test_a_point_that_does_not_run_is_an_error() -> None:
    net = Residual()
    net.unused = nn.Identity()
    with (
        pytest.raises(InputError, match="'unused' gave no output"),
        Taps(net, ["unused"]),
    ):
        net(IMAGES)


def test_an_output_that_is_no_tensor_is_an_error() -> None:
    net = nn.Sequential(nn.MaxPool2d(2, return_indices=True))
    with pytest.raises(InputError, match="choose one of 0#0, 0#1"), Taps(net, ["0"]):
        net(IMAGES)


def test_wrappers_are_seen_through() -> None:
    net = network(False)
    assert unwrapped(nn.DataParallel(net)) is net
    assert unwrapped(torch.compile(net)) is net  # type: ignore[arg-type]
    wrapped = nn.DataParallel(net)
    with Taps(wrapped, ["0"]) as features:
        wrapped(IMAGES)
    assert torch.equal(features["0"], net[0](IMAGES))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own, inside Dynamo
def test_hooks_that_a_compiled_network_skips_are_noticed() -> None:
    """Tapped before its first call it is read rightly; after it, hooks would never fire."""
    images = torch.rand(2, 3, 16, 16)
    network, teacher = (at.models.build("wrn-10-1", classes=3) for _ in range(2))
    expected = at.Transfer(network, teacher, [at.ActivationAttention()])(images).loss
    torch.compiler.reset()
    fresh = at.Transfer(
        torch.compile(network, backend="eager"), teacher, [at.ActivationAttention()]
    )
    torch.testing.assert_close(fresh(images).loss, expected)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager")
    compiled(images)
    with pytest.raises(
        InputError, match=r"'group1' gave no output: .* was compiled before it was tapped"
    ):
        at.Transfer(compiled, teacher, [at.ActivationAttention()])(images)


def test_every_modules_mode_is_put_back() -> None:
    net = network(False).train()
    net[1].eval()
    with pytest.raises(ZeroDivisionError), evaluating(net):
        assert not any(module.training for module in net.modules())
        raise ZeroDivisionError
    assert net.training
    assert net[0].training
    assert not net[1].training
