"""The tables of speed and memory."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from figures.lines import lines
from figures.sources import Sources
from figures.text import Table
from figures.values import gradient_rows

__all__ = ["TABLES"]

PAIRS = {
    "wrn-16-1 from wrn-16-2": "WRN-16-1 from 16-2",
    "wrn-16-2 from wrn-40-2": "WRN-16-2 from 40-2",
}
"""Pairs by their names in the files."""


def columns(sources: Sources, fp32: str, bf16: str) -> dict[str, dict[str, Any]]:
    """Return the four columns of a table of speed: each pair in fp32, then in bf16.

    Args:
        sources: the files.
        fp32: the file with both pairs, or two files with a pair each and a space between.
        bf16: the file with both pairs.
    """
    found = {}
    for precision, files in (("fp32", fp32.split()), ("bf16", [bf16])):
        for pair, title in PAIRS.items():
            file = files[0 if pair.startswith("wrn-16-1 ") else -1]
            found[f"{title}, {precision}"] = sources.measured(file).one(f"pairs/{pair}")
    return found


def ratio(column: dict[str, Any], name: str) -> str:
    """Return a ratio's median of rounds."""
    return f"{column['ratios'][name]['median']:.2f}"


def step_times(column: dict[str, Any]) -> dict[str, float]:
    """Return milliseconds of steps, compiled or not as is faster for the student alone."""
    times = {name: spread["median"] for name, spread in column["milliseconds"].items()}
    plain = ", not compiled"
    suffix = plain if times[f"student{plain}"] < times["student"] else ""
    names = ("student", "live", "cached")
    return {"teacher": times["teacher"], **{name: times[name + suffix] for name in names}}


def steps_readme(sources: Sources, _: str) -> list[str]:
    """Return milliseconds of a step in bf16."""
    head = ["", "student alone", "teacher's forward pass", "with a live teacher"]
    rows = []
    for pair in PAIRS:
        times = step_times(sources.measured("step_bf16").one(f"pairs/{pair}"))
        names = ("student", "teacher", "live", "cached")
        rows.append([pair.replace("wrn", "WRN"), *(f"{times[name]:.0f}" for name in names)])
    return lines([*head, "with cached targets"], rows)


def steps(sources: Sources, _: str) -> list[str]:
    """Return milliseconds of a step in fp32 and bf16, and their ratios."""
    found = columns(sources, "step", "step_bf16")
    titles = {
        "student": "student alone",
        "teacher": "teacher's forward pass, whole network, batch norms not folded",
        "live": "with a live teacher",
        "cached": "with cached targets",
    }
    times = [step_times(column) for column in found.values()]
    rows = [[title, *(f"{column[name]:.0f}" for column in times)] for name, title in titles.items()]
    ratios = {
        "cached_over_student": "**cached over student alone** (median of rounds)",
        "live_over_floor": "**live over student and teacher**",
    }
    rows += [[title, *(ratio(c, name) for c in found.values())] for name, title in ratios.items()]
    return lines(["", *found], rows)


def step_optimizations(sources: Sources, _: str) -> list[str]:
    """Return the time of a step without each optimization over that of one with all."""
    without = {
        "fp32": "bf16",
        "map and loss by autograd": "the fused pass (maps and loss by autograd instead)",
        "teacher not folded": "folded batch norms in the teacher",
        "contiguous": "channels_last",
        "not compiled": "compiled passes",
    }
    found = columns(sources, "step", "step_bf16")
    rows = []
    for name, title in without.items():
        cells = []
        for column in found.values():
            names = [f"{mode}, {name} over {mode}" for mode in ("live", "cached")]
            cells.append(", ".join(ratio(column, one) for one in names if one in column["ratios"]))
        rows.append([title, *cells])
    return lines(["without", *found], rows)


def images_a_second(column: dict[str, Any], name: str) -> str:
    """Return a median of images a second."""
    return f"{column['images_per_second'][name]['median']:.0f}"


def speed_rows(
    found: Mapping[str, dict[str, Any]], speeds: Mapping[str, str], ratios: Mapping[str, str]
) -> list[list[str]]:
    """Return rows of images a second, then of ratios.

    Args:
        found: the columns, by title.
        speeds: what was timed, with the row's title.
        ratios: of them, with the row's title.
    """
    rows = [
        [title, *(images_a_second(column, name) for column in found.values())]
        for name, title in speeds.items()
    ]
    return rows + [
        [title, *(ratio(column, name) for column in found.values())]
        for name, title in ratios.items()
    ]


def runs(sources: Sources, _: str) -> list[str]:
    """Return images a second of whole runs, and when a cache has paid off."""
    found = columns(sources, "run", "run_bf16")
    speeds = {
        "student": "student alone",
        "live": "with a live teacher",
        "cached": "with cached targets",
    }
    ratios = {
        "cached_over_live": "**cached over live**",
        "cached over student": "**cached over student alone**",
    }
    figures = {
        "seconds to build the cache": "seconds to build the cache, as many views as epochs",
        "runs until the cache has paid": "runs after which the cache has paid off",
    }
    rows = speed_rows(found, speeds, ratios)
    rows += [
        [title, *(f"{c['figures'][name]:.0f}" for c in found.values())]
        for name, title in figures.items()
    ]
    return lines(["", *found], rows)


