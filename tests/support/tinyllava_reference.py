"""Tiny TinyLLaVA models as the reference computes and saves them, written from its description for the tests.

The names of tensors and config fields are the reference's; transformers of its time called the vision model's tensors
`vision_model.*`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from support.small import CLIP, LLAMA
from tinyvlm_cli.config.build import PACKAGE

VOCAB = 582  # of the tokenizer that comes with the package
LLMS: dict[str, dict[str, Any]] = {
    "llama": {}, "phi": {"num_key_value_heads": 4}, "stablelm": {"use_qkv_bias": True}, "qwen2": {},
    "gemma": {"head_dim": 8, "num_key_value_heads": 1},
}  # fmt: skip
VISIONS = ("clip_vision_model", "siglip_vision_model")
VISION_DIM, LLM_DIM = CLIP["hidden_size"], LLAMA["hidden_size"]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


class Attention(nn.Module):
    """The Factory resampler's: keys and values from the image and the queries."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_media, self.norm_latents = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q, self.to_kv = nn.Linear(dim, 512, bias=False), nn.Linear(dim, 1024, bias=False)
        self.to_out = nn.Linear(512, dim, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        x, latents = self.norm_media(x), self.norm_latents(latents)
        q, (k, v) = self.to_q(latents), self.to_kv(torch.cat([x, latents], 1)).chunk(2, -1)
        q, k, v = (t.unflatten(2, (8, 64)).transpose(1, 2) for t in (q, k, v))
        weights = (q * 64**-0.5 @ k.transpose(2, 3)).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


def feed_forward(dim: int, inner: int | None = None) -> nn.Sequential:
    inner = inner or 4 * dim
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, inner, bias=False), nn.GELU(), nn.Linear(inner, dim, bias=False)
    )


class FactoryResampler(nn.Module):
    def __init__(self, inner: int | None = None) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(3, LLM_DIM))
        self.linear = nn.Linear(VISION_DIM, LLM_DIM)
        self.layers = nn.ModuleList(nn.ModuleList([Attention(LLM_DIM), feed_forward(LLM_DIM, inner)]) for _ in range(2))
        self.norm = nn.LayerNorm(LLM_DIM)

    def forward(self, x: Tensor) -> Tensor:
        x, latents = self.linear(x), self.latents.expand(len(x), -1, -1)
        for attention, feed in self.layers:
            latents = attention(x, latents) + latents
            latents = feed(latents) + latents
        return self.norm(latents)


class BenchBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_q, self.to_out = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.to_k, self.to_v = (nn.Linear(VISION_DIM, dim, bias=False) for _ in range(2))
        self.feed_forward = feed_forward(dim)
        self.norm_image, self.norm_hidden = nn.LayerNorm(VISION_DIM), nn.LayerNorm(dim)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        x, normed = self.norm_image(x), self.norm_hidden(hidden)
        q, k, v = (t.unflatten(2, (12, -1)).transpose(1, 2) for t in (self.to_q(normed), self.to_k(x), self.to_v(x)))
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        out = self.to_out((weights @ v).transpose(1, 2).flatten(2)) + hidden
        return out + self.feed_forward(out)


