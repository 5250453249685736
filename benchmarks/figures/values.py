"""The figures in sentences: what each is called in a document, and where it comes from."""

from collections.abc import Iterable, Mapping
from typing import Any

from attention_transfer.statistics import PairedDifference, paired_difference
from figures.sources import Sources
from figures.text import NUMBER, Figure

__all__ = ["FIGURES", "difference", "extent", "gradient_rows"]

RANGE = rf"{NUMBER}(?: to {NUMBER})?"
PAIRS = "pairs/*/ratios"


def value(file: str, path: str, form: str, scale: float = 1) -> Figure:
    """Return the figure at one path of a benchmark's results, times a scale.

    Args:
        file: in benchmarks/results, without ``.json``.
        path: see ``Source.all``.
        form: of the number, such as ``.2f``.
        scale: a factor.
    """
    return Figure(lambda sources: format(sources.measured(file).one(path) * scale, form))


def extent(numbers: Iterable[float], form: str) -> str:
    """Return the least and the largest of numbers, or one of them if both read the same."""
    ordered = sorted(numbers)
    low, high = format(ordered[0], form), format(ordered[-1], form)
    return low if low == high else f"{low} to {high}"


def span(files: str, path: str, form: str) -> Figure:
    """Return the range of all values at a path of files, named with spaces between."""

    def write(sources: Sources) -> str:
        found = [sources.measured(file).all(path) for file in files.split()]
        return extent([number for values in found for number in values], form)

    return Figure(write, RANGE)


def by_seed(errors: Iterable[float]) -> Mapping[int, float]:
    """Return errors by seed, where a file lists them from seed 0."""
    return dict(enumerate(errors))


def difference(sources: Sources, file: str, arm: str, baseline: str) -> PairedDifference:
    """Return the paired difference of two arms of a file that lists errors by seed."""
    errors, others = (
        by_seed(sources.measured(file).one(f"arms/{name}/test_errors")) for name in (arm, baseline)
    )
    found = paired_difference(errors, others)
    assert found is not None, "both arms have seed 0"
    return found


def gradient_rows(sources: Sources) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return the rows of gradient.json by network, precision and memory format."""
    rows = sources.measured("gradient").all("rows/*")
    return {(row["network"], row["precision"], row["memory_format"]): row for row in rows}


def gradient_step(kind: str) -> Figure:
    """Return the time of a step of WRN-16-1 over the plain one's, in bf16 and channels_last."""

    def write(sources: Sources) -> str:
        row = gradient_rows(sources)["wrn-16-1", "bf16", "channels_last"]
        return format(row["time_over_plain"][kind], ".1f")

    return Figure(write)


def gradient_speed_up(network: str, memory_format: str) -> Figure:
    """Return by how much ours is faster than autograd, in rows of gradient.json."""

    def write(sources: Sources) -> str:
        times = [
            row["time_over_plain"]
            for (name, _, its_format), row in gradient_rows(sources).items()
            if name.endswith("-nobn") == (network == "without batch norm")
            and memory_format in ("any", its_format)
        ]
        return extent([time["autograd"] / time["ours"] for time in times], ".1f")

    return Figure(write, RANGE)


def gradient_memory(sources: Sources) -> str:
    """Return our peak memory over autograd's, in all rows of gradient.json."""
    memory = sources.measured("gradient").all("rows/*/peak_megabytes")
    return extent([row["ours"] / row["autograd"] for row in memory], ".1f")


def fused_speed_up(sources: Sources) -> str:
    """Return the speed-up of the fused pass for all features but the largest."""
    cases = sources.measured("fused").one("cases")
    ratios = [
        case["ratios"]["fused_over_autograd"]["median"]
        for name, case in cases.items()
        if not name.startswith("128x64x32x32")
    ]
    return extent([1 / ratio for ratio in ratios], ".1f")


def first_loss_difference(sources: Sources) -> str:
    """Return the largest difference of the libraries' losses at the first step, in bf16."""
    pairs = sources.measured("peers_bf16").all("pairs/*/figures")
    losses = [[pair[key] for key in pair if key.startswith("first loss")] for pair in pairs]
    return format(max(max(pair) - min(pair) for pair in losses), ".4f")


