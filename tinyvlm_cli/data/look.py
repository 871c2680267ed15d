"""What is wrong with an image file. The processes that open images import this and little else."""

from pathlib import Path

from tinyvlm_cli.data.faults import FaultError, Kind
from tinyvlm_cli.data.images import read_through

JPEG = ("JPEG", "MPO")  # MPO: a JPEG with more pictures behind it, as cameras write
JPEG_NAMES = (".jpg", ".jpeg")
FORMATS = {
    **dict.fromkeys(JPEG_NAMES, JPEG),
    ".png": ("PNG",), ".gif": ("GIF",), ".webp": ("WEBP",), ".bmp": ("BMP", "DIB"),
}  # fmt: skip
CONVERT = "`tinyvlm data prepare data=NAME convert_gifs=true`"


def look_at(path: Path) -> FaultError | None:
    """None when the image is as its name says, and whole."""
    try:
        found = read_through(path)
    except FaultError as fault:
        if fault.kind is Kind.absent and (other := elsewhere(path)):
            return FaultError(
                Kind.absent, f"{fault}, but {other.name} is there; {CONVERT} makes the one from the other"
            )
        return fault
    if found in FORMATS.get(path.suffix.lower(), (found,)):
        return None
    how = f"; training reads it, and {CONVERT} makes it a JPEG" if path.suffix.lower() in JPEG_NAMES else ""
    return FaultError(Kind.other_type, f"image {path}: is a {found}{how}")


def elsewhere(path: Path) -> Path | None:
    """The GIF that has a missing JPEG's name: OCR-VQA's own download script keeps the type, LLaVA's list does not."""
    other = path.with_suffix(".gif")
    return other if path.suffix.lower() in JPEG_NAMES and other.is_file() else None
