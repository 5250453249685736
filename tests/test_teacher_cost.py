"""What a teacher does for its student, and what it leaves undone."""

import copy
import threading
import weakref

import pytest
import torch
from torch import Tensor, nn

import attention_transfer as at
from attention_transfer.errors import InputError
from attention_transfer.models import WideResNet, build
from attention_transfer.taps import Taps
from attention_transfer.transfer.inference_optimization import inference_copy, lower_weights
from attention_transfer.transfer.targets import TargetField, Targets, map_reduction

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])
POINTS = ("group1", "group2", "group3")


def student() -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(10, 1, classes=3)


def teacher() -> WideResNet:
    """With batch statistics as after some training."""
    torch.manual_seed(1)
    return settled(WideResNet(10, 2, classes=3))


def settled(network: nn.Module, images: Tensor = IMAGES) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        network.train()(images)
    return network.eval()


def runs_of(network: nn.Module, *names: str) -> dict[str, int]:
    """Counts the passes through modules from now on."""
    counts = dict.fromkeys(names, 0)
    for name in names:

        def count(*_: object, name: str = name) -> None:
            counts[name] += 1

        network.get_submodule(name).register_forward_hook(count)
    return counts


def test_a_teacher_that_no_term_needs_is_not_run() -> None:
    network = teacher()
    counts = runs_of(network, "stem")
    transfer = at.Transfer(student(), network, [at.CrossEntropy(), at.InputGradientNorm(1.0)])
    out = transfer(IMAGES, LABELS)
    assert counts == {"stem": 0}
    assert out.teacher_logits is None


def test_a_streamlined_teacher_sees_each_batch_once() -> None:
    transfer = at.Transfer(student(), teacher(), [at.ActivationAttention()])
    transfer.optimize_teacher_for_inference(IMAGES[:1])
    assert transfer.teacher is not None
    seen: list[int] = []
    transfer.teacher.network.get_submodule("stem").register_forward_hook(
        lambda _module, _given, output: seen.append(len(output))
    )
    transfer(IMAGES)
    transfer(IMAGES[:3])
    assert seen == [4, 3]


