"""The teacher's targets on disk: equal to the live ones, whole or absent, of nothing else."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import attention_transfer as at
from attention_transfer.cache import TargetCache, build_cache, weights_fingerprint
from attention_transfer.cli import main
from attention_transfer.config import CacheConfig, DistillConfig
from attention_transfer.data import AugmentedView, batches
from attention_transfer.errors import InputError
from attention_transfer.runs import Run
from attention_transfer.training import RunProgress
from attention_transfer.training.monitoring.progress import StepFigures
from attention_transfer.training.processes import Processes
from attention_transfer.training.setup import RunSetup, set_up_run
from conftest import SMALL, Listening

EVERYTHING: dict[str, Any] = {
    "attention": "activation,gradient",
    "gradient_beta": 0.1,
    "kd_alpha": 0.5,
}
COMMAND = [str(Path(sys.executable).with_name("attention-transfer")), "cache"]
ROW = 2 * (16 * 16 + 8 * 8 + 4 * 4) + 4 * 3


@pytest.fixture(autouse=True)
def _small_images(small_runs: None) -> None:
    pass


def config(**changes: Any) -> CacheConfig:
    values = {"cache": "targets", "teacher": "teacher", "views": 3, "precision": "fp32"}
    return CacheConfig.checked({**values, **changes})


def prepared(**changes: Any) -> RunSetup:
    values = {"teacher": "teacher", "student": "wrn-10-1", "cache": "targets", **SMALL}
    return set_up_run(DistillConfig.checked({**values, **changes}))


class Recording(RunProgress):
    """Keeps the terms of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, float]] = []

    def step(self, images: int, figures: StepFigures) -> None:
        self.steps.append({name: float(value) for name, value in figures.terms.items()})


def times() -> dict[Path, int]:
    folder = Path("targets")
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())}


def files(folder: str = "targets", pattern: str = "*") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob(pattern)}


def shards(folder: str) -> dict[str, bytes]:
    return files(folder, "*.rows")


