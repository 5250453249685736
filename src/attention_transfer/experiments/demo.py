"""The demo: what attention transfer gains on the embedded data, in minutes.

The teacher is a wide network that comes trained with the package. A thin student is trained three
times with the same epochs and schedule: alone, with attention transfer (AT), and with attention
transfer and knowledge distillation (AT+KD).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_transfer.config import DemoConfig, DistillConfig, RunConfig
from attention_transfer.data import DataSet, ImageSet, as_input, load_data
from attention_transfer.drawing.demo_figure import SceneMaps
from attention_transfer.environment import resolve_precision
from attention_transfer.experiments.packaged_teacher import packaged_teacher
from attention_transfer.files import write_arrays, write_json
from attention_transfer.models import LoadedModel, load_run
from attention_transfer.network_inputs import preprocessing_for
from attention_transfer.report.verdict import paired_errors
from attention_transfer.runs import Run, new_folder, writing_to
from attention_transfer.training import RunProgress, run
from attention_transfer.training.objects import RunObjects
from attention_transfer.training.setup import set_up_run
from attention_transfer.transfer import attention_maps

__all__ = [
    "TEACHER_RECIPE",
    "Arm",
    "DemoResult",
    "packaged_teacher",
    "run_demo",
    "student_configs",
]

TEACHER_RECIPE = RunConfig(
    student="wrn-16-2", epochs=80, lr=0.3, mixup=0.4, weight_decay=0.001, precision="bf16"
)
"""The configuration of the packaged teacher, which ``--train-teacher`` trains again."""

STUDENT = "wrn-16-1"
ALPHA = 0.9
SCENES = 8
LEVELS = ("low", "middle", "top")


@dataclass(frozen=True)
class Arm:
    """One network of the comparison.

    Args:
        name: teacher, alone, at or at+kd.
        test_error: error on the test images, in percent.
        parameters: number of parameters.
        seconds: training time.
    """

    name: str
    test_error: float
    parameters: int
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """The demo's networks, a summary in words, and the paths of its files."""

    folder: Path
    arms: list[Arm]
    sentence: str
    settings: str
    scenes: SceneMaps
    """Scenes with the networks' maps, as ``attention.npz`` holds them too."""


def run_demo(config: DemoConfig, progress: RunProgress | None = None) -> DemoResult:
    """Train the three students, and the teacher if asked to, and compare them on the test images.

    Args:
        config: the settings of the demo.
        progress: receives the progress of every run; silent by default.

    Raises:
        InputError: the settings cannot work here; nothing has been written then.
    """
    folder = config.out or new_folder("demo")
    Run.check_free(folder)
    resolve_precision(config.precision)
    progress = progress or RunProgress()
    data = load_data("cluttered-digits")
    teacher = packaged_teacher()
    if config.cache is not None and not config.train_teacher:
        set_up_run(student_configs(config, teacher)["at"], RunObjects(data=data))
    with writing_to(folder):
        (folder / "alone").mkdir(parents=True, exist_ok=True)
    if config.train_teacher:
        progress.write_line("teacher: training it again")
        teacher = run(
            TEACHER_RECIPE.replace(out=folder / "teacher"), progress, RunObjects(data=data)
        ).folder
    runs = {}
    for name, student in student_configs(config, teacher).items():
        progress.write_line(f"{name}: {STUDENT}, {student.epochs} epochs")
        runs[name] = run(student.replace(out=folder / name), progress, RunObjects(data=data))
    arms = [_teacher_arm(teacher, runs["at"])]
    arms += [_arm(name, finished) for name, finished in runs.items()]
    networks = {"teacher": teacher, "alone": runs["alone"].folder, "at": runs["at"].folder}
    scenes = _scene_maps({name: load_run(path) for name, path in networks.items()}, data)
    write_arrays(folder / "attention.npz", scenes.arrays())
    settings = _settings(runs["at"].config, runs["at+kd"].config)
    result = DemoResult(folder, arms, _sentence(arms, runs), settings, scenes)
    summary: dict[str, Any] = {"schema_version": 1, "config": config.model_dump(mode="json")}
    summary |= {"arms": [asdict(arm) for arm in arms], "settings": settings}
    write_json(folder / "demo.json", summary)
    return result


