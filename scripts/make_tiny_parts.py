"""Pretrain the demo's tiny parts: `python scripts/make_tiny_parts.py OUT [vision|llm]`, ten minutes on one core.

OUT/vision  a CLIP encoder that has learned to name the colour and shape in easy-VQA's training images
OUT/llm     a Llama and its tokenizer that have read captions with questions and answers, and no image
Neither knows the other: connecting them is what `tinyvlm train` does. Their sizes are those of conf/vision/tiny.yaml
and conf/llm/tiny.yaml. The package contains the output as tiny_parts/.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tiny_llm import llm_task
from tiny_vision import vision_task
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from tinyvlm_cli.console import set_up_logging
from tinyvlm_cli.demo.easyvqa import read_pictures

CONF = Path(__file__).parents[1] / "conf"

VISION_STEPS, VISION_LR, VISION_WEIGHT_DECAY = 2000, 2e-3, 0.05
LLM_STEPS, LLM_LR, LLM_WEIGHT_DECAY = 1000, 1.5e-3, 0.01

log = logging.getLogger("tinyvlm_cli.tiny_parts")


def make(out: Path, parts: Sequence[str]) -> None:
    """Pretrain the parts and save them for from_pretrained."""
    torch.set_num_threads(1)  # more threads round sums differently from machine to machine
    pictures = read_pictures("train")
    if "vision" in parts:
        namer, loss_of = vision_task(pictures, settings("vision/tiny.yaml"))
        fit(namer, loss_of, steps=VISION_STEPS, lr=VISION_LR, weight_decay=VISION_WEIGHT_DECAY)
        namer.encoder.half().save_pretrained(out / "vision")
    if "llm" in parts:
        llm, tokenizer, loss_of = llm_task(pictures, settings("llm/tiny.yaml"), settings("llm/chat/llava.yaml"))
        fit(llm, loss_of, steps=LLM_STEPS, lr=LLM_LR, weight_decay=LLM_WEIGHT_DECAY)
        llm.half().save_pretrained(out / "llm")
        tokenizer.save_pretrained(out / "llm")


def settings(file: str) -> dict[str, Any]:
    """Read a file of conf/ as it is written."""
    values = OmegaConf.to_container(OmegaConf.load(CONF / file), resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def fit(model: nn.Module, loss_of: Callable[[], Tensor], *, steps: int, lr: float, weight_decay: float) -> None:
    """Take `steps` optimizer steps, each on a loss that `loss_of` returns. lr: the peak."""
    optimizer = AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    schedule = OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            log.info("%s: step %d of %d, loss %.3f", type(model).__name__, step, steps, loss.item())


if __name__ == "__main__":
    set_up_logging()
    make(Path(sys.argv[1]), sys.argv[2:] or ("vision", "llm"))
