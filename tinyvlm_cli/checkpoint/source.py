"""What an exporter starts from, and what all of them take out of it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from tinyvlm_cli.checkpoint.parts import build_model
from tinyvlm_cli.config.schema import Chat, ImageMode, Train
from tinyvlm_cli.model.vlm import VLM


@dataclass(frozen=True)
class Source:
    """The model that a run's stages left."""

    config: Train
    stage_dirs: tuple[Path, ...]  # first to last
    image_mode: ImageMode  # of the last stage
    dtype: torch.dtype  # of what is written
    device: torch.device

    def model(self) -> VLM:
        """The model, to be read and asked."""
        model = build_model(self.config, self.stage_dirs, dtype=self.dtype, attention="sdpa")
        return model.to(self.device).eval().requires_grad_(False)


FEATURE_LAYER = -2  # of what `closed_encoder` returns


def closed_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """An encoder that ends with its feature layer, as a whole model of its class.

    It gets one layer more, and what its class has behind the layers, so that no reader makes anything up. Features are
    those in front of that layer, because versions differ in whether a last hidden state is one before the final norm.
    Where a run takes them there too, as the paper's do, this is the published configuration. What is added is
    zeros, and a layer of zeros hands on what it gets; the published weights need not be at hand, and those of
    an imported checkpoint's encoder never are.
    """
    settings = model.config.to_dict()
    for name in ("stage_names", "out_features", "out_indices"):
        settings.pop(name, None)  # these follow from the number of layers
    config = type(model.config)(**{**settings, "num_hidden_layers": model.config.num_hidden_layers + 1})
    whole: PreTrainedModel = type(model)._from_config(config, dtype=model.dtype, attn_implementation="sdpa")
    keys = whole.load_state_dict(model.state_dict(), strict=False)
    assert not keys.unexpected_keys, keys.unexpected_keys
    norms = {f"{name}.weight" for name, module in whole.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    parameters = dict(whole.named_parameters())
    for name in keys.missing_keys:
        if name in parameters and name not in norms:
            torch.nn.init.zeros_(parameters[name])
    return whole


def generation_config(tokenizer: PreTrainedTokenizerFast, chat: Chat) -> GenerationConfig:
    """Greedy answers up to the model's end token or the chat format's, as `tinyvlm eval` gives them."""
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(chat.end)} - {None}
    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
    )
