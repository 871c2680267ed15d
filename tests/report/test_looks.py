"""Colours that colour-blind readers can tell apart, and one look per model."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tinyvlm_cli.report.looks import COLOURS, DARK_COLOURS, looks, models
from tinyvlm_cli.results.records import Run

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def linear(colour: str) -> NDArray[np.float64]:
    values = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    xyz = np.array(XYZ) @ rgb.clip(0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", [COLOURS, DARK_COLOURS], ids=["light", "dark"])
def test_all_colours_differ_visibly(palette: tuple[str, ...], vision: str) -> None:
    seen = [lab(np.array(VISION[vision]) @ linear(colour)) for colour in palette]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) > 13


def test_the_looks_of_28_models_differ() -> None:
    assert len({(look.colour, look.style) for look in looks([str(number) for number in range(28)]).values()}) == 28


def test_seeds_are_one_model_unless_another_choice_differs() -> None:
    def run(folder: str, name: str, llm: str, seed: int) -> Run:
        return Run(Path(folder), name, llm, "v", "c", "d", "r", seed, {}, {})

    runs = [run("a0", "a", "l", 0), run("a1", "a", "l", 1), run("b0", "b", "l", 0), run("b1", "b", "m", 0)]
    assert models(runs) == {"a0": "a", "a1": "a", "b0": "b0", "b1": "b1"}
