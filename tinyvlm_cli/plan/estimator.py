"""Figures of many stages, worked out by a process of its own.

They take torch and transformers, whose import alone takes as long as Hydra takes for twenty configurations: one process
imports them while the other goes on composing.
"""

import gc
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Self

from tinyvlm_cli.config.commands import Plan
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.plan.figures import Estimate

if TYPE_CHECKING:
    from tinyvlm_cli.plan.estimate import Models


class Estimator:
    """The process, from `with` to the end of its block."""

    def __enter__(self) -> Self:
        self._process = ProcessPoolExecutor(max_workers=1, initializer=_get_ready)
        self._process.submit(_import)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown(cancel_futures=True)

    def ask(self, config: Plan, name: str) -> Future[Estimate]:
        """The figures of the recipe's stage `name`. The future's `result` waits for them; it may raise UserError."""
        return self._process.submit(_estimate, config, name)


def _get_ready() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the one that asks ends this one
    gc.disable()  # what imports and models make stays; looking for garbage in it takes a quarter of the time


def _import() -> None:
    _models()  # stays there: sending it back would import torch here


@cache
def _models() -> "Models":
    from tinyvlm_cli.plan.estimate import Models

    return Models()


def _estimate(config: Plan, name: str) -> Estimate:
    from tinyvlm_cli.plan.estimate import estimate, misset

    if findings := misset(config.engine):
        raise UserError("\n".join(findings))
    stage = config.recipe.stages[name]
    return estimate(config, stage, _models().sizes(config, name), mix=config.mixes.get(stage.split))
