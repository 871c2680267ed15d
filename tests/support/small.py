"""A small VLM and micro-batches for it, the same on every rank."""

from typing import Any

import torch

from tinyvlm_cli.config.schema import LLM, Resize, Tokens, Vision
from tinyvlm_cli.data.batch import MicroBatch
from tinyvlm_cli.model.attention.packed import register
from tinyvlm_cli.model.connectors import MLP
from tinyvlm_cli.model.llm import blank_llm
from tinyvlm_cli.model.vision import blank_vision
from tinyvlm_cli.model.vlm import VLM

LLAMA = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {  # what each kind of LLM has that LLAMA has not
    "llama": {},
    "phi": {"num_key_value_heads": 4},
    "stablelm": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8, "num_key_value_heads": 1},
    "smollm3": {"pad_token_id": 0},
}
STEPS = 4
TOKENS_PER_IMAGE = 4


def small_vlm(trained: str, dtype: torch.dtype = torch.float32, llm_config: dict[str, Any] = LLAMA) -> VLM:
    """Seeded weights; trained: "full" (connector and LLM) or "connector"."""
    torch.manual_seed(0)
    vision = Vision(
        path="", feature_layer=-2, tokens=Tokens.drop_first, unused=["post_layernorm"], image_size=16,
        resize=Resize.stretch, mean=[0.5] * 3, std=[0.5] * 3, architecture=dict(CLIP),
    )  # fmt: skip
    encoder = blank_vision(vision, planned=True)
    llm = blank_llm(LLM(path="", architecture=dict(llm_config)), attention=register(), planned=True)
    model = VLM(encoder, MLP(encoder.dim, llm.config.hidden_size, depth=2), llm).to(dtype)
    model.vision.requires_grad_(False)
    model.llm.requires_grad_(trained == "full")
    return model.train()


def micro_batches(step: int, ranks: int) -> tuple[list[list[MicroBatch]], int]:
    """Four micro-batches of a step spread over the ranks, and the step's supervised tokens.

    In every step one micro-batch, on the last rank, is text only.
    """
    generator = torch.Generator().manual_seed(step)
    micros = [_micro(generator, images=images) for images in (2, 1, 1, 0)]
    share = len(micros) // ranks
    return [micros[rank * share : (rank + 1) * share] for rank in range(ranks)], sum(len(m.targets) for m in micros)


def _micro(generator: torch.Generator, *, images: int) -> MicroBatch:
    """Up to two samples with an image each, and one of text."""
    lengths = [9 + 3 * i for i in range(images)] + [7]
    total = sum(lengths)
    ids = torch.randint(3, 97, (1, total), generator=generator)
    image_at: list[int] = []
    start = 0
    predict = []
    for i, length in enumerate(lengths):
        if i < images:
            image_at += range(start + 1, start + 1 + TOKENS_PER_IMAGE)
        predict += range(start + length - 3, start + length - 1)
        start += length
    at = torch.tensor(predict)
    return MicroBatch(
        ids=ids,
        positions=torch.cat([torch.arange(length) for length in lengths])[None],
        image_at=torch.tensor(image_at, dtype=torch.long),
        lengths=torch.tensor(lengths),
        predict=at,
        targets=ids[0, at + 1],
        weights=torch.ones(len(predict)),
        pixels=torch.randint(0, 256, (max(images, 1), 3, 16, 16), dtype=torch.uint8, generator=generator),
    )
