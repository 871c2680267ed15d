"""Configurations in results folders of earlier versions name classes by the modules that they were in then."""

import pytest

from tinyvlm_cli.config.build import build
from tinyvlm_cli.model.connectors import Connector

SIZES = {"hidden_dim": 8, "num_heads": 2, "num_queries": 3, "num_layers": 1}
FORMER = {  # written by 3c652ba
    "tinyvlm_cli.model.connectors.Identity": {},
    "tinyvlm_cli.model.connectors.Linear": {},
    "tinyvlm_cli.model.connectors.MLP": {"depth": 2},
    "tinyvlm_cli.model.connectors.MoFMLP": {"depth": 2},
    "tinyvlm_cli.model.resamplers.Perceiver": {"head_dim": 4, "num_heads": 2, "num_queries": 3, "num_layers": 1},
    "tinyvlm_cli.model.resamplers.QFormer": SIZES,
    "tinyvlm_cli.model.resamplers.Resampler": SIZES,
}


@pytest.mark.parametrize("target", FORMER)
def test_a_connector_of_an_earlier_version_is_built(target: str) -> None:
    connector = build({"name": "old", "_target_": target, **FORMER[target]}, Connector, vision_dim=6, llm_dim=6)
    assert type(connector).__name__ == target.rpartition(".")[2]
