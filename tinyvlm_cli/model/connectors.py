"""Connectors: vision features -> vectors of the LLM's width.

A connector is a class whose first two arguments are the widths on both sides; conf/connector/*.yaml names it and
gives the others. It says with `num_tokens` how many vectors an image becomes.

Shapes: B images, N patches, M connector tokens.
"""

import torch
from torch import Tensor, nn

from tinyvlm_cli.errors import UserError


class Connector(nn.Module):
    """What every connector has besides its forward pass."""

    needs_two_encoders = False

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


class Identity(Connector):
    """No connector: for an encoder as wide as the LLM.

    [B, N, D] -> [B, N, D]
    """

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        if vision_dim != llm_dim:
            raise UserError(
                f"connector: identity needs an encoder as wide as the LLM; found {vision_dim} and {llm_dim}"
            )

    def num_tokens(self, num_patches: int) -> int:
        return num_patches

    def forward(self, features: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]"""
        return features


class MoFMLP(Connector):
    """Connector for two encoders whose tokens alternate (arXiv 2401.06209, interleaved MoF): an MLP for each.

    [B, 2N, vision_dim] -> [B, 2N, llm_dim], even tokens of the first encoder, odd ones of the second
    """

    needs_two_encoders = True

    def __init__(self, vision_dim: int, llm_dim: int, *, depth: int) -> None:
        super().__init__()
        self.first = MLP(vision_dim, llm_dim, depth=depth)
        self.second = MLP(vision_dim, llm_dim, depth=depth)

    def num_tokens(self, num_patches: int) -> int:
        return num_patches

    def forward(self, features: Tensor) -> Tensor:
        """[B, 2N, vision_dim] -> [B, 2N, llm_dim]"""
        return interleave(self.first(features[:, 0::2]), self.second(features[:, 1::2]))


def interleave(first: Tensor, second: Tensor) -> Tensor:
    """[B, N, D], [B, N, D] -> [B, 2N, D], taken in turn."""
    return torch.stack([first, second], dim=2).flatten(1, 2)