def peers(sources: Sources, _: str) -> list[str]:
    """Return images a second of this library and others."""
    found = columns(sources, "peers_wrn_16_1 peers", "peers_bf16")
    speeds = {
        "torchdistill": "torchdistill (fp32)",
        "plain": "the usual loop (fp32)",
        "live": "this library, live teacher",
        "cached": "this library, cached targets",
    }
    ratios = {
        "live_over_torchdistill": "**live over torchdistill**",
        "cached_over_torchdistill": "**cached over torchdistill**",
    }
    return lines(["", *found], speed_rows(found, speeds, ratios))


def fused(sources: Sources, _: str) -> list[str]:
    """Return times and extra memory of the fused pass for the largest features."""
    rows = []
    for memory_format in ("channels_last", "contiguous"):
        case = sources.measured("fused").one(f"cases/128x64x32x32, bf16, {memory_format}")
        times = {name: f"{one['median']:.1f} ms" for name, one in case["milliseconds"].items()}
        speed_up = f"{1 / case['ratios']['fused_over_autograd']['median']:.1f}"
        extra = [
            f"{100 * case['figures'][f'extra memory over features, {name}']:.0f} %"
            for name in ("fused", "autograd")
        ]
        row = [memory_format, times["fused"], times["autograd"], speed_up, times["copy"]]
        rows.append([*row, *extra])
    head = ["features 128x64x32x32", "fused", "autograd of the plain functions", "**speed-up**"]
    return lines([*head, "copying the features once", "extra, fused", "extra, autograd"], rows)


def waiting(sources: Sources, _: str) -> list[str]:
    """Return images a second, and the share of time that training waits for data."""
    cases = {
        "cluttered*": "cluttered-digits, WRN-16-1 at 32x32",
        "CIFAR*": "CIFAR-10's layout (synthetic images), WRN-16-1 at 32x32",
        "JPEG*": "folder of 500x375 JPEGs (synthetic images), 1 worker, WRN-40-2 at 64x64",
    }
    rows = []
    for name, title in cases.items():
        case = sources.measured("data").one(f"cases/{name}")
        speed = case["images_per_second"]["training"]["median"]
        share = 100 * case["ratios"]["waiting_over_step"]["median"]
        rows.append([title, f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}", f"{share:.1f} %"])
    return lines(["", "images a second", "waiting"], rows)


def gradient_steps(sources: Sources, _: str) -> list[str]:
    """Return the time and memory of steps with gradient attention over those of a plain step."""
    times = {
        "autograd": "autograd",
        "ours": "ours",
        "ours, uncompiled": "not compiled",
        "ours, live teacher": "live teacher",
        "flip symmetry": "flip symmetry",
    }
    memory = {"autograd": "memory, autograd", "ours": "memory, ours"}
    rows = []
    for (network, precision, memory_format), row in gradient_rows(sources).items():
        name = network.upper().replace("-NOBN", " without batch norm")
        cells = [f"{name}, {precision}, {memory_format}"]
        cells += [f"{row['milliseconds']['plain']['median']:.0f} ms"]
        cells += [f"{row['time_over_plain'][kind]:.2f}" for kind in times]
        rows.append([*cells, *(f"{row['memory_over_plain'][kind]:.2f}" for kind in memory)])
    return lines(["", "plain", *times.values(), *memory.values()], rows)


def memory(sources: Sources, _: str) -> list[str]:
    """Return memory and time of a step that saves memory."""
    titles = {
        "plain": "plain",
        "accumulate 4": "`--accumulate 4`",
        "grad-checkpoint": "`--grad-checkpoint`",
        "grad-checkpoint, accumulate 4": "both",
    }
    rows = []
    for name, title in titles.items():
        arm = sources.measured("memory").one(f"results/{name}")
        kept, peak = arm["megabytes kept after the forward pass"], arm["megabytes"]
        seconds = arm["CPU milliseconds"] / 1000
        rows.append([title, f"{kept:.0f} MB", f"{peak:.0f} MB", f"{seconds:.1f} s"])
    return lines(["", "kept", "peak", "CPU time a step"], rows)


def processes(sources: Sources, _: str) -> list[str]:
    """Return what a step costs with one and with two processes."""
    file = sources.measured("processes")
    both = [file.one(f"processes/{name}") for name in ("one", "two")]
    return lines(
        ["", "one process", "two processes"],
        [
            ["a step", *(milliseconds(one["seconds_a_step"]) for one in both)],
            [
                "images a second, over those of one process",
                "1",
                median_and_range(file.one("two_over_one_images_per_second"), 2),
            ],
            [
                "a step that keeps batch norm's statistics for a fault, over one that does not",
                *(median_and_range(one["kept_over_bare"], 3) for one in both),
            ],
            [
                "and that agrees as well",
                *(median_and_range(one["agreeing_over_bare"], 3) for one in both),
            ],
            [
                "both, over a run that agrees once a second",
                *(median_and_range(one["run_over_bare"], 3) for one in both),
            ],
            ["a step over the formula's", "", median_and_range(file.one("two_over_model"), 2)],
            ["a checkpoint", *(milliseconds(one["seconds_a_checkpoint"]) for one in both)],
        ],
    )


def milliseconds(seconds: list[float]) -> str:
    """Return the median in milliseconds."""
    return f"{1000 * median(seconds):.0f} ms"


def median_and_range(values: list[float], digits: int) -> str:
    """Return the median, and the least and the largest value in brackets."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


TABLES: dict[str, Table] = {
    "steps-readme": steps_readme,
    "steps": steps,
    "step-optimizations": step_optimizations,
    "runs": runs,
    "peers": peers,
    "fused": fused,
    "waiting": waiting,
    "gradient-steps": gradient_steps,
    "memory": memory,
    "processes": processes,
}
"""The tables of this file by the names that documents use."""
