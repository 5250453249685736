"""The model card of a run: how to build its network, and how to preprocess images for it."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from attention_transfer.config import Interpolation, Positive
from attention_transfer.errors import InputError, first_problems
from attention_transfer.files import read_bytes, write_json
from attention_transfer.preprocessing import PixelRange, Preprocessing

__all__ = ["ModelCard", "check_weights", "class_probabilities"]

LARGEST_CARD = 8_000_000
"""Bytes of the largest model card: the names of some 100,000 classes."""

_Side = Annotated[int, Field(ge=1, le=9999)]


@dataclass(frozen=True)
class ModelCard:
    """The contents of a run's ``model.json``."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    name: str
    """NAME, as :func:`~attention_transfer.models.build` takes it."""
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    input_size: tuple[_Side, _Side, _Side]
    """Channels, height and width."""
    mean: Annotated[tuple[float, ...], Field(min_length=1)]
    """One for each channel."""
    std: Annotated[tuple[Positive, ...], Field(min_length=1)]
    data: str
    """The name of the data set that it was trained on."""
    interpolation: Interpolation = "bilinear"
    """The filter by which Pillow resizes the crop, wide enough to prevent aliasing."""
    orientation: Literal["exif"] = "exif"
    """Images are turned as their EXIF data say, before anything else."""
    transparency: Literal["white"] = "white"
    """The colour that transparent parts are laid on."""
    crop: Literal["centre"] = "centre"
    """The part of an image that is resized: its middle, of the network's aspect ratio."""
    crop_share: Annotated[float, Field(gt=0, le=1)] = 0.875
    """The sides of that part over those of the largest one; 1 for data in memory, whose images
    networks get whole.
    """
    probabilities: Literal["softmax", "sigmoid"] = "softmax"
    """Of the logits: softmax where an image is of one class, sigmoid where of several."""
    pixel_range: tuple[float, float] | None = None
    """The pixel values that became 0 and 1 in training; None: 0 and 255, of 8 bits."""
    weights_sha256: str | None = None
    """The SHA-256 of ``model.safetensors``; None in cards of earlier versions."""
    schema_version: Literal[1] = 1

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that the network's weights expect."""
        channels, *size = self.input_size
        return Preprocessing(
            self.mean,
            self.std,
            (size[0], size[1]),
            self.interpolation,
            None if channels == 3 else channels,
            self.pixel_range and PixelRange(*self.pixel_range),
        )

    @classmethod
    def read(cls, path: Path) -> "ModelCard":
        """Read the card in a ``model.json``.

        Raises:
            InputError: it cannot be read, or is not a model card.
        """
        try:
            card = TypeAdapter(cls).validate_json(read_bytes(path, LARGEST_CARD))
        except OSError as error:
            raise InputError(f"cannot read the model card {path}: {error.strerror}") from None
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, fault['loc']))} {fault['msg'].removeprefix('Input ')}".strip()
                for fault in error.errors()
            ]
            raise InputError(f"{path} is not a model card: {first_problems(problems)}") from None
        channels = card.input_size[0]
        if not len(card.mean) == len(card.std) == channels:
            raise InputError(
                f"{path} is not a model card: mean and std have {len(card.mean)} and "
                f"{len(card.std)} numbers, expected one for each of {channels} channels"
            )
        if card.pixel_range is not None and card.pixel_range[0] >= card.pixel_range[1]:
            raise InputError(
                f"{path} is not a model card: pixel_range is {list(card.pixel_range)}, expected "
                "the second number to be larger"
            )
        if any("\0" in text for text in (card.name, card.data, *card.class_names)):
            raise InputError(f"{path} is not a model card: it has a name with a null byte")
        return card

    def write(self, path: Path) -> None:
        """Write the card as JSON."""
        values = asdict(self)
        if self.pixel_range is None:  # earlier versions do not know it
            del values["pixel_range"]
        write_json(path, values)


def class_probabilities(logits: Tensor, kind: Literal["softmax", "sigmoid"]) -> Tensor:
    """Return the probabilities (N, K) of logits (N, K), as ``ModelCard.probabilities`` says."""
    return logits.sigmoid() if kind == "sigmoid" else logits.softmax(dim=1)


def check_weights(path: Path) -> None:
    """Raise an InputError if a run's weights are not those of the card beside them.

    Args:
        path: a file of weights; others than a run's ``model.safetensors`` are not checked.

    Raises:
        OSError: the file cannot be read.
    """
    card = path.with_name("model.json")
    if path.name != "model.safetensors" or not card.is_file():
        return
    expected = ModelCard.read(card).weights_sha256
    if expected is None:
        return
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
            raise InputError(
                f"{path} is damaged, or was replaced: its checksum is not that in {card.name}; "
                "restore it from a copy, or train the run again (to use other weights on purpose, "
                "give NAME@FILE.safetensors, from another folder)"
            )
