"""Footnotes: the information required to interpret a table."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from tinyvlm_cli.config.commands import Column, Table
from tinyvlm_cli.report.sheet import PLUS_MINUS
from tinyvlm_cli.results.records import REAL
from tinyvlm_cli.statistics.intervals import INTERVALS, SEEDS

MAX_READABLE = 5  # rows whose share of readable answers a footnote lists


def footnotes(  # noqa: PLR0917
    name: str, table: Table, columns: Sequence[Column], cited: pd.DataFrame, shown: pd.DataFrame,
    limited: pd.DataFrame, *, verbose: bool,
) -> list[str]:  # fmt: skip
    """Return the table's own footnotes, then those on published scores, then those on our scores.

    cited, shown: published scores and our scores in the table's columns. limited: our scores on only part of the
    questions. verbose: also report where published scores were found, with remarks on them.
    """
    found = [*table.footnotes, *_on_published(cited, verbose=verbose)]
    if cited.empty and shown.empty:
        found.append("No run has scores for this table; train a run (`tinyvlm train`) and evaluate it (`tinyvlm eval`)")
    own_rows = [row for _, row in shown.groupby("row")]
    if table.intervals and shown["low"].notna().any():
        found += [INTERVALS, *([SEEDS] if any(row["seed"].nunique() > 1 for row in own_rows) else [])]
    found += _on_scoring(columns, shown, ", ours" if len(cited) else "")
    found += _on_readable(columns, shown)
    found += _on_training(shown)
    if "not judged" in set(shown["state"]):
        found.append(
            "not judged: no judge was set, or none of its replies could be read; run `tinyvlm eval` again with "
            "judge.model=MODEL"
        )
    found += _on_stops(shown[shown["state"] == "stopped"])
    if "pending" in set(shown["state"]):
        found.append("pending: some answers have not been judged yet; run the same `tinyvlm eval` again")
    found += _on_seeds(columns, own_rows)
    for _, scores in shown[shown["clash"]].groupby(["name", "stage", "seed"], sort=False):
        runs, one = list(scores["run"].unique()), scores.iloc[0]
        found.append(
            f"{' and '.join(runs)} have the same name ({one['name']}), stage and seed, so each has its own row; "
            f"compare their config.yaml, or choose one with table.{name}.runs.run={runs[0]}"
        )
    if len(limited):
        names = ", ".join(limited["run"].unique())
        count = "1 score" if len(limited) == 1 else f"{len(limited)} scores"
        found.append(f"Omitted: {count} of {names}, because only the first questions were asked (limit)")
    return found


def _on_published(cited: pd.DataFrame, *, verbose: bool) -> list[str]:
    """Return the sources and caveats of published scores, and with `verbose` also where they were found."""
    if cited.empty:
        return []
    sources = dict.fromkeys(part for source in cited["source"] for part in source.split("; "))
    found = [f"Published scores: {'; '.join(sources)}"]
    for field in ("caveat", "note") if verbose else ("caveat",):
        models: dict[str, dict[str, None]] = defaultdict(dict)
        for name, text in zip(cited["name"], cited[field], strict=True):
            for part in filter(None, text.split("; ")):
                models[part][name] = None
        found += [f"{', '.join(names)}: {part}" for part, names in models.items()]
    if (cited["seen_in_training"] != "").any():
        found.append("* according to the publication, the model was trained on this benchmark's training set")
    return found


def _on_scoring(columns: Sequence[Column], shown: pd.DataFrame, suffix: str) -> list[str]:
    """Return footnotes on the metric, split and scorer of each benchmark, then on the judges."""
    rules, judges = [], []
    labels: dict[str, str] = {}
    for column in columns:
        labels.setdefault(column.benchmark, column.label + suffix)
    for benchmark, label in labels.items():
        scores = shown[shown["benchmark"] == benchmark]
        by_rule = scores[["metric", "split", "follows", "version"]].drop_duplicates()
        if len(by_rule):
            texts = [f"{r.metric} on {r.split}, follows {r.follows}, version {r.version}" for r in by_rule.itertuples()]
            warning = " (runs differ: not comparable)" if len(texts) > 1 else ""
            rules.append(f"{label}: {' / '.join(texts)}{warning}")
        judged = scores[scores["judge"] != ""]
        texts = list(dict.fromkeys(map(_judge, judged["judge"], judged["details"])))
        if texts:
            judges.append(f"{label}: {' / '.join(texts)}")
    return rules + judges


def _on_readable(columns: Sequence[Column], shown: pd.DataFrame) -> list[str]:
    """Return a footnote for each benchmark in which answers are missing or unreadable, with the lowest shares first."""
    found = []
    labels = {column.benchmark: column.label for column in reversed(columns) if not column.detail}
    scores = shown[shown["value"].notna() & (shown["images"] == REAL) & (shown["detail"] == "")]
    is_partial = scores["details"].map(lambda details: isinstance(details, dict) and details.get("partial") is True)
    marked = scores[(scores["valid"] < 1) | is_partial].assign(partial=is_partial).sort_values("valid", kind="stable")
    for benchmark, rows in marked.groupby("benchmark", sort=False):
        texts = []
        for row in rows.drop_duplicates("row").to_dict("records"):  # of several seeds, the one with the lowest share
            share = math.floor(1000 * row["valid"]) / 10  # 99.98% is not shown as 100.0%
            missing = ", some without an answer" if row["partial"] else ""
            texts.append(f"{row['shown']} {share:.1f}% of {row['n']:,} answers{missing}")
        more = f"; and {len(texts) - MAX_READABLE} more rows" if len(texts) > MAX_READABLE else ""
        found.append(f"{labels[str(benchmark)]}, readable: {'; '.join(texts[:MAX_READABLE])}{more}")
    return found


def _on_training(shown: pd.DataFrame) -> list[str]:
    """Return a footnote for each warning about the training of the models, with the rows that it concerns."""
    concerned: dict[str, dict[str, None]] = defaultdict(dict)
    for name, warnings in zip(shown["shown"], shown["warnings"], strict=True):
        for warning in warnings if isinstance(warnings, list) else ():
            concerned[warning][name] = None
    return [f"{', '.join(names)}: {warning}" for warning, names in concerned.items()]


def _on_stops(stopped: pd.DataFrame) -> list[str]:
    """Return a footnote for each run whose training was stopped early, see `evaluate.stop`."""
    found = {}
    for row in stopped.to_dict("records"):
        reason = row["details"].get("stopped") if isinstance(row["details"], dict) else None
        reason = reason if isinstance(reason, dict) else {}
        step, steps, behind, margin, alpha = (
            str(reason.get(key, "?")) for key in ("step", "steps", "behind", "margin", "alpha")
        )
        found[row["run"]] = (
            f"{row['run']}: stopped, not trained to the end: after step {step} of {steps}, it was more than {margin} "
            f"points behind {behind} (sequential test, error rate {alpha})"
        )
    return list(found.values())


def _judge(judge: str, details: dict[str, Any]) -> str:
    """Return a description of the judge and protocol of a score."""
    reply = details.get("judge")
    reply = reply if isinstance(reply, dict) else {}
    served = [name for name in reply.get("served", []) if name != judge]
    text = f"judged by {judge}" + (f" (served as {', '.join(served)})" if served else "")
    if "without" in reply:
        text += f", which does not support {', '.join(reply['without'])},"
    protocol = details.get("protocol")
    if protocol == "tinyvlm":
        return f"{text} with tinyvlm's own prompt, not comparable with published scores"
    return f"{text}, {protocol} protocol" if protocol else text


def _on_seeds(columns: Sequence[Column], own_rows: Sequence[pd.DataFrame]) -> list[str]:
    """Return footnotes on rows that are means over seeds, with the columns that have scores for fewer seeds."""
    alike: dict[str, list[str]] = {}
    for row in own_rows:
        seeds = sorted(row["seed"].unique())
        if len(seeds) < 2:
            continue
        text = f"mean {PLUS_MINUS} standard deviation of {len(seeds)} seeds ({', '.join(map(str, seeds))})"
        scored = row[row["images"] == REAL].groupby("column")["value"].count()
        fewer = [column.label for column in columns if 0 < scored.get(column.label, 0) < len(seeds)]
        parts = [text, ", ".join(f"{scored[label]} of {len(seeds)} seeds for {label}" for label in fewer)]
        alike.setdefault("; ".join(part for part in parts if part), []).append(row["shown"].iloc[0])
    if len(alike) == 1 and sum(map(len, alike.values())) == len(own_rows) > 1:
        return [f"All our rows: {next(iter(alike))}"]
    return [f"{', '.join(names)}: {text}" for text, names in alike.items()]
