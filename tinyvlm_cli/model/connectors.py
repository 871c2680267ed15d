"""Connectors map the features of the vision encoder to vectors that the LLM reads as tokens.

Each conf/connector/*.yaml specifies a class and its settings. Custom classes work in the same way; see `Connector`.

Shapes: B images, N patches (of all encoders together), M connector tokens per image, Q queries, D feature dimension.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tinyvlm_cli.config.build import build
from tinyvlm_cli.errors import UserError, raise_findings

MAX_SIZE, MAX_SIZES = 100_000, {"depth": 1000, "num_layers": 1000}  # larger models take minutes to build


class Connector(nn.Module):
    """Base class of all connectors. A custom connector must provide:

    - `__init__(self, vision_dim: int, llm_dim: int, *, ...)`. The first two arguments are the dimensions of the vision
      features and of the LLM's embeddings; all others are settings in the YAML. It must call `super().__init__()`.
    - `forward(self, features)`: [B, N, vision_dim] -> [B, M, llm_dim], for any B.
    - `num_tokens(self, num_patches)`: M for N = `num_patches`. Optional if M = N. It is called before any image is
      read, so M must be the same for every image.

    All of them are checked before any weights are loaded.
    """

    needs_two_encoders = False  # whether the features must alternate between two vision encoders

    def num_tokens(self, num_patches: int) -> int:
        """Return M, the number of connector tokens for an image with `num_patches` patches."""
        return num_patches


def build_connector(node: dict[str, Any], *, vision_dim: int, llm_dim: int) -> Connector:
    """Build the connector described by `node`, which has the form of conf/connector/*.yaml.

    Raises UserError for invalid settings or classes. `VLM.check_shapes` checks the shape of the connector's output.
    """
    connector: Connector = build(node, Connector, vision_dim=vision_dim, llm_dim=llm_dim)
    return connector


def check_sizes(**sizes: Any) -> None:
    """Raise a UserError that lists all connector settings that are not integers from 1 to MAX_SIZE.

    If `sizes` contains hidden_dim and num_heads, the former must also be divisible by the latter.
    """
    findings = [
        f"connector.{name}: found {size!r}; use an integer from 1 to {MAX_SIZES.get(name, MAX_SIZE):,}"
        for name, size in sizes.items()
        if type(size) is not int or not 1 <= size <= MAX_SIZES.get(name, MAX_SIZE)
    ]
    width, heads = sizes.get("hidden_dim", 0), sizes.get("num_heads", 1)
    if not findings and width % heads:
        findings.append(f"connector.num_heads: connector.hidden_dim={width} is not divisible by {heads}; change one")
    raise_findings(findings)


class MLP(Connector):
    """The connector of LLaVA-1.5 (arXiv 2310.03744): `depth` linear layers with GELU between them."""

    def __init__(self, vision_dim: int, llm_dim: int, *, depth: int) -> None:
        super().__init__()
        check_sizes(depth=depth)
        layers: list[nn.Module] = [nn.Linear(vision_dim, llm_dim)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(llm_dim, llm_dim)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Return one vector per patch: [B, N, vision_dim] -> [B, N, llm_dim]."""
        out: Tensor = self.layers(features)
        return out


class Linear(MLP):
    """The connector of the first LLaVA (arXiv 2304.08485): one linear layer."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__(vision_dim, llm_dim, depth=1)


class Identity(Connector):
    """The identity, for a vision encoder with the same feature dimension as the LLM."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        if vision_dim != llm_dim:
            raise UserError(
                "connector: identity requires the vision encoder and the LLM to have the same dimension, but found "
                f"{vision_dim} and {llm_dim}; choose another connector"
            )

    def forward(self, features: Tensor) -> Tensor:
        """Return the features unchanged: [B, N, D]."""
        return features


class MoFMLP(Connector):
    """The connector of Interleaved-MoF (mixture of features, arXiv 2401.06209): one MLP for each of two encoders.

    Features of the first encoder are at even positions, features of the second at odd positions.
    """

    needs_two_encoders = True

    def __init__(self, vision_dim: int, llm_dim: int, *, depth: int) -> None:
        super().__init__()
        self.first = MLP(vision_dim, llm_dim, depth=depth)
        self.second = MLP(vision_dim, llm_dim, depth=depth)

    def forward(self, features: Tensor) -> Tensor:
        """Return one vector per patch: [B, N, vision_dim] -> [B, N, llm_dim]."""
        return torch.stack([self.first(features[:, 0::2]), self.second(features[:, 1::2])], dim=2).flatten(1, 2)


class QueryConnector(Connector):
    """A connector whose learned queries cross-attend to the image, so that the number of tokens is fixed.

    In all subclasses, intermediate_dim is the inner dimension of the feed-forward blocks; None: 4 times the outer one.
    """

    queries: nn.Parameter  # [Q, D] or [1, Q, D]
    project_in: nn.Module
    layers: nn.ModuleList
    norm: nn.Module
    project_out: nn.Module

    def num_tokens(self, num_patches: int) -> int:
        """Return Q, the number of queries."""
        return self.queries.shape[-2]

    def forward(self, features: Tensor) -> Tensor:
        """Return one vector per query: [B, N, vision_dim] -> [B, Q, llm_dim]."""
        image = self.project_in(features)
        hidden = self.queries.expand(len(features), -1, -1)
        for layer in self.layers:
            hidden = layer(hidden, image)
        out: Tensor = self.project_out(self.norm(hidden))
        return out


class Resampler(QueryConnector):
    """The resampler of the TinyLLaVA paper (section 3.1), with a configurable hidden dimension."""

    def __init__(
        self, vision_dim: int, llm_dim: int, *, hidden_dim: int, num_heads: int, num_queries: int, num_layers: int,
        intermediate_dim: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_sizes(hidden_dim=hidden_dim, num_heads=num_heads, num_queries=num_queries, num_layers=num_layers)
        self.project_in = nn.Identity()
        self.queries = nn.Parameter(torch.randn(num_queries, hidden_dim))
        self.layers = nn.ModuleList(
            ResamplerLayer(vision_dim, hidden_dim, hidden_dim, num_heads, intermediate_dim) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.project_out = nn.Linear(hidden_dim, llm_dim, bias=False)


class Perceiver(QueryConnector):
    """The resampler of TinyLLaVA_Factory: a Perceiver as in Flamingo (arXiv 2204.14198) with the LLM's hidden size.

    The queries attend to the image and to each other.
    """

    def __init__(
        self, vision_dim: int, llm_dim: int, *, head_dim: int, num_heads: int, num_queries: int, num_layers: int,
        intermediate_dim: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_sizes(head_dim=head_dim, num_heads=num_heads, num_queries=num_queries, num_layers=num_layers)
        self.project_in = nn.Linear(vision_dim, llm_dim)
        self.queries = nn.Parameter(torch.randn(num_queries, llm_dim))
        inner_dim = num_heads * head_dim
        self.layers = nn.ModuleList(
            ResamplerLayer(llm_dim, llm_dim, inner_dim, num_heads, intermediate_dim, attends_to_queries=True)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(llm_dim)
        self.project_out = nn.Identity()


class ResamplerLayer(nn.Module):
    """Attention from the queries to the image, then a feed-forward block, each with a residual connection.

    attends_to_queries: append the queries to the image as keys and values. This requires image_dim = dim.
    """

    def __init__(
        self, image_dim: int, dim: int, inner_dim: int, num_heads: int, intermediate_dim: int | None, *,
        attends_to_queries: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        intermediate_dim = intermediate_dim if intermediate_dim is not None else 4 * dim
        check_sizes(intermediate_dim=intermediate_dim)
        self.num_heads, self.attends_to_queries = num_heads, attends_to_queries
        self.norm_image = nn.LayerNorm(image_dim)
        self.norm_hidden = nn.LayerNorm(dim)
        self.to_query = nn.Linear(dim, inner_dim, bias=False)
        self.to_key_value = nn.Linear(image_dim, 2 * inner_dim, bias=False)
        self.to_out = nn.Linear(inner_dim, dim, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, intermediate_dim, bias=False),
            nn.GELU(),
            nn.Linear(intermediate_dim, dim, bias=False),
        )

    def forward(self, hidden: Tensor, image: Tensor) -> Tensor:
        """Return the next hidden state: [B, Q, dim]. hidden: [B, Q, dim]; image: [B, N, image_dim]."""
        normed = self.norm_hidden(hidden)
        sources = self.norm_image(image)
        if self.attends_to_queries:
            sources = torch.cat([sources, normed], dim=1)
        # Queries, keys and values as [B, heads, Q or N, D].
        query, key, value = (
            x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.to_query(normed), *self.to_key_value(sources).chunk(2, dim=-1))
        )
        attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        hidden = hidden + self.to_out(attended)
        out: Tensor = hidden + self.feed_forward(hidden)
        return out


class QFormer(QueryConnector):
    """BLIP-2's Q-Former (arXiv 2301.12597) without its text branch. Every second layer cross-attends to the image.

    As in TinyLLaVA_Factory, it is initialised randomly, and the layer norm of the queries has no learned scale or bias.
    """

    def __init__(
        self, vision_dim: int, llm_dim: int, *, hidden_dim: int, num_heads: int, num_queries: int, num_layers: int,
        intermediate_dim: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel  # most models need no Q-Former

        intermediate_dim = intermediate_dim if intermediate_dim is not None else 4 * hidden_dim
        check_sizes(
            hidden_dim=hidden_dim, num_heads=num_heads, num_queries=num_queries, num_layers=num_layers,
            intermediate_dim=intermediate_dim,
        )  # fmt: skip
        config = Blip2QFormerConfig(
            hidden_size=hidden_dim, num_attention_heads=num_heads, num_hidden_layers=num_layers,
            intermediate_size=intermediate_dim, encoder_hidden_size=vision_dim, cross_attention_frequency=2,
        )  # fmt: skip
        self.queries = nn.Parameter(torch.randn(1, num_queries, hidden_dim) * config.initializer_range)
        self.model = Blip2QFormerModel._from_config(config)
        norm = self.model.layernorm
        for name, value in (("weight", torch.ones_like(norm.weight)), ("bias", torch.zeros_like(norm.bias))):
            delattr(norm, name)
            norm.register_buffer(name, value.detach(), persistent=False)
        self.project_out = nn.Linear(hidden_dim, llm_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Return one vector per query: [B, N, vision_dim] -> [B, Q, llm_dim]."""
        queries = self.queries.expand(len(features), -1, -1)
        hidden = self.model(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
        out: Tensor = self.project_out(hidden)
        return out
