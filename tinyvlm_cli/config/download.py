"""The setting that states where a file or folder comes from, in the YAML files of data sets and benchmarks."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class Download:
    """Where a file or folder comes from: `hub`, `url`, or an explanation in `by_hand`.

    `tinyvlm data get` fetches the file or folder, or lists it if only a person can get it.
    """

    name: str = MISSING  # shown in messages
    hub: str | None = None  # dataset repository on the Hugging Face Hub
    revision: str | None = None  # of the repository; null: the newest one. The exact revision is recorded
    file: str | None = None  # the file of the repository
    files: list[str] = field(default_factory=list)  # glob patterns of several files, which keep their paths
    url: str | None = None  # http(s) address of the file
    sha256: str | None = None  # of the downloaded file; null: only its size is compared, unless the hub states a hash
    unpack: str | None = None  # folder or file in the zip archive to extract, at any depth; ".": everything
    by_hand: str | None = None  # why only a person can get the files
    page: str | None = None  # public page about the files

    @property
    def place(self) -> str:
        """Public address to show to a person."""
        return self.page or self.url or f"huggingface.co/datasets/{self.hub}"

    def describe(self) -> str:
        """Return the name and the address for a message."""
        return f"{self.name} ({self.place})"
