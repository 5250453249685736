"""The command ``benchmark``: its statistics, its document, and every mode on small networks."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import competitors
import peers
from attention_transfer import network_inputs
from attention_transfer.benchmark import (
    Case,
    Document,
    data_wait,
    fused,
    gradient,
    importing,
    measure,
    runs,
    steps,
)
from attention_transfer.benchmark.figures import Spread, milliseconds, ratio, spread
from attention_transfer.benchmark.modes import (
    FeatureExtractor,
    Setting,
    StepBenchmark,
    make_step,
)
from attention_transfer.benchmark.processes import OwnProcess, in_own_process
from attention_transfer.benchmark.synthetic_images import cifar_files, photo_files
from attention_transfer.benchmark.timing import interleave, timed
from attention_transfer.cli import main
from attention_transfer.config import BenchmarkConfig
from attention_transfer.data import DataSet, load_data
from attention_transfer.errors import InputError
from competitors import authors_loss
from peers import PeersConfig, PeersDocument

PAIR = "wrn-10-1:wrn-10-2"
RESULTS = Path(__file__).parent.parent / "benchmarks/results"
TINY: dict[str, Any] = {
    "pairs": (PAIR,),
    "networks": ("wrn-10-1",),
    "batch_size": 4,
    "repetitions": 1,
    "runs": 1,
    "epochs": 1,
    "precision": "fp32",
}


class ThisProcess:
    """Stands in for a separate process: runs functions in this one, which has imported torch."""

    def __enter__(self) -> "ThisProcess":
        return self

    def __exit__(self, *_: object) -> None: ...

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (peers, fused):
        monkeypatch.setattr(module, "OwnProcess", ThisProcess)
    for module in (steps, gradient, runs, peers):
        monkeypatch.setattr(module, "in_own_process", ThisProcess().call)


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch, data: DataSet) -> None:
    """Replace the embedded images, which take seconds to draw."""
    for module in (network_inputs, runs, peers, competitors):
        monkeypatch.setattr(module, "load_data", lambda *_, **__: data)
    competitors._data.cache_clear()
    competitors._ready.cache_clear()


def test_medians_and_quartiles_are_the_ones_by_hand() -> None:
    assert spread([7.0]) == Spread(median=7, lower_quartile=7, upper_quartile=7, rounds=1)
    found = spread([4.0, 1.0, 3.0, 2.0])
    assert (found.median, found.lower_quartile, found.upper_quartile) == (2.5, 1.75, 3.25)
    with pytest.raises(ValueError, match="at least one"):
        spread([])


def test_ratios_are_taken_round_by_round() -> None:
    # The medians are 3 and 2; round by round the ratios are 0.5, 2, 3.
    assert ratio([1.0, 4.0, 3.0], [2.0, 2.0, 1.0]).median == 2.0
    assert ratio([3.0, 8.0, 5.0], [1.0, 3.0, 5.0], [2.0, 1.0, 5.0]).median == 1.0
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])
    assert milliseconds({"step": [0.002, 0.004]})["step"].median == 3.0


def test_rounds_begin_with_each_in_turn_and_warm_up_does_not_count() -> None:
    order: list[str] = []

    def measured(name: str) -> float:
        order.append(name)
        return float(len(order))

    times = interleave(
        {name: lambda name=name: measured(name) for name in "abc"},  # type: ignore[misc]
        rounds=2,
        warm_up=1,
    )
    assert "".join(order) == "abcbcacab"
    assert times == {"a": [6.0, 8.0], "b": [4.0, 9.0], "c": [5.0, 7.0]}
    assert timed(lambda: None)() >= 0


def test_the_summary_has_the_worst_median_of_two_pairs() -> None:
    def case(cached: float, live: float) -> Case:
        return Case(
            ratios={"cached_over_student": spread([cached]), "live_over_floor": spread([live])}
        )

    both = {"small": case(1.02, 1.05), "large": case(1.04, 0.99)}
    assert Document.worst_medians("step", both) == {
        "cached_over_student": 1.04,
        "live_over_floor": 1.05,
    }

    faster = {
        name: Case(ratios={"cached_over_live": spread([value])})
        for name, value in {"small": 2.5, "large": 2.1}.items()
    }
    assert Document.worst_medians("run", faster) == {"cached_over_live": 2.1}
    with pytest.raises(ValueError, match="small lacks the ratio cached_over_student"):
        Document.worst_medians("step", faster)


def test_cached_and_live_steps_are_compared_with_the_students_faster_mode() -> None:
    times = {
        "student": [10.0, 12.0],
        "student, not compiled": [8.0, 8.0],
        "teacher": [4.0, 4.0],
        "cached": [1.0, 1.0],
        "cached, not compiled": [10.0, 12.0],
        "live": [1.0, 1.0],
        "live, not compiled": [15.0, 18.0],
    }
    found = steps.step_ratios(times)
    assert found["cached_over_student"].median == pytest.approx(11 / 8)
    assert found["live_over_floor"].median == pytest.approx(16.5 / 12)
    assert found["cached, not compiled over cached"].median == 11.0
    times["student, not compiled"] = [11.5, 11.5]
    assert steps.step_ratios(times)["cached_over_student"].median == pytest.approx(
        (0.1 + 1 / 12) / 2
    )


def test_each_optimisation_is_turned_off_by_itself() -> None:
    config = BenchmarkConfig(what="step", precision="bf16", compile=True)
    measured = steps.step_kinds(config)
    full = Setting("bf16", compiled=True)
    assert measured["live"] == ("live", full)
    changed = {name: setting for name, (_, setting) in measured.items() if setting != full}
    assert len({*changed.values()}) == 5
    assert "cached, teacher not folded" not in measured
    plain = steps.step_kinds(BenchmarkConfig(what="step", precision="fp32"))
    assert not any("fp32" in name or "compiled" in name for name in plain)


@pytest.mark.parametrize(
    ("cache", "live", "cached", "runs_"),
    [(30.0, 20.0, 10.0, 3), (31.0, 20.0, 10.0, 4), (1, 5, 5, None)],
)
def test_a_cache_has_paid_when_it_saved_what_it_cost(
    cache: float, live: float, cached: float, runs_: int | None
) -> None:
    assert runs.runs_until_paid(cache, live, cached) == runs_


def test_the_first_of_several_epochs_warms_up() -> None:
    assert data_wait.without_warm_up([{"epoch": 1}, {"epoch": 2}]) == [{"epoch": 2}]
    assert data_wait.without_warm_up([{"epoch": 1}]) == [{"epoch": 1}]


def test_the_usual_loop_has_the_authors_formula() -> None:
    generator = np.random.default_rng(0)
    student, teacher = (generator.normal(size=(2, channels, 3, 4)) for channels in (5, 7))

    def attention(features: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        flat = (features**2).mean(axis=1).reshape(2, 12)
        return flat / np.sqrt((flat**2).sum(axis=1, keepdims=True))  # type: ignore[no-any-return]

    expected = np.log(3) + 1000 * ((attention(student) - attention(teacher)) ** 2).mean()
    found = authors_loss(
        torch.zeros(2, 3),
        torch.tensor([0, 2]),
        [torch.tensor(student)],
        [torch.tensor(teacher)],
        1000.0,
    )
    assert float(found) == pytest.approx(expected)


def test_all_ways_to_take_a_step_have_the_same_gradient() -> None:
    gradients = []
    for mode in ("live", "cached"):
        for changed in ({}, {"fused": False}, {"folded": False}, {"channels_last": False}):
            bench = StepBenchmark(PAIR, 4, Setting("fp32", **changed))
            make_step(mode, bench)()
            gradients.append(bench.student.get_parameter("stem.weight").grad)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=1e-5)


def test_extracting_features_does_not_change_the_output() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU())
    images = torch.randn(2, 3, 4, 4)
    logits, (features,) = FeatureExtractor(network, ["0"])(images)
    assert torch.equal(logits, features.relu())


def test_a_separate_process_returns_results_and_raises_errors() -> None:
    with OwnProcess() as process:
        assert process.call(sorted, [2, 1]) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        in_own_process(divmod, 1, 0)


def test_synthetic_images_are_read_like_real_ones(tmp_path: Path) -> None:
    with cifar_files(tmp_path / "cifar", images=20):
        found = load_data(f"cifar10:{tmp_path / 'cifar'}", validation=0.1)
    assert (len(found.train), len(found.test), found.train.size) == (90, 20, (32, 32))
    with pytest.raises(InputError, match="no whole cifar10"):
        load_data(f"cifar10:{tmp_path / 'cifar'}")
    photo_files(tmp_path / "photos", images=30, classes=3)
    photos = load_data(f"folder:{tmp_path / 'photos'}", image_size=(64, 64))
    assert photos.class_names == ("class-0", "class-1", "class-2")


def whole(what: str, **changes: Any) -> Document:
    return measure(BenchmarkConfig.checked({"what": what, **TINY, **changes}))


def test_step(in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "TURNED_OFF", {"teacher not folded": {"folded": False}})
    found = whole("step").pairs["wrn-10-1 from wrn-10-2"]
    assert {"student", "teacher", "live", "cached", "live, teacher not folded"} <= set(
        found.milliseconds
    )
    assert set(found.peak_megabytes) == set(found.milliseconds)


def test_gradient(in_this_process: None) -> None:
    document = whole("gradient", memory=False)
    assert set(document.cases) == {
        "wrn-10-1, fp32, channels_last",
        "wrn-10-1, fp32, contiguous",
    }


def test_fused(in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "SIZES", ((8, 16, 16),))
    found = whole("fused").cases["4x8x16x16, fp32, contiguous"]
    assert set(found.milliseconds) == {"fused", "autograd", "copy"}
    assert len(found.figures) == 2


def test_data(small_runs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_wait, "CIFAR_IMAGES", 2)
    monkeypatch.setattr(data_wait, "PHOTOS", 2)
    for network in ("SMALL", "DEEP"):
        monkeypatch.setattr(data_wait, network, "wrn-10-1")
    small = data_wait._image_kinds
    monkeypatch.setattr(
        data_wait,
        "_image_kinds",
        lambda *arguments: [
            (name, {"student": settings["student"]}) for name, settings in small(*arguments)
        ],
    )
    document = whole("data", batch_size=10)
    assert len(document.cases) == 3
    assert 0 <= document.ratios["waiting_over_step"] <= 1


def test_run(in_this_process: None, small_images: None) -> None:
    found = whole("run", batch_size=16).pairs["wrn-10-1 from wrn-10-2"]
    assert set(found.images_per_second) == {"student", "live", "cached"}
    cache = found.figures["seconds to build the cache"]
    assert cache is not None
    assert cache > 0


def test_peers(in_this_process: None, small_images: None) -> None:
    pytest.importorskip("torchdistill", reason="not a dependency")
    config = PeersConfig.checked({**TINY, "batch_size": 16})
    document = PeersDocument.create(config, peers.measure(config))
    pair = document.pairs["wrn-10-1 from wrn-10-2"]
    assert set(pair.images_per_second) == {"torchdistill", "plain", "live", "cached"}
    assert all(
        loss == pytest.approx(pair.figures["first loss, plain"], rel=1e-3)
        for loss in pair.figures.values()
    ), "the competitors compute different losses"


def test_the_usual_loop_and_ours_have_the_same_first_loss(small_images: None) -> None:
    config = PeersConfig.checked(TINY)
    losses = [competitors.first_loss(name, PAIR, config) for name in ("plain", "live", "cached")]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)
    assert competitors.epoch_rate("plain", PAIR, config, epoch=0) > 0


def test_peers_without_torchdistill_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(competitors, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["peers.py", "--repetitions", "1"])
    with pytest.raises(SystemExit, match="2"):
        peers.main()
    assert "pip install 'torchdistill>=1.1.5'" in capsys.readouterr().err


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that start in no time."""
    monkeypatch.setattr(
        importing, "subprocess", SimpleNamespace(run=lambda *_, **__: None, DEVNULL=0)
    )


