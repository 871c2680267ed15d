"""Score rows and tables for tests of the report."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tinyvlm_cli.config.build import conf_dir, paper_dir
from tinyvlm_cli.config.commands import Table
from tinyvlm_cli.report.scores import all_scores
from tinyvlm_cli.report.sheet import Sheet
from tinyvlm_cli.report.tables import build
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import ScoreRow

PAPER = paper_dir() / "published_scores.csv"


def row(**changes: Any) -> ScoreRow:
    """Return a GQA score of the paper's smallest variant."""
    fields: dict[str, Any] = {
        "run": "r1", "name": "TinyLLaVA-base-C-TL", "llm": "tinyllama", "vision": "clip", "connector": "mlp",
        "data": "llava15", "recipe": "base", "seed": 0, "stage": "finetune", "benchmark": "gqa", "metric": "accuracy",
        "value": 58.4, "n": 10, "valid": 1.0, "follows": "eval.py", "version": 1, "split": "testdev", "images": "real",
    }  # fmt: skip
    return ScoreRow(**{**fields, **changes})


def table(name: str, **changes: Any) -> Table:
    """Return conf/table/<name>.yaml with changes."""
    node = OmegaConf.merge(OmegaConf.structured(Table), OmegaConf.load(conf_dir() / "table" / f"{name}.yaml"), changes)
    loaded = OmegaConf.to_object(node)
    assert isinstance(loaded, Table)
    return loaded


def built(name: str, rows: Iterable[ScoreRow], results: Path = Path("nowhere"), **changes: Any) -> Sheet:
    """Return the table of these rows and the published scores. changes: of the table; verbose: of the footnotes."""
    verbose = changes.pop("verbose", False)
    return build(name, table(name, **changes), all_scores(rows, PAPER), Results(results), verbose=verbose)


def texts(sheet: Sheet, first: str) -> dict[str, str]:
    """Return what the row with this first header says in each column; of several rows the last."""
    found = sheet.text[sheet.text[sheet.headers[0]] == first]
    return {column: str(found.iloc[-1][column]) for column in sheet.columns}


def ranks(sheet: Sheet, first: str, column: str) -> str:
    """Return "best", "second" or "" of a cell."""
    place = sheet.text.index[sheet.text[sheet.headers[0]] == first][-1]
    return str(sheet.ranks.loc[place, column])
