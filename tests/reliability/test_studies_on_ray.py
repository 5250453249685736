"""A study on a Ray cluster of two workers on this machine, and addresses that do not answer."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tiny_study import STUDY, start_study, write_images

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes of one CPU each; the address."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield nodes.address
    nodes.shutdown()


def test_a_study_runs_on_a_cluster_of_two_workers(tmp_path: Path, cluster: str) -> None:
    start_study(tmp_path, "--ray", cluster)
    document = json.loads((tmp_path / "out/study.json").read_text())
    assert document["complete"]
    assert (document["runs_planned"], document["runs_finished"]) == (5, 5)
    assert len(list((tmp_path / "out/logs").iterdir())) == 5


def test_a_run_that_fails_on_a_cluster_is_reported(tmp_path: Path, cluster: str) -> None:
    arms = {"broken": {"pairs": "nothing:group1"}}
    value = {**STUDY, "seeds": "1", "arms": arms, "paper": {}}
    done = start_study(tmp_path, "--ray", cluster, value=value, code=1)
    assert "broken/seed-0 failed: attention-transfer: " in done.stdout


@pytest.mark.parametrize("kind", ["nobody listens", "somebody else listens"])
def test_an_address_that_does_not_answer_is_said_within_ten_seconds(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    write_images(tmp_path)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if kind == "somebody else listens":
            listening.listen()
        port = listening.getsockname()[1]
        check = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from attention_transfer.errors import InputError\n"
            "from attention_transfer.experiments.study.ray_tasks import RayTasks\n"
            "began = time.monotonic()\n"
            "try:\n"
            f"    RayTasks(Path('out'), '127.0.0.1:{port}', 1)\n"
            "except InputError as error:\n"
            "    print(time.monotonic() - began, error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", check],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    seconds, _, message = done.stdout.partition(" ")
    assert float(seconds) < 11
    assert message.startswith(f"no Ray cluster answers at 127.0.0.1:{port} within 10 seconds")


def test_an_address_of_another_form_is_refused(tmp_path: Path) -> None:
    done = start_study(tmp_path, "--ray", "nowhere", code=2)
    assert "--ray is 'nowhere', expected HOST:PORT" in done.stderr
    assert not (tmp_path / "out").exists()
