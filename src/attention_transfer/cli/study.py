"""run a table of the paper, or one of your own: arms, seeds, data and pairs, resumed at any time"""

import os
import shlex
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_transfer.cli.arguments import Parser
from attention_transfer.cli.output import console, print_json, print_table
from attention_transfer.errors import InputError
from attention_transfer.terminal import print_line
from attention_transfer.torchrun import AGENT
from attention_transfer.trust import trust_flags, trusted
from attention_transfer.waiting import loading, waiting_for

if TYPE_CHECKING:
    from attention_transfer.config.studies import StudyConfig
    from attention_transfer.experiments.study.running import Outcome, StudyFolder
    from attention_transfer.experiments.study.workers import Workers
    from attention_transfer.training import RunProgress

EXAMPLES = (
    "study list",
    "study show table-1",
    "study table-1 --data cluttered-digits --seeds 0-4",
    "study table-1 --data cifar10 --recipe minutes --processes 2",
    "study table-1 --plan",
    "study my-study.yaml --commands",
)


def add_arguments(parser: Parser) -> None:
    """Add the command's flags to the parser."""
    from attention_transfer.experiments.study.files import named_studies

    parser.add_argument(
        "words",
        metavar="|".join([*named_studies(), "list", "show"]),
        nargs="*",
        help="a study's name, or your file (my.yaml); list: all names; show NAME: a study's file, "
        "from which your own may begin",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        action="append",
        help="data set instead of the study's own; repeatable",
    )
    parser.add_argument(
        "--recipe",
        metavar="paper|short|minutes",
        help="length of the runs: the paper's, a tenth of it, or minutes",
    )
    parser.add_argument("--seeds", metavar="N|0-4|0,2,5", help="seeds of the runs")
    parser.add_argument(
        "--download", action="store_true", help="download data sets that are missing"
    )
    parser.add_argument(
        "--cache",
        action="store_true",
        dest="cache",
        help="share each teacher's targets in caches, where the terms allow it",
    )
    parser.add_argument("--no-cache", action="store_false", dest="cache", help="run teachers live")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="the study's folder (default: runs/study-NAME)"
    )
    _add_ways_to_run(parser)
    parser.add_trust()
    parser.add_json()


def _add_ways_to_run(parser: Parser) -> None:
    parser.add_argument(
        "--processes",
        metavar="N",
        type=int,
        default=1,
        help="runs at once on this machine, which share its cores (default: 1)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on a Ray cluster: HOST:PORT, or local for one on this machine; the study's "
        "folder must be on a disk that its machines share",
    )
    parser.add_argument(
        "--commands",
        action="store_true",
        default=False,
        help="print the command of each missing run, one a line, for any job queue; run nothing",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        default=False,
        help="print runs, caches, time by a measured step, and disk; run nothing",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        default=True,
        dest="measure",
        help="measure a few steps of each kind of run for the plan (the default)",
    )
    parser.add_argument(
        "--no-measure", action="store_false", dest="measure", help="plan without times"
    )


def run(arguments: Namespace) -> int:
    """List or show studies, or plan and run one."""
    words: list[str] = vars(arguments).get("words", [])
    if words == ["list"]:
        return _list(arguments.json)
    if len(words) == 2 and words[0] == "show":
        from attention_transfer.experiments.study.files import study_text

        print(study_text(words[1]), end="")
        return 0
    if len(words) != 1 or words == ["show"]:
        raise InputError(
            "study needs one name or file, or list, or show NAME; got "
            f"{shlex.join(words) or 'none'}"
        )
    if AGENT is not None:
        return _refuse_torchrun()
    from attention_transfer.experiments.study.files import changed_study, check_recipe, find_study

    changes = {
        name: getattr(arguments, name) for name in ("recipe", "seeds", "cache") if name in arguments
    }
    study = find_study(words[0])
    if "download" in arguments:
        changes["settings"] = {**study.settings, "download": True}
    study = changed_study(study, vars(arguments).get("data"), changes)
    if "recipe" in arguments:
        check_recipe(study)
    if arguments.processes < 1:
        raise InputError(f"--processes is {arguments.processes}, expected at least 1")
    folder = vars(arguments).get("out") or Path("runs") / f"study-{study.name}"
    # Runs may be started from other folders, and on other machines of a queue.
    return _of_study(study, Path(os.path.abspath(folder)), arguments)


def _refuse_torchrun() -> int:
    """Say that a study begins its own processes: in the first, the others end silently."""
    if os.environ.get("RANK", "0") == "0":
        raise InputError(
            "study begins its own processes, and torchrun has begun this one; run it without "
            "torchrun, with --processes N, or give torchrun the lines of --commands"
        )
    return 2


def _list(as_json: bool) -> int:
    from attention_transfer.experiments.study.files import titles

    if as_json:
        print_json(titles())
        return 0
    print_table(console(False), ["study", ""], [list(item) for item in titles().items()])
    return 0


def _of_study(study: "StudyConfig", folder: Path, arguments: Namespace) -> int:
    """Print the commands or the plan of a study, or run it."""
    if arguments.commands:
        return _print_commands(study, folder)
    loading("torch", "PyTorch")
    from attention_transfer.experiments.study.conduct import conduct, open_study
    from attention_transfer.training import RunProgress

    out = console(arguments.json)
    progress = RunProgress(out)
    with waiting_for("reading the data of the study"):
        where = open_study(study, folder)
    plan = _plan(where, arguments.measure)
    for line in _plan_lines(where, plan):
        print_line(out, line)
    if arguments.plan:
        if arguments.json:
            print_json({"folder": str(folder), **plan})
        return 0
    outcome = conduct(
        where,
        _workers(folder, arguments, progress),
        progress.write_line,
        _resume_command(arguments, folder),
    )
    return _report_outcome(outcome, folder, arguments)


