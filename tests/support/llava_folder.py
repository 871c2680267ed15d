"""A LLaVA folder in Hugging Face format."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from support.small import CLIP, LLAMA

WORDS = ["<pad>", "<s>", "</s>", "<image>", "USER", "ASSISTANT", *(f"w{i}" for i in range(91))]
CHAT = (
    "{% for m in messages %}USER {% for c in m.content %}"
    "{{ '<image>' if c.type == 'image' else c.text }} {% endfor %}{% endfor %}ASSISTANT"
)


def write_llava_folder(path: Path) -> Path:
    """Write a tiny model with random weights, its tokenizer and its image processor."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", additional_special_tokens=["<image>"]
    )
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(path)  # fmt: skip
    torch.manual_seed(0)
    text, vision = (dict(architecture) for architecture in (LLAMA, CLIP))
    config = LlavaConfig(vision_config=CLIPVisionConfig(**vision), text_config=LlamaConfig(**text), image_token_index=3)
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():  # far from the start, where every answer is the same
        torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(path)
    return path
