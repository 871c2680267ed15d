"""Settings of downloads, in the YAML files of data sets and benchmarks."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class Download:
    """The source of a file or folder: exactly one of `hub`, `url` and `by_hand` is set."""

    name: str = MISSING  # shown in messages
    hub: str | None = None  # dataset repository on the Hugging Face Hub
    revision: str | None = None  # branch, tag or commit of the repository; null: main
    file: str | None = None  # a single file of the repository
    files: list[str] = field(default_factory=list)  # glob patterns of files, which keep their paths
    url: str | None = None  # http(s) address of the file
    sha256: str | None = None  # of the downloaded file; null: not compared, except with the hub's own hash
    unpack: str | None = None  # name of the folder or file to extract from the zip archive; ".": everything
    by_hand: str | None = None  # reason why the files must be downloaded manually
    page: str | None = None  # project page

    @property
    def place(self) -> str:
        """Public address for messages and tables."""
        return self.page or self.url or f"huggingface.co/datasets/{self.hub}"

    def describe(self) -> str:
        """Return the name and the address for messages."""
        return f"{self.name} ({self.place})"
