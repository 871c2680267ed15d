"""Repositories of the Hugging Face Hub: their files at an exact revision, with sizes and hashes.

Files are downloaded by `http.py`, because huggingface_hub restarts interrupted files from the beginning. HF_ENDPOINT,
HF_TOKEN and HF_HOME have their usual meaning.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)  # fmt: skip
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from tinyvlm_cli.downloads.http import Advance, FetchError, RemoteFile, fetch
from tinyvlm_cli.untrusted import name_fault

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # USER/NAME
# Files of a model that transformers reads. Weights in other formats and code are not downloaded.
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
WEIGHTS = (("model.safetensors", "model-*.safetensors"), ("pytorch_model.bin", "pytorch_model-*.bin"))


@dataclass(frozen=True)
class Repository:
    """Selected files of a repository at one revision."""

    name: str
    kind: str  # dataset or model
    revision: str  # commit hash
    files: tuple[RemoteFile, ...]


def dataset(name: str, patterns: list[str], revision: str | None) -> Repository:
    """Return the files of a dataset repository that match glob patterns. Raises FetchError for unmatched patterns."""
    found = _repository(name, "dataset", revision)
    chosen = [file for file in found.files if any(fnmatchcase(file.name, pattern) for pattern in patterns)]
    for pattern in patterns:
        if not any(fnmatchcase(file.name, pattern) for file in chosen):
            place = f"{constants.ENDPOINT}/datasets/{name}"
            raise FetchError(
                f"{place}: no file matches '{pattern}' at revision {found.revision[:8]}; correct the YAML file",
                needs_person=True,
            )
    return Repository(name, "dataset", found.revision, tuple(chosen))


def model(name: str) -> Repository:
    """Return the files of a model repository that transformers reads, with weights in one format."""
    found = _repository(name, "model", None)
    here = [file for file in found.files if "/" not in file.name]
    weights = [[file for file in here if _matches(file, patterns)] for patterns in WEIGHTS]
    files = [file for file in here if _matches(file, MODEL_FILES)] + next(filter(None, weights), [])
    return Repository(name, "model", found.revision, tuple(files))


def _matches(file: RemoteFile, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(file.name, pattern) for pattern in patterns)


def _repository(name: str, kind: str, revision: str | None) -> Repository:
    place = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    with hub_errors(place):
        ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
        info = ask(name, revision=revision, files_metadata=True)
    files = []
    for sibling in info.siblings or []:
        if fault := next(filter(None, map(name_fault, sibling.rfilename.split("/"))), None):
            raise FetchError(
                f"{place}: the file name {sibling.rfilename!a:.80} is unsafe, because {fault}; use another repository"
            )
        url = hf_hub_url(name, sibling.rfilename, repo_type=kind, revision=info.sha)
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        git_sha1 = None if sha256 else sibling.blob_id
        if not (sha256 or git_sha1):
            raise FetchError(f"{place}: the server did not send a hash of {sibling.rfilename}; check HF_ENDPOINT")
        files.append(RemoteFile(sibling.rfilename, url, sibling.size, sha256, git_sha1, headers=build_hf_headers()))
    if not info.sha:
        raise FetchError(f"{place}: the server did not send a revision; check HF_ENDPOINT")
    return Repository(name, kind, info.sha, tuple(files))


@contextmanager
def hub_errors(place: str) -> Iterator[None]:
    """Convert errors of huggingface_hub to a FetchError with one sentence."""
    try:
        yield
    except GatedRepoError:
        text = f"{place}: accept its terms on this page, and set HF_TOKEN"
        raise FetchError(text, needs_person=True) from None
    except RepositoryNotFoundError:
        text = f"{place}: does not exist, or is private; check the name, or set HF_TOKEN"
        raise FetchError(text, needs_person=True) from None
    except RevisionNotFoundError:
        raise FetchError(
            f"{place}: this revision does not exist; correct it in the YAML file", needs_person=True
        ) from None
    except OfflineModeIsEnabled:
        raise FetchError(f"{place}: HF_HUB_OFFLINE is set; unset it, and run the same command again") from None
    except HFValidationError as error:
        raise FetchError(f"{place}: not a valid repository name ({_first_line(error)}); correct it") from None
    except (EntryNotFoundError, FileMetadataError) as error:
        raise FetchError(f"{place}: {_first_line(error)}; check HF_ENDPOINT") from None
    except HfHubHTTPError as error:
        reason = f"the server returned {error.response.status_code} {error.response.reason_phrase}".rstrip()
        wait = error.response.headers.get("Retry-After")
        later = f"in {wait} seconds" if wait else "later"
        raise FetchError(f"{place}: {reason}; run the same command again {later}") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise FetchError(f"{place}: {_first_line(error)}; check the network and HF_ENDPOINT") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def storage_of(name: str) -> Path:
    """Return the folder of a model in the hub's cache, from which transformers loads it."""
    return Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=name, repo_type="model")


def blob_of(name: str, file: RemoteFile) -> Path:
    """Return the path of a file's content in the cache, which is named by its hash."""
    return storage_of(name) / "blobs" / (file.sha256 or file.git_sha1 or "unknown")


def is_cached(name: str, file_name: str, revision: str) -> bool:
    """Return whether a file of a model is in the hub's cache."""
    return isinstance(try_to_load_from_cache(name, file_name, revision=revision), str)


def fetch_to_cache(client: httpx2.Client, name: str, file: RemoteFile, advance: Advance) -> str:
    """Download a file of a model to the hub's cache, and return its SHA-256."""
    blob = blob_of(name, file)
    digest = fetch(client, file, blob, advance)
    with hub_errors(file.url):
        hf_hub_download(name, file.name)  # finds the content in the cache and links the snapshot to it
    return digest
