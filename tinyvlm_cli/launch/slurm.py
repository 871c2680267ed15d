"""The nodes of a Slurm step: one job can train on several.

`srun` (or submitit) starts the same command once on every node of the step. The first node writes the records; the
others join it for the training. https://slurm.schedmd.com/srun.html, output environment variables.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FIRST_PORT, NUM_PORTS = 20_000, 20_000
OPEN, OVER = "open", "over"
POLL_S = 0.5


@dataclass(frozen=True)
class Node:
    """A node of a step; outside of Slurm the only one."""

    count: int  # nodes of the step
    number: int  # of this one, from 0
    address: str  # host:port of the first node, where the processes of all nodes meet

    @property
    def is_first(self) -> bool:
        """Whether this one writes what all need once."""
        return self.number == 0


ALONE = Node(1, 0, "localhost:0")  # any free port: several jobs run side by side


def this_node() -> Node:
    """Return the node of this process. A batch script is not a step: without srun, its commands run on one node."""
    count = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if count == 1:
        return ALONE
    hosts = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]],
        capture_output=True,
        text=True,
        check=True,
    )
    port = FIRST_PORT + int(os.environ["SLURM_JOB_ID"]) % NUM_PORTS
    return Node(count, int(os.environ["SLURM_NODEID"]), f"{hosts.stdout.split()[0]}:{port}")


@contextmanager
def invitation(folder: Path, first: Node) -> Iterator[None]:
    """Invite the other nodes of the step to join while the first one trains in `folder`."""
    if first.count == 1:
        yield
        return
    path = folder.with_name(f".{folder.name}.{_step()}")
    path.write_text(OPEN, encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(OVER, encoding="utf-8")


def invited(folder: Path, is_done: Callable[[Path], bool]) -> bool:
    """Wait for the step's first node to train in `folder`; return False when there is nothing left to join."""
    path = folder.with_name(f".{folder.name}.{_step()}")
    while not is_done(folder):
        state = path.read_text(encoding="utf-8") if path.exists() else ""
        if state:
            return state == OPEN
        time.sleep(POLL_S)
    return False


def _step() -> str:
    """Return the Slurm step that this process belongs to."""
    return f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_STEP_ID', '0')}"
