"""Networks on the Hugging Face Hub: uploaded, fetched by commit, and what is refused."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import attention_transfer as at
from conftest import SMALL
from small_pictures import write_pictures
from stub_hub import StubHub, stub_hub


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> at.Run:
    settings = {**SMALL, "epochs": 1, "batch_size": 8, "image_size": 16, "probes": 0, "workers": 0}
    out = tmp_path_factory.mktemp("runs") / "run"
    return at.train("wrn-10-1", data=f"folder:{pictures}", out=out, **settings)


@pytest.fixture
def hub() -> Iterator[StubHub]:
    with stub_hub() as server:
        yield server


class Machine:
    """A machine with a cache of its own, which reaches the stub of the hub alone."""

    def __init__(self, hub: StubHub, home: Path, token: str = "stub") -> None:
        self.environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
            self.environment.pop(proxy, None)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "attention_transfer", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def fails(self, *arguments: str) -> str:
        """Return the last line of stderr of a command that bad input ends."""
        done = self.run(*arguments)
        assert done.returncode == 2, done
        return done.stderr.splitlines()[-1]


def test_an_upload_is_a_model_by_its_commit(
    hub: StubHub, trained: at.Run, pictures: Path, tmp_path: Path
) -> None:
    machine = Machine(hub, tmp_path / "one")
    export = ["export", str(trained.folder), f"--out={tmp_path / 'export'}", "--formats=onnx"]
    done = machine.run(*export, "--push=someone/student")
    assert done.returncode == 0, done.stderr
    assert hub.private == {"someone/student": True}
    match = re.search(r"(hub:someone/student@([0-9a-f]{40}))", done.stdout)
    assert match, done.stdout
    model, commit = match.groups()
    files = hub.commits["someone/student"][commit]
    assert files["README.md"] == (tmp_path / "export" / "MODEL_CARD.md").read_bytes()
    weights = (trained.folder / "model.safetensors").read_bytes()
    assert files["model.safetensors"] == weights

    # On another machine, it is fetched once; and it stays what it is when the name moves on.
    other = Machine(hub, tmp_path / "two")
    image = str(pictures / "test" / "discs" / "3.jpg")
    (expected,) = at.load(trained).predict(image)
    done = other.run("predict", model, image, "--json")
    assert done.returncode == 0, done.stderr
    (prediction,) = json.loads(done.stdout)["predictions"]
    assert prediction["probability"] == pytest.approx(expected.probability, abs=1e-6)
    hub.commit("someone/student", {"model.safetensors": b"other weights"})
    hub.requests.clear()
    assert other.run("predict", model, image).returncode == 0
    assert hub.requests == []
    line = other.fails("predict", "hub:someone/student", image)
    newest = list(hub.commits["someone/student"])[-1]
    assert line.endswith(f"Now that is hub:someone/student@{newest}")
    line = other.fails("predict", f"hub:someone/student@{newest}", image)
    assert "is damaged, or was replaced" in line


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("hub:student", "expected hub:OWNER/NAME@COMMIT"),
        ("hub:nobody/nothing", "there is no such network, or it is private"),
        ("hub:someone/other@" + "0" * 40, "it has no such commit"),
        ("hub:someone/other@main", "which may mean other weights tomorrow"),
    ],
)
def test_what_is_not_there_is_said(
    hub: StubHub, model: str, message: str, pictures: Path, tmp_path: Path
) -> None:
    hub.commit("someone/other", {"weights.bin": b"?"})
    machine = Machine(hub, tmp_path)
    assert message in machine.fails("predict", model, str(pictures / "test"))


def test_a_repository_of_other_software_is_refused(
    hub: StubHub, pictures: Path, tmp_path: Path
) -> None:
    commit = hub.commit("someone/other", {"pytorch_model.bin": b"code"})
    line = Machine(hub, tmp_path).fails(
        "predict", f"hub:someone/other@{commit}", str(pictures / "test")
    )
    assert "it has no model.json or model.safetensors" in line
    assert not list(tmp_path.rglob("pytorch_model.bin"))


def test_a_card_that_names_code_needs_trust(hub: StubHub, trained: at.Run, tmp_path: Path) -> None:
    card = json.loads((trained.folder / "model.json").read_text())
    files = {
        "model.json": json.dumps({**card, "name": "os:abort"}).encode(),
        "model.safetensors": (trained.folder / "model.safetensors").read_bytes(),
    }
    commit = hub.commit("someone/evil", files)
    line = Machine(hub, tmp_path).fails("points", f"hub:someone/evil@{commit}")
    assert "os:abort" in line
    assert "--trust os:abort" in line


def test_a_configuration_has_nothing_fetched(hub: StubHub, tmp_path: Path) -> None:
    model = "hub:someone/other@" + "0" * 40
    (tmp_path / "settings.yaml").write_text(f"student: wrn-10-1\nteacher: {model}\n")
    config = f"--config={tmp_path / 'settings.yaml'}"
    line = Machine(hub, tmp_path / "home").fails("distill", config)
    assert f"--trust {model}" in line
    assert hub.requests == []


def test_a_hub_that_does_not_answer_is_said_at_once(pictures: Path, tmp_path: Path) -> None:
    with stub_hub() as server:
        machine = Machine(server, tmp_path)
    began = time.monotonic()
    line = machine.fails("predict", "hub:a/b@" + "1" * 40, str(pictures / "test"))
    assert re.search(r"the hub at http://127\.0\.0\.1:\d+ cannot be reached", line)
    assert time.monotonic() - began < 60


def test_nothing_is_exported_without_a_token(hub: StubHub, trained: at.Run, tmp_path: Path) -> None:
    machine = Machine(hub, tmp_path / "home", token="")
    out = tmp_path / "export"
    line = machine.fails("export", str(trained.folder), f"--out={out}", "--push=someone/student")
    assert "log in with: hf auth login" in line
    assert not out.exists()


def test_a_refused_upload_leaves_the_files(hub: StubHub, trained: at.Run, tmp_path: Path) -> None:
    hub.refuse_commits = True
    out = tmp_path / "export"
    export = ["export", str(trained.folder), f"--out={out}", "--formats=safetensors"]
    done = Machine(hub, tmp_path / "home").run(*export, "--push=someone/student")
    assert done.returncode == 1
    assert f"hf upload someone/student {out}" in done.stderr.splitlines()[-1]
    assert (out / "MODEL_CARD.md").exists()
