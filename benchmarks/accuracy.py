"""The demo's three students over several seeds: mean, spread, and what the teacher is worth.

    python benchmarks/accuracy.py [--seeds 5] [--cached] [--out runs/accuracy]

With ``--cached`` each student that has a teacher is trained twice: with the teacher beside it, and
from the teacher's targets on disk, which those runs share.

Only ``--seed`` varies; epochs, schedule and learning rate are the same for all arms. Finished runs
in the folder are used again, so an interrupted table goes on where it was. The learning rate was
chosen on validation images for the student alone (docs/results.md); the test images are read once
by each run, at its end.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console

from attention_transfer.config import DemoConfig, RunConfig
from attention_transfer.data import load_data
from attention_transfer.environment import describe_machine, package_versions
from attention_transfer.experiments.demo import packaged_teacher, student_configs
from attention_transfer.runs import Run
from attention_transfer.training import RunProgress, run


def main() -> None:
    """Trains what is missing; prints and writes one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    asked = parser.parse_args()
    progress = RunProgress(Console(stderr=True))
    data = load_data("cluttered-digits")
    errors: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in range(asked.seeds):
        configs = student_configs(DemoConfig(seed=seed), packaged_teacher())
        if asked.cached:
            configs |= cached(configs, asked.out / "targets")
        for arm, config in configs.items():
            folder = asked.out / f"{arm}-seed-{seed}"
            if (folder / "record.json").exists():
                finished = Run(folder)
            else:
                finished = run(config.replace(out=folder), progress, data)
            errors.setdefault(arm, []).append(finished.test_error)
            seconds.setdefault(arm, []).append(finished.record.seconds)
    document = {
        "settings": DemoConfig().model_dump(mode="json"),
        "machine": describe_machine(),
        "versions": package_versions(),
        "teacher_test_error": Run(packaged_teacher()).test_error,
        "arms": {arm: summary(errors[arm], errors["alone"], seconds[arm]) for arm in errors},
    }
    text = json.dumps(document, indent=2)
    (asked.out / "accuracy.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def cached(configs: dict[str, RunConfig], folder: Path) -> dict[str, RunConfig]:
    """The arms with a teacher, from its targets on disk."""
    return {
        f"{arm} cached": config.replace(cache=folder)
        for arm, config in configs.items()
        if config.teacher is not None
    }


def summary(errors: list[float], alone: list[float], seconds: list[float]) -> dict[str, Any]:
    """One arm's test errors in percent, and how far their mean is below the student alone's."""
    mean = statistics.mean(errors)
    return {
        "test_errors": errors,
        "mean": mean,
        "standard_deviation": statistics.stdev(errors),
        "below_alone_percent": 100 * (1 - mean / statistics.mean(alone)),
        "median_seconds": statistics.median(seconds),
    }


if __name__ == "__main__":
    main()
