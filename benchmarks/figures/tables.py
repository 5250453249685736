"""The tables of accuracies, and those of the paper and of studies; all tables by name."""

from collections.abc import Sequence
from typing import Any

from figures import speed_tables
from figures.lines import lines
from figures.sources import FigureError, Sources
from figures.text import Table
from figures.values import difference

__all__ = ["TABLES"]

SPLITS = ("test", "validation")
"""The images that the errors of a study's arm are of."""

HEADLINE = {
    "alone": "student alone",
    "KD": "with distillation (KD)",
    "AT 1000": "with attention transfer (AT)",
    "AT+KD 1000": "with both (AT+KD)",
}
"""Arms of the study ``methods``, by default settings: what a document calls them."""

CACHED_ARMS = {"at": "with attention transfer (AT)", "at+kd": "with AT and distillation"}

GRADIENT_ARMS = {
    "alone": "student alone",
    **{
        name: name
        for name in (
            "min-l2",
            "gradient attention",
            "flip symmetry",
            "distillation",
            "activation attention",
        )
    },
}


def mean_and_spread(arm: dict[str, Any]) -> str:
    """Return mean ± standard deviation of an arm's errors."""
    return f"{arm['mean']:.2f} ± {arm['standard_deviation']:.2f}"


def each_seed(arm: dict[str, Any]) -> str:
    """Return an arm's errors of each seed."""
    return ", ".join(f"{error:.1f}" for error in arm["test_errors"])


def from_alone(sources: Sources, file: str, arm: str) -> str:
    """Return the sentence on an arm's difference from the student alone, for which it is empty."""
    return "" if arm == "alone" else difference(sources, file, arm, "alone").sentence


def accuracy(sources: Sources, detail: str) -> list[str]:
    """Return the demo's arms; with the detail "full" each seed, the difference and the teacher."""
    row = sources.study("methods").one("rows/0")
    arms = {arm["arm"]: arm for arm in row["arms"]}
    alone = arms["alone"]["statistics"]["mean"]
    full = detail == "full"
    rows = []
    for name, title in HEADLINE.items():
        found = arms[name]["statistics"]
        fewer = "" if name == "alone" else f"{100 * (1 - found['mean'] / alone):.0f} %"
        cells = [title, f"{found['mean']:.2f} ± {found['std']:.2f}", fewer]
        if full:
            errors = arms[name]["test_errors"].values()
            cells.append(", ".join(f"{error:.1f}" for error in errors))
            cells.append("" if name == "alone" else in_study(sources, "methods", name))
        rows.append(cells)
    head = ["", "test error %, mean ± standard deviation", "fewer mistakes than alone"]
    if full:
        head += ["each seed", "compared with alone, seed by seed"]
        rows.append(["teacher, WRN-16-2", f"{row['teacher_test_error']:.2f} (one network)"])
        rows[-1] += ["", "", ""]
    return lines(head, rows)


def in_study(sources: Sources, study: str, arm: str) -> str:
    """Return the sentence on an arm's difference from the student alone, in a study's first row."""
    comparisons = sources.study(study).one("rows/0/comparisons")
    (found,) = (one for one in comparisons if (one["arm"], one["baseline"]) == (arm, "alone"))
    return str(found["sentence"])


def accuracy_cached(sources: Sources, _: str) -> list[str]:
    """Return the errors of runs with a live teacher and with cached targets."""
    file = sources.measured("accuracy_cached")
    rows = []
    for name in CACHED_ARMS:
        cells = [CACHED_ARMS[name]]
        for arm in (file.one(f"arms/{name}"), file.one(f"arms/{name} cached")):
            cells += [mean_and_spread(arm), each_seed(arm)]
        found = difference(sources, "accuracy_cached", f"{name} cached", name)
        rows.append([*cells, f"{found.mean:+.2f}: {found.sentence}"])
    spread = "mean ± standard deviation"
    head = ["", f"live: {spread}", "each seed", f"cached: {spread}", "each seed"]
    return lines([*head, "cached less live, seed by seed"], rows)


def gradient_arms(sources: Sources, pair: str) -> list[str]:
    """Return the arms of the paper's Table 3, of the pair "wrn" or "nin"."""
    titles = {
        "wrn": "WRN-16-1 from WRN-16-2",
        "nin": "NIN-thin from NIN-wide, both without batch norm",
    }
    if pair not in titles:
        raise FigureError(f"gradient-arms is a table of {' or '.join(titles)}, got {pair!r}")
    name = f"gradient_arms_{pair}"
    file = sources.measured(name)
    rows = []
    for key, title in GRADIENT_ARMS.items():
        arm, chosen = file.one(f"arms/{key}"), file.one("chosen").get(key)
        errors = [] if chosen is None else file.all(f"validation_errors/{key}/*")
        row = [title, ", ".join(f"{error:.1f}" for error in errors)]
        row += ["" if chosen is None else f"{chosen:g}", mean_and_spread(arm), each_seed(arm)]
        rows.append([*row, from_alone(sources, name, key), f"{arm['median_seconds']:.0f}"])
    head = [titles[pair], "validation error % at beta 0.001, 0.01, 0.1", "chosen beta"]
    head += ["test error %, mean ± standard deviation", "each seed"]
    return lines([*head, "compared with alone, seed by seed", "seconds"], rows)


