"""Settings of training sets: files, mixtures of them, and where they come from."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from tinyvlm_cli.config.download import Download
from tinyvlm_cli.config.ranges import integer, number


class Exif(Enum):
    """Use of the rotation that a photo's Exif metadata states."""

    ignore = "ignore"  # images are used as stored, as in LLaVA and TinyLLaVA_Factory
    upright = "upright"  # images are turned upright


@dataclass
class Columns:
    """Names of the fields of a record. The defaults are those of LLaVA's JSON list."""

    id: str | None = "id"  # null: records are numbered
    images: str | None = "image"  # one image or a list of images, or their paths; null: records of text only
    text: str = "conversations"  # list of {from, value}, {role, content} or {user, assistant}; or a caption


@dataclass
class Split:
    """One training set: files with its records, and the images that the records refer to."""

    annotations: str = MISSING  # JSON list, .jsonl, .parquet or webdataset .tar, or a pattern such as DIR/*.parquet
    images: str | None = None  # folder, .zip or .tar that image paths are relative to; null: they are in the shards
    count: int = integer(0)  # published number of records, used by plan before the files are downloaded
    source: str = MISSING  # where to get the files; shown in messages
    archives: dict[str, str] = field(default_factory=dict)  # missing folder in `images` -> .zip or .tar to read instead
    columns: Columns = field(default_factory=Columns)


@dataclass
class Source:
    """One of the training sets of a mixture, and how much of it is used."""

    split: Split = MISSING
    weight: float | None = number(0, default=None)  # share of the samples, relative to the other sources; 0: not used
    limit: int | None = integer(1, default=None)  # number of records, chosen at random; null: all
    where: list[str] = field(default_factory=list)  # conditions on columns, such as "rating >= 3"; all must hold
    repeat: float | None = number(above=0, default=None)  # times per epoch; null: once, or as `weight` requires


@dataclass
class Mixture:
    """Several training sets, of which each step has its share."""

    sources: dict[str, Source] = MISSING


@dataclass
class Member:
    """A group of training sets, one per split, which a mixture can refer to."""

    name: str = ""
    splits: dict[str, Split] = MISSING  # split name -> training set
    # File or folder in data_dir -> where it comes from; null: not needed, although a member that it extends names it.
    downloads: dict[str, Download | None] = field(default_factory=dict)
    prepare: dict[str, Any] | None = None


@dataclass
class Data(Member):
    """A group of training sets, one split or mixture per type of stage."""

    name: str = MISSING
    exif: Exif = Exif.ignore  # whether photos are turned as their Exif metadata states; also applies to questions
    mixtures: dict[str, Mixture] = field(default_factory=dict)  # split name -> mixture, instead of the split
    members: dict[str, Member] = field(default_factory=dict)  # other groups, which the mixtures refer to

    @property
    def all_splits(self) -> dict[str, Split]:
        """Return the training sets that stages use, by name: NAME for a split, NAME.SOURCE for a mixture's source."""
        mixed = {f"{name}.{key}": one.split for name, mix in self.mixtures.items() for key, one in mix.sources.items()}
        return {name: split for name, split in self.splits.items() if name not in self.mixtures} | mixed

    @property
    def all_downloads(self) -> dict[str, Download | None]:
        """Return the downloads of this group and of its members."""
        return {key: spec for data in (*self.members.values(), self) for key, spec in data.downloads.items()}

    @property
    def all_prepare(self) -> dict[str, dict[str, Any]]:
        """Return the `prepare` nodes of this group and of its members, by the name of the group."""
        groups = {self.name: self, **self.members}
        return {name: group.prepare for name, group in groups.items() if group.prepare}

    def setting(self, name: str) -> str:
        """Return the setting of one of `all_splits`."""
        mixture, _, source = name.partition(".")
        return f"data.mixtures.{mixture}.sources.{source}.split" if source else f"data.splits.{name}"