class Locked(nn.Sequential):
    """A network that cannot be copied."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(3))
        self.lock = threading.Lock()


def test_a_network_that_cannot_be_copied_answers_itself() -> None:
    network = Locked().eval()
    network(IMAGES)
    points = [at.ActivationAttention(pairs="group1:1")]
    transfer = at.Transfer(student(), network, points, example_input=IMAGES[:1])
    before = transfer(IMAGES).loss
    transfer.optimize_teacher_for_inference(IMAGES[:1], torch.bfloat16)
    assert transfer.teacher is not None
    assert transfer.teacher.network is network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    torch.testing.assert_close(transfer(IMAGES).loss, before)


def test_a_pass_ends_with_the_last_layer_that_is_wanted() -> None:
    network = teacher()
    terms = [at.ActivationAttention(pairs="group1:group1,group2:group2")]
    transfer = at.Transfer(student(), network, terms, example_input=IMAGES[:1])
    counts = runs_of(network, "group2", "group3", "classifier")
    out = transfer(IMAGES)
    assert counts == {"group2": 1, "group3": 0, "classifier": 0}
    assert out.teacher_logits is None
    whole = at.Transfer(student(), network, [*terms, at.KnowledgeDistillation()])
    seen = whole(IMAGES)
    assert counts["classifier"] > 0
    assert seen.teacher_logits is not None
    torch.testing.assert_close(
        seen.raw_terms["activation_attention"], out.raw_terms["activation_attention"]
    )


def test_features_are_dropped_as_soon_as_their_map_is_taken() -> None:
    network = teacher()
    transfer = at.Transfer(student(), network, [at.ActivationAttention()], example_input=IMAGES[:1])
    features: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def see(_m: object, _i: object, output: Tensor) -> None:
        alive.append(sum(reference() is not None for reference in features))
        features.append(weakref.ref(output))

    for point in POINTS:
        network.get_submodule(point).register_forward_hook(see)
    transfer(IMAGES)
    # A layer's input is alive while the layer runs, and none of those before.
    assert max(alive) <= 1


@pytest.mark.parametrize(
    "terms",
    [
        [at.CrossEntropy(), at.ActivationAttention(), at.KnowledgeDistillation()],
        [at.CrossEntropy(), at.ActivationAttention(map="max", power=1.0), at.FullActivation()],
        [at.CrossEntropy(), at.GradientAttention(1.0), at.ActivationAttention()],
    ],
)
def test_known_targets_give_the_same_loss_and_gradient_without_the_teacher(
    terms: list[at.Term],
) -> None:
    network = teacher()
    transfer = at.Transfer(student(), network, terms, example_input=IMAGES[:1])
    live = transfer(IMAGES, LABELS)
    live.loss.backward()
    gradients = [p.grad.clone() for p in transfer.parameters() if p.grad is not None]
    transfer.zero_grad()
    targets = transfer.targets(IMAGES, LABELS)
    counts = runs_of(network, "stem")
    known = transfer(IMAGES, LABELS, targets=targets)
    known.loss.backward()
    assert counts == {"stem": 0}
    assert torch.equal(live.loss, known.loss)
    again = [p.grad for p in transfer.parameters() if p.grad is not None]
    torch.testing.assert_close(gradients, again, rtol=0, atol=0)


def test_targets_are_ordinary_constants() -> None:
    transfer = at.Transfer(
        student(), teacher(), [at.ActivationAttention(), at.KnowledgeDistillation()]
    )
    targets = transfer.targets(IMAGES)
    assert list(targets.fields) == [TargetField(p, map_reduction("sum", 2.0)) for p in POINTS]
    for value in (*targets.fields.values(), targets.logits):
        assert value is not None
        assert not value.is_inference()
        assert not value.requires_grad


def test_targets_that_lack_a_map_are_refused() -> None:
    transfer = at.Transfer(student(), teacher(), [at.ActivationAttention(power=4.0)])
    with pytest.raises(InputError, match=r"hold nothing, expected group1 \(attention map, sum 4\)"):
        transfer(IMAGES, targets=Targets())


def test_an_in_place_layer_after_a_tapped_one_changes_no_target() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(1024, 3)
        )

    teacher_network = network()
    terms = [at.ActivationAttention(pairs="0:0"), at.FullActivation(pairs="0:0")]
    transfer = at.Transfer(network(), teacher_network, terms, example_input=IMAGES[:1])
    for _ in range(2):
        targets = transfer.targets(IMAGES)
        expected = teacher_network[0](IMAGES)  # type: ignore[index, operator]
        torch.testing.assert_close(targets.read(TargetField("0")), expected)
        torch.testing.assert_close(
            maps_of(targets.read(TargetField("0", map_reduction()))),
            maps_of(expected.square().sum(1)),
        )


def maps_of(maps: Tensor) -> Tensor:
    return at.maps.normalize(maps)


@pytest.mark.parametrize(
    ("name", "folded"), [("wrn-10-2", True), ("nin-thin", True), ("wrn-10-1-nobn", False)]
)
def test_an_inference_copy_answers_as_the_network_does(name: str, folded: bool) -> None:
    network = settled(build(name, classes=3).double(), IMAGES.double())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    points = list(network.attention_points)
    cheaper = inference_copy(network, points, IMAGES[:1].double())
    assert (identities(cheaper) > identities(network)) == folded
    assert not any(parameter.requires_grad for parameter in cheaper.parameters())
    torch.testing.assert_close(
        outputs(cheaper, points), outputs(network, points), rtol=1e-9, atol=1e-9
    )
    after = network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def identities(network: nn.Module) -> int:
    return sum(isinstance(module, nn.Identity) for module in network.modules())


def outputs(network: nn.Module, points: list[str]) -> list[Tensor]:
    taps = Taps(network, points)
    with torch.no_grad(), taps as features:
        logits = network(IMAGES.double())
    return [*features.values(), logits]


class Fork(nn.Module):
    """A convolution whose output goes to a batch norm and, before it, around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        return self.norm(features) + features


class Twice(nn.Module):
    """A convolution and a batch norm that run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(self.conv(images))))


@pytest.mark.parametrize("make", [Fork, Twice])
def test_a_batch_norm_that_cannot_be_folded_stays(make: type[nn.Module]) -> None:
    network = settled(make())
    cheaper = inference_copy(network, ["norm"], IMAGES[:1])
    assert identities(cheaper) == 0
    torch.testing.assert_close(cheaper(IMAGES), network(IMAGES))


def test_a_convolution_that_is_read_keeps_its_output() -> None:
    network = settled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    assert isinstance(inference_copy(network, ["0"], IMAGES[:1])[1], nn.BatchNorm2d)  # type: ignore[index]
    assert isinstance(inference_copy(network, ["1"], IMAGES[:1])[1], nn.Identity)  # type: ignore[index]


def test_lowered_weights_answer_as_autocast_does() -> None:
    network = teacher()
    lowered = copy.deepcopy(network)
    lower_weights(lowered, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(lowered(IMAGES), network(IMAGES))
