"""Cached hashes of large files, locks between processes, and temporary folders."""

import getpass
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from tinyvlm_cli import files
from tinyvlm_cli.files import file_hash, folder_of_process, locked


@pytest.mark.parametrize("memo", ["", "{", "[]", "null", '{"sha256": 3}', '{"sha256": "0"}', "\udcff"])
def test_a_damaged_cache_of_a_hash_is_ignored(tmp_path: Path, memo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGE_BYTES", 1)
    path, cache = tmp_path / "large", tmp_path / "cache"
    path.write_bytes(b"content")
    expected = hashlib.sha256(b"content").hexdigest()
    assert file_hash(path, cache) == expected
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(memo.encode(errors="surrogateescape"))
    assert file_hash(path, cache) == expected and entry.read_bytes() == whole


def test_a_hash_is_computed_again_when_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGE_BYTES", 1)
    path = tmp_path / "large"
    path.write_bytes(b"content")
    first = file_hash(path, tmp_path / "cache")
    path.write_bytes(b"CONTENT")
    os.utime(path, (1, 1))
    assert file_hash(path, tmp_path / "cache") != first


HOLD = """
import sys
from pathlib import Path
from tinyvlm_cli.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_a_lock_names_its_holder_and_is_free_when_the_holder_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, place = tmp_path / "stage", tmp_path / ".stage.lock"
    pipe = subprocess.PIPE
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=pipe, stdout=pipe, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    expected = {"pid": holder.pid, "user": getpass.getuser(), "host": socket.gethostname()}
    assert json.loads(place.read_text(encoding="utf-8")) == expected
    killing = threading.Timer(0.3, holder.kill)
    killing.start()
    with caplog.at_level("INFO", "tinyvlm_cli"), locked(path):
        assert json.loads(place.read_text(encoding="utf-8"))["pid"] == os.getpid()
    assert f"process {holder.pid} of {getpass.getuser()} on {socket.gethostname()}" in caplog.text
    assert place.read_bytes() == b""
    holder.communicate()


def test_only_folders_of_ended_commands_are_deleted() -> None:
    """A command deletes its temporary folder when it ends, and those of commands that were killed when it starts."""
    root = Path(tempfile.mkdtemp(dir="/tmp"))  # a short path
    pipe, environment = subprocess.PIPE, {**os.environ, "TMPDIR": str(root)}
    program = "import tempfile; from tinyvlm_cli.files import use_own_temporary_folder as use; use(); "
    wait = "print(tempfile.mkdtemp(), flush=True); input()"

    def start() -> tuple[subprocess.Popen[str], Path]:
        command = [sys.executable, "-c", program + wait]
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (killed, left), (running, used) = start(), start()
    killed.kill()
    killed.communicate()
    assert left.is_dir()
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert [used.parent] == list(root.iterdir())
    running.communicate("\n")
    assert not list(root.iterdir())
    root.rmdir()


def test_only_folders_of_processes_that_have_ended_are_deleted(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    names = [f".tinyvlm-{host}-{os.getppid()}", f".tinyvlm-{host}-x", ".tinyvlm-elsewhere-1"]
    for name in (f".tinyvlm-{host}-{ended.pid}", *names):
        (tmp_path / name).mkdir()
    assert folder_of_process(tmp_path) == tmp_path / f".tinyvlm-{host}-{os.getpid()}"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
