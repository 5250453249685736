"""``attention-transfer maps`` and ``at.show``: networks and images in any form, files written."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.config import MapsConfig
from attention_transfer.errors import InputError
from attention_transfer.inference.images import find_image_files, source_images
from attention_transfer.models import ModelCard, build
from attention_transfer.viewing import write_maps

Capture = pytest.CaptureFixture[str]

MODULE = '''
import torch
from torch import nn


class Two(nn.Module):
    """Two stages, and a layer of vectors."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(6, num_classes)

    def forward(self, images):
        return self.head(self.second(self.first(images)).mean((2, 3)))


class Fixed(Two):
    def forward(self, images):
        if images.shape[-1] != 16:
            raise ValueError("expected images 16 wide")
        return super().forward(images)


class Mute(Two):
    def forward(self, images):
        return {"features": self.second(self.first(images))}


class NotFinite(Two):
    def forward(self, images):
        return super().forward(images) * float("nan")


def many(): return Two(1000)
'''


def write_run(folder: str, classes: int = 3, size: int = 16) -> None:
    Path(folder).mkdir(parents=True)
    torch.manual_seed(0)
    save_file(build("wrn-10-1", classes).state_dict(), Path(folder) / "model.safetensors")
    names = tuple(["<b>cat</b>", "$dog_", "\u05d7\u05ea\u05d5\u05dc\u200b"][:classes])
    third = (1 / 3,) * 3
    ModelCard("wrn-10-1", names, (3, size, size), third, third, "tiny").write(
        Path(folder) / "model.json"
    )


def write_image(path: str, height: int = 20, width: int = 30, seed: int = 0) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture(autouse=True)
def _material(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write networks and images into the test's folder."""
    (tmp_path / "own.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own", None)
    write_run("runs/student")
    write_run("old/student")
    for number, name in enumerate(("b.png", "a.jpg", "deep/c.png")):
        write_image(f"photos/{name}", seed=number)


def files(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_pictures_raw_maps_and_a_table(capsys: Capture) -> None:
    assert main(["maps", "runs/student", "--images", "photos", "--out", "out"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"image +student\n", out)
    assert "picture: out/maps.png" in out
    assert files("out") == ["maps.npz", "maps.png"]
    with Image.open("out/maps.png") as picture:
        assert min(picture.size) > 900


def test_raw_maps_are_those_of_attention_maps() -> None:
    """The image is preprocessed here independently."""
    command = [
        "maps",
        "runs/student",
        "wrn-10-1@random",
        "--images",
        "photos/b.png",
        "--power",
        "1",
    ]
    assert main([*command, "--points", "group2,group3", "--out", "out"]) == 0
    model = at.models.load_run("runs/student")
    pixels = Image.open("photos/b.png").resize((16, 16), Image.Resampling.BILINEAR)
    image = (torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None] / 255 - 1 / 3) / (1 / 3)
    expected = at.attention_maps(model.network, image, points=["group3"], power=1)["group3"]
    with torch.no_grad():
        chances = model.network.eval()(image).softmax(dim=1)[0]
    with np.load("out/maps.npz", allow_pickle=False) as raw:
        np.testing.assert_allclose(raw["0/group3"], expected.numpy(), rtol=1e-4)
        assert raw["0/group3"].dtype == np.float32
        assert raw["points"].tolist() == ["0/group2", "0/group3", "1/group2", "1/group3"]
        assert raw["networks"].tolist() == ["student", "wrn-10-1@random"]
        assert raw["models"].tolist() == ["runs/student", "wrn-10-1@random"]
        assert raw["images"].tolist() == ["photos/b.png"]
        assert raw["predictions"][0, 0] == int(chances.argmax())
        assert raw["probabilities"][0, 0] == pytest.approx(float(chances.max()), rel=1e-4)
        assert raw["boxes"].tolist() == [[[0, 0, 30, 20]]] * 2
        assert (float(raw["power"]), str(raw["attention"])) == (1.0, "activation")
        assert int(raw["schema_version"]) == 1


def test_json_is_one_document(capsys: Capture) -> None:
    Path("photos/broken.png").write_bytes(Path("photos/b.png").read_bytes()[:300])
    assert main(["maps", "runs/student", "own:Two", "--images", "photos", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert set(document) == {"folder", "files", "raw", "networks", "images", "unreadable"}
    assert document["folder"].startswith("runs/maps-")
    assert [network["name"] for network in document["networks"]] == ["student", "own:Two"]
    assert document["networks"][1]["points"] == [
        {"point": "first", "label": "low level", "map": [112, 112]},
        {"point": "second", "label": "top level", "map": [56, 56]},
    ]
    assert [image["path"] for image in document["images"]] == [
        "photos/a.jpg",
        "photos/b.png",
        "photos/deep/c.png",
    ]
    assert document["images"][0]["predictions"][0]["name"] in (
        *("<b>cat</b>", "$dog_", "\u05d7\u05ea\u05d5\u05dc\u200b"),
    )
    assert document["images"][0]["predictions"][1]["name"].startswith("class ")
    (unreadable,) = document["unreadable"]
    assert unreadable["path"] == "photos/broken.png"
    assert all(Path(file).is_file() for file in [*document["files"], document["raw"]])
    assert "own:Two does not declare how its images are normalized" in err
    assert f"skipped photos/broken.png: {unreadable['reason']}" in err
    assert all(line.isprintable() for line in err.splitlines())


def test_a_file_for_each_image_never_under_the_name_of_another() -> None:
    write_image("x/b.png")
    command = ["maps", "wrn-10-1@random", "--images", "photos", "x", "--per-image"]
    assert main([*command, "--format", "svg", "--out", "photos"]) == 0
    assert files("photos") == [
        *("a.jpg", "b.png", "deep", "maps-1-a.svg", "maps-2-b.svg", "maps-3-c.svg"),
        *("maps-4-b.svg", "maps.npz"),
    ]


def test_many_images_go_on_in_more_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attention_transfer.viewing.command.MOST_LINES", 2)
    for number in range(5):
        write_image(f"many/{number}.png", 8, 8)
    config = MapsConfig(models="wrn-10-1@random", images="many", points="top", out="out")
    result = write_maps(config.replace(format="pdf"))
    assert [file.name for file in result.pictures] == ["maps.pdf", "maps-2.pdf", "maps-3.pdf"]
    assert all(file.read_bytes().startswith(b"%PDF") for file in result.pictures)
    assert len(result.images) == 5


def test_each_network_shows_the_points_it_has() -> None:
    models = ("wrn-10-1@random", "nin-thin@random", "own:Two")
    named = MapsConfig(models=models, images="photos/b.png", points="group?,block3,second")
    selected = [[point.name for point in points] for points in write_maps(named).grid.points]
    assert selected == [["group1", "group2", "group3"], ["block3"], ["second"]]
    every = write_maps(MapsConfig(models="own:Two", images="photos/b.png", points="all", out="all"))
    names = [point.name for point in every.grid.points[0]]
    assert {"first.0", "first", "second.0", "second"} <= set(names)
    assert len(set(names)) == len(names)


def test_levels_side_by_side_or_networks_by_themselves() -> None:
    def headlines(*models: str) -> list[tuple[str, str]]:
        config = MapsConfig(models=models, images="photos/b.png", out="-".join(models)[:9])
        return [(column.group, column.title) for column in write_maps(config).grid.columns()]

    assert headlines("wrn-10-1@random", "nin-thin@random")[:3] == [
        ("low level", "wrn-10-1@random"),
        ("low level", "nin-thin@random"),
        ("middle level", "wrn-10-1@random"),
    ]
    assert headlines("own:Two", "nin-thin@random")[:3] == [
        ("own:Two", "low level"),
        ("own:Two", "top level"),
        ("nin-thin@random", "low level"),
    ]


def test_gradient_attention_is_one_column_a_network() -> None:
    command = ["maps", "runs/student", "own:Two", "--images", "photos", "--attention", "gradient"]
    assert main([*command, "--crop", "--out", "out"]) == 0
    with np.load("out/maps.npz") as raw:
        assert raw["points"].tolist() == ["0/input", "1/input"]
        assert raw["1/input"].shape == (3, 224, 224)
        np.testing.assert_allclose(raw["boxes"][0, 0], [6.25, 1.25, 23.75, 18.75])


def test_two_networks_of_one_name_get_distinct_names() -> None:
    models = ("runs/student", "old/student", "wrn-10-1@random", "wrn-10-1@random")
    grid = write_maps(MapsConfig(models=models, images="photos/b.png")).grid
    assert [network.name for network in grid.networks] == [
        *("runs/student", "old/student", "wrn-10-1@random", "wrn-10-1@random (2)"),
    ]


def test_weights_of_any_number_of_classes_are_read() -> None:
    save_file(build("wrn-10-1", 7).state_dict(), "seven.safetensors")
    save_file(build("nin-thin", 100).state_dict(), "hundred.safetensors")
    models = ("wrn-10-1@seven.safetensors", "nin-thin@hundred.safetensors", "own:many")
    grid = write_maps(MapsConfig(models=models, images="photos/b.png")).grid
    assert [len(results) for results in grid.results] == [1, 1, 1]
    answers = [str(results[0].answer) for results in grid.results]
    assert all(re.fullmatch(r"class \d+, [\d.]+ %", answer) for answer in answers)


def test_a_network_without_logits_has_maps_and_no_prediction() -> None:
    for model in ("own:Mute", "own:NotFinite"):
        grid = write_maps(MapsConfig(models=model, images="photos/b.png")).grid
        assert grid.results[0][0].answer is None
        assert grid.rows()[0].answers == [("", "no prediction")]


def odd_images() -> None:
    ramp = np.linspace(0, 65535, 30 * 20).reshape(20, 30).astype(np.uint16)
    Image.fromarray(ramp).save("odd-grey.png")
    write_image("odd-flat.png", 10, 10_000)
    write_image("odd-tall.png", 10_000, 10)
    write_image("odd-one.png", 1, 1)
    write_image("odd-\u05e9\u05dc\u05d5\u05dd \u65e5\u672c $x_{ <b> \u200b\u202e\n.png")


def test_odd_images_are_drawn_without_a_warning(capsys: Capture) -> None:
    odd_images()
    assert main(["maps", "runs/student", "--images", "odd-*.png", "--out", "out"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len([line for line in out.splitlines() if "odd-" in line]) == 5
    assert "\u202e" not in out


STUDENT = "maps runs/student --images"
BAD: dict[str, tuple[str, str]] = {
    "no models": ("maps --images photos", "models is missing: networks"),
    "no images": ("maps runs/student", "images is missing: files, folders"),
    "no image there": (f"{STUDENT} cat.jpg", "there is no image cat.jpg; expected a file, a fo"),
    "one of several missing": (f"{STUDENT} photos cat.jpg", "there is no image cat.jpg"),
    "empty folder": (f"{STUDENT} empty", "no images in the folder empty"),
    "pattern without a match": (f"{STUDENT} photos/*.gif", r"no file matches 'photos/\*\.gif'"),
    "not a file": (f"{STUDENT} dangling.png", "dangling.png is not a file; expected an image"),
    "one unreadable": (f"{STUDENT} notes.txt", "notes.txt cannot be read: .*; give at least one"),
    "none readable": (f"{STUDENT} notes.txt cut.png", "notes.txt cannot be read.*nor can 1 other"),
    "own name": ("maps wrn-10-1 --images photos", "wrn-10-1 has no pretrained weights; give the"),
    "unknown network": ("maps wnr-10-1 --images photos", "unknown model.*did you mean"),
    "no run": ("maps empty --images photos", "empty holds no trained network"),
    "unknown point": (
        f"{STUDENT} photos --points grup1",
        "no network has a point 'grup1'; did you",
    ),
    "unknown pattern": (
        f"{STUDENT} photos --points x*",
        "no network has a point 'x.'; known: low,",
    ),
    "no point": (f"{STUDENT} photos --points ,", "no network has a point ''; known: low, middle"),
    "a point of vectors": (
        f"{STUDENT} photos --points classifier",
        r"point 'classifier' \(Linear\) has no attention map: it has no positions",
    ),
    "one network has none": (
        "maps runs/student own:Two --images photos --points group1",
        "own:Two has none of the points group1; list .*attention-transfer points",
    ),
    "points of gradients": (
        f"{STUDENT} photos --attention gradient --points group1",
        "gradient attention is read at the images, got the points 'group1'; leave them out",
    ),
    "no logits": (
        "maps own:Mute --images photos --attention gradient",
        r"the network returns a dict with 'features', expected logits \(N, classes\)",
    ),
    "size not taken": (
        "maps own:Fixed --images photos",
        r"Fixed does not run on an input.*16 wide",
    ),
    "power": (f"{STUDENT} photos --power 0", "power is '0', it should be greater than 0"),
    "format": (f"{STUDENT} photos --format gif", "format is 'gif', expected one of png, svg, pdf"),
    "maps there": (f"{STUDENT} photos --out full", r"full already holds maps \(maps.npz\); choose"),
    "out a file": (f"{STUDENT} photos --out notes.txt", "notes.txt is not a folder; choose anothe"),
    "out below a file": (f"{STUDENT} photos --out notes.txt/x", "cannot write to notes.txt/x"),
    "unknown flag": (
        f"{STUDENT} photos --point low",
        "unknown flag --point; did you mean --points",
    ),
    "a flag's file": ("maps --config empty.yaml --images photos", "models is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case: str, capsys: Capture) -> None:
    command, expected = BAD[case]
    Path("empty").mkdir()
    Path("empty/notes.md").write_text("nothing")
    Path("full").mkdir()
    Path("full/maps.npz").touch()
    Path("notes.txt").write_text("no image")
    Path("empty.yaml").touch()
    Path("cut.png").write_bytes(Path("photos/b.png").read_bytes()[:200])
    Path("dangling.png").symlink_to("nowhere.png")
    before = sorted(map(str, Path().rglob("*")))
    code = main(command.split())
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("attention-transfer: ")
    assert err[:-1].isprintable()
    assert "Traceback" not in err
    assert re.search(expected, err), err
    assert [path for path in sorted(map(str, Path().rglob("*"))) if "__pycache__" not in path] == [
        path for path in before if "__pycache__" not in path
    ]


def test_a_configuration_file_may_name_one_network_and_one_image() -> None:
    Path("maps.yaml").write_text("models: runs/student\nimages: photos/b.png\nout: out\n")
    assert main(["maps", "--config", "maps.yaml", "--points", "top"]) == 0
    assert files("out") == ["maps.npz", "maps.png"]


def test_files_are_found_once_in_order_and_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    files = find_image_files(["photos/**/*.png", "photos", "photos/a.jpg"])
    assert [path.name for path in files] == ["b.png", "c.png", "a.jpg"]
    monkeypatch.setattr("attention_transfer.inference.images.MOST_FILES", 2)
    with pytest.raises(InputError, match="got 3 images, expected at most 2"):
        find_image_files(["photos"])
    with pytest.raises(InputError, match="no file matches"):
        find_image_files(["a\0*"])


FORMS: dict[str, Callable[[NDArray[np.uint8]], object]] = {
    "a path": lambda pixels: "photos/b.png",
    "a Path in a list": lambda pixels: [Path("photos/b.png")],
    "a PIL image": lambda pixels: Image.open("photos/b.png"),
    "an array": lambda pixels: pixels,
    "a read-only array": lambda pixels: np.broadcast_to(pixels, pixels.shape),
    "an array of several": lambda pixels: pixels[None],
    "an array from 0 to 1": lambda pixels: pixels / 255,
    "a tensor": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255,
    "a uint8 tensor": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_are_accepted_in_any_form(form: str) -> None:
    pixels = np.array(Image.open("photos/b.png"))
    (image,) = source_images(FORMS[form](pixels))
    assert image.size == (20, 30)
    whole = at.inference.images.Box(0, 0, 30, 20)
    values = image.crop((20, 30), whole, "bilinear")
    np.testing.assert_allclose(values.numpy(), pixels.transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (torch.randn(2, 3, 8, 8), "values from .*expected 0 to 1 or uint8; give them before"),
        (torch.full((1, 3, 8, 8), float("nan")), "values from nan"),
        (torch.rand(2, 4, 8, 8), r"got images \(2, 4, 8, 8\), expected"),
        (np.zeros((3, 8, 8)), r"got an array \(3, 8, 8\), expected pixels \(H, W, 3\)"),
        (torch.rand(0, 3, 8, 8), r"got images \(0, 3, 8, 8\)"),
        ([], "got no images"),
        (7, "got a int, expected images"),
    ],
)
def test_unsupported_images_are_refused(images: object, match: str) -> None:
    with pytest.raises(InputError, match=match):
        at.show(build("wrn-10-1", 3), images)


def test_networks_are_accepted_in_any_form() -> None:
    write_image("cat.png")
    module = timm.create_model("mobilenetv3_small_050", num_classes=4)
    networks = {
        "module": module,
        "run": at.Run(Path("runs/student")),
        "loaded": at.models.load_run("runs/student"),
        "named": "wrn-10-1@random",
    }
    figure = at.show(networks, "cat.png", points="top", class_names=["a", "b", "c", "d"])
    shown = [text.get_text() for text in figure.texts]
    assert all(name in shown for name in networks)
    assert any(re.match("[abcd], ", text) for text in shown)
    assert not any(hook for part in module.modules() for hook in part._forward_hooks)
    with pytest.raises(InputError, match="got a int, expected a network"):
        at.show(3, "cat.png")
    with pytest.raises(InputError, match="got no networks"):
        at.show([], "cat.png")
    with pytest.raises(InputError, match="got 2 names for 1 images"):
        at.show(module, "cat.png", names=["a", "b"])


def test_a_module_keeps_its_mode_with_images_of_several_sizes() -> None:
    network = build("wrn-10-1", 3).train()
    images = [np.zeros((16, 24, 3), np.uint8), np.zeros((24, 16, 3), np.uint8)]
    at.show(network, images, normalization=((0.5,) * 3, (0.5,) * 3))
    assert network.training
    assert all(isinstance(part, nn.Module) and part.training for part in network.modules())
