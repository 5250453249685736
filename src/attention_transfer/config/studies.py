"""A study as a value: arms x seeds x data x pairs of networks, what is chosen and what compared."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from attention_transfer.config.checked import Config, with_none
from attention_transfer.config.fields import Count, Seed, Several, as_several
from attention_transfer.config.runs import RunConfig
from attention_transfer.errors import InputError, nearest

__all__ = [
    "LONGEST_SLUG",
    "PACKAGED",
    "PaperFigure",
    "PairConfig",
    "Recipe",
    "SelectionConfig",
    "StudyConfig",
    "TEACHER",
    "TeacherConfig",
    "checked_settings",
    "seeds_of",
    "slug",
]

Recipe = Literal["paper", "short", "minutes"]

PACKAGED = "packaged"
"""The name, in a study, of the demo's teacher, which comes with the package."""

TEACHER = "teacher"
"""What arms are compared with where they are compared with their own teacher."""

STEPS = "steps"
"""A length in optimizer steps, which a study turns into the nearest number of epochs."""

GIVEN_BY_THE_STUDY = ("seed", "out", "cache", "teacher", "student", "report", "baseline")
"""Settings of a run that a study fills in by itself."""

MOST_SEEDS = 1000

LONGEST_SLUG = 80
"""Characters of a folder's name."""

Settings = dict[str, Any]


def seeds_of(text: object) -> object:
    """Return the seeds that a text names: ``0-4``, ``0,2,5``, or a number of them, ``5``.

    >>> seeds_of("0-2"), seeds_of("0,2,5"), seeds_of("3")
    ((0, 1, 2), (0, 2, 5), (0, 1, 2))
    """
    if isinstance(text, int) and not isinstance(text, bool):
        text = str(text)
    if not isinstance(text, str):
        return text
    pieces = [piece.strip() for piece in text.split(",")]
    spans = [re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", piece) for piece in pieces]
    ends = [(int(span[1]), int(span[2] or span[1])) for span in spans if span]
    if len(pieces) == 1 and spans[0] and spans[0][2] is None:
        ends = [(0, ends[0][0] - 1)]
    seeds = [seed for low, high in ends for seed in range(low, min(high, low + MOST_SEEDS) + 1)]
    if None in spans:
        raise _no_seeds()
    return _each_once(seeds)


def _each_once(seeds: list[int]) -> tuple[int, ...]:
    if not 0 < len(seeds) <= MOST_SEEDS or len(set(seeds)) < len(seeds):
        raise _no_seeds()
    return tuple(seeds)


def _no_seeds() -> PydanticCustomError:
    return PydanticCustomError(
        "seeds",
        "should be a range such as 0-4, a list such as 0,2,5, or a number of seeds such as 5; "
        "each seed once, at most {most}",
        {"most": MOST_SEEDS},
    )


def _seeds_of_list(values: object) -> object:
    """Return seeds given as a text or as a list."""
    if not isinstance(values, list):
        return seeds_of(values)
    if not all(re.fullmatch(r"\d{1,18}", str(one)) for one in values):
        raise _no_seeds()
    return _each_once([int(one) for one in values])


Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_seeds_of_list), Field(min_length=1)]


def slug(name: str) -> str:
    """Return a name as it is used for folders; a long one is cut, and ends with its digest.

    >>> slug("AT+KD, beta 30"), slug("folder:my photos")
    ('at+kd-beta-30', 'folder-my-photos')
    """
    safe = re.sub(r"[^a-z0-9+._]+", "-", name.lower()).strip("-.") or "-"
    if len(safe) <= LONGEST_SLUG:
        return safe
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{safe[: LONGEST_SLUG - 9]}-{digest}"


class TeacherConfig(Config):
    """A teacher that a study trains first, once for each data set, and shares."""

    student: str = Field(description="the network to train, such as wrn-16-2")
    ready: dict[str, str] = Field(
        {}, description="data set: MODEL with trained weights to use there instead, or packaged"
    )
    seed: Seed = Field(0, description="seed of its run")
    settings: Settings = Field({}, description="settings of its run")
    on: dict[str, Settings] = Field(
        {}, description="data set: further settings of its run on that data set"
    )


