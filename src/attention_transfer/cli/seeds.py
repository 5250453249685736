"""``--seeds`` of train and distill: the same run over several seeds, and their statistics."""

import os
import shlex
import signal
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError

from attention_transfer.cli.output import console, print_json, print_table
from attention_transfer.config import RunConfig
from attention_transfer.config.studies import seeds_of
from attention_transfer.errors import InputError, Interrupted
from attention_transfer.report.command_line import command_line
from attention_transfer.terminal import print_line
from attention_transfer.torchrun import AGENT
from attention_transfer.trust import trust_flags, trusted

if TYPE_CHECKING:
    from attention_transfer.runs import Run

__all__ = ["begin_seeds", "parsed_seeds"]


def parsed_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds that ``--seeds`` names.

    Raises:
        InputError: it names none, or one twice.

    >>> parsed_seeds("0-2")
    (0, 1, 2)
    """
    try:
        seeds = seeds_of(text)
    except PydanticCustomError as error:
        raise InputError(f"--seeds is {text!r}, it {error.message()}") from None
    assert isinstance(seeds, tuple)
    return seeds


def begin_seeds(config: RunConfig, arguments: Namespace) -> int:
    """Train a run for each seed, in folders seed-0, ... of ``--out``, and print the statistics.

    Finished runs are not trained again, and interrupted ones are resumed.

    Args:
        config: of the run.
        arguments: of the command.
    """
    from accelerate import PartialState

    from attention_transfer import api
    from attention_transfer.runs import new_folder
    from attention_transfer.training import RunProgress

    if "seed" in arguments:
        raise InputError("got --seed and --seeds, expected one of them; leave --seed out")
    if config.out is None and AGENT is not None:
        return _refuse_new_folder()
    kind = "train" if config.teacher is None else "distill"
    folder = config.out or new_folder(kind)
    if (folder / "config.yaml").is_file():
        raise InputError(
            f"{folder} holds a run, expected a folder for the runs of several seeds; give another "
            "--out"
        )
    where = console(arguments.json)
    progress = RunProgress(where)
    configs = {
        seed: config.replace(seed=seed, out=folder / f"seed-{seed}")
        for seed in parsed_seeds(arguments.seeds)
    }
    if not arguments.allow_changes:
        for wanted in configs.values():
            _check_same(wanted)
    runs = {}
    for seed, wanted in configs.items():
        progress.write_line(f"seed {seed}: {wanted.out}")
        try:
            runs[seed] = api.run(
                wanted,
                progress,
                resume_or_start=True,
                allow_changes=arguments.allow_changes,
            )
        except Interrupted as error:
            name = signal.Signals(error.signal).name
            command = _command(config, folder, arguments)
            raise Interrupted(
                f"stopped by {name} at seed {seed}; go on: {command}", error.signal
            ) from None
    if PartialState().is_main_process:
        _print(runs, folder, arguments.json)
    return 0


def _refuse_new_folder() -> int:
    """Say that torchrun's processes need the same folder: in the first, the others end silently."""
    if os.environ.get("RANK", "0") == "0":
        raise InputError(
            "--seeds under torchrun needs the folder that all processes share; give --out DIR"
        )
    return 2


def _command(config: RunConfig, folder: Path, arguments: Namespace) -> str:
    """Return the command that goes on with the runs."""
    settings = config.model_dump(exclude_unset=True, mode="json")
    flags = ["--seeds", arguments.seeds, "--out", str(folder)]
    flags += ["--allow-changes"] if arguments.allow_changes else []
    flags += ["--json"] if arguments.json else []
    return f"{command_line(settings)} {shlex.join([*flags, *trust_flags(sorted(trusted()))])}"


def _check_same(wanted: RunConfig) -> None:
    """Raise an InputError if a run in the configuration's folder was begun with other settings."""
    from attention_transfer.runs import Run
    from attention_transfer.runs.differences import check_same_settings

    assert wanted.out is not None
    run = Run(wanted.out)
    if (run.folder / "config.yaml").is_file():
        check_same_settings(run.config, wanted, shlex.quote(str(run.folder)))


def _print(runs: "dict[int, Run]", folder: Path, as_json: bool) -> None:
    from attention_transfer.statistics import Summary, summarize

    where = console(as_json)
    splits = {"test": {}, "validation": {}}  # type: dict[str, dict[int, float]]
    for seed, run in runs.items():
        final = run.record.final
        splits["validation"][seed] = final.validation_error
        if final.test_error is not None:
            splits["test"][seed] = final.test_error
    summaries = {
        split: summarize(list(errors.values())) for split, errors in splits.items() if errors
    }
    if as_json:
        document: dict[str, Any] = {
            split: {"errors": {str(s): e for s, e in splits[split].items()}, **asdict(summary)}
            for split, summary in summaries.items()
        }
        print_json({"folder": str(folder), **document})
        return

    def row(split: str, summary: Summary) -> list[str]:
        if summary.low is None or summary.high is None or summary.std is None:
            return [split, str(summary.n), f"{summary.mean:.2f}", f"{summary.median:.2f}", "", ""]
        interval = f"{summary.low:.2f} to {summary.high:.2f}"
        figures = (summary.mean, summary.median, summary.std)
        return [split, str(summary.n), *(f"{figure:.2f}" for figure in figures), interval]

    rows = [row(split, summary) for split, summary in summaries.items()]
    print_table(where, ["error %", "n", "mean", "median", "std", "95 % interval of the mean"], rows)
    print_line(where, f"the runs are in {folder}")
