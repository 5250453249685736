"""The JSON document of a benchmark, and the checks that make it complete."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from attention_transfer.benchmark.figures import Spread, Strict
from attention_transfer.config import BenchmarkConfig
from attention_transfer.environment import describe_machine, package_versions, resolve_precision

__all__ = ["Case", "Document", "Machine", "Measured", "Summary"]

Summary = Mapping[str, Callable[[list[float]], float]]
"""Ratio -> the function (min or max) that picks the worst of the cases' medians."""


class Machine(Strict):
    """The machine that a benchmark ran on."""

    platform: str
    python: str
    cores: int | None
    threads: int
    cpu: str
    gpus: tuple[str, ...]
    fast_bf16: bool


class Case(Strict):
    """The measurements of one pair of networks, or of one other case."""

    milliseconds: dict[str, Spread] = Field(default_factory=dict)
    images_per_second: dict[str, Spread] = Field(default_factory=dict)
    ratios: dict[str, Spread] = Field(min_length=1)
    peak_megabytes: dict[str, float] = Field(default_factory=dict)
    figures: dict[str, float | None] = Field(default_factory=dict)
    """Any other values; None where there is no such number."""


class Measured(Strict):
    """The cases of a benchmark, before settings, machine and versions are added."""

    cases: dict[str, Case] = Field(min_length=1)
    notes: tuple[str, ...]
    """Explanations of the figures."""


class Document(Strict):
    """A complete benchmark: settings, machine, versions, all cases, and their worst ratios."""

    SUMMARIES: ClassVar[Mapping[str, Summary]] = {
        "step": {"cached_over_student": max, "live_over_floor": max},
        "run": {"cached_over_live": min},
        "gradient": {"ours_over_plain": max, "live_over_plain": max, "autograd_over_ours": min},
        "data": {"waiting_over_step": max},
        "import": {"import_over_torch": max},
        "fused": {"fused_over_autograd": max, "fused_over_copy": max},
    }
    """Benchmark -> the ratios of its summary."""
    OF_PAIRS: ClassVar[tuple[str, ...]] = ("step", "run")
    """The benchmarks whose cases are pairs of networks."""

    schema_version: Literal[1] = 1
    benchmark: str
    settings: BenchmarkConfig
    precision: Literal["fp32", "bf16"]
    """The precision that the setting resolved to on this machine."""
    machine: Machine
    versions: dict[str, str | None]
    ratios: dict[str, float]
    """For each ratio of the summary, the worst median of all pairs or cases."""
    pairs: dict[str, Case] = Field(default_factory=dict)
    cases: dict[str, Case] = Field(default_factory=dict)
    notes: tuple[str, ...]

    @classmethod
    def create(cls, config: BenchmarkConfig, measured: Measured) -> Self:
        """Add the machine, the versions and the summary to what was measured.

        Args:
            config: the settings of the benchmark.
            measured: its cases and notes.

        Raises:
            ValueError: a case lacks a ratio of the summary.
        """
        machine = describe_machine()
        return cls.model_validate(
            {
                "benchmark": config.what,
                "settings": config,
                "precision": resolve_precision(config.precision),
                "machine": {**machine, "gpus": tuple(machine["gpus"])},  # type: ignore[arg-type]
                "versions": package_versions(),
                "ratios": cls.worst_medians(config.what, measured.cases),
                "pairs" if config.what in cls.OF_PAIRS else "cases": measured.cases,
                "notes": measured.notes,
            }
        )

    @classmethod
    def read(cls, text: str) -> Self:
        """Parse and check the JSON of a document.

        Raises:
            ValueError: the document is damaged; the message names the first fault.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"])) or "document"
            raise ValueError(f"not a whole benchmark document: {place}: {fault['msg']}") from None

    @classmethod
    def worst_medians(cls, benchmark: str, cases: Mapping[str, Case]) -> dict[str, float]:
        """Return the summary of a benchmark: for each ratio, the worst of all cases' medians.

        Raises:
            ValueError: a case lacks one of the ratios.
        """
        summary = cls.SUMMARIES[benchmark]
        for name, case in cases.items():
            if missing := summary.keys() - case.ratios.keys():
                raise ValueError(f"{name} lacks the ratio {min(missing)}")
        return {
            ratio: worst([case.ratios[ratio].median for case in cases.values()])
            for ratio, worst in summary.items()
        }

    @property
    def measured(self) -> dict[str, Case]:
        """The pairs, or the cases of a benchmark that has no pairs."""
        return self.pairs or self.cases

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values, without empty parts and without the output file's path."""
        plain = self.model_dump(mode="json")
        plain["settings"].pop("out")
        for name in ("pairs", "cases"):
            for case in plain[name].values():
                for part in [part for part, values in case.items() if not values]:
                    del case[part]
            if not plain[name]:
                del plain[name]
        return plain

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.benchmark != self.settings.what:
            raise ValueError(f"the settings are of {self.settings.what}, not of {self.benchmark}")
        of_pairs = self.benchmark in self.OF_PAIRS
        if bool(self.pairs) != of_pairs or bool(self.cases) == of_pairs:
            expected = "pairs and no cases" if of_pairs else "cases and no pairs"
            raise ValueError(f"{self.benchmark} has {expected}")
        expected_ratios = self.worst_medians(self.benchmark, self.measured)
        if self.ratios != expected_ratios:
            raise ValueError(f"the ratios are not the worst of the cases', {expected_ratios}")
        return self