class PairConfig(Config):
    """A student and its teacher: a row of the study's table."""

    student: str = Field(description="the network that learns, such as wrn-16-1")
    teacher: str = Field(description="one of the study's teachers, or a MODEL with weights")
    data: Annotated[tuple[str, ...], BeforeValidator(as_several)] | None = Field(
        None, description="the data sets that the pair is trained on; default: all of the study"
    )
    arms: Annotated[tuple[str, ...], BeforeValidator(as_several)] | None = Field(
        None, description="the arms that the pair is trained by; default: all of the study"
    )
    settings: Settings = Field({}, description="settings of its runs")


class SelectionConfig(Config):
    """A setting chosen on validation images, by runs that do not read the test split."""

    setting: str = Field(description="the setting to choose, such as lr")
    values: Annotated[tuple[str, ...], BeforeValidator(as_several), Field(min_length=2)] = Field(
        description="the values to try"
    )
    arms: Annotated[tuple[str, ...], BeforeValidator(as_several)] = Field(
        (), description="the arms that get the chosen value; default: all"
    )
    by: str | None = Field(
        None,
        description="the arm whose validation error decides for all of them; default: each arm "
        "chooses its own",
    )
    seeds: Seeds = Field((1000,), description="seeds of these runs, which the table does not use")

    @field_validator("setting")
    @classmethod
    def _as_field(cls, setting: str) -> str:
        """Return the setting by the name of its field: files may write batch-size."""
        return setting.replace("-", "_")


class PaperFigure(Config):
    """A figure of the paper: error in percent, and whether it is confirmed."""

    error: float
    top5_error: float | None = None
    mark: Literal["C", "M"]
    """C: confirmed in the authors' code or an independent transcription; M: remembered."""

    @classmethod
    def of(cls, text: str) -> "PaperFigure":
        """Return the figure that a text holds: ``8.77 C``, or with top-5 error ``29.3/10.0 C``.

        >>> PaperFigure.of("29.3/10.0 C")
        PaperFigure(error=29.3, top5_error=10.0, mark='C')
        """
        match = re.fullmatch(r"\s*([\d.]+)(?:/([\d.]+))?\s+([CM])\s*", str(text))
        if not match:
            raise InputError(f"{text!r} is no figure, expected such as 8.77 C, or 29.3/10.0 M")
        return cls.checked({"error": match[1], "top5_error": match[2], "mark": match[3]})


class StudyConfig(Config):
    """A study: every pair, on every data set, by every arm, for every length and seed."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,59}$", description="name, such as my-study")
    title: str = Field(description="what the study shows, in a line")
    note: str = Field("", description="what a reader of the results must know")
    settings: Settings = Field({}, description="settings of all runs, of teachers too")
    recipe: Recipe | None = Field(
        None,
        description="length of the runs: paper, short (a tenth) or minutes; default: the paper's "
        "for its data sets, the demo's for others",
    )
    seeds: Seeds = Field((0, 1, 2, 3, 4), description="seeds, such as 0-4")
    cache: bool = Field(
        True, description="share each teacher's targets in caches, where the terms allow it"
    )
    data: dict[str, Settings] = Field(
        {"cluttered-digits": {}}, min_length=1, description="data sets, each with its settings"
    )
    teachers: dict[str, TeacherConfig] = Field({}, description="teachers that are trained first")
    pairs: dict[str, PairConfig] = Field(min_length=1, description="students with their teachers")
    variants: dict[str, Settings] = Field(
        {}, description="lengths, or other settings that every arm is run with in turn"
    )
    arms: dict[str, Settings] = Field(min_length=1, description="methods, each with its settings")
    select: SelectionConfig | tuple[SelectionConfig, ...] = Field(
        (), description="settings chosen on validation images"
    )
    compare: dict[str, tuple[str, ...]] | None = Field(
        None,
        description="arm: the arms it is compared with, or teacher; default: every arm with the "
        "first",
    )
    paper: dict[str, dict[str, PaperFigure]] = Field(
        {}, description="the paper's figures: pair or data set: arm: such as 8.77 C"
    )
    paper_data: Several | None = Field(
        None,
        description="kinds of data that the paper's figures of pairs are of, such as cifar10; on "
        "others they are left out; default: any",
    )

    @field_validator("select")
    @classmethod
    def _as_several(
        cls, select: SelectionConfig | tuple[SelectionConfig, ...]
    ) -> tuple[SelectionConfig, ...]:
        return (select,) if isinstance(select, SelectionConfig) else select

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        """Refuse names that nothing has, names that share a folder, and seeds used twice."""
        faults = list(self._unknown_names())
        for what in ("data", "teachers", "pairs", "variants", "arms"):
            faults += _shared_folders(what, getattr(self, what))
        if faults:
            raise PydanticCustomError("names", "{faults}", {"faults": "; ".join(faults)})
        return self

    def _unknown_names(self) -> Iterator[str]:
        for name, pair in self.pairs.items():
            for data in pair.data or ():
                yield from _unknown(f"pairs {name}: data", data, self.data)
            for arm in pair.arms or ():
                yield from _unknown(f"pairs {name}: arm", arm, self.arms)
            if not _may_be_a_model(pair.teacher):
                yield from _unknown(f"pairs {name}: teacher", pair.teacher, self.teachers)
        for selection in self.selections:
            for arm in (*selection.arms, *([selection.by] if selection.by else [])):
                yield from _unknown("select: arm", arm, self.arms)
        for selection in self.selections:
            both = sorted(set(selection.seeds) & set(self.seeds))
            if both:
                yield (
                    f"select: seed {both[0]} of {selection.setting} is one of the table's seeds; "
                    "give others, which the table does not use"
                )
        chosen = [arm for selection in self.selections for arm in selection.arms or self.arms]
        for arm in dict.fromkeys(chosen):
            if chosen.count(arm) > 1:
                yield f"select: {arm} chooses two settings; leave it out of one"
        for arm, others in (self.compare or {}).items():
            yield from _unknown("compare", arm, self.arms)
            for other in others:
                yield from _unknown("compare", other, [*self.arms, TEACHER])
        for row, figures in self.paper.items():
            yield from _unknown("paper", row, [*self.pairs, *self.data])
            for arm in figures:
                yield from _unknown(f"paper {row}", arm, [*self.arms, TEACHER])

    def kind_of(self, data: str) -> str:
        """Return the kind of one of the study's data sets, such as cifar10 of cifar10:DIR."""
        return str(self.data[data].get("data", data)).partition(":")[0]

    @property
    def selections(self) -> tuple[SelectionConfig, ...]:
        """What is chosen on validation images."""
        return self.select if isinstance(self.select, tuple) else (self.select,)

    @property
    def comparisons(self) -> dict[str, tuple[str, ...]]:
        """Arm -> the arms it is compared with, of which TEACHER is its row's teacher."""
        if self.compare is not None:
            return self.compare
        first, *others = self.arms
        return dict.fromkeys(others, (first,))


