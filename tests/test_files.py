"""Atomic writing: the old content or the new one, whatever happens in between."""

import os
from pathlib import Path

import numpy as np
import pytest

from attention_transfer import files


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_text("old")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_content_replaces_the_old(target: Path) -> None:
    files.write_text(target, "n\u00e9w\n")
    assert target.read_bytes() == "n\u00e9w\n".encode()
    assert names(target.parent) == ["file.txt"]


def test_an_error_in_the_block_leaves_the_old_file_alone(target: Path) -> None:
    with pytest.raises(KeyboardInterrupt), files.replacing(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert names(target.parent) == ["file.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_between_write_and_rename_leaves_the_old_file(
    target: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(target, "new")
    monkeypatch.undo()
    assert target.read_text() == "old"
    assert names(target.parent) == ["file.txt"]


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_cleans_up(target: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with files.replacing(target) as temporary:
            temporary.write_text("half")
            os._exit(9)
    os.waitpid(pid, 0)
    assert target.read_text() == "old"
    assert names(target.parent) == [".file.txt.partial", "file.txt"]
    files.write_text(target, "new")
    assert target.read_text() == "new"
    assert names(target.parent) == ["file.txt"]


def test_content_and_name_are_flushed_to_the_disk(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, str]] = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        flushed.append((Path(name).name, target.read_text()))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_text(target, "new")
    assert flushed == [(".file.txt.partial", "old"), (target.parent.name, "new")]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for number in ("1", "2"):
        with files.replacing(folder) as temporary:
            temporary.mkdir()
            (temporary / number).write_text(number)
    assert names(tmp_path) == ["folder"]
    assert names(folder) == ["2"]
    with pytest.raises(ValueError, match="stop"), files.replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / "3").write_text("3")
        raise ValueError("stop")
    assert names(tmp_path) == ["folder"]
    assert names(folder) == ["2"]


def test_links_are_followed_and_devices_stay_devices(tmp_path: Path, target: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(target)
    files.write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    files.write_text(Path(os.devnull), "nothing")
    assert Path(os.devnull).is_char_device()


def test_arrays_and_json_and_lines_come_back(tmp_path: Path) -> None:
    arrays = {"maps/0": np.arange(6.0).reshape(2, 3), "names": np.array(["a", "b"])}
    files.write_arrays(tmp_path / "arrays.npz", arrays)
    with np.load(tmp_path / "arrays.npz") as archive:
        assert all(np.array_equal(archive[name], array) for name, array in arrays.items())
    files.write_json(tmp_path / "value.json", {"a": [1]})
    assert (tmp_path / "value.json").read_text() == '{\n  "a": [\n    1\n  ]\n}\n'
    for line in ("one", "two"):
        files.append_line(tmp_path / "lines", line)
    assert (tmp_path / "lines").read_text() == "one\ntwo\n"
