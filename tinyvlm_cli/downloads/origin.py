"""The record of a download, written next to the target once it is complete."""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import write_text
from tinyvlm_cli.untrusted import read_json


@dataclass(frozen=True)
class FileOrigin:
    """Size and hash of a downloaded file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Origin:
    """Address, revision and files of a download, stored in TARGET.source.json."""

    address: str  # URL, or name of a hub repository
    revision: str | None  # commit hash of the repository
    files: dict[str, FileOrigin]  # path below the target, or name of the archive -> size and hash
    unpacked: dict[str, int] = field(default_factory=dict)  # number of files and bytes that an archive contained
    fetched: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    made_with: str = field(default_factory=lambda: f"tinyvlm {version('tinyvlm')}")

    @staticmethod
    def path(target: Path) -> Path:
        """Return the path of the record of `target`."""
        return target.with_name(f"{target.name}.source.json")

    def write(self, target: Path) -> None:
        """Write the record of `target`."""
        write_text(self.path(target), json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, target: Path) -> "Origin | None":
        """Return the record of `target`, or None if it does not exist or is damaged."""
        if not cls.path(target).is_file():
            return None
        try:
            record = read_json(cls.path(target), "delete it")
            files = {
                str(name): FileOrigin(int(file["size"]), str(file["sha256"])) for name, file in record["files"].items()
            }
            return cls(**{**record, "files": files})
        except (UserError, LookupError, TypeError, ValueError, AttributeError):
            return None
