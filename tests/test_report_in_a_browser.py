"""The report in real Chromium: no errors, no requests, usable by keyboard, at any width and theme.

``make test`` installs Chromium and axe-core where it can. Without them these tests are skipped, or
fail where CI is set.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api

import attention_transfer as at
from conftest import needed
from made_runs import EPOCHS, made_run

HOSTILE = "<img src=x onerror=document.title='broken'></script><script>alert(2)</script>"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
AXE = Path(os.environ.get("AXE", ".venv/node_modules/axe-core/axe.min.js"))
AXE = AXE if AXE.is_absolute() else Path(__file__).parent.parent / AXE


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    needed(chromium is not None, "Chromium (Debian's package chromium)")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report of three runs, one of them with hostile names."""
    folder = tmp_path_factory.mktemp("runs")
    classes = (HOSTILE, "\u05d0\u05d1\u05d2", "a\u200bname of a class that is quite long indeed")
    return at.write_report(
        [
            made_run(folder / "alone", classes=classes, wrong=tuple(range(12))),
            made_run(folder / "at", teacher="runs/t", classes=classes, wrong=tuple(range(9, 15))),
            made_run(folder / "kd", teacher=HOSTILE, classes=classes, kd_alpha=0.9),
        ]
    )


class Opened:
    """An opened page, with its errors and its requests."""

    def __init__(
        self,
        browser: Any,
        report: Path,
        width: int = 1200,
        scheme: str = "light",
        motion: str = "reduce",
    ) -> None:
        self.page = browser.new_page(
            viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion=motion
        )
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(report.as_uri())
        self.page.wait_for_selector("[data-ready]")

    def _on_console(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.page.close()
        if error is None:
            assert self.errors == []
            requests = [url for url in self.requests if not url.startswith("data:")]
            assert len(requests) == 1  # the page itself
            assert requests[0].startswith("file:")


def pixels(page: Any, canvas: str) -> list[int]:
    values: list[int] = page.evaluate(
        """name => { const canvas = document.querySelector("canvas." + name);
        const { width, height } = canvas;
        return [...canvas.getContext("2d").getImageData(0, 0, width, height).data]; }""",
        canvas,
    )
    return values


def brightest(values: list[int], side: int = 256) -> tuple[int, int]:
    """Return the row and column of the brightest pixel's cell in an 8x8 map."""
    sums = [sum(values[at : at + 3]) for at in range(0, len(values), 4)]
    row, column = divmod(sums.index(max(sums)), side)
    return row // 32, column // 32


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1600])
def test_it_opens_quietly_without_overflow(
    width: int, scheme: str, browser: Any, report: Path
) -> None:
    with Opened(browser, report, width, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        outside = page.evaluate(
            """() => [...document.querySelectorAll("main *")].filter(element =>
            !element.closest(".scroll, .visually-hidden, svg, details:not([open])")
            && element.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML)"""
        )
        assert outside == []
        paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert paper == ("rgb(251, 250, 248)" if scheme == "light" else "rgb(20, 23, 26)")


def test_the_slider_moves_the_students_attention_onto_the_teachers(
    browser: Any, report: Path
) -> None:
    with Opened(browser, report) as page:
        page.select_option(".run", label="wrn-10-1 with AT")
        page.select_option(".point", label="low (low)")
        slider = page.locator(".epoch")
        assert slider.input_value() == "0"
        slider.fill(str(len(EPOCHS) - 1))
        page.wait_for_function(
            """() => document.querySelector(".status").textContent.includes("is 1.00")"""
        )
        teacher = pixels(page, "teacher")
        assert pixels(page, "student") == teacher
        assert brightest(teacher) == (0, 0)
        status = page.locator(".status")
        assert "cosine between the maps is 1.00" in status.inner_text()
        slider.fill("0")
        page.wait_for_function(
            """() => document.querySelector(".status").textContent.includes("After epoch 0")"""
        )
        assert brightest(pixels(page, "student")) == (0, 4)  # four cells from the teacher's
        assert pixels(page, "teacher") == teacher
        assert "cosine between the maps is 0.00" in status.inner_text()
        page.locator(".thumbs input").nth(2).check()
        page.wait_for_function("""() => document.querySelector(".image-name").textContent""")
        assert brightest(pixels(page, "teacher")) == (0, 2)
        page.check(".overlay")
        page.wait_for_timeout(100)
        assert pixels(page, "teacher") != teacher


def test_the_play_button_runs_to_the_last_epoch(browser: Any, report: Path) -> None:
    with Opened(browser, report) as page:
        page.select_option(".run", label="wrn-10-1 with AT")
        page.click(".play")
        assert page.locator(".epoch").input_value() == "0"
        page.wait_for_function("""() => document.querySelector(".play").textContent === "Play" """)
        assert page.locator(".epoch").input_value() == str(len(EPOCHS) - 1)


def test_it_plays_once_when_it_comes_into_view(browser: Any, report: Path) -> None:
    with Opened(browser, report, motion="no-preference") as page:
        assert page.locator(".epoch").input_value() == "0"
        page.locator(".panels").scroll_into_view_if_needed()
        page.wait_for_function("""() => document.querySelector(".play").textContent === "Stop" """)
        page.wait_for_function("""() => document.querySelector(".play").textContent === "Play" """)
        assert page.locator(".epoch").input_value() == str(len(EPOCHS) - 1)
        page.evaluate("window.scrollTo(0, 0)")
        page.locator(".panels").scroll_into_view_if_needed()
        page.wait_for_timeout(800)
        assert page.locator(".epoch").input_value() == str(len(EPOCHS) - 1)


def test_the_student_alone_is_beside_the_student_with_its_teacher(
    browser: Any, report: Path
) -> None:
    with Opened(browser, report) as page:
        page.select_option(".run", label="wrn-10-1 with AT")
        page.wait_for_function("""() => document.querySelector(".alone-name").textContent""")
        names = page.locator(".panels figcaption").all_inner_texts()
        assert names[1:] == ["student alone", "student with its teacher", "teacher"]
        alone = pixels(page, "alone")
        page.select_option(".run", label="wrn-10-1 alone")
        page.wait_for_function("""() => document.querySelector(".alone-panel").hidden""")
        assert pixels(page, "student") == alone
        assert page.locator(".student-name").inner_text() == "student"


def test_a_table_that_goes_on_shows_it(browser: Any, report: Path) -> None:
    with Opened(browser, report, width=360) as page:
        shadows = page.evaluate(
            """() => getComputedStyle(document.querySelector("table").closest(".scroll"))
            .backgroundAttachment"""
        )
        assert shadows == "local, local, scroll, scroll"


def test_the_keyboard_alone_reaches_everything(browser: Any, report: Path) -> None:
    with Opened(browser, report) as page:
        wanted = page.evaluate(
            """() => [...document.querySelectorAll(
            "a[href], button, select, input, summary, [tabindex='0']")].filter(element =>
            element.checkVisibility() && (element.type !== "radio" || element.checked)).length"""
        )
        reached = set()
        for _ in range(wanted + 5):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate(
                    """() => { const all = [...document.querySelectorAll("*")];
                    return all.indexOf(document.activeElement); }"""
                )
            )
        body = page.evaluate("""[...document.querySelectorAll("*")].indexOf(document.body)""")
        assert len(reached - {body, -1}) >= wanted
        page.focus(".epoch")
        before = page.locator(".epoch").input_value()
        page.keyboard.press("ArrowRight")
        assert int(page.locator(".epoch").input_value()) == int(before) + 1
        page.focus(".thumbs input:checked")
        page.keyboard.press("ArrowRight")
        assert (
            page.evaluate(
                """[...document.querySelectorAll(".thumbs input")].findIndex(one => one.checked)"""
            )
            == 1
        )
        page.focus("#theme")
        page.keyboard.press("Enter")
        assert page.get_attribute("html", "data-theme") == "dark"


def test_injected_names_stay_text(browser: Any, report: Path) -> None:
    with Opened(browser, report) as page:
        assert page.title().startswith("Attention transfer")
        assert page.locator("img[src='x']").count() == 0
        assert HOSTILE in page.inner_text("body")
        names = page.evaluate(
            """[...document.querySelectorAll(".thumbs input")].map(one => one.ariaLabel)"""
        )
        assert names[0] == f"image 1: {HOSTILE}"
        assert "a\\u200bname" in names[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(scheme: str, browser: Any, report: Path) -> None:
    needed(AXE.is_file(), "axe-core (npm's package)")
    with Opened(browser, report, scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        page.evaluate(AXE.read_text(encoding="utf-8"))  # by the browser, past the page's policy
        violations = page.evaluate("axe.run().then(result => result.violations)")
        serious = {
            fault["id"]: [node["html"] for node in fault["nodes"]][:3]
            for fault in violations
            if fault["impact"] in ("serious", "critical")
        }
        assert serious == {}


def test_it_prints(browser: Any, report: Path) -> None:
    with Opened(browser, report) as page:
        page.emulate_media(media="print")
        assert not page.locator(".play").is_visible()
        assert page.pdf().startswith(b"%PDF")