@pytest.mark.parametrize("asked", [{}, EVERYTHING, {"mixup": 0.4, "cutmix": 1.0, "kd_alpha": 0.9}])
def test_a_cached_run_is_step_for_step_the_live_run(teacher: Run, asked: dict[str, Any]) -> None:
    """With as many views as epochs, and steps so small that rounding cannot grow."""
    live, cached = Recording(), Recording()
    common = {"teacher": "teacher", "student": "nin-thin", **SMALL, "lr": 1e-8, **asked}
    at.distill(out="live", progress=live, **common)
    at.distill(out="cached", cache="targets", progress=cached, **common)
    assert len(live.steps) == len(cached.steps) == 15
    for one, other in zip(live.steps, cached.steps, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    record = at.Run(Path("cached")).record
    assert record.cache.views == 3
    assert record.cache.seconds_building > 0


def test_a_cache_serves_other_students_weights_and_seeds(teacher: Run) -> None:
    build_cache(config(gradient=True))
    before = files()
    for changes in (
        {"student": "nin-thin", "beta": 1.0},
        {"kd_alpha": 0.9, "seed": 3},
        {"attention": "gradient", "gradient_beta": 1.0, "pairs": "group3:group2"},
    ):
        found = prepared(**changes)
        assert found.targets is not None
        cache, _ = found.targets.whole(print, torch.device("cpu"), Processes(Accelerator()))
        for epoch in (0, 2):
            batch = next(batches(found.data.train, np.arange(48), 10, view=AugmentedView(0, epoch)))
            targets = cache.read(epoch, batch.indices)
            live = found.transfer(batch.images, batch.labels)
            known = found.transfer(batch.images, batch.labels, targets=targets)
            for name, value in live.raw_terms.items():
                torch.testing.assert_close(known.raw_terms[name], value, rtol=1e-3, atol=1e-6)
    assert files() == before


def test_targets_are_stored_as_precisely_as_is_said(teacher: Run) -> None:
    cache = build_cache(config(gradient=True, views=1))
    found = prepared(**EVERYTHING)
    batch = next(batches(found.data.train, np.arange(48), 48, view=AugmentedView(0, 0)))
    live, known = found.transfer.targets(batch.images, batch.labels), cache.read(0, batch.indices)
    for reading, value in live.fields.items():
        unit = at.maps.normalize(value)
        torch.testing.assert_close(known.read(reading).flatten(1), unit, rtol=2**-11, atol=2**-24)
    assert live.logits is not None
    torch.testing.assert_close(known.logits, live.logits, rtol=1e-5, atol=1e-5)
    assert live.gradient is not None
    assert known.gradient is not None
    largest = live.gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
    assert bool(((known.gradient - live.gradient).abs() <= 2**-11 * largest).all())


def test_views_go_round_when_there_are_more_epochs(teacher: Run) -> None:
    build_cache(config(views=2))
    found = prepared()
    assert found.targets is not None
    assert found.targets.views == 2
    cache = TargetCache.open(Path("targets"))
    some = np.array([5, 40, 5])
    first, third = cache.read(0, some), cache.read(2, some)
    assert torch.equal(*(next(iter(targets.fields.values())) for targets in (first, third)))
    progress = Listening()
    settings = {"teacher": "teacher", "student": "nin-thin", "cache": "targets", "out": "run"}
    run = at.distill(**settings, progress=progress, **SMALL)
    assert run.record.cache.views == 2
    assert "teacher targets from targets: 2 views of each image; 3 epochs cycle through them" in (
        progress.lines
    )


def test_a_run_without_a_need_of_its_teacher_leaves_the_cache_alone(teacher: Run) -> None:
    progress = Listening()
    terms = {"attention": "none", "input_gradient_norm_beta": 0.1}
    settings = {"teacher": "teacher", "student": "nin-thin", "cache": "targets", "out": "run"}
    run = at.distill(**settings, **terms, progress=progress, **{**SMALL, "epochs": 1})
    assert "no term needs the teacher, so no cache is read or built" in progress.lines
    assert not Path("targets").exists()
    assert run.record.cache is None


def test_an_interrupted_cached_run_resumes_exactly(teacher: Run) -> None:
    class Stopping(RunProgress):
        def epoch(self, row: object, epochs: int) -> None:
            raise KeyboardInterrupt

    common = {"teacher": "teacher", "student": "nin-thin", "cache": "targets", **SMALL}
    whole = at.distill(out="whole", **common)
    with pytest.raises(KeyboardInterrupt):
        at.distill(out="broken", progress=Stopping(), **common)
    resumed = at.resume("broken")
    one, other = (run.load().network.state_dict() for run in (whole, resumed))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_resumed_run_has_its_views_though_the_cache_is_gone(teacher: Run) -> None:
    class Stopping(RunProgress):
        def epoch(self, row: object, epochs: int) -> None:
            raise KeyboardInterrupt

    common = {"teacher": "teacher", "student": "nin-thin", "cache": "targets", **SMALL}
    whole = at.distill(out="whole", cache_views=1, **common)
    with pytest.raises(KeyboardInterrupt):
        at.distill(out="broken", progress=Stopping(), **common)
    assert main(["cache", "remove", "targets"]) == 0
    resumed = at.resume("broken")
    assert resumed.record.cache.views == 1
    one, other = (run.load().network.state_dict() for run in (whole, resumed))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_an_interrupted_build_leaves_no_run_and_is_gone_on_with(teacher: Run) -> None:
    class Stopping(RunProgress):
        def write_line(self, line: str) -> None:
            if line == "targets: 2 of 3 shards":
                raise KeyboardInterrupt

    common = {"teacher": "teacher", "student": "nin-thin", "cache": "targets", **SMALL}
    with pytest.raises(KeyboardInterrupt):
        at.distill(out="run", progress=Stopping(), **common)
    assert not Path("run").exists()
    assert len(TargetCache.open(Path("targets")).missing()) == 1
    assert at.distill(out="run", **common).record.cache.views == 3


def test_several_teachers_are_kept_as_one(teacher: Run) -> None:
    both = at.train(model="wrn-10-1", out="second", **{**SMALL, "seed": 5})
    cache = build_cache(config(teacher=f"teacher,{both.folder}", views=1))
    assert [reading.point for reading in cache.contents.spec.fields][:4] == [
        "0.group1",
        "0.group2",
        "0.group3",
        "1.group1",
    ]
    found = prepared(teacher=f"teacher,{both.folder}", kd_alpha=0.5)
    batch = next(batches(found.data.train, np.arange(48), 10, view=AugmentedView(0, 0)))
    live = found.transfer(batch.images, batch.labels)
    known = found.transfer(batch.images, batch.labels, targets=cache.read(0, batch.indices))
    torch.testing.assert_close(live.loss, known.loss, rtol=1e-3, atol=0)


def test_the_size_is_told_before_anything_is_built(
    teacher: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--teacher", "teacher", "--views", "7", "--precision", "fp32", "--json"]
    assert main(["cache", "info", "targets", *flags]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == 7 * 48 * ROW
    assert told["bytes_a_row"] == ROW
    assert not Path("targets").exists()
    assert main(["cache", "build", "targets", *flags]) == 0
    built = json.loads(capsys.readouterr().out)
    assert built["bytes"] == told["bytes"]
    on_disk = sum(path.stat().st_size for path in Path("targets").glob("*.rows"))
    assert on_disk == told["bytes"] + 32 * told["shards"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"teacher": "other"}, "weights of the teacher"),
        ({"data_seed": 1}, "data seed: 0, here 1"),
        ({"precision": "bf16"}, "precision: fp32, here bf16"),
        (
            {"random_erasing": 0.5},
            r"views: \.\.\..*, here \.\.\..*, RandAugment None, erasing 0\.5",
        ),
        ({"cache_views": 2}, "has 1 views of each image"),
        ({"power": 4.0}, r"lacks group1 \(attention map, sum 4\)"),
        ({"attention": "gradient", "gradient_beta": 1.0}, "lacks the gradient"),
        ({"full_activation_beta": 1.0}, "whole activations"),
    ],
)
def test_targets_of_something_else_are_refused_with_the_difference(
    teacher: Run, change: dict[str, Any], named: str
) -> None:
    at.train(model="wrn-10-1", out="other", **{**SMALL, "epochs": 1, "seed": 1})
    build_cache(config(views=1))
    before = files()
    with pytest.raises(InputError, match=named):
        at.distill(
            **{"student": "wrn-10-1", "cache": "targets", **SMALL, "teacher": "teacher", **change}
        )
    assert files() == before
    assert not Path("runs").exists()