class _Length(Config):
    """A length that is no setting of a run."""

    steps: Annotated[Count, Field(le=10**12)] | None = None


_NETWORKS = {"student": "any", "teacher": "any"}
"""Stand in for the networks of a run where its other settings are checked."""


def _unknown(where: str, name: str, known: Mapping[str, Any] | list[str]) -> Iterator[str]:
    if name not in known:
        hint = nearest(name, known) if known else "there is none"
        yield f"{where} {name!r} is not in the study; {hint}"


def _may_be_a_model(name: str) -> bool:
    """Return whether a teacher's name is that of weights, and not only of a network."""
    return name == PACKAGED or any(mark in name for mark in "/:@")


def _shared_folders(what: str, names: Mapping[str, Any]) -> Iterator[str]:
    folders: dict[str, str] = {}
    for name in names:
        other = folders.setdefault(slug(name), name)
        if other != name:
            yield (
                f"{what}: {other!r} and {name!r} would share the folder {slug(name)!r}; rename one"
            )


def checked_settings(where: str, values: Mapping[str, Any]) -> Settings:
    """Return settings of a run by the names of its fields, each of its field's type.

    Args:
        where: the part of the study that has them, for the message.
        values: as flags or files have them; ``steps`` is a length too.

    Raises:
        InputError: everything that is wrong with them.
    """
    settings = {name.replace("-", "_"): value for name, value in values.items()}
    faults = [
        f"{where}: {name} is given by the study itself; leave it out"
        for name in settings
        if name in GIVEN_BY_THE_STUDY and not (name == "teacher" and settings[name] == "none")
    ]
    settings = with_none(settings, RunConfig)
    given = {name: value for name, value in settings.items() if name in GIVEN_BY_THE_STUDY}
    of_run = {name: settings[name] for name in settings if name not in (*given, STEPS)}
    length = {name: settings[name] for name in settings if name == STEPS}
    for kind, part in ((_Length, length), (RunConfig, {**_NETWORKS, **of_run})):
        try:
            checked = kind.checked(part)
            given |= {name: getattr(checked, name) for name in part if name not in _NETWORKS}
        except InputError as error:
            faults.append(f"{where}: {error}")
    if faults:
        raise InputError("; ".join(faults))
    return given
