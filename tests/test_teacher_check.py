"""What the teacher answers before the first step: its error, and what is wrong with it."""

import json
import random
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.config import RunConfig
from attention_transfer.data import DataSet
from attention_transfer.environment import make_accelerator
from attention_transfer.training import set_up_run
from attention_transfer.training.agreement import agreement
from attention_transfer.training.class_order import find_class_order
from attention_transfer.training.objects import named
from attention_transfer.training.processes import Processes
from attention_transfer.training.shared_evaluation import SharedEvaluation
from attention_transfer.training.teacher_check import TeacherCheck, check_teachers
from conftest import SMALL, Listening, small_data

CLASSES = 4
SETTINGS: dict[str, Any] = {**SMALL, "epochs": 1, "probes": 0, "kd_alpha": 0.5}


class Quarters(nn.Module):
    """Tells which quarter of an image is bright, by outputs in some order.

    Args:
        order: the output of each class.
        middle: of the inputs that it expects; darker ones are all alike to it.
        spread: of those inputs.
    """

    def __init__(
        self, order: tuple[int, ...] = (0, 1, 2, 3), middle: float = 0.0, spread: float = 1.0
    ) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.features.weight, 1 / 3)
        self.activation = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.register_buffer("order", torch.tensor(order))
        self.middle, self.spread = middle, spread

    def forward(self, images: Tensor) -> Tensor:
        inputs = (images - self.middle) / self.spread
        quarters = self.pool(self.activation(self.features(inputs))).flatten(1)
        logits = quarters.new_zeros(len(images), len(self.order))
        return logits.index_copy(1, self.order[:CLASSES], 20 * quarters)