def test_another_network_with_the_same_weights_is_refused(teacher: Run) -> None:
    """Of the same state, and with other activations."""
    build_cache(config(teacher="conftest:rectified@random", views=1))
    with pytest.raises(InputError, match=r"is of something else .the teacher's answer, .* here"):
        build_cache(config(teacher="conftest:bounded@random", views=1))


def test_gradients_are_not_added_to_a_cache_without_them(teacher: Run) -> None:
    build_cache(config(views=1))
    with pytest.raises(InputError, match=r"holds 1 views of .*logits, and 1 views .*gradients are"):
        build_cache(config(views=1, gradient=True))


def test_teachers_without_common_classes_are_kept_without_logits(teacher: Run) -> None:
    teachers = "conftest:rectified@random,conftest:two_classes@random"
    settings = {"teacher": teachers, "student": "wrn-10-1", "cache": "targets", **SMALL}
    at.distill(out="run", **settings)
    contents = TargetCache.open(Path("targets")).contents
    assert not contents.spec.logits
    assert contents.logit_shape == ()


def test_pairs_by_hand_finish_a_cache_of_more_points(teacher: Run) -> None:
    cache = build_cache(config())
    whole = shards("targets")
    cache.path((1, 0)).unlink()
    settings = {"teacher": "teacher", "student": "wrn-10-1", "pairs": "group1:group1", **SMALL}
    at.distill(out="run", cache="targets", **settings)
    assert shards("targets") == whole


def test_weights_of_any_kind_have_a_fingerprint() -> None:
    found = set()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        network = torch.nn.BatchNorm2d(2).to(dtype)
        found.add(weights_fingerprint([network]))
    turned = torch.nn.Linear(2, 3, bias=False)
    other = torch.nn.Linear(3, 2, bias=False)
    other.weight = torch.nn.Parameter(turned.weight.detach().view(2, 3))
    found |= {weights_fingerprint([turned]), weights_fingerprint([other])}
    assert len(found) == 5


def test_other_versions_or_images_are_refused(teacher: Run) -> None:
    build_cache(config(views=1))
    manifest = Path("targets/cache.json")
    for name in ("version of torch", "images", "normalisation of the teacher"):
        values = json.loads(manifest.read_text())
        kept, values["provenance"][name] = manifest.read_text(), "0.0"
        manifest.write_text(json.dumps(values))
        with pytest.raises(InputError, match=f"{name}: 0.0, here"):
            prepared()
        manifest.write_text(kept)


