"""A model small enough for every test, described as a configuration."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.small import CLIP, LLAMA

from tinyvlm_cli.config.schema import LLM, Chat, Precision, Resize, Tokens, Vision

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYVLM_TRUST", "")


@pytest.fixture(autouse=True)
def _workers_are_not_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of commands that run in this process have its environment and output, not those of an earlier test."""
    monkeypatch.setattr("tinyvlm_cli.cli.run_command.preload", lambda modules: None)


@pytest.fixture
def small_llm() -> LLM:
    return LLM(
        name="small",
        label="S",
        path="nowhere/small",
        chat=Chat(system="", user="USER: ", assistant=" ASSISTANT:", end="</s>"),
        pad_token="<unk>",
        max_length=128,
        precision=Precision.fp32,
        architecture=dict(LLAMA),
    )


@pytest.fixture
def small_vision() -> Vision:
    return Vision(
        name="small",
        label="s",
        path="nowhere/small",
        feature_layer=-2,
        tokens=Tokens.drop_first,
        unused=["post_layernorm"],
        image_size=16,
        resize=Resize.stretch,
        mean=[0.5, 0.5, 0.5],
        std=[0.5, 0.5, 0.5],
        partial_from_layer=2,
        architecture=dict(CLIP),
    )


@pytest.fixture
def mlp() -> dict[str, Any]:
    return {"name": "mlp", "_target_": "tinyvlm_cli.model.connectors.MLP", "depth": 2}


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Restore the level that a command set, so that the messages which later tests see do not depend on the order."""
    logger = logging.getLogger("tinyvlm_cli")
    before = logger.level
    yield
    logger.setLevel(before)
