"""The last layer in a file of weights: of other classes, of another name, of several layers."""

import pytest
import torch
from torch import Tensor

from attention_transfer.errors import InputError
from attention_transfer.models import build, load
from test_weights_as_people_have_them import NAME, same

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    torch.manual_seed(0)
    return dict(build(NAME, 3).state_dict())


def test_a_head_of_other_classes(state: State) -> None:
    torch.save(state, "three.pth")
    loaded = load(f"{NAME}@three.pth", 5, trained=False)
    assert loaded.network(torch.rand(2, 3, 16, 16)).shape == (2, 5)
    assert torch.equal(loaded.network.state_dict()["stem.weight"], state["stem.weight"])
    (said,) = loaded.notices
    assert f"{NAME} gets a new last layer: that of three.pth is for 3 classes, not 5" in said
    kept = load(f"{NAME}@three.pth", 5, trained=True)  # a teacher's is never a random one
    assert torch.equal(kept.network.state_dict()["classifier.weight"], state["classifier.weight"])
    torch.save({n: v for n, v in state.items() if "classifier" not in n}, "none.pth")
    assert "that of none.pth has none" in load(f"{NAME}@none.pth", 3, trained=False).notices[0]
    with pytest.raises(InputError, match="a teacher with a random one teaches nothing"):
        load(f"{NAME}@none.pth", 3, trained=True)


def test_a_last_layer_of_another_name_is_taken(state: State) -> None:
    """In a sequence, under another key, or beside a backbone."""
    head = {name: value for name, value in state.items() if "classifier" in name}
    body = {name: value for name, value in state.items() if name not in head}
    for other, prefix in (
        ("classifier.1", ""),
        ("fc", ""),
        ("head", "backbone."),
        ("m.fc", "m.b."),
    ):
        own = {f"{prefix}{name}": value for name, value in body.items()}
        own |= {name.replace("classifier", other): value for name, value in head.items()}
        torch.save(own, "head.pth")
        for trained in (True, False):
            equal, said = same(f"{NAME}@head.pth", state, trained=trained)
            assert equal, other
            assert f"took {other} for the last layer, classifier" in said
            assert "left out" not in said
        kept = load(f"{NAME}@head.pth", 5, trained=True).network.state_dict()
        assert torch.equal(kept["classifier.weight"], state["classifier.weight"])
        loaded = load(f"{NAME}@head.pth", 5, trained=False)
        assert "that of head.pth is for 3 classes, not 5, and is left out" in loaded.notices[-1]
        assert loaded.network.classifier.weight.shape[0] == 5
        assert torch.equal(loaded.network.state_dict()["stem.weight"], state["stem.weight"])


def test_a_last_layer_of_several_layers_is_left_out_for_a_student(state: State) -> None:
    body = {name: value for name, value in state.items() if "classifier" not in name}
    several = {
        "classifier.0.weight": torch.zeros(8, 64),
        "classifier.2.weight": torch.zeros(3, 8),
        "classifier.2.bias": torch.zeros(3),
    }
    torch.save({**body, **several}, "several.pth")
    loaded = load(f"{NAME}@several.pth", 3, trained=False)
    assert "is another (classifier.0.weight, classifier.2.weight, " in loaded.notices[-1]
    assert torch.equal(loaded.network.state_dict()["stem.weight"], state["stem.weight"])
    with pytest.raises(InputError, match=r"the last layer in several\.pth .* is another than that"):
        load(f"{NAME}@several.pth", 3, trained=True)


def test_layers_that_are_no_last_layer_are_refused_beside_another_head(state: State) -> None:
    """As of a deeper network of the same kind."""
    deeper = dict(build("wrn-16-1", 3).state_dict())
    deeper = {name.replace("classifier", "head"): value for name, value in deeper.items()}
    torch.save(deeper, "deeper.pth")
    for trained in (True, False):
        with pytest.raises(InputError, match="does not fit WideResNet: missing: classifier"):
            load(f"{NAME}@deeper.pth", 3, trained=trained)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:resnet10t"])
def test_a_fine_tuned_sequence_as_the_last_layer_of_a_zoos_network(name: str) -> None:
    torch.manual_seed(0)
    tuned = dict(build(name, 7).state_dict())
    last = "classifier.3" if "torchvision" in name else "fc"
    own = {one.replace(f"{last}.", f"{last}.1."): value for one, value in tuned.items()}
    torch.save(own, "tuned.pth")
    student = load(f"{name}@tuned.pth", 3, trained=False)
    assert "is for 7 classes, not 3, and is left out" in student.notices[-1]
    assert student.network.state_dict()[f"{last}.weight"].shape[0] == 3
    teacher = load(f"{name}@tuned.pth", 3, trained=True).network.state_dict()
    assert all(torch.equal(teacher[one], value) for one, value in tuned.items())