def teachers(sources: Sources, _: str) -> list[str]:
    """Return what each recipe of a teacher errs on, and how sure it is, mean over seeds."""
    rows = []
    for name, recipe in sources.measured("teachers").one("recipes").items():
        seeds = list(recipe["seeds"].values())

        def mean(part: str, figure: str, form: str, seeds: Any = seeds) -> str:
            return format(sum(seed[part][figure] for seed in seeds) / len(seeds), form)

        errors = ", ".join(f"{seed['validation']['error']:.2f}" for seed in seeds)
        row = [name, errors, mean("training_views", "error", ".2f")]
        row += [mean(part, "entropy", ".2f") for part in ("training_views", "validation")]
        rows.append(row)
    head = ["recipe", "validation error %, each seed", "error % on training views"]
    return lines([*head, "entropy there, nats", "entropy on validation scenes"], rows)


def transformer(sources: Sources, _: str) -> list[str]:
    """Return the errors of a vision transformer by optimizer."""
    rows = []
    for name, arm in sources.measured("vit_optimizers").one("arms").items():
        for part, key in (("", ""), (", averaged weights", "_of_averaged_weights")):
            errors = arm.get(f"test_errors{key}")
            if errors is None:
                continue
            mean = f"{arm[f'mean_of_test_errors{key}']:.1f}"
            each = ", ".join(f"{error:.1f}" for error in errors)
            rows.append([name + part, mean, each, str(arm["diverged"] or "")])
    return lines(["", "test error %, mean", "each seed", "runs that diverged"], rows)


def checked(sources: Sources, _: str) -> list[str]:
    """Return the paper's claims that were run on other images: its figures, and what was seen."""
    small, nin = "wrn-16-1 from wrn-16-2", "nin-thin-nobn from nin-wide-nobn"
    claims = [
        ("table-1", small, "AT", "methods", "AT 1000"),
        ("table-1", small, "AT+KD", "methods", "AT+KD 1000"),
        ("table-1", small, "KD", "methods", "KD"),
        ("table-3", nin, "activation AT", "gradient_arms_nin", "activation attention"),
        ("table-3", nin, "KD", "gradient_arms_nin", "distillation"),
        ("table-3", nin, "gradient AT", "gradient_arms_nin", "gradient attention"),
        ("table-3", nin, "min-l2", "gradient_arms_nin", "min-l2"),
        ("table-3", nin, "flip symmetry", "gradient_arms_nin", "flip symmetry"),
    ]
    rows = []
    for table, pair, arm, file, name in claims:
        figures = sources.paper(table).one(f"paper/{pair}")
        alone, with_arm = (str(figures[key]).split() for key in ("alone", arm))
        told = f"{alone[0]} ({alone[1]}) to {with_arm[0]} ({with_arm[1]})"
        title = f"{table.replace('table-', 'Table ')}: {arm}, {pair.replace('-nobn', '')}"
        seen = (in_study if file == "methods" else from_alone)(sources, file, name)
        rows.append([title, told, seen])
    head = ["", "the paper, on CIFAR-10: alone to method", "here, on cluttered-digits"]
    return lines(head, rows)


def paper(sources: Sources, table: str) -> list[str]:
    """Return the paper's figures of a table's study, each with its mark."""
    places: dict[str, dict[str, str]] = sources.paper(table).one("paper")
    columns = list(dict.fromkeys(name for arms in places.values() for name in arms))
    rows = []
    for place, arms in places.items():
        cells = [str(arms[name]).split() if name in arms else [] for name in columns]
        rows.append([place, *(f"{cell[0]} ({cell[1]})" if cell else "" for cell in cells)])
    return lines(["", *columns], rows)


def study(sources: Sources, name: str) -> list[str]:
    """Return the statistics and comparisons of a study, as its ``study.json`` has them."""
    file = sources.study(name)
    rows = []
    for row in file.all("rows/*"):
        place = ", ".join(part for part in (row["pair"], row["variant"], row["data"]) if part)
        for arm in row["arms"]:
            compared = [
                f"vs {one['baseline']}: {one['sentence']}"
                for one in row["comparisons"]
                if one["arm"] == arm["arm"]
            ]
            rows.append([place, arm["arm"], *statistics(arm), "; ".join(compared)])
        for split in SPLITS:
            if row.get(f"teacher_{split}_error") is not None:
                error = f"{row[f'teacher_{split}_error']:.2f}"
                rows.append([place, "teacher", "", error, "", ""])
    arms = file.all("rows/*/arms/*")
    splits = [split for split in SPLITS if any(f"{split}_errors" in arm for arm in arms)]
    error = f"{' or '.join(splits)} error %"
    return lines(["", "arm", "n", error, "median", "compared, seed by seed"], rows)


def statistics(arm: dict[str, Any]) -> Sequence[str]:
    """Return n, mean ± standard deviation and median of an arm of a study."""
    found = arm["statistics"]
    if found is None:
        return [f"0 of {arm['runs_planned']}", "", ""]
    spread = "" if found["std"] is None else f" ± {found['std']:.2f}"
    return [str(found["n"]), f"{found['mean']:.2f}{spread}", f"{found['median']:.2f}"]


TABLES: dict[str, Table] = {
    "accuracy": accuracy,
    "accuracy-cached": accuracy_cached,
    "gradient-arms": gradient_arms,
    "teachers": teachers,
    "transformer": transformer,
    "checked": checked,
    "paper": paper,
    "study": study,
    **speed_tables.TABLES,
}
"""The tables by the names that documents use."""
