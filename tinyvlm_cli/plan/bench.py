"""Training benchmarks on this machine: the real engine, loader and model sizes, random weights and synthetic samples.

Machines and versions are compared by MFU (model FLOPs utilization): the required operations per second (flops.py)
divided by those of a large matrix product in the same process.
"""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from tinyvlm_cli.config.commands import Bench
from tinyvlm_cli.config.datasets import Source, Split
from tinyvlm_cli.config.saved import from_yaml
from tinyvlm_cli.config.schema import PARTS
from tinyvlm_cli.data.batch import Work
from tinyvlm_cli.data.check import num_cores
from tinyvlm_cli.data.loader import StagePlan, prepare_loaders, step_batches
from tinyvlm_cli.data.synthetic import SyntheticIndex, write_jpegs
from tinyvlm_cli.files import write_text
from tinyvlm_cli.model.attention.packed import register
from tinyvlm_cli.model.flops import training_flops
from tinyvlm_cli.model.pretrained import DTYPES, device_name
from tinyvlm_cli.model.tuning import choose_trained
from tinyvlm_cli.model.vlm import VLM, meta_model, random_model
from tinyvlm_cli.plan.measurements import RESULT, Result, trains
from tinyvlm_cli.results.records import provenance
from tinyvlm_cli.train.engine import Engine, start_process_group
from tinyvlm_cli.train.inputs import num_loaders, stage_plan
from tinyvlm_cli.train.loop import start_engine
from tinyvlm_cli.train.optim import count
from tinyvlm_cli.train.stages import StageJob, stage_job

WARM_UP = 3  # steps that are not timed, as layers are compiled and memory is allocated
NUM_IMAGES = 64
DATA_STEP = 32  # samples per step in the data loading benchmark
IMAGES = "images"


def bench_train(folder: Path) -> None:
    """Benchmark the stage in `folder`/config.yaml and write bench.json next to it. Runs in every worker process."""
    started = time.perf_counter()
    device = start_process_group()
    config = from_yaml(Bench, folder / "config.yaml")
    job = stage_job(config, config.stage)
    if num_loaders(config.engine):
        prepare_loaders()
    torch.manual_seed(config.seed)
    ceiling = matmul_ceiling(device)
    model = random_model(
        job.llm, job.vision, job.connector, device, dtype=DTYPES[config.engine.precision], attention=register()
    )
    parameters = {part: count(getattr(model, part))[0] for part in PARTS}
    choose_trained(model, job.stage)
    flops = training_flops(model)
    engine, layout = start_engine(job, model, device)
    if dist.get_rank() == 0:
        write_jpegs(folder / IMAGES, config.image_sizes, count=NUM_IMAGES, seed=config.seed)
    dist.barrier()
    num = job.stage.samples_per_step * (WARM_UP + config.steps)
    plan = _synthetic_plan(config, job, model, folder / IMAGES, num=num)
    clock = _measure(engine, plan, job, config.steps, started, micro_tokens=layout.micro_tokens)
    if dist.get_rank() != 0:
        return
    gpus, total = dist.get_world_size(), sum(clock.step_s)
    rate = flops.of(clock.work) / total / gpus / 1e12
    result = Result(
        llm=config.llm.name,
        vision=config.vision.name,
        connector=config.connector["name"],
        recipe=config.recipe.name,
        stage=config.stage,
        split=job.stage.split,
        trains=trains(job.stage),
        device=device_name(device),
        gpus=gpus,
        zero=config.engine.zero,
        micro_tokens=layout.micro_tokens,
        recompute=layout.recompute,
        samples_per_step=job.stage.samples_per_step,
        samples_per_s=job.stage.samples_per_step * config.steps / total,
        images_per_s=clock.work.images / total,
        tokens_per_s=clock.work.tokens / total,
        tflops_per_s=rate,
        ceiling_tflops=ceiling,
        mfu=rate / ceiling,
        memory_gib=torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else 0.0,
        data_wait=clock.waited_s / total,
        first_step_s=clock.first_step_s,
        step_s=[round(seconds, 4) for seconds in clock.step_s],
        losses=clock.losses,
        made_with=provenance(),
        parameters=parameters,
    )
    write_text(folder / RESULT, json.dumps(asdict(result), indent=1) + "\n")


@dataclass
class _Clock:
    """Measurements of the steps after the warm-up."""

    first_step_s: float = 0.0  # from process start to the end of the first step
    step_s: list[float] = field(default_factory=list)
    waited_s: float = 0.0  # waiting time for input
    work: Work = field(default_factory=lambda: Work(0, 0, 0, 0))  # over all ranks
    losses: list[float] = field(default_factory=list)  # including those of the warm-up


def _measure(
    engine: Engine, plan: StagePlan, job: StageJob, steps: int, started: float, *, micro_tokens: int
) -> _Clock:
    """Run the warm-up and `steps` timed steps, and return the measurements. started: when the process started."""
    clock = _Clock()
    batches = step_batches(
        plan, first=0, last=WARM_UP + steps, rank=dist.get_rank(), ranks=dist.get_world_size(),
        micro_tokens=micro_tokens, workers=num_loaders(job.engine),
    )  # fmt: skip
    for number in range(WARM_UP + steps):
        began = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        loss = engine.step(batch.micros, lr=job.stage.lr, supervised_tokens=batch.work.supervised)
        clock.losses.append(float(loss))
        done = time.perf_counter()
        clock.first_step_s = clock.first_step_s or done - started
        if number >= WARM_UP:
            clock.step_s.append(done - began)
            clock.waited_s += ready - began
            clock.work += batch.work
    return clock


def bench_data(config: Bench, image_dir: Path) -> dict[int, float]:
    """Return the images per second that reach the training process, by number of loader processes."""
    write_jpegs(image_dir, config.image_sizes, count=NUM_IMAGES, seed=config.seed)
    job = stage_job(config, config.stage)
    job = replace(job, stage=replace(job.stage, samples_per_step=DATA_STEP))
    model = meta_model(job.llm, job.vision, job.connector)
    rates = {}
    for workers in [2**n for n in range(num_cores().bit_length())]:
        steps = 6 * workers
        plan = _synthetic_plan(config, job, model, image_dir, num=DATA_STEP * steps)
        images, began = 0, 0.0
        for batch in step_batches(plan, first=0, last=steps, rank=0, ranks=1, micro_tokens=2**20, workers=workers):
            if began:
                images += batch.work.images
            elif batch.step == 2 * workers:  # all loader processes have started
                began = time.perf_counter()
        rates[workers] = images / (time.perf_counter() - began)
    return rates


def _synthetic_plan(config: Bench, job: StageJob, model: VLM, image_dir: Path, *, num: int) -> StagePlan:
    """Return a stage plan with `num` synthetic samples."""
    index = SyntheticIndex.draw(
        config.mixes[job.stage.split],
        num,
        vocabulary=model.llm.config.vocab_size,
        images=[f"{number}.jpg" for number in range(NUM_IMAGES)],
        max_length=job.llm.max_length,
        seed=config.seed,
    )
    job = replace(job, sources={job.stage.split: Source(split=Split(images=str(image_dir), annotations="synthetic"))})
    return stage_plan(job, index, tokens_per_image=model.tokens_per_image)


def matmul_ceiling(device: torch.device) -> float:
    """Return the TFLOP/s of a large bf16 matrix product on a GPU, or of a smaller fp32 one on a CPU."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(30):
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / median(seconds) / 1e12
