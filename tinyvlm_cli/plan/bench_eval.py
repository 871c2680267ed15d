"""Measure the speed of evaluation with the real decoder and sizes, random weights and synthetic questions.

One question at a time gives the time to first token and the memory at batch size 1, without compilation. Then each
benchmark is measured with its number of questions per image and its prompt and answer lengths. The floor is the time of
the required operations at the rate of a large matrix product, plus the time to read the weights and the cache once per
decoding step.
"""

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from tinyvlm_cli.config.commands import Bench, SingleQuestion, Workload
from tinyvlm_cli.config.saved import from_yaml
from tinyvlm_cli.config.schema import ImageMode, Vision
from tinyvlm_cli.data.batch import Work
from tinyvlm_cli.data.chat import IMAGE
from tinyvlm_cli.data.images import open_image, pixels
from tinyvlm_cli.data.synthetic import write_jpegs
from tinyvlm_cli.evaluate.answerer import ahead
from tinyvlm_cli.evaluate.decoder import Decoder
from tinyvlm_cli.evaluate.generation import Decoding, generate, generation_config
from tinyvlm_cli.evaluate.passes import ROWS
from tinyvlm_cli.evaluate.spans import Group, Prompt
from tinyvlm_cli.files import write_text
from tinyvlm_cli.model.flops import Flops, training_flops
from tinyvlm_cli.model.pretrained import DTYPES, device_name
from tinyvlm_cli.model.vlm import VLM, random_model
from tinyvlm_cli.plan.bench import IMAGES, NUM_IMAGES, WARM_UP, matmul_ceiling
from tinyvlm_cli.plan.measurements import EVAL_RESULT, EvalRate, EvalResult
from tinyvlm_cli.results.costs import Single
from tinyvlm_cli.results.records import now, provenance
from tinyvlm_cli.train.engine import start_process_group
from tinyvlm_cli.train.stages import stage_job

SYSTEM_TOKENS = 35  # before the image, as in Vicuna's prompt
ONLY_IMAGES = "only images"  # a workload with one token per question


@dataclass(frozen=True)
class Floor:
    """Lower bound of the time on one GPU, from the rates of a large matrix product and a large copy."""

    flops: Flops
    flops_per_s: float
    bytes_per_s: float
    tokens_per_image: int
    weight_bytes: int
    cache_bytes: int  # per token

    def seconds(self, load: Workload, images: int, questions: int) -> float:
        """Return the lower bound for this number of questions."""
        prefix, own, steps = SYSTEM_TOKENS + self.tokens_per_image, load.prompt_tokens, load.answer_tokens - 1
        grown = own + steps / 2  # a question's own tokens, on average over the steps
        work = Work(
            tokens=images * prefix + questions * (own + steps),
            squares=images * prefix**2 + questions * (own**2 + 2 * own * prefix + 2 * steps * round(prefix + grown)),
            images=images,
            supervised=questions * (1 + steps),
        )
        read = questions * steps * (self.weight_bytes / ROWS + grown * self.cache_bytes)
        read += images * steps * prefix * self.cache_bytes
        return self.flops.of(work) / self.flops_per_s + read / self.bytes_per_s


