"""Helpers of the tests of downloads."""

import io
import zipfile
from pathlib import Path

from tinyvlm_cli.config.download import Download
from tinyvlm_cli.downloads.get import get
from tinyvlm_cli.downloads.wanted import Wanted

CONTENT = bytes(range(256)) * 1024  # 256 KiB


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def take(root: Path, **specs: Download) -> int:
    return get([Wanted("data=x", root / key, spec) for key, spec in specs.items()], root)


def left_in(folder: Path) -> list[str]:
    """Names of all files, without locks."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.endswith(".lock"))
