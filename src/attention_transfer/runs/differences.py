"""What differs between two descriptions of a run: as it began, and as it is given again."""

from collections.abc import Iterator, Mapping
from typing import Any

from attention_transfer.config import RunConfig
from attention_transfer.config.optimization import CHOSEN_BY_THE_RUN
from attention_transfer.errors import InputError

__all__ = [
    "FREE_SETTINGS",
    "as_recorded",
    "check_identity",
    "check_same_settings",
    "differences",
    "settings_of",
]

FREE_SETTINGS = {
    "out",
    "workers",
    "download",
    "track",
    "report",
    "checkpoint_steps",
    "checkpoint_minutes",
    "timeout",
    "trust_teacher",
}
"""Settings that change no figure of a run, so that a resumed run may have others."""


def check_identity(began: Mapping[str, str], now: Mapping[str, str], folder: str) -> None:
    """Raise an InputError, with the first difference, unless a run is resumed as it began.

    Args:
        began: of the checkpoint.
        now: of the run that is being resumed.
        folder: of the run, quoted for a shell.
    """
    for name, before, after in differences(began, now):
        raise InputError(
            f"the run in {folder} began with {name} {_abridged(before)}, and is resumed with "
            f"{_abridged(after)}; restore what it began with, or go on with the change: "
            f"attention-transfer resume {folder} --allow-changes"
        )


def differences(began: Mapping[str, str], now: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each difference, and both values.

    >>> list(differences({"a": "1", "b": "2"}, {"a": "1", "b": "3"}))
    [('b', '2', '3')]
    """
    for name in [*began, *(name for name in now if name not in began)]:
        before, after = began.get(name, "none"), now.get(name, "none")
        if before != after:
            yield name, before, after


def check_same_settings(began: RunConfig, now: RunConfig, folder: str) -> None:
    """Raise an InputError unless two configurations describe the same run.

    Args:
        began: recorded in the run's folder.
        now: given again.
        folder: of the run, quoted for a shell.
    """
    check_identity(settings_of(began), settings_of(as_recorded(now, began)), folder)


def as_recorded(now: RunConfig, began: RunConfig) -> RunConfig:
    """Return settings given again, with what a run chose by itself as it recorded them.

    Args:
        now: given again.
        began: recorded in the run's folder.
    """
    chosen: dict[str, Any] = {
        "cache_views": now.cache_views or began.cache_views,
        "pixel_range": now.pixel_range or began.pixel_range,
    }
    if "optimizer" not in now.model_fields_set or now.optimizer == began.optimizer:
        names = set(CHOSEN_BY_THE_RUN) - now.model_fields_set
        chosen |= {name: getattr(began, name) for name in names}
    return now.replace(**chosen)


def _abridged(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def settings_of(config: RunConfig) -> dict[str, str]:
    """Return the settings that decide a run's figures, as text by name."""
    settings = config.model_dump(mode="json", exclude=FREE_SETTINGS)
    return {f"setting {name}": str(value) for name, value in settings.items()}