def test_a_shard_cut_short_is_made_again_and_a_flipped_bit_stops_the_run(
    teacher: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    build_cache(config())
    whole = files()
    first, second, _ = sorted(Path("targets").glob("*.rows"))
    first.write_bytes(first.read_bytes()[:-100])
    assert main(["cache", "verify", "targets"]) == 1
    assert "cut short" in capsys.readouterr().out
    build_cache(config())
    assert files() == whole
    damaged = bytearray(second.read_bytes())
    damaged[1000] ^= 1
    second.write_bytes(damaged)
    assert main(["cache", "verify", "targets", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["faults"] == {str(second): "its checksum is wrong"}
    with pytest.raises(InputError, match=r"view-0001.*checksum is wrong"):
        at.distill(teacher="teacher", student="wrn-10-1", cache="targets", **SMALL)
    second.unlink()
    build_cache(config())
    assert files() == whole
    assert main(["cache", "verify", "targets"]) == 0
    assert "all 3 shards are whole" in capsys.readouterr().out


def test_a_shard_of_another_cache_is_refused(teacher: Run) -> None:
    """Of the same size, and whole."""
    ours, theirs = build_cache(config()), build_cache(config(cache="other", data_seed=1))
    shard = (0, 0)
    shutil.copy(theirs.path(shard), ours.path(shard))
    assert not ours.missing()
    assert dict(ours.damaged()) == {ours.path(shard): "its checksum is wrong"}


def test_a_whole_cache_is_only_read(teacher: Run) -> None:
    build_cache(config())
    before = times()
    at.distill(teacher="teacher", student="wrn-10-1", cache="targets", **SMALL)
    assert times() == before


def test_remove_deletes_the_cache_and_nothing_else(
    teacher: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    build_cache(config(views=1))
    Path("targets/notes.txt").write_text("mine")
    assert main(["cache", "remove", "targets"]) == 0
    assert [path.name for path in Path("targets").iterdir()] == ["notes.txt"]
    assert main(["cache", "remove", "targets"]) == 2
    assert "holds no cache" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "targets", "--teacher", "teacher", "--views", "0"], "views is '0'"),
        (["build", "targets"], "teacher is missing"),
        (["build", "--teacher", "teacher"], "needs the cache's folder"),
        (["bild", "targets"], "did you mean build"),
        (["verify", "targets", "--views", "3"], "takes only the cache's folder, got --views"),
        (["info", "nowhere"], "holds no cache"),
        (["build", "busy", "--teacher", "teacher"], "busy is not empty"),
        (["build", "/dev/null/targets", "--teacher", "teacher"], "cannot write to /dev/null"),
        (["build", "targets", "--teacher", "teacher", "--points", "group9"], "did you mean group"),
        ([], "needs an action: build, info, verify, remove"),
        (["build", "busy/file.txt", "--teacher", "teacher"], "cannot write to busy/file.txt"),
        (["verify", "damaged"], "damaged"),
        (["verify", "newer"], "its schema is 99"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    teacher: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    for folder, text in (("busy", ""), ("damaged", "{"), ("newer", '{"schema_version": 99}')):
        Path(folder).mkdir()
        name = "file.txt" if folder == "busy" else "cache.json"
        (Path(folder) / name).write_text(text)
    assert main(["cache", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("targets").exists()


def test_a_disk_too_small_is_refused_before_anything_is_computed(
    teacher: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**28 + 48 * ROW))
    with pytest.raises(InputError, match="GB more and"):
        build_cache(config(views=2))
    with pytest.raises(InputError, match="GB more and"):
        at.distill(teacher="teacher", student="wrn-10-1", cache="targets", **SMALL)
    assert not Path("targets").exists()
    cache = build_cache(config(views=1))
    cache.path((0, 0)).unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**28))
    with pytest.raises(InputError, match="GB more and"):
        build_cache(config(views=1))


def test_any_number_of_views_has_a_size(teacher: Run, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--teacher", "teacher", "--views", "900000000", "--precision", "fp32"]
    assert main(["cache", "info", "targets", *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"] == 900_000_000
    assert main(["cache", "build", "targets", *flags]) == 2
    assert "fewer views" in capsys.readouterr().err


def test_a_file_is_no_cache(teacher: Run) -> None:
    Path("targets").write_text("mine")
    with pytest.raises(InputError, match="targets cannot be a cache's folder: Not a directory"):
        at.distill(teacher="teacher", student="wrn-10-1", cache="targets", **SMALL)


def test_a_damaged_cache_can_be_removed(teacher: Run, capsys: pytest.CaptureFixture[str]) -> None:
    build_cache(config(views=1))
    Path("targets/cache.json").write_text("{")
    assert main(["cache", "build", "targets", "--teacher", "teacher"]) == 2
    assert "remove it (attention-transfer cache remove targets)" in capsys.readouterr().err
    assert main(["cache", "remove", "targets"]) == 0
    assert not Path("targets").exists()


def builder(
    folder: str, *, views: int = 40, limit: int | None = None, flags: tuple[str, ...] = ()
) -> "subprocess.Popen[str]":
    """A process of its own that builds a cache of the small images."""
    settings = ["--teacher", "teacher", "--precision", "fp32", "--views", str(views), *flags]

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which is ignored in the background
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [*COMMAND, "build", folder, "--data", "conftest:small_data", *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
    )


def test_a_killed_build_goes_on_where_it_was(teacher: Run) -> None:
    process = builder("killed")
    while len(list(Path("killed").glob("view-*.rows"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    whole = sorted(Path("killed").glob("view-*.rows"))
    assert 3 <= len(whole) < 40
    kept = {path: path.stat().st_mtime_ns for path in whole}
    finished = build_cache(config(cache="killed", views=40))
    assert not finished.missing()
    assert not list(finished.damaged())
    assert kept == {path: path.stat().st_mtime_ns for path in whole}
    assert {path.suffix for path in Path("killed").iterdir()} == {".json", ".rows"}
    build_cache(config(cache="fresh", views=40))
    assert shards("killed") == shards("fresh")


def test_a_shard_is_made_by_one_process_at_a_time(teacher: Run) -> None:
    first = build_cache(config())
    second = TargetCache.open(Path("targets"))
    shard = (1, 0)
    whole = first.path(shard).read_bytes()
    with second.claim(shard) as mine:
        assert not mine  # it is there
    first.path(shard).unlink()
    with first.claim(shard) as mine:
        assert mine
        with second.claim(shard) as theirs:
            assert not theirs
    with second.claim(shard) as mine:  # the first one gave up
        assert mine
        second.write(shard, np.frombuffer(whole[:-32], second.contents.row))
    assert first.path(shard).read_bytes() == whole
    assert not list(Path("targets").glob(".*"))


def test_two_builders_share_the_work(teacher: Run) -> None:
    processes = [builder("shared") for _ in range(2)]
    told = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    made = [output.count(" of 40 shards") for output, _ in told]
    assert sum(made) == 40
    build_cache(config(cache="alone", views=40))
    assert shards("shared") == shards("alone")


def test_a_full_disk_is_said_once_and_costs_no_whole_shard(teacher: Run) -> None:
    """The file size is limited below that of a shard, as a full disk would; a process that helps
    leaves the telling to the one that began it.
    """
    build_cache(config(cache="full", views=2))
    first, second = sorted(Path("full").glob("*.rows"))
    second.unlink()
    before = first.read_bytes()
    process = builder("full", views=2, limit=4096, flags=("--processes", "2"))
    _, error = process.communicate()
    assert process.returncode == 1
    assert "cannot write to full: File too large; 1 of 2 shards are whole" in error
    told = [line for line in error.splitlines() if not line.endswith(" ...")]  # what it waits for
    assert len(told) == 1
    assert first.read_bytes() == before
    assert not second.exists()
    assert not list(Path("full").glob(".*"))
    build_cache(config(cache="full", views=2))


def test_several_processes_build_what_one_builds(teacher: Run) -> None:
    process = builder("two", views=6, flags=("--processes", "2"))
    _, error = process.communicate()
    assert process.returncode == 0, error
    build_cache(config(cache="one", views=6))
    assert shards("one") == shards("two")


def children(process: int) -> list[int]:
    """Processes that a process has begun."""
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def alive(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_processes_that_help_end_with_the_one_that_began_them(teacher: Run, sent: int) -> None:
    process = builder("left", views=4000, flags=("--processes", "2"))
    while len(list(Path("left").glob("view-*.rows"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    helpers = children(process.pid)
    assert helpers
    os.kill(process.pid, sent)
    _, error = process.communicate()
    assert "Traceback" not in error
    waited = time.monotonic()
    while any(map(alive, helpers)):
        assert time.monotonic() - waited < 10
        time.sleep(0.05)