def _workers(folder: Path, arguments: Namespace, progress: "RunProgress") -> "Workers":
    if "ray" in arguments:
        from attention_transfer.experiments.study.ray_tasks import RayTasks

        return RayTasks(folder, arguments.ray, arguments.processes)
    if arguments.processes > 1:
        from attention_transfer.experiments.study.workers import Local

        return Local(folder, arguments.processes)
    from attention_transfer.experiments.study.in_process import InProcess

    return InProcess(folder, progress)


def _plan(where: "StudyFolder", measured: bool) -> dict[str, Any]:
    """Return how many runs and caches there are, and what the missing runs take."""
    from dataclasses import asdict

    from attention_transfer.experiments.study.estimate import estimate
    from attention_transfer.experiments.study.results import current_plan

    plan, finished = current_plan(where.study, where.images, where.folder)
    with waiting_for("measuring a few steps of each kind of run"):
        cost = estimate(plan, finished, where.folder, _measure if measured else None)
    return {
        "teachers": len(plan.teachers),
        "selection_runs": len(plan.selection_runs),
        "runs": len(plan.runs),
        "finished": len(finished),
        "caches": len({run.cache for run in plan.all_runs} - {None}),
        "missing": asdict(cost),
    }


def _measure(config: Any) -> Any:
    from attention_transfer.benchmark.dry_run import dry_run
    from attention_transfer.experiments.study.estimate import KindCost
    from attention_transfer.training import RunProgress

    plan = dry_run(config, RunProgress())
    assert plan is not None
    seconds = (plan.seconds_training + plan.seconds_evaluating) / config.epochs
    parameters = next(one["parameters"] for one in plan.networks if one["role"] == "student")
    if plan.cache is None:
        return KindCost(seconds, 0.0, 0.0, parameters)
    views = plan.cache["views"]
    building = plan.seconds_building_cache / views
    return KindCost(seconds, building, plan.cache["bytes"] / views, parameters)


def _plan_lines(where: "StudyFolder", plan: dict[str, Any]) -> list[str]:
    from datetime import timedelta

    from attention_transfer.cache import free_bytes

    cost = plan["missing"]
    lines = [
        f"{where.study.name}: {where.study.title}",
        f"{plan['teachers']} teachers, {plan['selection_runs']} selection runs, {plan['runs']} "
        f"runs of the table, {plan['caches']} shared caches; {plan['finished']} runs are finished, "
        f"{cost['runs']} are missing",
    ]
    if cost["seconds"] is not None and cost["runs"]:
        clock = timedelta(seconds=round(cost["seconds"]))
        lines.append(
            f"the missing runs take about {clock} one after the other on this machine, by measured "
            f"steps of {cost['kinds']} kinds of run; caches {cost['cache_bytes'] / 1e6:,.0f} MB, "
            f"run folders about {cost['run_bytes'] / 1e6:,.0f} MB; "
            f"{free_bytes(where.folder) / 1e6:,.0f} MB are free"
        )
    return lines


def _resume_command(arguments: Namespace, folder: Path) -> str:
    """Return the command that goes on with the study."""
    words = ["attention-transfer", "study", *arguments.words]
    for data in vars(arguments).get("data") or ():
        words += ["--data", data]
    for name in ("recipe", "seeds"):
        if name in arguments:
            words += [f"--{name}", getattr(arguments, name)]
    if "download" in arguments:
        words.append("--download")
    if "cache" in arguments:
        words.append("--cache" if arguments.cache else "--no-cache")
    if "ray" in arguments:
        words += ["--ray", arguments.ray]
    if arguments.processes > 1:
        words += ["--processes", str(arguments.processes)]
    words += [] if arguments.measure else ["--no-measure"]
    words += ["--json"] if arguments.json else []
    return shlex.join([*words, "--out", str(folder), *trust_flags(sorted(trusted()))])


def _report_outcome(outcome: "Outcome", folder: Path, arguments: Namespace) -> int:
    """Print the tables of a study, and what failed; return the exit code."""
    from attention_transfer.experiments.study.tables import COLUMNS, row_title, table_rows

    out = console(arguments.json)
    if arguments.json:
        from attention_transfer.experiments.study.preflight import LARGEST_STUDY
        from attention_transfer.experiments.study.results import STUDY_FILE
        from attention_transfer.files import read_json

        document = read_json(folder / STUDY_FILE, LARGEST_STUDY)
        print_json({"folder": str(folder), **document, "failed": outcome.failed})
    else:
        for row in outcome.results.rows:
            print_line(out, "")
            print_table(out, COLUMNS, table_rows(row), row_title(row))
        print_line(out, f"the study is in {folder}: table.md, study.json, report.html")
    for run, error in outcome.failed.items():
        print_line(out, f"failed: {run}: {error}")
    if outcome.failed or not outcome.results.complete:
        missing = len(outcome.results.missing)
        print_line(
            out, f"{missing} runs are missing; run them: {_resume_command(arguments, folder)}"
        )
        return 1
    return 0


def _print_commands(study: "StudyConfig", folder: Path) -> int:
    from attention_transfer.experiments.study.preflight import (
        check_document,
        check_teachers,
        needs_images,
    )
    from attention_transfer.experiments.study.queue import command_lines

    check_document(folder)
    check_teachers(study)
    images = {}
    if needs_images(study):
        loading("torch", "PyTorch")
        from attention_transfer.experiments.study.preflight import training_images

        images = training_images(study)
    for line in command_lines(study, images, folder):
        print(line)
    return 0