def images_of(count: int = 400, names: tuple[str, ...] = ("a", "b", "c", "d")) -> DataSet:
    """Images of which half are for validation; the class is the bright quarter."""
    data = small_data(count, CLASSES)
    halves = np.arange(count // 2), np.arange(count // 2, count)
    train, validation = (data.train.subset(half) for half in halves)
    return replace(data, train=train, validation=validation, class_names=names)


def distilled(
    teacher: nn.Module, folder: Path, data: DataSet, **changes: Any
) -> tuple[at.Run, str]:
    """Train a step or two, and return the run and the lines."""
    progress = Listening()
    run = at.distill(
        teacher=teacher,
        student="wrn-10-1",
        data=data,
        out=folder,
        progress=progress,
        **{**SETTINGS, **changes},
    )
    return run, "\n".join(progress.lines)


def test_the_error_of_a_good_teacher_is_told_and_recorded(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run, lines = distilled(Quarters(), tmp_path / "run", images_of())
    assert "Quarters: error 0.0 % on 200 validation images" in lines
    assert "WARNING" not in lines
    recorded = json.loads((tmp_path / "run" / "record.json").read_text())["teacher"]
    assert (recorded["validation_error"], recorded["validation_images"]) == (0.0, 200)
    assert recorded["warnings"] == run.record.teacher.warnings == []


def constant(outputs: int) -> nn.Module:
    network = Quarters()
    network.features.weight.data.zero_()
    assert outputs == CLASSES
    return network


def test_a_teacher_at_chance_is_told_with_what_to_check(tmp_path: Path) -> None:
    run, lines = distilled(constant(CLASSES), tmp_path / "run", images_of())
    (warning,) = [line for line in lines.splitlines() if line.startswith("WARNING: ")]
    for expected in (
        "no better than chance: error 75.0 % on 200 validation images, chance 75.0 %",
        "that it is trained",
        "in their order (a, b, c, d)",
        "16x16 images of pixels 0 to 1, less the mean 0.4 0.4 0.4, over the standard deviation 0.3",
        "knowledge_distillation would teach",
        "--trust-teacher",
    ):
        assert expected in warning
    assert run.record.teacher.warnings == [warning.removeprefix("WARNING: ")]


def test_a_silent_run_from_python_warns_as_python_does(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no better than chance"):
        at.distill(
            teacher=constant(CLASSES),
            student="wrn-10-1",
            data=images_of(),
            out=tmp_path / "run",
            **SETTINGS,
        )


def test_trust_teacher_leaves_the_error_and_takes_the_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run, lines = distilled(constant(CLASSES), tmp_path / "run", images_of(), trust_teacher=True)
    assert "WARNING" not in lines
    assert "error 75.0 % on 200 validation images" in lines
    assert run.record.teacher.warnings == []


@pytest.mark.parametrize(
    ("order", "names", "reason", "moved"),
    [
        (
            (0, 2, 1, 3),
            ("a", "b", "c", "d"),
            "",
            ["1, b, is its output 2", "2, c, is its output 1"],
        ),
        (
            (0, 3, 1, 2),
            ("0", "10", "2", "3"),
            ", sorted as numbers",
            ["class 1, 10, is its output 3"],
        ),
        ((1, 2, 3, 0), ("a", "b", "c", "d"), ", one further", ["0, a, is its output 1"]),
    ],
)
def test_classes_in_another_order_are_found(
    order: tuple[int, ...], names: tuple[str, ...], reason: str, moved: list[str], tmp_path: Path
) -> None:
    _, lines = distilled(Quarters(order), tmp_path / "run", images_of(names=names))
    (warning,) = [line for line in lines.splitlines() if line.startswith("WARNING: ")]
    assert f"has the classes in another order{reason}: error " in warning
    assert "and 0.0 % with its outputs matched" in warning
    assert all(text in warning for text in moved)
    assert f"into the order {list(order)}" in warning


def test_rows_in_the_order_that_is_told_mend_the_teacher() -> None:
    labels = torch.arange(120) % 12
    outputs = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    order = find_class_order(outputs[labels], labels, [f"class {index}" for index in range(12)])
    logits = nn.functional.one_hot(outputs[labels], 12)
    assert torch.equal(logits[:, order.outputs].argmax(1), labels)


@pytest.mark.parametrize(
    ("middle", "spread", "expected"),
    [(0.0, 1 / 255, None), (150.0, 1.0, "pixels from 0 to 255")],
)
def test_another_range_of_inputs_is_found(
    middle: float, spread: float, expected: str | None, tmp_path: Path
) -> None:
    _, lines = distilled(Quarters(middle=middle, spread=spread), tmp_path / "run", images_of())
    assert ("seems to expect another normalisation" in lines) == (expected is not None)
    if expected is not None:
        assert re.search(rf"but \d\.\d % with {expected};", lines)


def test_nothing_is_said_of_a_teacher_with_other_classes(tmp_path: Path) -> None:
    teacher = Quarters((0, 1, 2, 3, 4, 5))
    changes = {"kd_alpha": None}
    run, lines = distilled(teacher, tmp_path / "run", images_of(), **changes)
    assert "its error is unknown (the network has 6 outputs, the data set 4 classes)" in lines
    assert "WARNING" not in lines
    assert run.record.teacher.validation_error is None


def test_a_weak_teacher_is_no_teacher_at_chance() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(512) % 100
    answers = np.where(generator.random(512) < 0.15, labels, generator.integers(0, 100, 512))
    predicted, truth = torch.from_numpy(answers), torch.from_numpy(labels)
    assert not agreement(predicted, truth).at_chance
    assert find_class_order(predicted, truth, [f"{index:03}" for index in range(100)]) is None


@pytest.mark.parametrize("seed", range(20))
def test_answers_by_chance_make_no_order(seed: int) -> None:
    generator = np.random.default_rng(seed)
    classes = int(generator.integers(2, 60))
    labels, answers = generator.integers(0, classes, (2, 300))
    found = find_class_order(
        torch.from_numpy(answers),
        torch.from_numpy(labels),
        [f"{index}" for index in range(classes)],
    )
    assert found is None


@pytest.mark.parametrize("seed", range(10))
def test_an_untrained_network_has_no_order_though_it_tells_colours_apart(seed: int) -> None:
    """It answers images of one colour alike, by an output that means nothing."""
    torch.manual_seed(seed)
    colours = torch.rand(10, 3, 1, 1)
    labels = torch.arange(60) % 10
    images = colours[labels] + 0.3 * torch.randn(60, 3, 16, 16)
    with torch.no_grad():
        predicted = at.models.build("wrn-10-1", classes=10).eval()(images).argmax(1)
    names = [f"class {index}" for index in range(10)]
    assert find_class_order(predicted, labels, names) is None


def test_a_constant_answer_makes_no_order_of_unequal_classes() -> None:
    labels = (torch.arange(100) % 10 == 0).long()  # nine in ten are of class 0
    names = ["a", "b", "c"]
    for answer in range(3):
        assert find_class_order(torch.full((100,), answer), labels, names) is None


@pytest.mark.parametrize("images", [40, 100, 200])
def test_few_answers_that_depend_on_the_images_make_no_order(images: int) -> None:
    """As of an untrained network: two of four outputs, which any matching makes half right."""
    labels = torch.arange(images) % 4
    answers = torch.tensor([2, 2, 3, 3])[labels]
    for one in (answers, torch.where(torch.arange(images) % 7 == 0, 0, answers)):
        assert find_class_order(one, labels, list("abcd")) is None
    three = torch.tensor([1, 2, 2, 3])[labels]
    assert find_class_order(three, labels, list("abcd")) is None
    assert find_class_order(torch.tensor([1, 2, 0, 3])[labels], labels, list("abcd")) is not None


def test_many_classes_in_another_order_are_found_with_few_images_of_each() -> None:
    generator = np.random.default_rng(0)
    labels, order = generator.integers(0, 100, 512), generator.permutation(100)
    answers = np.where(generator.random(512) < 0.2, generator.integers(0, 100, 512), order[labels])
    names = [f"class {index:02}" for index in range(100)]
    found = find_class_order(torch.from_numpy(answers), torch.from_numpy(labels), names)
    assert found is not None
    assert np.mean(np.array(found.outputs) == order) > 0.95


@pytest.mark.parametrize("seed", [12, 14])
def test_an_untrained_teacher_is_at_chance_and_not_in_another_order(
    seed: int, tmp_path: Path
) -> None:
    torch.manual_seed(seed)
    teacher = at.models.build("torchvision:resnet18", CLASSES)
    _, lines = distilled(teacher, tmp_path / "run", images_of(200))
    assert "another order" not in lines
    assert "no better than chance: error " in lines


def test_a_constant_answer_is_at_chance_and_a_few_images_say_nothing() -> None:
    unequal = (torch.arange(300) % 10 == 0).long()
    assert agreement(torch.zeros(300, dtype=torch.long), unequal).at_chance
    assert not agreement(torch.zeros(6, dtype=torch.long), torch.arange(6) % 3).at_chance


class Noisy(Quarters):
    """A teacher with batch norm, which draws random numbers in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        noise = float(torch.rand(())) + np.random.random() + random.random()
        return super().forward(self.norm(images) + 0.01 * noise)


def test_the_check_changes_no_random_state_and_no_network() -> None:
    data, teacher = images_of(120), Noisy()
    names, objects = named(student="wrn-10-1", teacher=teacher, data=data)
    setup = set_up_run(RunConfig.checked({**SETTINGS, **names}), objects)
    evaluation = SharedEvaluation(
        Processes(make_accelerator()), "fp32", torch.device("cpu"), workers=0
    )
    setup.student.network.train()

    def state() -> list[object]:
        networks = [setup.student.network, teacher, setup.transfer]
        weights = [value.tolist() for one in networks for value in one.state_dict().values()]
        modes = [module.training for one in networks for module in one.modules()]
        generators = [torch.get_rng_state().tolist(), random.getstate()]
        return [*weights, *modes, *generators, repr(np.random.get_state())]

    before = state()
    first = check_teachers(setup, evaluation, Listening())
    assert state() == before
    torch.manual_seed(3)
    assert check_teachers(setup, evaluation, Listening()) == first


def test_a_run_learns_the_same_with_the_check_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, data, weights = Noisy(), images_of(120), []
    nothing = "attention_transfer.training.trainer.check_teachers"
    for name in ("checked", "plain"):
        if name == "plain":
            monkeypatch.setattr(nothing, lambda *arguments: TeacherCheck())
        random.seed(0)
        np.random.seed(0)
        run, _ = distilled(teacher, tmp_path / name, data, epochs=2)
        weights.append(run.load().network.state_dict())
    one, other = weights
    assert all(torch.equal(one[name], other[name]) for name in one)


def write_photos(folder: Path, classes: int, count: int) -> None:
    """Write images whose class is their brightness, in folders 0, 1, ... as torchvision sorts."""
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((16, 16, 3), 20 * label + 10, dtype=np.uint8)
            pixels[index % 16] += 1
            Image.fromarray(pixels).save(folder / str(label) / f"{index}.png")


def brightness(num_classes: int = 12) -> nn.Module:
    """A teacher with its classes in the order of numbers; linear in the image's brightness."""
    linear = nn.Linear(1, num_classes)
    centres = (20 * torch.arange(num_classes) + 10.5) / 255
    linear.weight.data = 200 * centres[:, None]
    linear.bias.data = -100 * centres**2
    convolution = nn.Conv2d(3, 1, 1, bias=False)
    nn.init.constant_(convolution.weight, 1 / 3)

    class Unnormalized(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            mean, std = (
                torch.tensor(values).view(3, 1, 1)
                for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
            )
            return images * std + mean

    return nn.Sequential(
        Unnormalized(), convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear
    )


def test_folders_with_numbers_as_names_from_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_photos(Path("photos"), classes=12, count=20)
    command = "distill --teacher test_teacher_check:brightness@random --student wrn-10-1 --epochs 1"
    command += " --data folder:photos --image-size 16 --precision fp32 --lr 0.01 --out run --json"
    assert main(f"{command} --validation 0.3 --workers 0".split()) == 0
    printed = capsys.readouterr()
    assert "has the classes in another order, sorted as numbers" in printed.err
    assert "class 2, 10, is its output 10; class 3, 11, is its output 11;" in printed.err
    recorded = json.loads(printed.out)["teacher"]
    assert recorded["validation_error"] == pytest.approx(1000 / 12, abs=0.1)
    assert "another order" in recorded["warnings"][0]


PROCESSES = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_teacher_check import Quarters, constant, distilled, images_of
teachers = {{"good": Quarters(), "swapped": Quarters((0, 2, 1, 3)), "chance": constant(4)}}
teachers["others"] = Quarters((0, 1, 2, 3, 4, 5))
for name, teacher in teachers.items():
    kd = None if name == "others" else 0.5
    _, lines = distilled(teacher, Path({out!r}) / name, images_of(121), kd_alpha=kd)
    print(lines, flush=True)
"""


def test_two_processes_share_the_images_and_warn_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROCESSES.format(tests=str(Path(__file__).parent), out=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script)], timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    errors = re.findall(r"Quarters: error (\S+) % on (\d+) validation", done.stdout)
    assert errors == [("0.0", "61"), (errors[1][0], "61"), (errors[2][0], "61")]
    assert done.stdout.count("WARNING: ") == 2
    assert done.stdout.count("another order") == done.stdout.count("no better than chance") == 1
    assert done.stdout.count("its error is unknown") == 1
