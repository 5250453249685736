"""Settings of the commands other than runs."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from attention_transfer.config.checked import Config
from attention_transfer.config.fields import (
    Beta,
    ColumnNames,
    Count,
    ImageSize,
    Names,
    NetworkPair,
    Positive,
    Precision,
    Seed,
    Several,
    ValueRange,
    Workers,
    as_several,
    as_words,
)
from attention_transfer.config.images import ImagesConfig

__all__ = [
    "DemoConfig",
    "CacheConfig",
    "EvaluateConfig",
    "PredictConfig",
    "ExportConfig",
    "PointsConfig",
    "MapsConfig",
    "BenchmarkConfig",
]


class CacheConfig(ImagesConfig):
    """Settings of the command ``cache``, for teacher targets on the disk."""

    cache: Path = Field(description="cache folder")
    teacher: Names = Field(
        description="a run folder, NAME or NAME@FILE[#KEY]; several, separated by commas"
    )
    views: Count = Field(
        15,
        description="augmented views of each training image; best as many as epochs",
    )
    points: Names = Field(
        "auto", description="teacher layers whose maps are kept, separated by commas"
    )
    map: Literal["sum", "max"] = Field("sum", description="sum or max over channels of |A|^p")
    power: Positive = Field(2.0, description="the power p > 0")
    gradient: bool = Field(
        False, description="also keep the gradient at the image, for gradient attention"
    )
    processes: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="processes that build at the same time"
    )


class EvaluateConfig(Config):
    """Settings of the evaluation of a network on a data set."""

    model: str = Field(description="a run folder, or NAME@FILE[#KEY]")
    data: str | None = Field(None, description="data set; default: the run's")
    columns: ColumnNames | None = Field(
        None,
        description="columns of csv: and hf: data, such as image=file,label=class; default: the "
        "run's, for its data set",
    )
    label_offset: int | None = Field(
        None, description="label of the first class; default: the run's, for its data set"
    )
    class_order: str | None = Field(
        None,
        description="order of the classes: string, natural, or a class map file; default: the "
        "run's, for its data set",
    )
    image_size: ImageSize | None = Field(
        None, description="size of the images in pixels, N or HxW; default: the network's own"
    )
    pixel_range: ValueRange | None = Field(
        None,
        description="pixel values that become 0 and 1, of images of more than 8 bits; default: "
        "those that the run was trained with, or found from the images",
    )
    workers: Workers | None = Field(
        None, description="processes that decode image files; default: by the number of cores"
    )
    download: bool = Field(False, description="download the data set if it is missing")
    split: Literal["validation", "test"] = Field("test", description="split to evaluate on")
    validation: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the training images held out; default: the run's, or 0.1",
    )
    batch_size: Count = Field(256, description="images in a batch")
    data_seed: Seed | None = Field(
        None, description="seed of the scenes and the splits; default: the run's, or 0"
    )
    precision: Precision | None = Field(
        None, description="fp32, bf16, fp16 (GPU only) or auto; default: the run's, else fp32"
    )


class PredictConfig(Config):
    """Settings of predictions on images."""

    model: str = Field(
        description="a run folder, NAME@FILE[#KEY], or a name such as timm:resnet34, with its "
        "pretrained weights"
    )
    images: Several = Field(description="files, folders, or patterns with *, ? and **")
    top: Count = Field(1, description="classes to print for each image, most probable first")
    image_size: ImageSize | None = Field(
        None, description="size of the images in pixels, N or HxW; default: the network's own"
    )
    pixel_range: ValueRange | None = Field(
        None,
        description="pixel values that become 0 and 1, of images of more than 8 bits; default: "
        "those that the run was trained with, or one range found from all the images",
    )
    batch_size: Count = Field(64, description="images in a batch")
    maps: bool = Field(
        False, description="also draw attention maps of the network on the images, as maps does"
    )
    out: Path | None = Field(
        None, description="folder for the pictures of --maps; default: a new one in runs/"
    )

    @model_validator(mode="after")
    def _out_needs_maps(self) -> Self:
        """Refuse a folder for pictures that are not drawn."""
        if self.out is not None and not self.maps:
            raise PydanticCustomError(
                "out", "out is the folder for the pictures of maps; give --maps as well"
            )
        return self


class ExportConfig(Config):
    """Settings of the export of a run's network."""

    run: Path = Field(description="the folder of a finished run, or ema in it: averaged weights")
    formats: Annotated[
        tuple[Literal["safetensors", "onnx", "pt2", "int8"], ...],
        BeforeValidator(as_words),
        Field(min_length=1),
    ] = Field(
        ("safetensors", "onnx", "pt2", "int8"),
        description="files to write: safetensors (always), onnx, pt2 (torch.export) and int8 "
        "(quantized onnx)",
    )
    out: Path | None = Field(
        None, description="folder to write to; default: the folder export in the run's"
    )
    normalize_in_graph: bool = Field(
        False,
        description="graphs take pixels (N, H, W, 3), uint8, and normalize them; without it they "
        "take normalized images (N, C, H, W)",
    )
    data: str | None = Field(
        None, description="data set to compare and quantize with; default: the run's"
    )
    calibration_images: Count = Field(
        256, description="training images from which int8 takes the ranges of activations"
    )
    workers: Workers | None = Field(
        None, description="processes that decode image files; default: by the number of cores"
    )
    push: Annotated[str, "OWNER/NAME", Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = Field(
        None,
        description="also upload the folder to this repository of the Hugging Face Hub; a new one "
        "is private",
    )
    public: bool = Field(False, description="a new repository of --push is public")

    @model_validator(mode="after")
    def _public_needs_push(self) -> Self:
        """Refuse a visibility of a repository that is not made."""
        if self.public and self.push is None:
            raise PydanticCustomError("public", "public is about a repository; give --push as well")
        return self


class PointsConfig(Config):
    """Settings of the table of attention points."""

    model: str = Field(description="a network, such as timm:resnet34, or a run folder")
    pair: Names | None = Field(
        None, description="a teacher to pair the network with, or several, separated by commas"
    )
    image_size: ImageSize | None = Field(
        None,
        description="size of the networks' images in pixels, N or HxW; default: that of a run "
        "among them, else each one's own",
    )
    all: bool = Field(
        False,
        description="list every point, and modules that cannot be read; default: the "
        "recommended points",
    )


class MapsConfig(Config):
    """Settings of pictures of attention maps."""

    models: Several = Field(
        description="networks: run folders, NAME@FILE[#KEY], or names such as timm:resnet34, "
        "with their pretrained weights"
    )
    images: Several = Field(description="files, folders, or patterns with *, ? and **")
    out: Path | None = Field(
        None, description="folder for the pictures; default: a new one in runs/"
    )
    image_size: ImageSize | None = Field(
        None, description="size of the images in pixels, N or HxW; default: each network's own"
    )
    pixel_range: ValueRange | None = Field(
        None,
        description="pixel values that become 0 and 1, of images of more than 8 bits; default: "
        "those that a run was trained with, or one range found from all the images",
    )
    points: Names = Field(
        "low,middle,top",
        description="attention points, separated by commas: low, middle, top, all, or names with "
        "* and ?",
    )
    attention: Literal["activation", "gradient"] = Field(
        "activation",
        description="maps of activations at the points, or of the loss's gradient at the image",
    )
    map: Literal["sum", "max"] = Field("sum", description="sum or max over channels of |A|^p")
    power: Positive = Field(2.0, description="the power p > 0")
    scale: Literal["shared", "each"] = Field(
        "shared", description="one colour scale for all maps, or one for each"
    )
    crop: bool = Field(
        False,
        description="show the centre crop that networks are evaluated on; default: the whole image",
    )
    per_image: bool = Field(False, description="write one file for each image, such as for slides")
    format: Literal["png", "svg", "pdf"] = Field("png", description="file format of the pictures")


class BenchmarkConfig(Config):
    """Settings of the benchmark."""

    what: Literal["step", "run", "gradient", "data", "import", "fused"] = Field(
        description="step, run (whole runs), gradient (steps with gradient attention), data "
        "(waiting for data), import (start-up), or fused (map and loss)"
    )
    pairs: Annotated[tuple[NetworkPair, ...], BeforeValidator(as_several), Field(min_length=1)] = (
        Field(
            ("wrn-16-1:wrn-16-2", "wrn-16-2:wrn-40-2"),
            description="pairs student:teacher that step and run measure",
        )
    )
    networks: Several = Field(
        ("wrn-16-1", "wrn-16-1-nobn", "wrn-40-2", "wrn-40-2-nobn"),
        description="networks that gradient measures",
    )
    batch_size: Annotated[int, Field(ge=2)] = Field(128, description="images in a step")
    repetitions: Count = Field(20, description="rounds of all kinds of step in turn")
    runs: Count = Field(3, description="rounds of all kinds of run in turn")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="fp32, bf16, or auto: bf16 where the hardware has it"
    )
    compile: bool = Field(False, description="also measure compiled networks")
    data: str = Field("cluttered-digits", description="data set that run trains on")
    epochs: Count = Field(2, description="epochs of a whole run; the first of several is a warm-up")
    memory: bool = Field(True, description="also measure peak memory, each in a process of its own")
    out: Annotated[Path, "FILE"] | None = Field(None, description="file for the JSON document")


class DemoConfig(Config):
    """Settings of the demo."""

    out: Path | None = Field(
        None, description="folder of the demo's runs; default: a new one in runs/"
    )
    train_teacher: bool = Field(
        False, description="train the teacher again instead of using the packaged one"
    )
    epochs: Count = Field(15, description="passes over the training images, for each student")
    beta: Beta = Field(1000.0, description="weight of attention transfer, or auto")
    seed: Seed = Field(0, description="seed of the initialization and of the order of the images")
    precision: Precision = Field("auto", description="fp32, bf16, fp16 (GPU only) or auto")
    cache: Path | None = Field(
        None,
        description="cache folder of teacher targets, built if missing; none: run the teacher live",
    )
