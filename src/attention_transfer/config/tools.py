"""Settings of what is done beside runs."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from attention_transfer.config.checked import Config
from attention_transfer.config.fields import (
    Count,
    ImageSize,
    NetworkPair,
    Positive,
    Precision,
    Seed,
    Several,
    Workers,
    as_several,
)
from attention_transfer.config.runs import ImagesConfig

__all__ = ["CacheConfig", "EvaluateConfig", "PointsConfig", "MapsConfig", "BenchmarkConfig"]


class CacheConfig(ImagesConfig):
    """A teacher's targets, computed once."""

    cache: Path = Field(description="the cache's folder")
    teacher: str = Field(
        description="a run's folder, NAME or NAME@FILE.safetensors; several, by commas"
    )
    views: Count = Field(
        15, description="of each training image; as many as epochs make a run the live one's equal"
    )
    points: str = Field("auto", description="teacher's layers whose maps are kept, by commas")
    map: Literal["sum", "max"] = Field("sum", description="over channels: F_sum or F_max")
    power: Positive = Field(2.0, description="p > 0 in |A|^p")
    gradient: bool = Field(
        False, description="keep the gradient at the image too, for gradient attention"
    )
    processes: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="that build at the same time"
    )


class EvaluateConfig(Config):
    """A trained network, judged on a data set."""

    model: str = Field(description="a run's folder, or NAME@FILE.safetensors")
    data: str | None = Field(None, description="images; default: those of the run")
    image_size: ImageSize | None = Field(
        None, description="N or HxW, to bring images in files to; default: the network's own"
    )
    workers: Workers | None = Field(
        None, description="processes that decode images in files; default: by the cores"
    )
    download: bool = Field(False, description="download the data if they are missing")
    split: Literal["validation", "test"] = Field("test", description="which of the images")
    validation: float | None = Field(
        None, gt=0, lt=1, description="share held out in training; default: the run's, or 0.1"
    )
    batch_size: Count = Field(256, description="images at a time")
    data_seed: Seed | None = Field(
        None, description="of the scenes and the validation split; default: the run's, or 0"
    )
    precision: Precision = Field("fp32", description="fp32, bf16, fp16 (GPU only) or auto")


class PointsConfig(Config):
    """Where attention can be read."""

    model: str = Field(description="a network's name, such as timm:resnet34, or a run's folder")
    pair: str | None = Field(
        None, description="a teacher that the network would be paired with, or several, by commas"
    )
    image_size: ImageSize | None = Field(
        None, description="N or HxW, of the network's images; default: its own"
    )


class MapsConfig(Config):
    """Pictures of where networks look."""

    models: Several = Field(
        description="networks: runs' folders, NAME@FILE.safetensors, or a zoo's names, such as "
        "timm:resnet34, with their pretrained weights"
    )
    images: Several = Field(description="files, folders, or patterns with *, ? and **")
    out: Path | None = Field(
        None, description="folder for the pictures; default: a new one in runs/"
    )
    image_size: ImageSize | None = Field(
        None, description="N or HxW, to bring images to; default: each network's own"
    )
    points: str = Field(
        "low,middle,top",
        description="where to look, by commas: low, middle, top, all, or names with * and ?",
    )
    attention: Literal["activation", "gradient"] = Field(
        "activation",
        description="of activations at the points, or of the loss's gradient at the image",
    )
    map: Literal["sum", "max"] = Field("sum", description="over channels: F_sum or F_max")
    power: Positive = Field(2.0, description="p > 0 in |A|^p")
    scale: Literal["shared", "each"] = Field(
        "shared", description="one scale for all maps, or each map from none to its own most"
    )
    crop: bool = Field(
        False, description="the middle of an image, as when networks are judged; else all of it"
    )
    per_image: bool = Field(False, description="a file for each image, such as for slides")
    format: Literal["png", "svg", "pdf"] = Field("png", description="of the pictures")


class BenchmarkConfig(Config):
    """What is measured, and how often."""

    what: Literal["step", "run", "gradient", "data", "import", "fused"] = Field(
        description="step, run (whole epochs), gradient, data (waiting for it), import, or "
        "fused (maps and loss)"
    )
    pairs: Annotated[tuple[NetworkPair, ...], BeforeValidator(as_several), Field(min_length=1)] = (
        Field(
            ("wrn-16-1:wrn-16-2", "wrn-16-2:wrn-40-2"),
            description="student:teacher, of step and run",
        )
    )
    networks: Several = Field(
        ("wrn-16-1", "wrn-16-1-nobn", "wrn-40-2", "wrn-40-2-nobn"),
        description="networks of gradient",
    )
    batch_size: Annotated[int, Field(ge=2)] = Field(128, description="images a step")
    repetitions: Count = Field(20, description="interleaved rounds of steps")
    runs: Count = Field(3, description="interleaved rounds of whole runs")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="fp32, bf16, or auto: bf16 where the machine is fast at it"
    )
    compile: bool = Field(False, description="compile the networks, and measure what that gives")
    data: str = Field("cluttered-digits", description="images of run")
    epochs: Count = Field(
        2, description="passes over the images in a run; of several the first warms up"
    )
    memory: bool = Field(True, description="also measure peak memory, each in an own process")
    out: Annotated[Path, "FILE"] | None = Field(None, description="also write the JSON document")
