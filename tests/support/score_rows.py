"""Score rows and tables for tests of the report."""

from typing import Any

from omegaconf import OmegaConf

from tinyvlm_cli.config.build import conf_dir
from tinyvlm_cli.config.commands import Table
from tinyvlm_cli.report.sheet import Line, Sheet
from tinyvlm_cli.results.records import ScoreRow


def row(**changes: Any) -> ScoreRow:
    """A GQA score of the paper's smallest variant."""
    fields: dict[str, Any] = {
        "run": "r1", "name": "TinyLLaVA-base-C-TL", "llm": "tinyllama", "vision": "clip", "connector": "mlp",
        "data": "llava15", "recipe": "base", "seed": 0, "stage": "finetune", "benchmark": "gqa", "metric": "accuracy",
        "value": 58.4, "n": 10, "valid": 1.0, "follows": "eval.py", "version": 1, "split": "testdev", "images": "real",
    }  # fmt: skip
    return ScoreRow(**{**fields, **changes})


def table(name: str, **changes: Any) -> Table:
    """conf/table/<name>.yaml."""
    node = OmegaConf.merge(OmegaConf.structured(Table), OmegaConf.load(conf_dir() / "table" / f"{name}.yaml"), changes)
    loaded = OmegaConf.to_object(node)
    assert isinstance(loaded, Table)
    return loaded


def lines(sheet: Sheet) -> dict[str, Line]:
    """The lines by their first head; of equal ones the last."""
    return {line.heads[0]: line for section in sheet.sections for line in section}


def texts(sheet: Sheet, head: str) -> dict[str, str]:
    """What the line says in each column."""
    return dict(zip(sheet.columns, (cell.text for cell in lines(sheet)[head].cells), strict=True))
