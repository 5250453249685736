"""Where the objects are on images in files: masks in a folder of their own."""

from dataclasses import replace
from pathlib import Path

from attention_transfer.data.files import FileImages
from attention_transfer.data.images import DataSet
from attention_transfer.errors import InputError

__all__ = ["with_masks"]


def with_masks(data: DataSet, folder: Path, masks: Path) -> DataSet:
    """The images of a folder with their masks.

    Args:
        data: the images.
        folder: they are under.
        masks: the folder of masks, each a PNG under its image's own path
            (``cat/1.jpg``: ``cat/1.png``), white where the object is.

    Raises:
        InputError: the images are not in a folder, or none has a mask.
    """
    splits = {}
    counts = {}
    for name in ("train", "validation", "test"):
        images = getattr(data, name)
        if not isinstance(images, FileImages):
            raise InputError(
                f"masks are read for folders of images, {data.name} is none; leave out masks"
            )
        own = replace(images, mask_root=masks / images.root.relative_to(folder))
        counts[name] = sum(own.mask_path(index) is not None for index in range(len(own)))
        splits[name] = own
    total = sum(map(len, splits.values()))
    found = sum(counts.values())
    if found == 0:
        example = next(iter(splits.values())).paths[0]
        raise InputError(
            f"{masks} holds no mask of an image of {data.name}; expected one such as "
            f"{(masks / example).with_suffix('.png')}"
        )
    notices = data.notices
    if found < total:
        notices += (f"{total - found} of {total} images have no mask in {masks}",)
    return replace(
        data,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        notices=notices,
    )
