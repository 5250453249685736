"""Test errors of the demo's three students over several seeds: mean and standard deviation.

    python benchmarks/accuracy.py [--seeds 5] [--cached] [--out runs/accuracy]

With ``--cached`` each student that has a teacher is trained twice: with the live teacher, and with
targets from a cache that these runs share.

Only ``--seed`` varies; epochs, schedule and learning rate are the same for all arms. Finished runs
in the folder are reused, so an interrupted script continues where it stopped. The learning rate was
chosen on validation images for the student alone (docs/results.md). Each run is evaluated once on
the test images, at its end.
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
from attention_transfer.training.objects import RunObjects


def main() -> None:
    """Train the missing runs, then print and write one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    arguments = parser.parse_args()
    progress = RunProgress(Console(stderr=True))
    data = load_data("cluttered-digits")
    errors: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        configs = student_configs(DemoConfig(seed=seed), packaged_teacher())
        if arguments.cached:
            configs |= cached(configs, arguments.out / "targets")
        for arm, config in configs.items():
            folder = arguments.out / f"{arm}-seed-{seed}"
            if (folder / "record.json").exists():
                finished = Run(folder)
            else:
                finished = run(config.replace(out=folder), progress, RunObjects(data=data))
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
    (arguments.out / "accuracy.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def cached(configs: dict[str, RunConfig], folder: Path) -> dict[str, RunConfig]:
    """Return the arms that have a teacher, with targets from the cache in a folder."""
    return {
        f"{arm} cached": config.replace(cache=folder)
        for arm, config in configs.items()
        if config.teacher is not None
    }


def summary(errors: list[float], alone: list[float], seconds: list[float]) -> dict[str, Any]:
    """Summarize one arm: test errors in percent, and their mean relative to the student alone's."""
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