class BenchResampler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resampler_blocks = nn.ModuleList(BenchBlock(24) for _ in range(2))
        self.queries = nn.Parameter(torch.randn(3, 24))
        self.post_norm = nn.LayerNorm(24)
        self.final_proj = nn.Linear(24, LLM_DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries.expand(len(x), -1, -1)
        for block in self.resampler_blocks:
            queries = block(queries, x)
        return self.final_proj(self.post_norm(queries))


class BertAttention(nn.Module):
    """BERT's: with a residual and the norm after it."""

    def __init__(self, source_dim: int) -> None:
        super().__init__()
        self.self = nn.ModuleDict(
            {"query": nn.Linear(24, 24), "key": nn.Linear(source_dim, 24), "value": nn.Linear(source_dim, 24)}
        )
        self.output = nn.ModuleDict({"dense": nn.Linear(24, 24), "LayerNorm": nn.LayerNorm(24, eps=1e-12)})

    def forward(self, hidden: Tensor, source: Tensor) -> Tensor:
        inputs = {"query": hidden, "key": source, "value": source}
        q, k, v = (self.self[n](x).unflatten(2, (4, -1)).transpose(1, 2) for n, x in inputs.items())
        read = ((q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.output["LayerNorm"](self.output["dense"](read) + hidden)


class BertLayer(nn.Module):
    def __init__(self, number: int, inner: int) -> None:
        super().__init__()
        self.attention = BertAttention(24)
        if number % 2 == 0:
            self.crossattention = BertAttention(VISION_DIM)
        self.intermediate_query = nn.ModuleDict({"dense": nn.Linear(24, inner)})
        self.output_query = nn.ModuleDict({"dense": nn.Linear(inner, 24), "LayerNorm": nn.LayerNorm(24, eps=1e-12)})

    def forward(self, hidden: Tensor, image: Tensor) -> Tensor:
        hidden = self.attention(hidden, hidden)
        if hasattr(self, "crossattention"):
            hidden = self.crossattention(hidden, image)
        inner = nn.functional.gelu(self.intermediate_query["dense"](hidden))
        return self.output_query["LayerNorm"](self.output_query["dense"](inner) + hidden)


class QFormer(nn.Module):
    def __init__(self, inner: int = 96) -> None:
        super().__init__()
        layers = nn.ModuleList(BertLayer(i, inner) for i in range(3))
        self.bert = nn.ModuleDict({"encoder": nn.ModuleDict({"layer": layers})})
        self.query_tokens = nn.Parameter(torch.randn(1, 3, 24))
        self.projector = nn.Linear(24, LLM_DIM)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.layer_norm(self.query_tokens, (24,), eps=1e-12).expand(len(x), -1, -1)
        for layer in self.bert["encoder"]["layer"]:
            hidden = layer(hidden, x)
        return self.projector(hidden)


def mlp(depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(VISION_DIM, LLM_DIM)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(LLM_DIM, LLM_DIM)]
    return nn.Sequential(*layers)


CONNECTORS = {
    "linear": lambda: nn.Linear(VISION_DIM, LLM_DIM),
    "mlp2x_gelu": lambda: mlp(2),
    "mlp3x_gelu": lambda: mlp(3),
    "resampler": FactoryResampler,
    "qformer": QFormer,
}


class Reference:
    """A model and how the reference runs it. inner: width inside its connector's feed-forward blocks."""

    def __init__(self, llm: str, vision: str, connector: str, *, bench: bool = False, inner: int | None = None) -> None:
        torch.manual_seed(0)
        architecture = {**LLAMA, "model_type": llm, "vocab_size": VOCAB, **LLMS[llm]}
        self.llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture)).eval()
        self.vision = AutoModel.from_config(AutoConfig.for_model(**{**CLIP, "model_type": vision})).eval()
        build = BenchResampler if bench and connector == "resampler" else CONNECTORS[connector]
        self.connector = build(inner) if inner else build()
        self.kind = connector
        self.drop = 0 if bench and vision == "siglip_vision_model" else 1  # the Factory drops SigLIP's first patch too
        for module in (self.llm, self.vision, self.connector):
            for name, p in module.named_parameters():  # norms away from one, biases from zero
                with torch.no_grad():
                    p.add_(torch.randn(p.shape) * (0.2 if p.ndim < 2 else 0.05))
                assert name

    def features(self, pixels: Tensor) -> Tensor:
        """[I, 3, 16, 16] uint8 -> [I, M, LLM_DIM]"""
        mean, std = self.normalisation
        values = (pixels / 255 - mean) / std
        hidden = self.vision(pixel_values=values, output_hidden_states=True).hidden_states[-2]
        return self.connector(hidden[:, self.drop :])

    @property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        if "siglip" in self.vision.config.model_type:
            return torch.tensor(0.5), torch.tensor(0.5)
        mean, std = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
        return torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    @torch.no_grad()
    def logits(self, ids: Tensor, pixels: Tensor) -> Tensor:
        """Text ids with -200 for the image -> [T, V], image tokens included."""
        at = int((ids == -200).nonzero())
        embed = self.llm.get_input_embeddings()
        pieces = [embed(ids[:at]), self.features(pixels)[0], embed(ids[at + 1 :])]
        return self.llm(inputs_embeds=torch.cat(pieces)[None], use_cache=False).logits[0]

    # How it is saved

    def state(self) -> dict[str, Tensor]:
        """Names of the Factory's model."""
        vision = {f"vision_tower._vision_tower.{name}": t for name, t in self.vision_state().items()}
        llm = {f"language_model.{name}": p.detach() for name, p in self.llm.named_parameters()}
        connector = {f"connector._connector.{name}": t for name, t in self.connector.state_dict().items()}
        return {**llm, **vision, **connector}

    def vision_state(self) -> dict[str, Tensor]:
        return {
            name if name.startswith("vision_model.") else f"vision_model.{name}": t
            for name, t in self.vision.state_dict().items()
        }

    def config(self) -> dict[str, Any]:
        return {
            "model_type": "tinyllava", "architectures": ["TinyLlavaForConditionalGeneration"],
            "llm_model_name_or_path": "microsoft/phi-2", "vision_model_name_or_path2": "",
            "vision_model_name_or_path": "google/siglip-so400m-patch14-384", "connector_type": self.kind,
            "text_config": self.llm.config.to_diff_dict(), "vision_config": self.vision.config.to_diff_dict(),
            "vision_feature_layer": -2, "vision_feature_select_strategy": "patch", "image_aspect_ratio": "square",
            "tokenizer_model_max_length": 200, "num_queries": 3, "image_token_index": -200,
        }  # fmt: skip


def write_common(folder: Path, config: dict[str, Any]) -> Path:
    """Config and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in TOKENIZER:
        shutil.copy(PACKAGE / "tiny_parts/llm" / name, folder / name)
    return folder
