"""The report as a standalone HTML file: conclusions, tables, charts, answers, configurations and provenance.

The file contains its scripts, styles and data, and its Content Security Policy forbids every connection. Only the
scripts of this folder run, which the policy lists by their hashes. Data is compressed JSON that scripts show as text.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from tinyvlm_cli.report.answers import Sample, samples
from tinyvlm_cli.report.conclusions import conclusions
from tinyvlm_cli.report.costs import COSTS
from tinyvlm_cli.report.curves import Curve, Panels
from tinyvlm_cli.report.looks import COLOURS, DARK_COLOURS, DASHES, SYMBOLS, looks, models
from tinyvlm_cli.report.reproduction import command_lines
from tinyvlm_cli.report.scatter import Model
from tinyvlm_cli.report.scores import CHOICES, OURS
from tinyvlm_cli.report.sheet import MAIN, Compared, Kind, Sheet
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import REAL, Run, provenance

FOLDER = Path(__file__).parent
VENDOR = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
SCRIPTS = ("web/core.js", "web/tables.js", "web/charts.js", "web/answers.js", "web/runs.js", "web/main.js")
MAX_POINTS = 200  # approximate number of points per curve
DIGITS = 5  # of the values of curves


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything that the page shows."""

    sheets: Sequence[Sheet]
    runs: Sequence[Run]
    results: Results
    labels: Mapping[str, str] = field(default_factory=dict)  # benchmark -> label
    models: Sequence[Model] = ()
    curves: Mapping[Curve, Panels] = field(default_factory=dict)
    command: str = "tinyvlm report"  # that makes the page


def page(content: Content) -> str:
    """Return the HTML of the page. Raises UserError for invalid files in the results folder."""
    scripts = ["\n".join((FOLDER / name).read_text(encoding="utf-8") for name in group) for group in (VENDOR, SCRIPTS)]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sampled = samples(content.runs)
    packed = json.dumps(_data(content, sampled), ensure_ascii=True, separators=(",", ":")).encode()
    environment = Environment(loader=FileSystemLoader(FOLDER / "web"), autoescape=True, trim_blocks=True)
    text = environment.get_template("page.html.j2").render(
        policy=" ".join(f"'sha256-{one}'" for one in hashes),
        style=Markup((FOLDER / "web/page.css").read_text(encoding="utf-8")),
        colours=list(zip(COLOURS, DARK_COLOURS, strict=True)),
        scripts=[Markup(script) for script in scripts],
        data=base64.b64encode(gzip.compress(packed, 6, mtime=0)).decode(),
        summary=summary(content),
        conclusions=conclusions(content.sheets),
        sheets=[(sheet, _blocks(sheet), _filters(sheet)) for sheet in content.sheets],
        forests=[sheet for sheet in content.sheets if sheet.compared],
        has_scatter=any(model.costs and model.scores for model in content.models),
        curves=list(content.curves),
        has_answers=bool(sampled),
        runs=content.runs,
    )
    return text.encode("utf-8", "backslashreplace").decode()  # a name may contain unpaired surrogates


def summary(content: Content) -> list[str]:
    """Return what was compared, on what, and how many differences are significant: three sentences."""
    runs, names = content.runs, models(content.runs)
    if not runs:
        return ["Published scores. There are no runs in the results folder yet."]
    seeds = sorted({list(names.values()).count(name) for name in names.values()})
    per_model = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    values = {choice: list(dict.fromkeys(getattr(run, choice) for run in runs)) for choice in CHOICES}
    differ = [f"{choice} ({', '.join(of)})" for choice, of in values.items() if len(of) > 1]
    differ_in = f", which differ in {'; '.join(differ)}" if differ else ""
    counts: dict[str, int] = {}
    for frame in (sheet.records for sheet in content.sheets):
        own = frame[(frame["origin"] == OURS) & (frame["images"] == REAL)]
        for benchmark, n in zip(own["benchmark"], own["n"], strict=True):
            counts[benchmark] = max(counts.get(benchmark, 0), int(n))
    listed = ", ".join(f"{content.labels.get(name, name)} ({n:,})" for name, n in counts.items())
    tested = [one for sheet in content.sheets for one in sheet.compared]
    significant = sum(bool(one.verdict) for one in tested)
    num_models = _count(len(set(names.values())), "model")
    return [
        f"{num_models} in {_count(len(runs), 'run')} ({per_model} per model){differ_in}.",
        f"{_count(len(counts), 'benchmark')} with {sum(counts.values()):,} questions: {listed}."
        if counts else "No benchmark has been evaluated yet.",
        f"{significant} of {_count(len(tested), 'tested difference')} are beyond noise: significant at 5% after Holm's "
        "correction for all differences of a table. All intervals are 95%."
        if tested else "No difference was tested, because no two models differ in a single compared choice.",
    ]  # fmt: skip


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def configuration(run: Run) -> dict[str, str]:
    """Return a run's resolved configuration and software versions as a dict of dotted names and values."""

    def flat(node: Any, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                yield from flat(value, f"{name}.{key}" if name else str(key))
        else:
            yield name, json.dumps(node, ensure_ascii=False) if isinstance(node, list) else str(node)

    return dict([*flat(Results.read_config(run), ""), *flat(run.made_with, "made_with")])


def _data(content: Content, sampled: Sequence[Sample]) -> dict[str, Any]:
    """Return the data of the page's scripts, as plain values."""
    names = models(content.runs)
    found = looks(list(names.values()))
    pictures: dict[str, int] = {"": -1}
    answers = []
    for sample in sampled:
        questions = []
        for one in sample.questions:
            place = pictures.setdefault(one.picture, len(pictures) - 1)
            questions.append({**asdict(one), "picture": place})
        label = content.labels.get(sample.benchmark, sample.benchmark)
        answers.append({**asdict(sample), "label": label, "questions": questions})
    configurations = {run.folder.name: configuration(run) for run in content.runs}
    keys = list(dict.fromkeys(key for one in configurations.values() for key in one))
    values: dict[str, int] = {}
    scores, root = content.results.scores(), content.results.root
    commands = {
        sheet.name: command_lines(sheet, content.runs, scores, root, content.command) for sheet in content.sheets
    }
    return {
        "models": {name: [look.colour, look.style] for name, look in found.items()},
        "model_of": names,
        "symbols": SYMBOLS,
        "dashes": [" ".join(map(str, dash)) for dash in DASHES],
        "forests": {sheet.name: [_difference(one, names) for one in sheet.compared] for sheet in content.sheets},
        "scatter": {
            "costs": {key: asdict(cost) for key, cost in COSTS.items()},
            "labels": content.labels,
            "models": [
                {**asdict(model), "scores": {name: asdict(one) for name, one in model.scores.items()}}
                for model in content.models
            ],
        },
        "curves": [
            {"name": curve.name, "label": curve.label, "scale": curve.scale, "panels": _panels(panels)}
            for curve, panels in content.curves.items()
        ],
        "answers": answers,
        "pictures": [picture for picture in pictures if picture],
        "settings": keys,
        "configurations": {
            name: [values.setdefault(one[key], len(values)) if key in one else -1 for key in keys]
            for name, one in configurations.items()
        },
        "values": list(values),  # indexed by the configurations, which share most values
        "provenance": {"report": provenance(), "runs": [_provenance(run, content.results) for run in content.runs],
                       "commands": commands},
    }  # fmt: skip


def _difference(one: Compared, names: Mapping[str, str]) -> dict[str, Any]:
    found = one.difference
    return {
        "label": one.label, "context": one.context, "a": one.a, "b": one.b, "model": names.get(one.runs[0], one.b),
        "column": one.column, "unit": one.unit, "from": found.a, "to": found.b, "change": found.change,
        "low": found.low, "high": found.high, "p": found.p, "holm": one.p, "n": found.num_questions,
        "seeds": found.num_seeds, "verdict": one.verdict,
    }  # fmt: skip


def _panels(panels: Panels) -> list[dict[str, Any]]:
    """Return the panels of a curve, with about MAX_POINTS points per line."""
    found = []
    for title, lines in panels.items():
        thin = []
        for line in lines:
            steps, values = line.smoothed(MAX_POINTS)
            thin.append({"runs": line.runs, "steps": steps, "values": [float(f"{v:.{DIGITS}g}") for v in values]})
        found.append({"title": title, "lines": thin})
    return found


def _provenance(run: Run, results: Results) -> dict[str, Any]:
    """Return where a run's weights and scores come from."""
    stages = []
    for name, folder in run.stages.items():
        path = results.stage_dir(folder)
        stage = Results.read_stage(path)
        weights = {file: entry["sha256"] for file, entry in stage.weights.items()} if stage else {}
        data = str(stage.identity.get("data", "")) if stage else ""
        stages.append({"name": name, "folder": folder, "data": data, "weights": weights})
    made = {key: run.made_with.get(key) for key in ("time", "command", "commit", "python", "packages")}
    return {"run": run.folder.name, "made": {key: str(value) for key, value in made.items() if value}, "stages": stages}


def _filters(sheet: Sheet) -> list[tuple[int, str, list[str]]]:
    """Return the position, title and values of the header columns with several values, except the first column."""
    headers = sheet.text.loc[[kind in MAIN for kind in sheet.kinds], sheet.headers]
    values = [(place, title, sorted(set(headers[title]))) for place, title in enumerate(sheet.headers)]
    return [one for one in values if one[0] and len(one[2]) > 1]


def _blocks(sheet: Sheet) -> list[list[dict[str, Any]]]:
    """Return the rows in groups that stay together when the table is sorted.

    The best values are marked separately for our rows and for the published ones.
    """
    ranks = sheet.ranks.copy()
    scores = [title for title in sheet.columns if title not in sheet.cost_columns]
    for kind in (Kind.ours, Kind.published):
        is_kind = [one is kind for one in sheet.kinds]
        if any(is_kind):
            places = sheet.values.loc[is_kind, scores].rank(method="dense", ascending=False)
            ranks.loc[is_kind, scores] = places.map(lambda place: {1: "best", 2: "second"}.get(place, ""))
    blocks: list[list[dict[str, Any]]] = []
    rows = zip(sheet.kinds, sheet.text.to_numpy(), sheet.values.to_numpy(), ranks.to_numpy(), sheet.tips, strict=True)
    width = len(sheet.headers)
    for kind, texts, values, marks, tips in rows:
        cells = [
            {"text": text, "value": None if np.isnan(value) else value, "rank": rank, "tip": tip}
            for text, value, rank, tip in zip(texts[width:], values.tolist(), marks, tips, strict=True)
        ]
        if kind in MAIN or not blocks:
            blocks.append([])
        blocks[-1].append({"kind": kind.value, "headers": texts[:width], "cells": cells})
    return blocks
