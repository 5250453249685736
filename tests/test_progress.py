"""The live view of a run on a terminal, and plain lines elsewhere."""

import io
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from attention_transfer.runs import EpochMetrics
from attention_transfer.training import RunProgress
from attention_transfer.training.monitoring.live_view import LiveView, StepFigures

TERMS = {"cross_entropy": 1.25, "knowledge_distillation": 3.5, "activation_attention": 0.0125}
PAIRS = {"group1:group1": 0.5, "group2:group2": 0.625, "group3:group3": 0.875}


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def figures(terms: dict[str, Any] = TERMS, agreement: dict[str, Any] = PAIRS) -> StepFigures:
    return StepFigures(
        epoch=3,
        epochs=15,
        step=41,
        steps=57,
        images_per_second=1234.4,
        lr=0.25,
        images=200,
        wrong=torch.tensor(50),
        terms=terms,
        agreement=agreement,
    )


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def drawn(view: LiveView, width: int) -> list[str]:
    console = terminal(width)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def under_way(what: str = "wrn-16-1", **changes: Any) -> LiveView:
    """A tenth of 1,000 images done: the first 10 after 5 seconds, 90 in the 18 after that."""
    clock = Clock()
    view = LiveView(terminal(80), what, 1000, clock)
    clock.now += 5
    view.step(10, figures(**changes))
    clock.now += 18
    view.step(90, figures(**changes))
    view.epoch(29.94)
    return view


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_panel_shows_everything_at_any_width(width: int) -> None:
    lines = drawn(under_way(), width)
    whole = " ".join(lines)
    for expected in (
        "wrn-16-1",
        "10 %",
        "epoch 3/15, step 41/57",
        "0:00:23 elapsed, 0:03:00 left",
        "1234 images/s",
        "lr 0.25",
        "train error 25.0 % so far",
        "last validation error 29.9 %",
        "attention agreement",
    ):
        assert expected in whole
    for name, value in TERMS.items():
        assert re.search(rf"{name} +{value:.4g} ", whole)
    for name, value in PAIRS.items():
        assert re.search(rf"{name} +{value:.3f} ", whole)
    assert max(map(cell_len, lines)) <= width
    assert len({cell_len(line) for line in lines}) == 1


def test_before_the_first_step_and_without_a_teacher() -> None:
    view = LiveView(terminal(80), "wrn-16-1", 1000, Clock())
    assert "getting ready  ·  0:00:00 elapsed, -:--:-- left" in " ".join(drawn(view, 80))
    view.step(10, figures(agreement={}))
    whole = " ".join(drawn(view, 80))
    assert "no validation error yet" in whole
    assert "-:--:-- left" in whole
    assert "agreement" not in whole


def test_names_are_shown_as_they_are() -> None:
    what, term = "[red]net[/red]:smile:", "[b]term[/b]"
    pair = "a\x1b[31m:b"
    whole = " ".join(drawn(under_way(what, terms={term: 1.0}, agreement={pair: 1.0}), 80))
    assert what in whole
    assert term in whole
    assert r"a\x1b[31m:b" in whole


@given(
    what=st.text(min_size=1, max_size=60),
    names=st.lists(st.text(max_size=60), max_size=3, unique=True),
    width=st.integers(30, 160),
)
def test_no_name_breaks_the_panel(what: str, names: list[str], width: int) -> None:
    values = dict.fromkeys(names, 0.5)
    lines = drawn(under_way(what, terms=values, agreement=values), width)
    assert {cell_len(line) for line in lines} == {min(100, width - 4)}


class Unread:
    """A figure on some device: reading it waits for the device."""

    def __init__(self) -> None:
        self.reads = 0

    def __float__(self) -> float:
        self.reads += 1
        return 0.5


def test_a_step_reads_no_figure_and_drawing_does() -> None:
    figure = Unread()
    view = under_way(terms={"loss": figure}, agreement={"a:b": figure})
    assert figure.reads == 0
    drawn(view, 80)
    assert figure.reads == 2


def metrics(epoch: int) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        step=57 * epoch,
        lr=0.25,
        terms=TERMS,
        train_error=25.0,
        attention_agreement=PAIRS,
        images_per_second=1234.4,
        seconds=3.0,
        seconds_waiting_for_data=0.1,
        validation_error=29.94,
        validation_loss=0.5,
        seconds_left=9.0,
        probes={},
    )


def follow(console: Console) -> str:
    """What is written of a run of one step, whose panel is taken away at the end."""
    progress = RunProgress(console)
    progress.begin("wrn-16-1", 100)
    progress.step(50, figures())
    progress.epoch(metrics(1), 15)
    progress.end()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_is_left_clean() -> None:
    """The cursor is hidden and shown again; every line of the panel is erased."""
    shown = follow(terminal(80))
    assert "epoch 1/15: cross_entropy 1.2500" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    panel, _, after = shown.rpartition("\x1b[?25h")
    height = panel.rpartition("╭")[2].count("\n")
    assert after.count("\x1b[2K") == height
    assert re.fullmatch(r"\r?(\x1b\[1A|\x1b\[2K|\r)+", after)


def test_elsewhere_only_plain_lines_are_written() -> None:
    plain = follow(Console(file=io.StringIO(), force_terminal=False, width=80))
    assert plain == (
        "wrn-16-1 epoch 1/15: cross_entropy 1.2500 knowledge_distillation 3.5000 "
        "activation_attention 0.0125 | train error 25.0 % validation error 29.9 % | "
        "lr 0.2500 1234 images/s, 9 s left\n"
    )
