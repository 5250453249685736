"""The paper's Table 3 on cluttered digits: gradient-based attention beside the other arms.

    python benchmarks/gradient_arms.py [--pair wrn|nin] [--seeds 5] [--out runs/gradient-arms]

The weight of each gradient arm is the one of BETAS with the lowest mean validation error, over
seeds that the table does not use. Then every arm is trained with ``--seed`` 0, 1, ...; each run is
evaluated once on the test images, at its end. Augmentation is a random crop alone. A flip changes
most digits into something else, so flip symmetry applies only to 0, 1, 3 and 8, flipped vertically.
Finished runs in the folder are reused and others resumed, so an interrupted script continues where
it stopped.
"""

import argparse
import json
import shutil
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from attention_transfer.config import DistillConfig, RunConfig
from attention_transfer.data import load_data
from attention_transfer.environment import describe_machine, package_versions
from attention_transfer.experiments.demo import packaged_teacher
from attention_transfer.runs import Run
from attention_transfer.training import RunProgress, resume, run
from attention_transfer.training.objects import RunObjects

UPSIDE_DOWN = {"flip_axis": "vertical", "flip_classes": "0,1,3,8"}
BETAS = (0.001, 0.01, 0.1)
FLAGS = {
    "min-l2": "input_gradient_norm_beta",
    "gradient attention": "gradient_beta",
    "flip symmetry": "flip_symmetry_beta",
}
SEEDS_OF_CHOICE = (1000, 1001)


class Pair(NamedTuple):
    """A student, its teacher (a run folder, or a network to train), and their settings."""

    student: str
    teacher: Path | str
    settings: dict[str, Any]
    teacher_settings: dict[str, Any]
    """Settings of the teacher that differ from ``settings``."""


PAIRS = {
    "wrn": Pair("wrn-16-1", packaged_teacher(), {}, {}),
    "nin": Pair(
        "nin-thin-nobn",
        "nin-wide-nobn",
        {"epochs": 30, "batch_size": 32, "lr": 0.05, "clip_gradient": 1.0},
        {"epochs": 60, "mixup": 0.4, "weight_decay": 0.001},
    ),
}


def arms(chosen: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Return the settings of every arm but the student alone, by its name."""
    return {
        **{arm: gradient_arm(arm, beta) for arm, beta in chosen.items()},
        "distillation": {"attention": "none", "kd_alpha": 0.9},
        "activation attention": {},
    }


def gradient_arm(arm: str, beta: float) -> dict[str, Any]:
    """Return the settings of a gradient arm with a weight."""
    flips = UPSIDE_DOWN if arm == "flip symmetry" else {}
    return {"attention": "none", FLAGS[arm]: beta, **flips}


def main() -> None:
    """Train the missing runs, then print and write one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", choices=tuple(PAIRS), default="wrn")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/gradient-arms"))
    arguments = parser.parse_args()
    comparison = Comparison(PAIRS[arguments.pair], arguments.out / arguments.pair)
    validation_errors = comparison.validation_errors()
    chosen = {arm: min(errors, key=errors.__getitem__) for arm, errors in validation_errors.items()}
    document = {
        "pair": {"student": comparison.pair.student, "settings": comparison.pair.settings},
        "teacher_test_error": comparison.teacher.test_error,
        "machine": describe_machine(),
        "versions": package_versions(),
        "validation_errors": validation_errors,
        "chosen": chosen,
        "arms": comparison.test_errors(arms(chosen), range(arguments.seeds)),
    }
    text = json.dumps(document, indent=2)
    (arguments.out / f"{arguments.pair}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


@dataclass(frozen=True)
class Comparison:
    """All runs of one pair, each trained on first use; they share one cache of targets."""

    pair: Pair
    folder: Path

    def validation_errors(self) -> dict[str, dict[float, float]]:
        """Return the mean validation error of each gradient arm at each weight."""

        def error(arm: str, beta: float, seed: int) -> float:
            finished = self.distilled(f"{arm} {beta:g}", gradient_arm(arm, beta), seed)
            return finished.record.final.validation_error

        return {
            arm: {
                beta: statistics.mean(error(arm, beta, seed) for seed in SEEDS_OF_CHOICE)
                for beta in BETAS
            }
            for arm in FLAGS
        }

    def test_errors(self, rows: dict[str, dict[str, Any]], seeds: range) -> dict[str, Any]:
        """Return the test errors of the student alone and of each arm over the seeds."""
        table = {"alone": summary([self.alone(seed) for seed in seeds])}
        for arm, settings in rows.items():
            runs = [self.distilled(arm, settings, seed) for seed in seeds]
            table[arm] = {"settings": settings, **summary(runs)}
        return table

    @cached_property
    def teacher(self) -> Run:
        """The teacher's run, trained on first use unless it is a folder."""
        if isinstance(self.pair.teacher, Path):
            return Run(self.pair.teacher)
        config = {"student": self.pair.teacher, "out": self.folder / "teacher"}
        settings = {**self.pair.settings, **self.pair.teacher_settings}
        return trained(RunConfig.checked({**config, **settings}))

    def alone(self, seed: int) -> Run:
        """Train the student without a teacher, and return its run."""
        config = {"student": self.pair.student, "out": self.folder / f"alone-seed-{seed}"}
        return trained(RunConfig.checked({**config, "seed": seed, **self.pair.settings}))

    def distilled(self, name: str, settings: dict[str, Any], seed: int) -> Run:
        """Train the student with the settings of one arm, and return its run."""
        folder = self.folder / f"{name.replace(' ', '-')}-seed-{seed}"
        config = {"teacher": str(self.teacher.folder), "student": self.pair.student, "out": folder}
        config |= {"cache": self.folder / "targets", "seed": seed}
        return trained(DistillConfig.checked({**config, **self.pair.settings, **settings}))


def trained(config: RunConfig) -> Run:
    """Return the finished run, read from its folder, resumed, or trained from the start."""
    assert config.out is not None
    progress = RunProgress(Console(stderr=True))
    if (config.out / "record.json").exists():
        return Run(config.out)
    if any(config.out.glob("checkpoints/*")):
        return resume(config.out, progress)
    if config.out.exists():
        shutil.rmtree(config.out)  # interrupted in its first epoch
    return run(config, progress, RunObjects(data=load_data("cluttered-digits")))


def summary(runs: list[Run]) -> dict[str, Any]:
    """Summarize runs over seeds: test errors, their mean and standard deviation."""
    errors = [finished.test_error for finished in runs]
    return {
        "test_errors": errors,
        "mean": statistics.mean(errors),
        "standard_deviation": statistics.stdev(errors) if len(errors) > 1 else None,
        "median_seconds": statistics.median(finished.record.seconds for finished in runs),
    }


if __name__ == "__main__":
    main()
