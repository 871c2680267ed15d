"""The study of the smallest model, in which every command has run undisturbed."""

from pathlib import Path

import pytest
from support.tiny_study import CASES, finish, write_study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A folder in which every command ran undisturbed, and the seconds that each took."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    seconds = {name: finish(case.words, folder) for name, case in CASES.items()}
    assert not list((folder / "tmp").iterdir()), "a command left temporary files"
    return folder, seconds
