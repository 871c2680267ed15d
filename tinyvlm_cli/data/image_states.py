"""A cheap fingerprint of a training set's images, which are not part of a stage's identity.

Hashing a million images before each training would take too long, so the states of a sample of them are recorded: with
the index when it is built, and in the folder of each stage that is trained from it. A change is a warning.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyvlm_cli.data.image_store import ImageStore
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import FileState, write_text

if TYPE_CHECKING:
    from tinyvlm_cli.data.index import SplitIndex
    from tinyvlm_cli.data.mixture import MixedIndex

log = logging.getLogger(__name__)

FILE = "images.json"
SAMPLED = 1000  # images


def record_images(index: "SplitIndex | MixedIndex", images: ImageStore, folder: Path, *, used_by: str) -> None:
    """Write the states of a sample of the index's images to `folder`, and warn about those that have changed.

    used_by: what was made from the recorded images, for the warning.
    """
    warn_if_changed(folder, images, used_by=used_by)
    numbers = np.unique(np.linspace(0, len(index) - 1, min(SAMPLED, len(index)), dtype=np.int64))
    names = sorted({image for number in numbers for image in index.sample(int(number)).images[:1]})
    states = {name: images.state(name) for name in names}
    write_text(folder / FILE, json.dumps(states, indent=0) + "\n")


def warn_if_changed(folder: Path, images: ImageStore, *, used_by: str) -> None:
    """Log a warning if images have changed since their states were recorded in `folder`.

    Images that do not exist are not compared, because trained stages remain usable without their data.
    """
    states = read_states(folder)
    missing = set(images.missing(list(states)))
    present = {name: state for name, state in states.items() if state is not None and name not in missing}
    changed = [name for name, state in present.items() if not images.is_unchanged(name, state)]
    if changed:
        log.warning(
            "%s: %d of %d sampled images have changed (first: %s) since %s; delete the stages that used the earlier "
            "images to train them again, and run `tinyvlm data check`",
            images.root, len(changed), len(present), changed[0], used_by,
        )  # fmt: skip


def read_states(folder: Path) -> dict[str, FileState]:
    """Return the recorded states by image, or an empty dict if there are none, as in stages of earlier versions."""
    path = folder / FILE
    try:
        states = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not all(state is None or isinstance(state, dict) for state in states.values()):
            raise ValueError("not an object of states")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete the file") from None
    return dict(states)
