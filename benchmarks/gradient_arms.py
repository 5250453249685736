"""The paper's Table 3 on cluttered digits: gradient-based attention beside the other arms.

    python benchmarks/gradient_arms.py [--pair wrn] [--seeds 5] [--out runs/gradient-arms]

The weight of each gradient arm is the one of least mean validation error among BETAS, over seeds
that the table does not use. Then every arm is trained with ``--seed`` 0, 1, ...; the test images
are read once by each run, at its end. Augmentation is a random crop alone. Most digits do not stay
themselves when flipped, so flip symmetry is asked of those that do, upside-down: 0, 1, 3 and 8.
Finished runs in the folder are used again, so an interrupted table goes on where it was.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from attention_transfer.config import DistillConfig, TrainConfig
from attention_transfer.data import load_data
from attention_transfer.experiments.demo import packaged_teacher
from attention_transfer.training import Run, RunProgress, run
from attention_transfer.training.machine import describe_machine, package_versions

UPSIDE_DOWN = {"flip_axis": "vertical", "flip_classes": "0,1,3,8"}
BETAS = (0.001, 0.003, 0.01, 0.03, 0.1)
FLAGS = {
    "min-l2": "input_gradient_norm",
    "gradient attention": "gradient_beta",
    "flip symmetry": "flip_symmetry",
}
SEEDS_OF_CHOICE = (1000, 1001)
ALONE = "alone"


class Pair(NamedTuple):
    """A student, its teacher, and how the student is trained."""

    student: str
    teacher: Path
    settings: dict[str, Any]


PAIRS = {"wrn": Pair("wrn-16-1", packaged_teacher(), {})}


def arms(chosen: dict[str, float]) -> dict[str, dict[str, Any]]:
    """The table's rows, as settings of ``distill``, with the weights chosen for three of them."""
    none = {"attention": "none"}
    return {
        ALONE: {},
        **{arm: gradient_arm(arm, beta) for arm, beta in chosen.items()},
        "distillation": {**none, "kd_alpha": 0.9},
        "activation attention": {},
    }


def gradient_arm(arm: str, beta: float) -> dict[str, Any]:
    """One gradient arm at a weight."""
    flips = UPSIDE_DOWN if arm == "flip symmetry" else {}
    return {"attention": "none", FLAGS[arm]: beta, **flips}


def main() -> None:
    """Trains what is missing; prints and writes one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", choices=tuple(PAIRS), default="wrn")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/gradient-arms"))
    asked = parser.parse_args()
    pair = PAIRS[asked.pair]
    validation_errors = try_weights(pair, asked)
    chosen = {arm: min(errors, key=errors.__getitem__) for arm, errors in validation_errors.items()}
    document = {
        "pair": {"student": pair.student, "settings": pair.settings},
        "teacher_test_error": Run(pair.teacher).test_error,
        "machine": describe_machine(),
        "versions": package_versions(),
        "validation_errors": validation_errors,
        "chosen": chosen,
        "arms": compare(pair, asked, arms(chosen)),
    }
    text = json.dumps(document, indent=2)
    (asked.out / f"{asked.pair}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def try_weights(pair: Pair, asked: argparse.Namespace) -> dict[str, dict[float, float]]:
    """Mean validation errors of each gradient arm at each weight."""

    def error(arm: str, beta: float, seed: int) -> float:
        finished = trained(pair, asked, f"{arm} {beta:g}", gradient_arm(arm, beta), seed)
        return float(finished.record["final"]["validation_error"])

    return {
        arm: {
            beta: statistics.mean(error(arm, beta, seed) for seed in SEEDS_OF_CHOICE)
            for beta in BETAS
        }
        for arm in FLAGS
    }


def compare(
    pair: Pair, asked: argparse.Namespace, rows: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Test errors of each arm over the seeds."""
    table = {}
    for arm, settings in rows.items():
        runs = [trained(pair, asked, arm, settings, seed) for seed in range(asked.seeds)]
        errors = [finished.test_error for finished in runs]
        table[arm] = {
            "settings": settings,
            "test_errors": errors,
            "mean": statistics.mean(errors),
            "standard_deviation": statistics.stdev(errors) if len(errors) > 1 else None,
            "median_seconds": statistics.median(finished.record["seconds"] for finished in runs),
        }
    return table


def trained(
    pair: Pair, asked: argparse.Namespace, name: str, settings: dict[str, Any], seed: int
) -> Run:
    """A finished run, from the folder if it is there."""
    folder = asked.out / asked.pair / f"{name.replace(' ', '-')}-seed-{seed}"
    if (folder / "record.json").exists():
        return Run(folder)
    common = {"seed": seed, "out": folder, **pair.settings, **settings}
    config: TrainConfig | DistillConfig
    if name == ALONE:
        config = TrainConfig.checked({"model": pair.student, **common})
    else:
        networks = {"teacher": str(pair.teacher), "student": pair.student}
        config = DistillConfig.checked({**networks, **common})
    return run(config, RunProgress(Console(stderr=True)), load_data("cluttered-digits"))


if __name__ == "__main__":
    main()
