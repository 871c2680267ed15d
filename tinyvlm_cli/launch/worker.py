"""The function that runs in each worker process, which workers.py starts.

The job's folder contains its complete description.
"""

import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tinyvlm_cli.errors import system_error
from tinyvlm_cli.heartbeat import start_heartbeat, stop_heartbeat
from tinyvlm_cli.signals import STOP_SIGNALS

if TYPE_CHECKING:
    from tinyvlm_cli.evaluate.steps import StepScorer
    from tinyvlm_cli.train.stages import StageJob

PR_SET_NAME = 15  # linux/prctl.h
CAUSE_S = 0.5  # a rank that failed ends later than one that was killed, which may be the cause


def work(job: str, folder: Path) -> None:
    """Run this rank's share of the job."""
    if job == "train":
        from tinyvlm_cli.train.loop import train_stage
        from tinyvlm_cli.train.stages import read_job

        _prepare_gpu()
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
        from tinyvlm_cli.evaluate.runner import answer_all

        _prepare_gpu()
        answer_all(folder)


def _prepare_gpu() -> None:
    """On a GPU, start CUDA and its libraries in the background, and hash Triton's files for the compiler's cache."""

    def prepare() -> None:
        import torch
        from torch.nn import functional

        if not torch.cuda.is_available():
            return
        with suppress(RuntimeError), torch.no_grad():  # the main thread raises errors
            one = torch.zeros(1, 8, 8, 8, device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}", dtype=torch.bfloat16)
            functional.linear(one, one[0, 0])  # cuBLAS
            functional.conv2d(one, one)  # cuDNN
        from torch._inductor import codecache

        codecache.CacheBase.get_system()

    threading.Thread(target=prepare, daemon=True).start()


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


def main(job: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Run a job in a worker process, and record its error for the parent process.

    environment: variables that differ from those of the process that this one was forked from.
    """
    gc.freeze()  # each collection would examine all objects of the imported modules
    gc.enable()
    os.environ.update(environment)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # exit silently, because the parent reports interruptions
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_NAME, f"tinyvlm rank {os.environ['RANK']}".encode())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start_heartbeat()
    import torch
    from torch.distributed.elastic.multiprocessing.errors import record

    threads = max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"]))
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", str(threads))))
    try:
        record(_main)(job, folder)
    except Exception:  # the parent process reports the error of the rank that failed first
        time.sleep(CAUSE_S if int(os.environ["WORLD_SIZE"]) > 1 else 0)
        _exit(1)
    # When the parent has noticed the end of all ranks.
    Finalize(None, _exit, args=(0,), exitpriority=1000)


def _main(job: str, folder: Path) -> None:
    from torch import distributed

    from tinyvlm_cli.console import set_up_logging

    set_up_logging(is_main=os.environ["RANK"] == "0")
    try:
        work(job, folder)
    except OSError as error:
        if error.errno is None:
            raise
        raise system_error(error) from error
    if distributed.is_initialized():
        distributed.barrier()


def _end_with_parent() -> None:
    """Exit when the command has ended, even by SIGKILL: it holds the lock on the job's folder.

    `signals.end_with_parent` would watch the process that this one was forked from.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def can_use_gpu() -> None:
    """Exit with an error if this forked process cannot use the GPU, because an import has initialized CUDA."""
    import torch

    sys.exit(torch.cuda._is_in_bad_fork())


def _exit(code: int) -> NoReturn:
    """Exit without interpreter shutdown, in which gloo may abort the process and loader processes may block it."""
    stop_heartbeat()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
