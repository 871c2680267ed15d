"""The report as one HTML file that opens from disk: tables, charts, configurations, and where two runs disagree."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader

from tinyvlm_cli.report.sheet import Kind, Line, Sheet
from tinyvlm_cli.report.thumbnails import thumbnails
from tinyvlm_cli.results.records import Run

MAIN = (Kind.published, Kind.ours, Kind.benchmark)  # a line of another kind belongs to the one above it
MOST = 200  # questions of a benchmark in the page
LONGEST = 600  # characters of a prompt or an answer
SEED = 0
KEY = re.compile(rb'"key": ("(?:[^"\\\\]|\\\\.)*")')  # of an answer's line


def page(sheets: Sequence[Sheet], runs: Sequence[Run], *, charts: Iterable[tuple[str, str]]) -> str:
    """The file's text. charts: title and SVG of each"""
    template = Environment(loader=PackageLoader("tinyvlm_cli.report", "."), autoescape=True).get_template(
        "page.html.j2"
    )
    questions, pictures = disagreements(runs)
    data = {
        "runs": {run.folder.name: configuration(run) for run in runs},
        "questions": questions,
        "pictures": pictures,
    }
    return template.render(
        sheets=[(sheet, _blocks(sheet), _choices(sheet)) for sheet in sheets],
        charts=list(charts),
        # Inside of a script element nothing but its end is special.
        data=json.dumps(data, ensure_ascii=False).replace("</", "<\\/"),
        runs=[run.folder.name for run in runs],
    )


def configuration(run: Run) -> dict[str, str]:
    """A run's resolved configuration and versions, as dotted names and values."""
    found: dict[str, str] = {}
    path = run.folder / "config.yaml"
    if path.is_file():
        _flatten(yaml.safe_load(path.read_text(encoding="utf-8")), "", found)
    _flatten(run.made_with, "made_with.", found)
    return found


def disagreements(runs: Sequence[Run]) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Benchmark -> questions whose scores are not the same for all runs, and the pictures of them all.

    At most MOST questions of each benchmark, drawn at random. A question has its prompt, for each run that was asked
    it (score 0..1, answer), and its picture's place among the pictures, or none.
    """
    found = {}
    pictures: dict[str, int] = {}
    for benchmark, of_runs in _folders(runs).items():
        scores = {name: json.loads((path / "per_question.json").read_text("utf-8")) for name, path in of_runs.items()}
        if keys := _differing(list(scores.values())):
            texts = {name: _answers(path, keys) for name, path in of_runs.items()}
            images = thumbnails(list(of_runs.values()), set(keys))
            numbers = {key: pictures.setdefault(images[key], len(pictures)) for key in keys if key in images}
            found[benchmark] = [{**_question(key, scores, texts), "picture": numbers.get(key)} for key in keys]
    return found, list(pictures)


def _folders(runs: Sequence[Run]) -> dict[str, dict[str, Path]]:
    """Benchmark -> run folder's name -> where the answers of its last stage that was asked lie."""
    folders: dict[str, dict[str, Path]] = {}
    for run in runs:
        order = {stage: place for place, stage in enumerate(run.stages)}
        paths = sorted(run.folder.glob("eval/*/*/per_question.json"))
        for path in sorted(paths, key=lambda path: order.get(path.parts[-3], -1)):
            if "." not in path.parent.name:  # not a blind control
                folders.setdefault(path.parent.name, {})[run.folder.name] = path.parent
    return folders


def _differing(scores: Sequence[dict[str, float]]) -> list[str]:
    """Keys with more than one score, drawn at random."""
    everything = list(dict.fromkeys(key for one in scores for key in one))
    chosen = []
    for place in np.random.default_rng(SEED).permutation(len(everything)):
        key = everything[place]
        if len({one[key] for one in scores if key in one}) > 1:
            chosen.append(key)
            if len(chosen) == MOST:
                break
    return chosen


def _question(
    key: str, scores: dict[str, dict[str, float]], texts: dict[str, dict[str, tuple[str, str]]]
) -> dict[str, Any]:
    prompts = [prompt for answers in texts.values() for prompt, _ in [answers.get(key, ("", ""))] if prompt]
    said = {name: (values[key], texts[name].get(key, ("", ""))[1]) for name, values in scores.items() if key in values}
    return {"key": key, "prompt": prompts[0] if prompts else "", "runs": said}


def _answers(folder: Path, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Prompt and answer of the questions with these keys. The other lines, mostly many more, are not parsed."""
    wanted = {json.dumps(key, ensure_ascii=False).encode() for key in keys}
    found = {}
    for path in sorted(folder.glob("answers-*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                match = KEY.search(line)
                if match and match[1] in wanted:
                    record = json.loads(line)
                    found[record["key"]] = (record["prompt"][:LONGEST], record["text"][:LONGEST])
    return found


def _blocks(sheet: Sheet) -> list[list[Line]]:
    """Lines that stay together when the table is sorted."""
    blocks: list[list[Line]] = []
    for section in sheet.sections:
        for line in section:
            if line.kind in MAIN or not blocks:
                blocks.append([line])
            else:
                blocks[-1].append(line)
    return blocks


def _choices(sheet: Sheet) -> list[tuple[int, str, list[str]]]:
    """Place and title of the heads that a reader can filter by, with their values: all but the name."""
    mains = [line for section in sheet.sections for line in section if line.kind in MAIN]
    values = [sorted({line.heads[place] for line in mains}) for place in range(len(sheet.heads))]
    return [(place, sheet.heads[place], known) for place, known in enumerate(values) if place and len(known) > 1]


def _flatten(node: Any, name: str, into: dict[str, str]) -> None:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            _flatten(value, f"{name}{key}.", into)
    else:
        into[name.rstrip(".")] = json.dumps(node, ensure_ascii=False) if isinstance(node, list) else str(node)
