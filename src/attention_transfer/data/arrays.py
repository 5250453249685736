"""From decoded images of any kind that data sets give, such as arrays, to PIL's."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["as_pil", "check_unit_values"]


def as_pil(image: Any) -> Image.Image:
    """Convert a decoded image of any kind that data sets give to PIL's.

    Args:
        image: PIL's; an array (H, W), (H, W, 3) or (3, H, W) or a tensor of such a shape, with 1, 3
            or 4 channels; integers from 0 to 255 (of 16 bits to 65535) or floating-point numbers
            from 0 to 1.

    Raises:
        TypeError: it is none of these.
        ValueError: its values lie outside the range.

    Example:
        >>> as_pil(torch.ones(3, 4, 6)).size
        (6, 4)
    """
    if isinstance(image, Image.Image):
        return image
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3):
        raise TypeError(
            f"got a {type(image).__name__}, expected an image of PIL, an array (H, W, 3), a tensor "
            "(3, H, W) or the bytes of a file"
        )
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise TypeError(f"got an array {array.shape}, expected (H, W), (H, W, 3) or (3, H, W)")
    pixels = _as_bytes(array)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels)


def check_unit_values(array: NDArray[Any]) -> None:
    """Raise a ValueError for floating-point values that do not lie from 0 to 1."""
    low, high = float(array.min(initial=0)), float(array.max(initial=0))
    if np.issubdtype(array.dtype, np.floating) and not (low >= 0 and high <= 1):
        raise _out_of_range(array, 1)


def _out_of_range(array: NDArray[Any], largest: int) -> ValueError:
    low, high = float(array.min(initial=0)), float(array.max(initial=0))
    return ValueError(
        f"its {array.dtype} values go from {low:.4g} to {high:.4g}, expected 0 to {largest}; "
        f"{_remedy(array)}"
    )


def _remedy(array: NDArray[Any]) -> str:
    """Return what to do about an image whose values are out of their range."""
    if float(array.min()) >= 0 and float(array.max()) <= 255:
        return "divide them by 255, or give them as uint8"
    return "give images before they are normalized"


def _as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale an image's values to 0 to 255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    largest = 65535 if array.dtype == np.uint16 else 255
    if np.issubdtype(array.dtype, np.floating):
        largest = 1
    low, high = float(array.min(initial=0)), float(array.max(initial=0))
    if not (low >= 0 and high <= largest):
        raise _out_of_range(array, largest)
    return np.rint(array.astype(np.float64) * (255 / largest)).astype(np.uint8)
