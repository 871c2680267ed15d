"""The study of the smallest model, in which every command has run undisturbed."""

import json
import os
from pathlib import Path

import pytest
from support.tiny_study import CASES, assert_no_temporary_files, finish, write_study

from tinyvlm_cli.files import locked


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A folder in which every command ran undisturbed, and the seconds that each took. Shared by pytest's workers."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "study"
    times = folder / "seconds.json"
    with locked(folder):
        if not times.exists():
            folder.mkdir()
            write_study(folder)
            seconds = {name: finish(case.words, folder) for name, case in CASES.items()}
            assert_no_temporary_files(folder)
            times.write_text(json.dumps(seconds), encoding="utf-8")
    return folder, json.loads(times.read_text(encoding="utf-8"))
