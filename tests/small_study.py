"""A small study as a value, and its plan."""

from typing import Any

from attention_transfer.config.studies import StudyConfig
from attention_transfer.experiments.study.files import (
    study_of,
)
from attention_transfer.experiments.study.plan import Plan
from attention_transfer.experiments.study.planning import make_plan

__all__ = ["SMALL", "plan", "study"]

SMALL: dict[str, Any] = {
    "name": "small",
    "title": "A small study",
    "settings": {"epochs": "2"},
    "seeds": "0-1",
    "teachers": {"big": {"student": "wrn-10-2"}},
    "pairs": {"small from big": {"student": "wrn-10-1", "teacher": "big"}},
    "arms": {
        "alone": {"teacher": "none"},
        "AT": {},
        "AT+KD": {"kd_alpha": "0.9", "beta_schedule": "linear"},
    },
}


def study(**changes: Any) -> StudyConfig:
    return study_of({**SMALL, **changes}, "small.yaml")


def plan(**changes: Any) -> Plan:
    return make_plan(study(**changes))
