"""The table of maps: maps at the right position, in the right colours, with text that fits."""

import io
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import attention_transfer as at
from attention_transfer.drawing.contact_sheet import contact_sheet
from attention_transfer.drawing.maps import Cell, Column, ImagePart, Row, draw_maps
from attention_transfer.drawing.scale import (
    cosine_similarity,
    downsample,
    to_unit_mean,
    to_unit_rms,
)
from attention_transfer.drawing.sprites import map_sprite
from attention_transfer.drawing.text import ignore_missing_glyphs, shorten, text_width, wrap
from attention_transfer.inference.networks import distinct_names

GOLDEN = Path(__file__).parent / "golden" / "maps.png"
INFERNO = matplotlib.colormaps["inferno"]


class Red(nn.Module):
    """A network that attends to red pixels only."""

    attention_points = ("stage",)

    def __init__(self, grid: tuple[int, int], strength: float = 1.0) -> None:
        super().__init__()
        self.stage, self.strength = nn.AdaptiveAvgPool2d(grid), strength
        self.classifier = nn.Linear(1, 3)

    def forward(self, images: Tensor) -> Tensor:
        red = (images[:, :1] - images[:, 1:2]).relu() * self.strength
        return self.classifier(self.stage(red).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def painted(height: int, width: int, top: int, left: int, side: int) -> Tensor:
    """Return a grey image (1, 3, H, W) with a red square."""
    image = torch.full((1, 3, height, width), 0.5)
    image[:, 0, top : top + side, left : left + side] = 1.0
    image[:, 1:, top : top + side, left : left + side] = 0.0
    return image


def rendered(figure: Figure) -> NDArray[np.uint8]:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return np.asarray(Image.open(png).convert("RGB"))


def inside(figure: Figure, axes: Axes) -> NDArray[np.uint8]:
    """Return the rendered pixels of one axes."""
    dots = rendered(figure)
    box = axes.get_window_extent()
    left, right = round(box.x0), round(box.x1)
    return dots[len(dots) - round(box.y1) : len(dots) - round(box.y0), left:right]


def pictures(figure: Figure) -> list[list[Axes]]:
    """Return the axes by row (image, map on it, map alone, ...), without the colour bar."""
    images = [axes for axes in figure.axes if axes.images][:-1]
    rows: list[list[Axes]] = []
    left = min(axes.get_position().x0 for axes in images)
    for axes in images:
        if axes.get_position().x0 == left:
            rows.append([])
        rows[-1].append(axes)
    return rows


@pytest.mark.parametrize(
    ("size", "square", "grid"),
    [
        ((48, 48), (0, 0, 12), (8, 8)),
        ((48, 48), (36, 36, 12), (8, 8)),
        ((40, 80), (20, 40, 20), (4, 8)),
        ((80, 40), (60, 0, 20), (8, 4)),
    ],
)
def test_a_map_lies_exactly_where_the_network_attends(
    size: tuple[int, int], square: tuple[int, int, int], grid: tuple[int, int]
) -> None:
    figure = at.show(Red(grid), painted(*size, *square))
    ((image, over, alone),) = pictures(figure)
    drawn = inside(figure, alone).astype(int)
    assert inside(figure, image).shape == inside(figure, over).shape == drawn.shape
    assert drawn.shape[1] / drawn.shape[0] == pytest.approx(size[1] / size[0], rel=0.01)
    y, x = (np.arange(length) + 0.5 for length in drawn.shape[:2])
    rows, columns = y * size[0] / drawn.shape[0], x * size[1] / drawn.shape[1]
    top, left, side = square
    expected = np.outer(
        (rows >= top) & (rows < top + side), (columns >= left) & (columns < left + side)
    )
    colours = np.where(expected[..., None], INFERNO(1.0)[:3], INFERNO(0.0)[:3]) * 255
    assert (abs(drawn - colours).max(axis=-1) < 3).mean() > 0.99  # but for an edge, by a dot
    lit = inside(figure, over).sum(axis=-1)
    assert lit[expected].mean() > 1.5 * lit[~expected].mean()
    share = lit[expected].sum() / lit.sum()
    assert share > 1.5 * expected.mean()


def test_the_image_shows_through_the_map() -> None:
    stripes = painted(48, 48, 0, 0, 48)
    stripes[:, :, ::8] *= 0.2
    figure = at.show(Red((6, 6)), stripes)
    ((_, over, _),) = pictures(figure)
    rows = inside(figure, over).mean(axis=(1, 2))
    assert rows.max() - rows.min() > 15


def test_all_maps_of_a_figure_share_a_scale_and_strength_does_not_matter() -> None:
    wide = painted(48, 48, 0, 0, 24)
    narrow = painted(48, 48, 0, 0, 36)
    images = torch.cat([wide, narrow])
    figure = at.show({"weak": Red((8, 8), 1e-6), "strong": Red((8, 8), 1e6)}, images)
    rows = pictures(figure)
    limits = {axes.images[0].norm.vmax for row in rows for axes in row[2::2]}
    assert limits == {4.0}  # a quarter of the image has all: 4 times an even spread
    for row, spread in zip(rows, (4.0, 16 / 9), strict=True):
        for alone in row[2::2]:
            colour = inside(figure, alone)[10, 10]
            assert abs(colour - 255 * np.array(INFERNO(spread / 4)[:3])).max() < 3
    figure = at.show(Red((8, 8)), images, scale="each")
    for row in pictures(figure):
        assert abs(inside(figure, row[2])[10, 10] - 255 * np.array(INFERNO(1.0)[:3])).max() < 3


def test_a_map_of_a_part_is_drawn_on_that_part() -> None:
    """With ``crop``, a map covers the centre part of the image that the network received."""
    image = painted(80, 160, 10, 70, 20)
    square = at.Preprocessing((0.0,) * 3, (1.0,) * 3, size=(40, 40))
    figure = at.show(Red((40, 40)), image, normalization=square, crop=True)
    ((whole, _, alone),) = pictures(figure)
    assert inside(figure, whole).shape == inside(figure, alone).shape
    drawn = inside(figure, alone).sum(axis=-1) > 400
    centres = [float(indices.mean()) for indices in np.nonzero(drawn)]
    # The middle 70x70 of 80x160 begins at (5, 45); the square's middle is at (20, 80).
    assert centres[0] / drawn.shape[0] == pytest.approx((20 - 5) / 70, abs=0.02)
    assert centres[1] / drawn.shape[1] == pytest.approx((80 - 45) / 70, abs=0.02)


def example() -> Figure:
    """Draw a table without networks: three images, four columns, a map of a part."""
    y, x = np.mgrid[:24, :36] / 24
    pixels = (255 * np.stack([y, x / 1.5, 1 - y], axis=-1)).astype(np.uint8)
    hill = np.exp(-8 * ((y - 0.3) ** 2 + (x - 1.0) ** 2))
    maps = [
        to_unit_mean(hill),
        to_unit_mean(hill[::3, ::3]),
        to_unit_mean(1 - hill[::6, ::6]),
        np.zeros((2, 3)),
    ]
    cells = [Cell(attention) for attention in maps[:3]]
    part = Cell(maps[1], ImagePart(0.25, 0.0, 0.75, 1.0))
    columns = [Column(group, name) for group in ("low level", "top level") for name in "ab"]
    rows = [
        Row("wide", pixels, (24, 36), [("a", "cat, 90 %"), ("b", "dog, 20 %")], [*cells, part]),
        Row("tall", pixels.transpose(1, 0, 2), (36, 24), [], [part, *cells]),
        Row("line", pixels, (1, 1000), [], [Cell(attention) for attention in maps]),
    ]
    return draw_maps(columns, rows, 3.0, "A picture.", cell_width=0.5)


def test_a_picture_is_the_golden_one(pytestconfig: pytest.Config) -> None:
    """Only images and maps are compared; letters depend on matplotlib's version."""
    figure = example()
    if pytestconfig.getoption("--update-golden"):
        Image.fromarray(rendered(figure)).save(GOLDEN, optimize=True)
    drawn, golden = rendered(figure), np.asarray(Image.open(GOLDEN).convert("RGB"))
    assert drawn.shape == golden.shape
    for axes in figure.axes:
        box = axes.get_window_extent()
        rows = slice(len(drawn) - round(box.y1), len(drawn) - round(box.y0))
        columns = slice(round(box.x0), round(box.x1))
        difference = drawn[rows, columns].astype(int) - golden[rows, columns]
        assert abs(difference).mean() < 3


def test_pictures_and_words_do_not_overlap() -> None:
    long = "a very long name of a network " * 9
    networks = {long: Red((8, 8)), long + "b": Red((8, 8)), "\u202e<b>$x$\n": Red((8, 8))}
    images = [painted(40, 40, 0, 0, 9), painted(4, 4000, 0, 0, 4), painted(4000, 4, 0, 0, 4)]
    preprocessing = at.Preprocessing((0.0,) * 3, (1.0,) * 3, size=(32, 32))
    figure = at.show(
        networks,
        images,
        normalization=preprocessing,
        names=["an image " * 40, "$\\frac{", "\u05e9\u05dc\u65e5\x07"],
    )
    figure.savefig("maps.svg")
    renderer = FigureCanvasAgg(figure).get_renderer()
    with ignore_missing_glyphs():
        boxes = [text.get_window_extent(renderer) for text in figure.texts if text.get_text()]
    boxes += [axes.get_window_extent(renderer) for axes in figure.axes]
    edge = figure.bbox
    for number, box in enumerate(boxes):
        assert box.x0 >= -1
        assert box.x1 <= edge.x1 + 1
        assert box.y0 >= -1
        assert not any(box.padded(-1.5).overlaps(other.padded(-1.5)) for other in boxes[:number])


def test_a_notebook_shows_a_figure_by_itself_and_pyplot_knows_nothing_of_it() -> None:
    from matplotlib import pyplot as plt

    before = plt.get_fignums()
    figure = at.show(Red((8, 8)), painted(16, 16, 0, 0, 4))
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert plt.get_fignums() == before
    with matplotlib.rc_context({"text.usetex": True, "savefig.facecolor": "black"}):
        assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_maps_without_a_scale_are_drawn(value: float) -> None:
    cells = [Cell(to_unit_mean(np.full((3, 3), value)))]
    row = Row("a", np.zeros((8, 8, 3), np.uint8), (8, 8), [], cells)
    for limit in (2.0, None):
        assert rendered(draw_maps([Column("a", "b")], [row], limit)).std() > 0


def test_many_columns_go_on_below() -> None:
    columns = [Column("all", f"point {number}") for number in range(30)]
    row = Row("a", np.zeros((8, 8, 3), np.uint8), (8, 8), [], [Cell(np.ones((2, 2)))] * 30)
    figure = draw_maps(columns, [row], 2.0)
    assert [len(row) for row in pictures(figure)] == [1 + 2 * 10] * 3
    shown = [text.get_text() for text in figure.texts]
    assert all(shown.count(f"point {number}") == 1 for number in range(30))


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60), st.floats(0.5, 3.0))
def test_any_text_fits_its_room(text: str, width: float) -> None:
    assert text_width(shorten(text, width, 8.0), 8.0) <= width
    lines = wrap(text, width, 8.0, lines=3).split("\n")
    assert len(lines) <= 3
    assert all(line.isprintable() and text_width(line, 8.0) <= width for line in lines)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "a (2)"]), st.sampled_from(["", "x", "y"]))))
