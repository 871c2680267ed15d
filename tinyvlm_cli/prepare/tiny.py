"""Pretrains the demo's tiny parts: `python -m tinyvlm_cli.prepare.tiny OUT`, four minutes on one core.

OUT/vision  a CLIP encoder that has learned to name the colour and shape in easy-VQA's training images
OUT/llm     a Llama and its tokenizer that have read the training captions, questions and answers, and no image
Neither knows the other: to connect them is what `tinyvlm train` does. Their sizes are those of conf/vision/tiny.yaml
and conf/llm/tiny.yaml. The package ships the output as tiny_parts/.
"""

import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from tinyvlm_cli import logs
from tinyvlm_cli.compose import SCHEMAS, prepare_hydra, typed
from tinyvlm_cli.config import Train
from tinyvlm_cli.prepare.easyvqa_source import read_pictures
from tinyvlm_cli.prepare.tiny_llm import pretrain_llm
from tinyvlm_cli.prepare.tiny_vision import pretrain_vision
from tinyvlm_cli.shipped import conf_dir

SEED = 0


def make(out: Path) -> None:
    """Pretrain both parts and save them for from_pretrained."""
    torch.set_num_threads(1)  # with more, sums round differently from machine to machine
    config = settings()
    pictures = read_pictures("train")
    torch.manual_seed(SEED)
    encoder = pretrain_vision([picture for picture in pictures if picture.described], config.vision, seed=SEED)
    encoder.half().save_pretrained(out / "vision")
    torch.manual_seed(SEED)
    llm, tokenizer = pretrain_llm(pictures, config.llm, seed=SEED)
    llm.half().save_pretrained(out / "llm")
    tokenizer.save_pretrained(out / "llm")


def settings() -> Train:
    """The settings of the tiny parts."""
    prepare_hydra()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = typed(compose("train", ["llm=tiny", "vision=tiny"]), SCHEMAS["train"])
    assert isinstance(config, Train)
    return config


if __name__ == "__main__":
    logs.set_up()
    make(Path(sys.argv[1]))
