"""A worker process: `python -m tinyvlm_cli.launch.worker train|bench|eval FOLDER`, started by workers.py.

FOLDER holds the whole description of the job.
"""

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from tinyvlm_cli.errors import UserError

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def work(job: str, folder: Path) -> None:
    """Do this rank's share of the job."""
    if job == "train":
        from tinyvlm_cli.train.loop import train_stage
        from tinyvlm_cli.train.stages import read_job

        train_stage(read_job(folder))
    elif job == "bench":
        from tinyvlm_cli.plan.bench import bench_train

        bench_train(folder)
    else:
        assert job == "eval", job
        from tinyvlm_cli.evaluate.runner import EvalJob, answer_all

        answer_all(EvalJob.read(folder))


def main() -> None:
    """Run the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent reports an interruption, this process just ends
    if sys.platform == "linux":  # end with the parent: when it is killed, the lock on the stage folder is lost
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    from torch.distributed.elastic.multiprocessing.errors import record

    record(_main)()


def _main() -> None:
    from tinyvlm_cli.console import set_up_logging

    sys.excepthook = _explain
    job, folder = sys.argv[1:]
    set_up_logging(is_main=os.environ.get("RANK", "0") == "0")
    work(job, Path(folder))
    leave()


def leave() -> NoReturn:
    """End the process when all ranks are done, without unwinding: gloo's threads sometimes abort it there."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error, except of a user's mistake, which the parent process reports."""
    if not isinstance(error, UserError):
        sys.__excepthook__(kind, error, trace)


if __name__ == "__main__":
    main()
