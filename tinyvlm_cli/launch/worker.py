"""Run a worker process, which workers.py starts as `python -m tinyvlm_cli.launch.worker JOB FOLDER`.

FOLDER contains the complete description of the job.
"""

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tinyvlm_cli.errors import system_error
from tinyvlm_cli.heartbeat import start_heartbeat, stop_heartbeat

if TYPE_CHECKING:
    from tinyvlm_cli.evaluate.steps import StepScorer
    from tinyvlm_cli.train.stages import StageJob

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def work(job: str, folder: Path) -> None:
    """Run this rank's share of the job."""
    if job == "train":
        from tinyvlm_cli.train.loop import train_stage
        from tinyvlm_cli.train.stages import read_job

        stage_job = read_job(folder)
        train_stage(stage_job, step_scorer(stage_job))
    elif job == "bench":
        from tinyvlm_cli.plan.bench import bench_train

        bench_train(folder)
    elif job == "bench_eval":
        from tinyvlm_cli.plan.bench_eval import bench_eval

        bench_eval(folder)
    else:
        assert job == "eval", job
        from tinyvlm_cli.evaluate.runner import EvalJob, answer_all

        answer_all(EvalJob.read(folder))


def step_scorer(job: "StageJob") -> "StepScorer | None":
    """Return the evaluation during a stage, or None if there is none."""
    if job.evaluate is None or not job.evaluate.benchmarks or job.evaluate.every is None:
        return None
    from tinyvlm_cli.config.build import build
    from tinyvlm_cli.config.datasets import Exif
    from tinyvlm_cli.evaluate.benchmark import Benchmark
    from tinyvlm_cli.evaluate.steps import StepScorer

    return StepScorer(
        job.name,
        job.folder,
        job.evaluate.every,
        job.evaluate.limit,
        [build(node, Benchmark) for node in job.evaluate.benchmarks.values()],
        job.llm,
        job.vision,
        job.stage,
        upright=job.exif is Exif.upright,
        stop=job.evaluate.stop,
        stop_alpha=job.evaluate.stop_alpha,
    )


def main() -> None:
    """Run the worker process, and record its error for the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # exit silently, because the parent reports interruptions
    if sys.platform == "linux":  # exit with the parent, which holds the lock on the stage folder
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    start_heartbeat()
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        record(_main)()
    except Exception:  # the parent process reports the error of the rank that failed first
        _exit(1)


def _main() -> None:
    from tinyvlm_cli.console import set_up_logging

    job, folder = sys.argv[1:]
    set_up_logging(is_main=os.environ.get("RANK", "0") == "0")
    try:
        work(job, Path(folder))
    except OSError as error:
        if error.errno is None:
            raise
        raise system_error(error) from error
    leave()


def leave() -> NoReturn:
    """Exit when all ranks are done."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
    _exit(0)


def _exit(code: int) -> NoReturn:
    """Exit without interpreter shutdown, in which gloo may abort the process and loader processes may block it."""
    stop_heartbeat()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
