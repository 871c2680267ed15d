"""The files of a benchmark: where they are, and how their records are read."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tinyvlm_cli.config.build import trusted_folders
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.sources import Record, read_json, read_rows
from tinyvlm_cli.untrusted import MAX_NAME_BYTES, link_fault


@dataclass(frozen=True, kw_only=True)
class BenchmarkFiles:
    """The files of a benchmark in its folder, in the official layout or in parquet files from the Hugging Face Hub."""

    name: str
    label: str  # column title
    data_dir: str
    parquet: str  # glob pattern of the parquet files in data_dir
    source: str  # the files to download, for error messages
    downloads: Mapping[str, Any] = field(default_factory=dict)  # see config/download.py
    questions_file: str = ""  # official file; "": there is none
    images: str = ""  # image folder

    judge_files: ClassVar[tuple[str, ...]] = ()  # official files with the judge's prompt; any one is enough
    judge_source: ClassVar[str] = ""  # where to get one of these files

    def files(self) -> list[Path]:
        """Return the paths of the official files, except images. The files need not exist."""
        return [self.folder / self.questions_file] if self.questions_file else []

    @property
    def folder(self) -> Path:
        return Path(self.data_dir)

    @property
    def image_dir(self) -> Path:
        """Folder of the images, to which the paths in LLaVA's question file are relative."""
        return self.folder / self.images

    @property
    def judge_file(self) -> Path | None:
        """Official file with the judge's prompt, or None if it is missing."""
        return next((self.folder / name for name in self.judge_files if (self.folder / name).exists()), None)

    def wanted(self) -> list[str]:
        """Return a sentence about each missing file without which grades are not comparable with published ones."""
        if self.judge_file or not self.judge_files:
            return []
        return [f"{self.folder / self.judge_files[0]} is missing; copy {self.judge_source}"]

    def parquet_files(self) -> list[Path]:
        """Return the parquet files of the Hugging Face dataset; an empty list if an official file is present."""
        if any(path.exists() for path in self.files()):
            return []
        return sorted(self.folder.glob(self.parquet))

    def rows(self, *columns: str, optional: Iterable[str] = ()) -> Iterator[Record]:
        """Yield the rows of the parquet files. See `read_rows`."""
        return read_rows(self.parquet_files(), *columns, optional=optional)

    def records(self, *columns: str, optional: Iterable[str] = (), inside: str = "") -> Iterable[Record]:
        """Return the rows of the parquet files, or the records in the official JSON file, under its key `inside`."""
        if self.parquet_files():
            return self.rows(*columns, optional=optional)
        content: Any = read_json(self.need(self.files()[0]))
        found: Iterable[Record] = content[inside] if inside else content
        return found

    def need(self, path: Path) -> Path:
        """Return `path`. Raises UserError if it is not a file."""
        if not path.is_file():
            raise UserError(f"{path} is missing; get {self.source}")
        return path

    def check_place(self, image: Path) -> None:
        """Raise UserError if an image, or a link to it, is outside the benchmark's folders."""
        roots = [root for root in (self.folder, self.image_dir) if image.is_relative_to(root)]
        if not roots or ".." in image.relative_to(roots[0]).parts:
            raise UserError(f"{self.folder}: the image {image} is outside this folder; get {self.source}")
        is_long = any(len(part.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES for part in image.parts)
        allowed = [str(self.folder), str(self.image_dir), *trusted_folders()]
        if fault := "its name is too long" if is_long else link_fault(roots[0], image, allowed):
            raise UserError(f"{image}: {fault}")