def demo_minutes(file: str) -> Figure:
    """Return the minutes of training of the demo's three students."""

    def write(sources: Sources) -> str:
        source = sources.measured(file)
        seconds = [source.one(f"arms/{arm}/median_seconds") for arm in ("alone", "at", "at+kd")]
        return format(sum(seconds) / 60, ".1f")

    return Figure(write)


def teacher_error(sources: Sources) -> float:
    """Return the test error of the teacher that comes with the package."""
    return float(sources.study("methods").one("rows/0/teacher_test_error"))


def paper_gains(sources: Sources) -> str:
    """Return the gains of the paper's gradient terms over the student alone, in points."""
    errors = {
        arm: float(str(figure).split()[0])
        for arm, figure in sources.paper("table-3").one("paper/nin-thin-nobn *").items()
    }
    arms = ("min-l2", "gradient AT", "flip symmetry")
    return extent([errors["alone"] - errors[arm] for arm in arms], ".1f")


FIRST = "cases/wrn-16-1, bf16, channels_last/ratios"

FIGURES: dict[str, Figure] = {
    "demo": demo_minutes("accuracy"),
    "demo-fp32": demo_minutes("accuracy_cached"),
    "teacher-error": Figure(lambda sources: format(teacher_error(sources), ".1f")),
    "nin-teacher-error": value("gradient_arms_nin", "teacher_test_error", ".1f"),
    "paper-gradient-gains": Figure(paper_gains, RANGE),
    "step-cached-fp32": span("step", f"{PAIRS}/cached_over_student/median", ".2f"),
    "step-cached-bf16": span("step_bf16", f"{PAIRS}/cached_over_student/median", ".2f"),
    "step-live-bf16": span("step_bf16", f"{PAIRS}/live_over_floor/median", ".2f"),
    "run-cached-over-live": span("run run_bf16", f"{PAIRS}/cached_over_live/median", ".1f"),
    "run-cached-fp32": span("run", f"{PAIRS}/cached over student/median", ".2f"),
    "run-cached-bf16": span("run_bf16", f"{PAIRS}/cached over student/median", ".2f"),
    "torchdistill-fp32": span(
        "peers_wrn_16_1 peers", f"{PAIRS}/cached_over_torchdistill/median", ".1f"
    ),
    "torchdistill-bf16": span("peers_bf16", f"{PAIRS}/cached_over_torchdistill/median", ".1f"),
    "first-loss-bf16": Figure(first_loss_difference),
    "fused-smaller": Figure(fused_speed_up, RANGE),
    "import": value("import", "cases/starting up/milliseconds/import a*/median", ".2f", 1e-3),
    "import-transfer": value(
        "import", "cases/starting up/milliseconds/*over torch/median", ".1f", 1e-3
    ),
    "import-torch": value(
        "import", "cases/starting up/milliseconds/import torch/median", ".1f", 1e-3
    ),
    "help": value("import", "cases/starting up/milliseconds/--help/median", ".2f", 1e-3),
    "gradient-step": gradient_step("ours"),
    "gradient-step-autograd": gradient_step("autograd"),
    "gradient-amd": value("gradient_amd", f"{FIRST}/ours_over_plain/median", ".2f"),
    "gradient-amd-autograd": value("gradient_amd", f"{FIRST}/autograd over plain/median", ".2f"),
    "gradient-amd-all": span("gradient_amd", "cases/*/ratios/ours_over_plain/median", ".1f"),
    "gradient-amd-speed-up": span(
        "gradient_amd", "cases/*/ratios/autograd_over_ours/median", ".1f"
    ),
    "gradient-speed-up": gradient_speed_up("with batch norm", "channels_last"),
    "gradient-speed-up-contiguous": gradient_speed_up("with batch norm", "contiguous"),
    "gradient-speed-up-nobn": gradient_speed_up("without batch norm", "any"),
    "gradient-memory": Figure(gradient_memory, RANGE),
}
"""The figures by the names that documents use."""
