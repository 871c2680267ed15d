"""Compositions that are made while Hydra composes another configuration."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, ListConfig, OmegaConf

from tinyvlm_cli.cli.config_files import TinyvlmSearchPath
from tinyvlm_cli.cli.explain import group_options
from tinyvlm_cli.config.build import conf_dir
from tinyvlm_cli.config.commands import Table
from tinyvlm_cli.errors import UserError, suggest


@cache
def compose_packaged(command: str, overrides: tuple[str, ...]) -> Any:
    """Compose a command's configuration from the packaged files only."""
    TinyvlmSearchPath.includes_own = False
    try:
        with _hydra():
            return OmegaConf.to_container(hydra.compose(command, list(overrides)), resolve=True)
    finally:
        TinyvlmSearchPath.includes_own = True


def insert_benchmarks(composed: DictConfig) -> None:
    """Replace the names in `evaluate.benchmarks` with the settings of these benchmarks, as in `tinyvlm eval`."""
    if not isinstance(composed.get("evaluate"), DictConfig) or (names := composed.evaluate.benchmarks) is None:
        return
    chosen = list(names) if isinstance(names, ListConfig) else [names]
    if not chosen or not all(isinstance(name, str) for name in chosen):
        raise UserError("evaluate.benchmarks: expected null, a name or a list of names, as in [pope,textvqa]")
    known = group_options("benchmark")
    if unknown := [name for name in chosen if name not in known]:
        raise UserError(f"evaluate.benchmarks: '{unknown[0]}' does not exist; {suggest(unknown[0], known)}")
    composed.evaluate.benchmarks = _benchmarks(tuple(chosen), composed.evaluate.eval_dir)


@cache
def _benchmarks(names: tuple[str, ...], eval_dir: str) -> Any:
    """Return the settings of benchmarks by name."""
    quoted = QuotedString(eval_dir, Quote.double).with_quotes()
    with _hydra():
        node = hydra.compose(None, [f"+benchmark=[{','.join(names)}]", f"+eval_dir={quoted}"])
        return OmegaConf.to_container(node.benchmark, resolve=True)


def default_tables() -> dict[str, Table]:
    """Return the tables from which `tinyvlm report` chooses by default."""
    with _hydra():
        node = hydra.compose(None, ["+table=auto"]).table
    schema = OmegaConf.structured(Table)
    return {name: cast("Table", OmegaConf.to_object(OmegaConf.merge(schema, one))) for name, one in node.items()}


@contextmanager
def _hydra() -> Iterator[None]:
    """Initialize Hydra for a composition, and restore the state of the outer one."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir()), job_name="tinyvlm", version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer
