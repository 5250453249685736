"""The paper's Table 3 on cluttered digits: gradient-based attention beside the other arms.

    python benchmarks/gradient_arms.py choose [--pair wrn] [--out runs/gradient-arms]
    python benchmarks/gradient_arms.py run [--pair wrn] [--seeds 5] [--out runs/gradient-arms]

``choose`` trains each gradient arm at several weights with seeds that the table does not use, and
prints mean validation errors, by which the weights below were chosen; ``run`` trains every arm by
``--seed`` 0, 1, ...; the test images are read once by each run, at its end. Augmentation is only
a random crop. Most digits do not stay themselves when flipped, so flip symmetry is asked of those
alone that do, upside-down: 0, 1, 3 and 8. Finished runs in the folder are used again.
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
CANDIDATES = {
    "min-l2": ("input_gradient_norm", BETAS),
    "gradient attention": ("gradient_beta", BETAS),
    "flip symmetry": ("flip_symmetry", BETAS),
}
SEEDS_OF_CHOICE = (1000, 1001)
ALONE = "alone"


class Pair(NamedTuple):
    """A student, its teacher, how both are trained, and the weights chosen on validation."""

    student: str
    teacher: Path
    settings: dict[str, Any]
    chosen: dict[str, float]


def pairs(out: Path) -> dict[str, Pair]:
    """Both pairs of the table."""
    chosen = {"min-l2": 0.1, "gradient attention": 0.1, "flip symmetry": 0.1}
    return {"wrn": Pair("wrn-16-1", packaged_teacher(), {}, chosen)}


def arms(pair: Pair) -> dict[str, dict[str, Any]]:
    """The table's rows, as settings of ``distill``."""
    none = {"attention": "none"}
    return {
        ALONE: {},
        **{arm: {**none, **_gradient(arm, pair.chosen[arm])} for arm in CANDIDATES},
        "distillation": {**none, "kd_alpha": 0.9},
        "activation attention": {},
    }


def _gradient(arm: str, beta: float) -> dict[str, Any]:
    flag = CANDIDATES[arm][0]
    return {flag: beta, **(UPSIDE_DOWN if arm == "flip symmetry" else {})}


def main() -> None:
    """Trains what is missing; prints and writes one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("choose", "run"))
    parser.add_argument("--pair", default="wrn")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/gradient-arms"))
    asked = parser.parse_args()
    pair = pairs(asked.out)[asked.pair]
    table = choose(pair, asked) if asked.action == "choose" else compare(pair, asked)
    document = {
        "pair": {"student": pair.student, "settings": pair.settings, "chosen": pair.chosen},
        "teacher_test_error": Run(pair.teacher).test_error,
        "machine": describe_machine(),
        "versions": package_versions(),
        "arms": table,
    }
    text = json.dumps(document, indent=2)
    path = asked.out / f"{asked.pair}-{asked.action}.json"
    path.write_text(text + "\n", encoding="utf-8")
    print(text)


def choose(pair: Pair, asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Mean validation errors of each gradient arm at each candidate weight."""
    found: dict[str, dict[str, float]] = {}
    for arm, (_, betas) in CANDIDATES.items():
        for beta in betas:
            settings = {"attention": "none", **_gradient(arm, beta)}
            errors = [
                trained(pair, asked, f"{arm} {beta:g}", settings, seed).record["final"]
                for seed in SEEDS_OF_CHOICE
            ]
            found.setdefault(arm, {})[f"{beta:g}"] = statistics.mean(
                error["validation_error"] for error in errors
            )
    return found


def compare(pair: Pair, asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Test errors of each arm over the seeds."""
    table = {}
    for arm, settings in arms(pair).items():
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
