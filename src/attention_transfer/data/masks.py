"""Masks of the objects in images in files: PNG files in a folder of their own."""

from dataclasses import replace
from pathlib import Path

from attention_transfer.data.files import FileImages
from attention_transfer.data.images import DataSet
from attention_transfer.errors import InputError

__all__ = ["with_masks"]


def with_masks(data: DataSet, folder: Path, masks: Path) -> DataSet:
    """Return a folder's images with their masks.

    Args:
        data: the images.
        folder: the folder of the images.
        masks: the folder of masks, each a PNG under its image's own relative path
            (``cat/1.jpg``: ``cat/1.png``), white where the object is.

    Raises:
        InputError: the images are not in a folder, or none has a mask.
    """
    splits: dict[str, FileImages] = {}
    count = 0
    for name in ("train", "validation", "test"):
        images = getattr(data, name)
        if not isinstance(images, FileImages):
            raise InputError(
                f"masks are read for folders of images, and {data.name} is not one; leave out masks"
            )
        mask_root = masks / images.root.relative_to(folder)
        splits[name] = part = replace(images, mask_root=mask_root)
        count += sum(part.mask_path(index) is not None for index in range(len(part)))
    total = sum(map(len, splits.values()))
    if count == 0:
        example = (masks / splits["train"].paths[0]).with_suffix(".png")
        raise InputError(
            f"{masks} holds no mask of an image of {data.name}; expected one such as {example}"
        )
    notices = data.notices
    if count < total:
        notices += (f"{total - count} of {total} images have no mask in {masks}",)
    return replace(
        data,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        notices=notices,
    )