def test_no_two_networks_have_one_name(pairs: list[tuple[str, str]]) -> None:
    names = distinct_names([name for name, _ in pairs], [full for _, full in pairs])
    assert len(set(names)) == len(names) == len(pairs)


@given(st.lists(st.floats(0.01, 1e6), min_size=4, max_size=4), st.floats(1e-6, 1e6))
def test_a_map_of_unit_mean_is_independent_of_scale(values: list[float], factor: float) -> None:
    attention = np.array(values).reshape(2, 2)
    assert to_unit_mean(attention).mean() == pytest.approx(1)
    np.testing.assert_allclose(to_unit_mean(factor * attention), to_unit_mean(attention), rtol=1e-9)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"map": "avg"}, "unknown map 'avg'"),
        ({"power": -1.0}, "power must be"),
        ({"scale": "nope"}, "unknown scale 'nope'"),
        ({"attention": "both"}, "unknown attention 'both'"),
        ({"points": []}, "got no points"),
    ],
)
def test_unknown_arguments_are_refused(wrong: dict[str, object], match: str) -> None:
    with pytest.raises(at.InputError, match=match):
        at.show(Red((4, 4)), torch.rand(1, 3, 8, 8), **wrong)  # type: ignore[arg-type]


def test_a_runs_folder_may_be_a_path() -> None:
    from attention_transfer.experiments.demo import packaged_teacher

    figure = at.show(packaged_teacher(), torch.rand(1, 3, 32, 32), points="top")
    assert any("demo_teacher" in text.get_text() for text in figure.findobj(matplotlib.text.Text))


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_maps_of_one_or_three_axes_are_refused(shape: tuple[int, ...]) -> None:
    row = Row("a", np.zeros((8, 8, 3), np.uint8), (8, 8), [], [Cell(np.ones(shape))])
    with pytest.raises(ValueError, match=r"shape .*, expected \(H, W\): only maps with two spat"):
        draw_maps([Column("a", "b")], [row], 2.0)
    with pytest.raises(ValueError, match=r"expected \(H, W\)"):
        to_unit_mean(np.ones(shape))
    maps, images = np.ones((2, *shape)), np.zeros((2, 8, 8, 3), np.uint8)
    for draw in (
        to_unit_rms,
        downsample,
        lambda maps: cosine_similarity(maps, maps),
        lambda maps: contact_sheet(images, [maps]),
        lambda maps: map_sprite([maps], np.ones(2)),
    ):
        with pytest.raises(ValueError, match=r"expected \(N, H, W\)"):
            draw(maps)
