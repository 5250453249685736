"""Settings of the images, their augmentation, and the numerics of training."""

from pydantic import Field

from attention_transfer.config.checked import Config
from attention_transfer.config.fields import (
    ColumnNames,
    ImageSize,
    NonNegative,
    Precision,
    Seed,
    ValueRange,
    Workers,
)

__all__ = ["ImagesConfig"]


class ImagesConfig(Config):
    """Settings of the images, their augmentation, and the numerics of training."""

    data: str = Field(
        "cluttered-digits",
        description="data set: cluttered-digits, cifar10[:DIR], cifar100[:DIR], folder:DIR, "
        "imagenet:DIR, csv:FILE, hf:NAME, package.module:factory",
    )
    columns: ColumnNames | None = Field(
        None,
        description="columns of csv: and hf: data, such as image=file,label=class,split=set; "
        "default: usual names",
    )
    label_offset: int | None = Field(
        None,
        description="label of the first class, where labels are numbers: a class's index is its "
        "label less this; default: the labels that occur are the classes, in their order",
    )
    class_order: str | None = Field(
        None,
        description="order of the classes: string (torchvision's), natural (timm's), or a class "
        "map file (.txt: a name in each line; .json); default: string for folders",
    )
    image_size: ImageSize | None = Field(
        None, description="size of the images in pixels, N or HxW; default: the network's own"
    )
    pixel_range: ValueRange | None = Field(
        None,
        description="pixel values that become 0 and 1, of images of more than 8 bits, such as "
        "0:4095 or -1000:3000; default: one range for all, found from the images",
    )
    workers: Workers | None = Field(
        None, description="processes that decode image files; default: by the number of cores"
    )
    randaugment: int | None = Field(
        None,
        ge=0,
        le=30,
        description="RandAugment: magnitude of two random operations on each image; none: off",
    )
    random_erasing: float = Field(
        0.0, ge=0, le=1, description="probability that a random part of an image is erased"
    )
    mixup: NonNegative = Field(
        0.0, description="MixUp: alpha of blending each image with another; 0: off"
    )
    cutmix: NonNegative = Field(
        0.0, description="CutMix: alpha of replacing a part of each image by another's; 0: off"
    )
    download: bool = Field(False, description="download the data set if it is missing")
    validation: float = Field(
        0.1, gt=0, lt=1, description="share of the training images held out for validation"
    )
    data_seed: Seed = Field(0, description="seed of the scenes, the splits and the augmentation")
    precision: Precision = Field(
        "auto",
        description="fp32, bf16, fp16 (GPU only); auto: bf16 where the hardware has it",
    )
    channels_last: bool = Field(
        True, description="channels-last memory format, faster on most machines"
    )
