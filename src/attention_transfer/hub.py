"""Networks on the Hugging Face Hub: ``hub:OWNER/NAME@COMMIT``, as a folder on this machine."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

from attention_transfer.errors import InputError, first_line

__all__ = ["HUB", "check_reachable", "hub_errors", "hub_folder"]

HUB = "hub:"
"""Prefix of a MODEL on the hub."""

FILES = ("model.json", "model.safetensors")
"""What is fetched: a card and weights, of which none runs code."""

SECONDS_TO_CONNECT = 10
_MODEL = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:@(.*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_folder(model: str) -> Path:
    """Return the folder with the card and the weights of a network on the hub.

    They are fetched once. The revision is a commit, so that a name means the same weights forever.

    Raises:
        InputError: the name is malformed, or has no commit; huggingface_hub is not installed; the
            hub cannot be reached; it has no such network of this library.
    """
    match = _MODEL.fullmatch(model)
    if match is None:
        raise InputError(f"{model!r} is no network on the hub; expected hub:OWNER/NAME@COMMIT")
    name, revision = match.groups()
    with hub_errors(f"{HUB}{name}"):
        from huggingface_hub import hf_hub_download

        if revision is None or not _COMMIT.fullmatch(revision):
            raise _not_a_commit(name, revision)
        for file in FILES:
            local = _is_here(name, file, revision)
            path = hf_hub_download(name, file, revision=revision, local_files_only=local)
    return Path(path).parent


def _is_here(name: str, file: str, revision: str) -> bool:
    """Return whether a file is on this machine; if not, check that the hub can be reached."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, file, revision=revision), str):
        return True
    check_reachable()
    return False


def _not_a_commit(name: str, revision: str | None) -> InputError:
    """Return the error for a name without a commit; it names the commit that was meant."""
    from huggingface_hub import HfApi

    check_reachable()
    commit = HfApi().model_info(name, revision=revision).sha
    got = f"@{revision}, which may mean other weights tomorrow" if revision else "no commit"
    return InputError(
        f"got {got}; a network on the hub is named by its commit. Now that is {HUB}{name}@{commit}"
    )


def check_reachable() -> None:
    """Raise an OSError at once if the hub cannot be reached, which its library would try for long.

    Through a proxy it is left to the library.
    """
    from huggingface_hub import constants

    address = urlparse(constants.ENDPOINT)
    if not getproxies():
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((str(address.hostname), port), SECONDS_TO_CONNECT).close()


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn an error of the hub's library inside the block into an InputError.

    Args:
        what: is fetched or sent, for the message.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise InputError(
            f"{what} needs huggingface_hub, which is not installed; run: pip install "
            "'attention-transfer[hub]'"
        ) from None
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.EntryNotFoundError):
        return (
            "it has no model.json or model.safetensors, which 'attention-transfer export --push' "
            "writes; give another network"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such commit; give another"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such network, or it is private (log in with: hf auth login)"
    if isinstance(error, OSError) and not isinstance(error, errors.HfHubHTTPError):
        return f"the hub at {constants.ENDPOINT} cannot be reached ({first_line(error)})"
    return f"the hub answered: {first_line(error)}"
