"""The document of a benchmark: what is in it, and what makes it whole."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from attention_transfer.benchmark.figures import Spread, Strict
from attention_transfer.config import BenchmarkConfig

__all__ = ["RATIOS", "Case", "Document", "Machine", "Measured", "worst"]

Worse = Callable[[list[float]], float]

RATIOS: Mapping[str, Mapping[str, Worse]] = {
    "step": {"cached_over_student": max, "live_over_floor": max},
    "run": {"cached_over_live": min},
    "peers": {
        "cached_over_torchdistill": min,
        "live_over_torchdistill": min,
        "cached_over_plain": min,
        "live_over_plain": min,
    },
    "gradient": {"ours_over_plain": max, "live_over_plain": max, "autograd_over_ours": min},
    "data": {"waiting_over_step": max},
    "import": {"import_over_torch": max},
    "fused": {"fused_over_autograd": max, "fused_over_copy": max},
}
"""What is measured -> the ratios it is summed up in, and which of several cases' is the worse."""

OF_PAIRS = ("step", "run", "peers")
"""What is measured on pairs of networks."""


class Machine(Strict):
    """Where it was measured."""

    platform: str
    python: str
    cores: int | None
    threads: int
    cpu: str
    gpus: tuple[str, ...]
    fast_bf16: bool


class Case(Strict):
    """One pair of networks, or another thing that was measured by itself."""

    milliseconds: dict[str, Spread] = Field(default_factory=dict)
    images_per_second: dict[str, Spread] = Field(default_factory=dict)
    ratios: dict[str, Spread] = Field(min_length=1)
    peak_megabytes: dict[str, float] = Field(default_factory=dict)
    figures: dict[str, float | None] = Field(default_factory=dict)
    """What is none of these; None: there is no such number."""


class Measured(Strict):
    """What a measurement found, before it is put down with where it was found."""

    cases: dict[str, Case] = Field(min_length=1)
    notes: tuple[str, ...]
    """What the figures mean."""


class Document(Strict):
    """A benchmark as it is printed: complete, and its summary that of its cases."""

    schema_version: Literal[1] = 1
    benchmark: str
    settings: BenchmarkConfig
    precision: Literal["fp32", "bf16"]
    """What the setting meant on this machine."""
    machine: Machine
    versions: dict[str, str | None]
    ratios: dict[str, float]
    """Each the worse of all pairs' or cases' medians."""
    pairs: dict[str, Case] = Field(default_factory=dict)
    cases: dict[str, Case] = Field(default_factory=dict)
    notes: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> Self:
        """A document from its JSON.

        Raises:
            ValueError: it is damaged, and where.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"])) or "document"
            raise ValueError(f"not a whole benchmark document: {place}: {fault['msg']}") from None

    @property
    def measured(self) -> dict[str, Case]:
        """The pairs, or the cases."""
        return self.pairs or self.cases

    def as_json(self) -> dict[str, Any]:
        """Plain values; parts that are empty are left out."""
        plain = self.model_dump(mode="json")
        plain["settings"].pop("out")  # where it was written is no part of what was measured
        for name in ("pairs", "cases"):
            for case in plain[name].values():
                for part in [part for part, values in case.items() if not values]:
                    del case[part]
            if not plain[name]:
                del plain[name]
        return plain

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.benchmark != self.settings.what:
            raise ValueError(f"the settings are of {self.settings.what}, not of {self.benchmark}")
        of_pairs = self.benchmark in OF_PAIRS
        if bool(self.pairs) != of_pairs or bool(self.cases) == of_pairs:
            expected = "pairs and no cases" if of_pairs else "cases and no pairs"
            raise ValueError(f"{self.benchmark} has {expected}")
        expected_ratios = worst(self.benchmark, self.measured)
        if self.ratios != expected_ratios:
            raise ValueError(f"the ratios are not the worse of the cases', {expected_ratios}")
        return self


def worst(benchmark: str, cases: Mapping[str, Case]) -> dict[str, float]:
    """The ratios of a benchmark's summary: each the worse of all cases' medians.

    Raises:
        ValueError: a case lacks one of them.
    """
    for name, case in cases.items():
        if missing := RATIOS[benchmark].keys() - case.ratios.keys():
            raise ValueError(f"{name} lacks the ratio {min(missing)}")
    return {
        ratio: worse([case.ratios[ratio].median for case in cases.values()])
        for ratio, worse in RATIOS[benchmark].items()
    }
