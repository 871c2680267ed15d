"""Upload of an exported folder to the Hugging Face Hub."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

from tinyvlm_cli.downloads.http import FetchError
from tinyvlm_cli.downloads.hub import HUB_NAME, hub_errors
from tinyvlm_cli.errors import UserError, WorkerError


def check_repository(name: str) -> None:
    """Raise UserError if the name is invalid, or if the token is missing or invalid."""
    if not HUB_NAME.fullmatch(name):
        raise UserError(f"hub={name}: not a valid repository name; write hub=USER/NAME")
    if get_token() is None:
        raise UserError(f"hub={name}: no token found; set HF_TOKEN to a token with write access")
    with _errors(name):
        HfApi().whoami()


def upload(folder: Path, name: str, *, private: bool, message: str) -> str:
    """Create the repository if it does not exist, upload all files of `folder` in one commit, and return its address.

    private: visibility of a new repository; that of an existing one does not change.
    """
    if not sys.stderr.isatty():
        disable_progress_bars()
    with _errors(name):
        HfApi().create_repo(name, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    return f"{constants.ENDPOINT}/{name}"


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Convert errors of the hub to one sentence: a UserError if the token is rejected, otherwise a WorkerError."""
    try:
        with hub_errors(f"{constants.ENDPOINT}/{name}"):
            try:
                yield
            except HfHubHTTPError as error:
                status = error.response.status_code
                if status not in (401, 403):
                    raise
                text = f"hub={name}: the server returned {status}; set HF_TOKEN to a token with write access"
                raise UserError(text) from None
    except FetchError as error:
        if error.needs_person:
            raise
        raise WorkerError(str(error)) from None
