"""Upload of an export to the Hugging Face Hub."""

from pathlib import Path

from attention_transfer.errors import InputError
from attention_transfer.hub import HUB, check_reachable, hub_errors

__all__ = ["check_login", "upload"]


def check_login(repository: str) -> None:
    """Raise an InputError unless there is a token for the hub, and it can be reached."""
    with hub_errors(f"uploading to {repository}"):
        from huggingface_hub import get_token

        if get_token() is None:
            raise InputError(
                f"uploading to {repository} needs a token of the hub; log in with: hf auth login "
                "(or set HF_TOKEN)"
            )
        check_reachable()


def upload(folder: Path, repository: str, public: bool) -> str:
    """Upload the files of an export in one commit, and return the MODEL that they are then.

    The model card becomes ``README.md``, which the hub displays.

    Args:
        folder: of the export.
        repository: OWNER/NAME, which is made if there is none.
        public: whether a new one is for everyone.

    Raises:
        InputError: the hub refuses.
    """
    with hub_errors(f"uploading to {repository}"):
        from huggingface_hub import CommitOperationAdd, HfApi

        hub = HfApi()
        hub.create_repo(repository, private=not public, exist_ok=True)
        names = {"MODEL_CARD.md": "README.md"}
        files = [
            CommitOperationAdd(names.get(path.name, path.name), path)
            for path in sorted(folder.iterdir())
        ]
        done = hub.create_commit(repository, files, commit_message="Upload of an exported network")
    return f"{HUB}{repository}@{done.oid}"
