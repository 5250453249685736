"""How to build a network and feed it, as a run writes it down."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from attention_transfer.config import Count, Interpolation, Positive
from attention_transfer.errors import InputError, first_problems
from attention_transfer.files import write_json
from attention_transfer.preprocessing import Preprocessing

__all__ = ["ModelCard"]


@dataclass(frozen=True)
class ModelCard:
    """How to build a network and feed it: the contents of a run's ``model.json``."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    name: str
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    input_size: tuple[Count, Count, Count]
    mean: Annotated[tuple[float, ...], Field(min_length=3, max_length=3)]
    std: Annotated[tuple[Positive, ...], Field(min_length=3, max_length=3)]
    data: str
    """What it was trained on."""
    interpolation: Interpolation = "bilinear"
    schema_version: Literal[1] = 1

    @property
    def classes(self) -> int:
        """How many classes the network tells apart."""
        return len(self.class_names)

    @property
    def preprocessing(self) -> Preprocessing:
        """What happens to images before the network's first layer."""
        return Preprocessing(self.mean, self.std, self.input_size[1:], self.interpolation)

    @classmethod
    def read(cls, path: Path) -> "ModelCard":
        """The card in a ``model.json``.

        Raises:
            InputError: it cannot be read, or is not such a card.
        """
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except OSError as error:
            raise InputError(f"cannot read the model card {path}: {error.strerror}") from None
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, fault['loc']))} {fault['msg'].removeprefix('Input ')}".strip()
                for fault in error.errors()
            ]
            raise InputError(f"{path} is not a model card: {first_problems(problems)}") from None

    def write(self, path: Path) -> None:
        """The card as JSON."""
        write_json(path, asdict(self))
