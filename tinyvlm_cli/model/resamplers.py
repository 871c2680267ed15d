"""Connectors that make a fixed number of vectors of an image, however many patches it has.

Shapes: B images, N patches, M queries.
"""

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from tinyvlm_cli.model.connectors import Connector


class Resampler(Connector):
    """Connector of learned queries that read the image by cross-attention (TinyLLaVA paper, section 3.1).

    [B, N, vision_dim] -> [B, num_queries, llm_dim]
    """

    def __init__(
        self, vision_dim: int, llm_dim: int, *, hidden_dim: int, num_heads: int, num_queries: int, num_layers: int
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, hidden_dim))
        self.layers = nn.ModuleList(_ResamplerLayer(vision_dim, hidden_dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_dim)
        self.project_out = nn.Linear(hidden_dim, llm_dim, bias=False)

    def num_tokens(self, num_patches: int) -> int:
        return self.queries.shape[0]

    def forward(self, features: Tensor) -> Tensor:
        """[B, N, vision_dim] -> [B, num_queries, llm_dim]"""
        hidden = self.queries.expand(len(features), -1, -1)
        for layer in self.layers:
            hidden = layer(hidden, features)
        out: Tensor = self.project_out(self.norm(hidden))
        return out


class _ResamplerLayer(nn.Module):
    """Cross-attention from the queries to the image, then a feed-forward block; both with a residual."""

    def __init__(self, vision_dim: int, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_image = nn.LayerNorm(vision_dim)
        self.norm_hidden = nn.LayerNorm(dim)
        self.to_query = nn.Linear(dim, dim, bias=False)
        self.to_key_value = nn.Linear(vision_dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.feed_forward = _feed_forward(dim)

    def forward(self, hidden: Tensor, image: Tensor) -> Tensor:
        """hidden: [B, M, dim], image: [B, N, vision_dim] -> [B, M, dim]"""
        query = self.to_query(self.norm_hidden(hidden))
        key, value = self.to_key_value(self.norm_image(image)).chunk(2, dim=-1)
        hidden = hidden + self.to_out(_attend(query, key, value, self.num_heads))
        out: Tensor = hidden + self.feed_forward(hidden)
        return out


class Perceiver(Connector):
    """TinyLLaVA_Factory's resampler, of Flamingo's kind (arXiv 2204.14198): it works at the LLM's width.

    [B, N, vision_dim] -> [B, num_queries, llm_dim]
    """

    def __init__(
        self, vision_dim: int, llm_dim: int, *, head_dim: int, num_heads: int, num_queries: int, num_layers: int
    ) -> None:
        super().__init__()
        self.project_in = nn.Linear(vision_dim, llm_dim)
        self.queries = nn.Parameter(torch.randn(num_queries, llm_dim))
        self.layers = nn.ModuleList(_PerceiverLayer(llm_dim, head_dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(llm_dim)

    def num_tokens(self, num_patches: int) -> int:
        return self.queries.shape[0]

    def forward(self, features: Tensor) -> Tensor:
        """[B, N, vision_dim] -> [B, num_queries, llm_dim]"""
        image = self.project_in(features)
        hidden = self.queries.expand(len(features), -1, -1)
        for layer in self.layers:
            hidden = layer(hidden, image)
        out: Tensor = self.norm(hidden)
        return out


class _PerceiverLayer(nn.Module):
    """Attention from the queries to the image and to themselves, then a feed-forward block; both with a residual."""

    def __init__(self, dim: int, head_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_image = nn.LayerNorm(dim)
        self.norm_hidden = nn.LayerNorm(dim)
        self.to_query = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.to_key_value = nn.Linear(dim, 2 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, dim, bias=False)
        self.feed_forward = _feed_forward(dim)

    def forward(self, hidden: Tensor, image: Tensor) -> Tensor:
        """hidden: [B, M, dim], image: [B, N, dim] -> [B, M, dim]"""
        normed = self.norm_hidden(hidden)
        sources = torch.cat([self.norm_image(image), normed], dim=1)
        key, value = self.to_key_value(sources).chunk(2, dim=-1)
        hidden = hidden + self.to_out(_attend(self.to_query(normed), key, value, self.num_heads))
        out: Tensor = hidden + self.feed_forward(hidden)
        return out


class QFormer(Connector):
    """BLIP-2's Q-Former (arXiv 2301.12597) without its text side: queries that read the image in every second layer.

    As TinyLLaVA_Factory has it: BERT-base's size and random weights, and no learned scale in the norm of the queries.

    [B, N, vision_dim] -> [B, num_queries, llm_dim]
    """

    def __init__(
        self, vision_dim: int, llm_dim: int, *, hidden_dim: int, num_heads: int, num_queries: int, num_layers: int
    ) -> None:
        super().__init__()
        config = Blip2QFormerConfig(
            hidden_size=hidden_dim,
            num_attention_heads=num_heads,
            num_hidden_layers=num_layers,
            intermediate_size=4 * hidden_dim,
            encoder_hidden_size=vision_dim,
            cross_attention_frequency=2,
        )
        self.queries = nn.Parameter(torch.randn(1, num_queries, hidden_dim) * config.initializer_range)
        self.model = Blip2QFormerModel._from_config(config)
        norm = self.model.layernorm
        for name, value in (("weight", torch.ones_like(norm.weight)), ("bias", torch.zeros_like(norm.bias))):
            delattr(norm, name)
            norm.register_buffer(name, value.detach(), persistent=False)
        self.project_out = nn.Linear(hidden_dim, llm_dim)

    def num_tokens(self, num_patches: int) -> int:
        return self.queries.shape[1]

    def forward(self, features: Tensor) -> Tensor:
        """[B, N, vision_dim] -> [B, num_queries, llm_dim]"""
        queries = self.queries.expand(len(features), -1, -1)
        hidden = self.model(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
        out: Tensor = self.project_out(hidden)
        return out


def _attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """query: [B, M, dim], key, value: [B, N, dim] -> [B, M, dim], in `num_heads` heads"""

    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)

    read: Tensor = nn.functional.scaled_dot_product_attention(heads(query), heads(key), heads(value))
    return read.transpose(1, 2).flatten(2)


def _feed_forward(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False)
    )
