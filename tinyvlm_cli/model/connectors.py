"""Connectors: vision features -> vectors of the LLM's width.

A connector is a class whose first two arguments are the widths on both sides; conf/connector/*.yaml names it and
gives the others. It says with `num_tokens` how many vectors an image becomes.

Shapes: B images, N patches, M connector tokens.
"""

import torch
from torch import Tensor, nn


class Connector(nn.Module):
    """What every connector has besides its forward pass."""

    def num_tokens(self, num_patches: int) -> int:
        """Vectors for an image of `num_patches` patches."""
        raise NotImplementedError


class MLP(Connector):
    """Connector of LLaVA-1.5 (arXiv 2310.03744): `depth` linear layers with GELU between them.

    [B, N, vision_dim] -> [B, N, llm_dim]
    """

    def __init__(self, vision_dim: int, llm_dim: int, *, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(vision_dim, llm_dim)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(llm_dim, llm_dim)]
        self.layers = nn.Sequential(*layers)

    def num_tokens(self, num_patches: int) -> int:
        return num_patches

    def forward(self, features: Tensor) -> Tensor:
        """[B, N, vision_dim] -> [B, N, llm_dim]"""
        out: Tensor = self.layers(features)
        return out


class Linear(MLP):
    """Connector of the first LLaVA (arXiv 2304.08485): one linear layer."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__(vision_dim, llm_dim, depth=1)


class Resampler(Connector):
    """Connector of learned queries that read the image by cross-attention (TinyLLaVA paper, section 3.1).

    [B, N, vision_dim] -> [B, num_queries, llm_dim]
    """

    def __init__(
        self, vision_dim: int, llm_dim: int, *, hidden_dim: int, num_heads: int, num_queries: int, num_layers: int
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, hidden_dim) * hidden_dim**-0.5)
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
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False)
        )

    def forward(self, hidden: Tensor, image: Tensor) -> Tensor:
        """hidden: [B, M, dim], image: [B, N, vision_dim] -> [B, M, dim]"""

        def heads(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

        query = heads(self.to_query(self.norm_hidden(hidden)))
        key, value = map(heads, self.to_key_value(self.norm_image(image)).chunk(2, dim=-1))
        read = nn.functional.scaled_dot_product_attention(query, key, value)
        hidden = hidden + self.to_out(read.transpose(1, 2).flatten(2))
        out: Tensor = hidden + self.feed_forward(hidden)
        return out
