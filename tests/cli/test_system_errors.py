"""A folder or file that the operating system refuses ends each command in one sentence."""

import errno
import sys
from pathlib import Path

import pytest

from tinyvlm_cli.cli.main import main
from tinyvlm_cli.errors import system_error

TINY = "llm=tiny vision=tiny recipe=demo data=easyvqa"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and /sys are Linux's")
@pytest.mark.parametrize("folder", ["/proc/none", "/sys/none", "{tmp}/file", "{tmp}/file/below"])
@pytest.mark.parametrize(
    "words",
    [
        f"train {TINY} results_dir={{folder}}",
        f"plan {TINY} results_dir={{folder}}",
        "bench data vision=tiny results_dir={folder}",
        "report results_dir={folder}",
        "report output={folder}",
        "eval run=all results_dir={folder}",
        "ask run=x image=x.jpg question=x results_dir={folder}",
        "export run=x results_dir={folder}",
        "import path={folder} results_dir={folder}",
        "data check data=easyvqa data_dir={folder}",
        "data prepare data=easyvqa data_dir={folder}",
        "score benchmark=pope answers={folder} data_dir={folder}",
    ],
)
def test_a_folder_that_cannot_be_used_is_one_sentence(
    words: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text", encoding="utf-8")
    code = main(words.format(folder=folder.format(tmp=tmp_path)).split())
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert code in (0, 1, 2) and (code == 0) == (not error.strip().startswith("tinyvlm"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: no space left on device; free some disk space"),
        (PermissionError(errno.EROFS, "Read-only file system", "a"), "a: read-only file system; choose a folder"),
        (OSError(errno.EIO, "Input/output error"), "input or output: input/output error; check the path"),
        (OSError(errno.ENOENT, "No such file or directory", "a", None, "b"), "a -> b: no such file or directory"),
    ],
)
def test_the_sentence_has_the_path_the_reason_and_what_to_do(error: OSError, says: str) -> None:
    assert str(system_error(error)).startswith(says)