def student_configs(config: DemoConfig, teacher: Path) -> dict[str, RunConfig]:
    """Return the configurations of the three students: alone, with AT, and with AT and KD."""
    common: dict[str, Any] = {
        "epochs": config.epochs,
        "seed": config.seed,
        "precision": config.precision,
    }
    attention_transfer = DistillConfig(
        teacher=str(teacher), student=STUDENT, beta=config.beta, cache=config.cache, **common
    )
    return {
        "alone": RunConfig(student=STUDENT, **common),
        "at": attention_transfer,
        # With distillation, the paper lets beta fall during training.
        "at+kd": attention_transfer.replace(kd_alpha=ALPHA, beta_schedule="linear"),
    }


def _arm(name: str, finished: Run) -> Arm:
    record = finished.record
    return Arm(name, finished.test_error, record.student.parameters, record.seconds)


def _teacher_arm(folder: Path, finished: Run) -> Arm:
    """Return the teacher, with its test error from the record of a student's run."""
    teacher = finished.record.teacher
    assert teacher is not None
    assert teacher.test_error is not None
    return Arm("teacher", teacher.test_error, teacher.parameters, Run(folder).record.seconds)


def _sentence(arms: list[Arm], runs: Mapping[str, Run]) -> str:
    error = {arm.name: arm.test_error for arm in arms}

    def change(name: str) -> str:
        paired = paired_errors(runs[name], runs["alone"])
        assert paired is not None
        if not paired.established:
            return f"about as many mistakes, as far as {paired.images:,} images can tell,"
        share = 100 * (error[name] / error["alone"] - 1)
        return f"{abs(share):.0f} % {'fewer' if share <= 0 else 'more'} mistakes"

    return (
        f"By attending like its teacher, the same small network makes {change('at')} on images "
        f"it has never seen ({error['alone']:.1f} % -> {error['at']:.1f} % error), and with "
        f"distillation as well {change('at+kd')} ({error['at+kd']:.1f} %); the teacher, with four "
        f"times the parameters, is at {error['teacher']:.1f} %."
    )


def _settings(at: RunConfig, both: RunConfig) -> str:
    return (
        f"at: beta {_beta(at)} ({at.schedule_of_beta}, form {at.form}); "
        f"at+kd: beta {_beta(both)} ({both.schedule_of_beta}, form {both.form}), alpha "
        f"{both.kd_alpha:g}, temperature {both.temperature:g}; all students: {at.epochs} epochs at "
        f"batch {at.batch_size}, {at.schedule} to lr {at.lr:g}, seed {at.seed}"
    )


def _beta(config: RunConfig) -> str:
    return config.beta if isinstance(config.beta, str) else f"{config.beta:g}"


def _scene_maps(networks: dict[str, LoadedModel], data: DataSet) -> SceneMaps:
    """Return scenes spread over the test images, with each network's maps and predictions."""
    chosen = np.linspace(0, len(data.test) - 1, SCENES).round().astype(np.int64)
    scenes = data.test.subset(chosen)
    assert isinstance(scenes, ImageSet)
    assert scenes.boxes is not None
    pixels = as_input(scenes.images)
    maps, predictions = {}, {}
    for name, model in networks.items():
        preprocessing = preprocessing_for(model, data)
        attention = attention_maps(model.network, pixels, normalization=preprocessing)
        maps[name] = {
            level: values.numpy() for level, values in zip(LEVELS, attention.values(), strict=True)
        }
        with torch.no_grad():
            logits = model.network.eval()(preprocessing(pixels))
        predictions[name] = logits.argmax(dim=1).numpy()
    return SceneMaps(
        scenes.images.numpy(),
        scenes.labels.numpy(),
        scenes.boxes.numpy(),
        data.class_names,
        maps,
        predictions,
    )