def bench_eval(folder: Path) -> None:
    """Measure `folder`/config.yaml and write eval.json and single.json next to it. Runs in every worker process."""
    started = time.perf_counter()
    device = start_process_group()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    config = from_yaml(Bench, folder / "config.yaml")
    job = stage_job(config, config.stage)
    torch.manual_seed(config.seed)
    peak_before = peak_bytes(device)
    model = random_model(
        job.llm, job.vision, job.connector, device, dtype=DTYPES[config.engine.precision], attention="sdpa"
    ).eval()
    model.requires_grad_(False)
    if rank == 0:
        write_jpegs(folder / IMAGES, config.image_sizes, count=NUM_IMAGES, seed=config.seed)
        image = pixels(open_image(folder / IMAGES / "0.jpg"), job.vision, job.stage.image_mode)
        first_token_s, peak = one_question(model, image, config.single, seed=config.seed)
        Single(device_name(device), first_token_s, (peak - peak_before) / 2**30, now()).write(folder)
    dist.barrier()
    flops_per_s, bytes_per_s = matmul_ceiling(device) * 1e12, read_rate(device)
    began = time.perf_counter()
    decoder = Decoder(model, (), image_size=job.vision.image_size)
    first_setup_s = time.perf_counter() - began
    floor = Floor(
        training_flops(model), flops_per_s, bytes_per_s, model.tokens_per_image,
        sum(p.numel() * p.element_size() for p in model.llm.parameters()), decoder.passes.cache.bytes_per_token,
    )  # fmt: skip
    rates, first_answer_s = {}, 0.0
    only_images = Workload(config.images, config.images, prompt_tokens=1, answer_tokens=1)
    for name, load in {**config.workloads, ONLY_IMAGES: only_images}.items():
        images = min(load.images, config.images)
        questions = round(load.questions * images / load.images)
        load_group = partial(
            group_of, load=load, image_dir=folder / IMAGES, vision=job.vision, mode=job.stage.image_mode,
            vocabulary=model.llm.config.vocab_size,
        )  # fmt: skip
        dist.barrier()
        began = time.perf_counter()
        groups = ahead(load_group, range(rank, images, ranks))
        for _ in decoder.answers(groups, max_new_tokens=load.answer_tokens):
            first_answer_s = first_answer_s or time.perf_counter() - started
        dist.barrier()
        seconds = time.perf_counter() - began
        least = floor.seconds(load, images, questions) / ranks
        rates[name] = EvalRate(questions, questions / seconds, questions / least, load.questions, load.images)
    image_s = 1 / rates.pop(ONLY_IMAGES).per_s
    decoder.close()
    began = time.perf_counter()
    Decoder(model, (), image_size=job.vision.image_size, is_trained=True)  # as before each evaluation during training
    setup_s = time.perf_counter() - began
    if rank == 0:
        result = EvalResult(
            llm=config.llm.name, vision=config.vision.name, connector=config.connector["name"],
            device=device_name(device), gpus=ranks,
            ceiling_tflops=flops_per_s / 1e12, read_gb_per_s=bytes_per_s / 1e9, first_answer_s=first_answer_s,
            memory_gib=torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else 0.0,
            rates=rates, made_with=provenance(), setup_s=setup_s, first_setup_s=first_setup_s,
            image_s=image_s,
        )  # fmt: skip
        write_text(folder / EVAL_RESULT, json.dumps(asdict(result), indent=1) + "\n")


def one_question(model: VLM, image: NDArray[np.uint8], settings: SingleQuestion, *, seed: int) -> tuple[float, int]:
    """Return the median time in seconds to the first token of an answer, and the peak memory of a whole answer.

    The time is from the preprocessed image, [3, S, S], and the token ids in the CPU's memory to the id of the answer's
    first token there. See `peak_bytes` for the memory.
    """
    device = model.llm.device
    draw, vocabulary = np.random.default_rng(seed), model.llm.config.vocab_size
    before, after = (draw.integers(3, vocabulary, count) for count in (SYSTEM_TOKENS, settings.prompt_tokens))
    ids = np.concatenate([before, [IMAGE], after]).astype(np.int32)

    def answer(max_new_tokens: int) -> float:
        """Answer the question and return the time it took; `generate` waits until the token ids are on the CPU."""
        decoding = Decoding(max_new_tokens, temperature=0, top_p=1, num_beams=1, seed=seed)
        config = generation_config(decoding, (), pad=0)
        began = time.perf_counter()
        given = generate(model, ids, image[None], config=config)
        seconds = time.perf_counter() - began
        assert len(given) == max_new_tokens
        return seconds

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # building the model may have taken more
    answer(settings.answer_tokens)
    peak = peak_bytes(device)
    seconds = [answer(1) for _ in range(WARM_UP + settings.repeats)]
    return median(seconds[WARM_UP:]), peak


def peak_bytes(device: torch.device) -> int:
    """Return the peak of the memory that PyTorch allocated on a GPU, or of this process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def group_of(
    number: int, *, load: Workload, image_dir: Path, vision: Vision, mode: ImageMode, vocabulary: int
) -> Group[int]:
    """Return synthetic questions about one image, which is read from disk and resized."""
    draw = np.random.default_rng(number)
    per_image = load.questions / load.images
    first, end = round(number * per_image), round((number + 1) * per_image)
    prefix = np.append(draw.integers(3, vocabulary, SYSTEM_TOKENS), IMAGE).astype(np.int32)
    lengths = np.maximum(1, draw.normal(load.prompt_tokens, load.prompt_tokens / 5, end - first)).astype(int)
    prompts = [
        Prompt(first + i, draw.integers(3, vocabulary, length).astype(np.int32)) for i, length in enumerate(lengths)
    ]
    image = open_image(image_dir / f"{number % NUM_IMAGES}.jpg")
    return Group(prefix, pixels(image, vision, mode)[None], prompts)


def read_rate(device: torch.device) -> float:
    """Return the bytes per second that a large copy reads and writes, in total."""
    size = 2**32 if device.type == "cuda" else 2**26
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size / min(seconds)
