"""Files among images that are not read: images of other formats, and archives."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attention_transfer.errors import InputError

__all__ = ["describe_content", "naming_unread", "unread_images", "what_to_do"]

NOT_READ = "not read as images"
"""What every message about such files says."""

_HEIC, _CONVERT = (".heic", ".heif"), "convert them to JPEG, PNG or TIFF"
_REMEDIES = {
    **dict.fromkeys(
        _HEIC, "convert them to JPEG or PNG: magick mogrify -format jpg *.heic converts them"
    ),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"), "unpack them"),
    **dict.fromkeys(
        (
            *(".jxl", ".svg", ".psd", ".tga", ".ico", ".exr", ".hdr", ".dcm", ".nii", ".npy"),
            *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".raw"),
        ),
        _CONVERT,
    ),
}
"""What to do with files by their suffix."""

_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def what_to_do(paths: Iterable[str]) -> str | None:
    """Return how many files have the most frequent suffix, and what to do; None: no files."""
    suffixes = Counter(Path(path).suffix.lower() for path in paths)
    if not suffixes:
        return None
    suffix, count = suffixes.most_common(1)[0]
    what = f"{count} {suffix} files" if suffix else f"{count} files without a suffix"
    return f"{what}, which are {NOT_READ}; {_REMEDIES.get(suffix, _CONVERT)}"


def unread_images(paths: Iterable[str]) -> str | None:
    """Return a notice of images of other formats and archives among files; None: there are none.

    >>> unread_images(["cat/1.heic", "cat/notes.txt"])[:36]
    '1 .heic files are not read as images'
    """
    known = [path for path in paths if Path(path).suffix.lower() in _REMEDIES]
    if not known:
        return None
    suffix = Counter(Path(path).suffix.lower() for path in known).most_common(1)[0][0]
    alike = [path for path in known if Path(path).suffix.lower() == suffix]
    return f"{len(alike)} {suffix} files are {NOT_READ} ({alike[0]}); {_REMEDIES[suffix]}"


@contextmanager
def naming_unread(notices: Iterable[str]) -> Iterator[None]:
    """Add the notices about files that are not read to an InputError that names none of them."""
    try:
        yield
    except InputError as error:
        unread = [notice for notice in notices if NOT_READ in notice]
        if not unread or NOT_READ in str(error):
            raise
        raise InputError("; ".join([str(error), *unread])) from None


def describe_content(source: bytes | Path) -> str:
    """Describe a file that PIL does not know, by its first bytes.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(12)
    else:
        start = source[:12]
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS:
        return "it is a HEIC file, a format that is not read; convert it to JPEG or PNG"
    return "it is not an image"