def test_the_command_prints_one_document_and_writes_the_same(
    instant: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "import.json"
    arguments = ["benchmark", "import", "--repetitions", "3", "--out", str(out), "--json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert set(document["ratios"]) == {"import_over_torch"}
    assert document["settings"]["repetitions"] == 3
    assert {"torch", "attention-transfer"} <= set(document["versions"])
    assert json.loads(out.read_text()) == document
    assert captured.err.startswith("starting")
    assert "pairs" not in document


def test_the_command_prints_a_table_for_people(
    instant: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "import", "--repetitions", "1"]) == 0
    captured = capsys.readouterr()
    assert "import torch" in captured.out
    assert "import_over_torch" in captured.out
    assert "starting 4 kinds" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "what is missing"),
        (["stpe"], "what is 'stpe', expected one of step, run"),
        (["step", "--pairs", "wrn-16-1"], "expected: pairs student:teacher"),
        (["step", "--pairs", "wrn-16-1:wnr-16-2"], "unknown model 'wnr-16-2'"),
        (["run", "--pairs", "wrn-16-1:nin-thin"], "do not declare the same attention points"),
        (["run", "--data", "cifar11"], "did you mean cifar10"),
        (["gradient", "--networks", "wrn-16"], "unknown model 'wrn-16'"),
        (["step", "--precision", "fp16"], "expected one of auto, fp32, bf16"),
        (["step", "--batch-size", "1"], "batch_size is '1'"),
        (["import", "--out", "nowhere/import.json"], "cannot write to nowhere/import.json"),
        (["import", "--out", "."], "cannot write to .: Is a directory"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def damaged(change: Callable[[dict[str, Any]], object]) -> str:
    """The JSON of a document of two pairs, after something was done to it."""
    one = spread([1.01])
    case = Case(ratios={"cached_over_student": one, "live_over_floor": one})
    document = Document.model_validate(
        {
            "benchmark": "step",
            "settings": BenchmarkConfig(what="step"),
            "precision": "bf16",
            "machine": {
                "platform": "Linux x86_64",
                "python": "3.11.7",
                "cores": 2,
                "threads": 2,
                "cpu": "AVX512",
                "gpus": (),
                "fast_bf16": True,
            },
            "versions": {"torch": "2.14.1", "timm": None},
            "ratios": {"cached_over_student": 1.01, "live_over_floor": 1.01},
            "pairs": {"a from b": case, "c from d": case},
            "notes": ("a note",),
        }
    )
    plain = document.as_json()
    change(plain)
    return json.dumps(plain)


def test_a_whole_document_is_read_back() -> None:
    text = damaged(lambda document: None)
    assert Document.read(text).as_json() == json.loads(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("machine"), "machine: Field required"),
        (lambda d: d.update(remark="fast"), "remark: Extra inputs"),
        (lambda d: d["machine"].update(cores="2"), "machine.cores"),
        (lambda d: d["ratios"].update(live_over_floor=0.9), "not the worst of the cases'"),
        (lambda d: d["ratios"].pop("live_over_floor"), "not the worst of the cases'"),
        (lambda d: d["pairs"]["a from b"]["ratios"].pop("live_over_floor"), "a from b lacks"),
        (lambda d: d.update(pairs={}), "step has pairs"),
        (lambda d: d.update(cases=d.pop("pairs")), "step has pairs"),
        (lambda d: d.update(benchmark="run"), "settings are of step"),
        (lambda d: d["settings"].update(batches=3), "batches"),
        (lambda d: d.update(schema_version=2), "schema_version"),
        (
            lambda d: d["pairs"]["a from b"]["ratios"]["live_over_floor"].update(median=9.0),
            "between the quartiles",
        ),
        (
            lambda d: d["pairs"]["a from b"]["ratios"]["live_over_floor"].update(rounds=0),
            "rounds",
        ),
    ],
)
def test_a_damaged_document_is_refused(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(ValueError, match="not a whole benchmark document") as refused:
        Document.read(damaged(change))
    assert message in str(refused.value)


def test_committed_documents_are_whole() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in RESULTS.glob("*.json")}
    documents = {name: text for name, text in texts.items() if "benchmark" in json.loads(text)}
    assert documents.keys() >= {
        "data.json",
        "fused.json",
        "gradient_amd.json",
        "import.json",
        "peers.json",
        "peers_bf16.json",
        "peers_wrn_16_1.json",
        "run.json",
        "run_bf16.json",
        "step.json",
        "step_bf16.json",
    }
    for name, text in documents.items():
        kind = PeersDocument if name.startswith("peers") else Document
        assert name.startswith(kind.read(text).benchmark)


def test_help_does_not_import_torch() -> None:
    check = (
        "import sys, attention_transfer.cli as cli;"
        "cli.COMMANDS['benchmark'].add_arguments(cli.Parser('benchmark', '', ()));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
