"""The report as a standalone HTML file: tables, charts, configurations, and disagreements between two runs."""

import base64
import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader

from tinyvlm_cli.config.build import build, is_trusted
from tinyvlm_cli.data.images import open_image
from tinyvlm_cli.evaluate.benchmark import Benchmark
from tinyvlm_cli.report.sheet import MAIN, Sheet
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run
from tinyvlm_cli.untrusted import read_yaml

log = logging.getLogger(__name__)

MAX_QUESTIONS = 200  # per benchmark
MAX_CHARACTERS = 600  # per prompt or answer
SEED = 0
THUMBNAIL_SIDE = 112  # longer side in pixels
JPEG_QUALITY = 60
# A results folder may come from someone else, so its benchmark.yaml may only build one of our benchmarks.
OUR_BENCHMARKS = "tinyvlm_cli.evaluate.benchmarks."


def page(sheets: Sequence[Sheet], runs: Sequence[Run], *, charts: Iterable[tuple[str, str]]) -> str:
    """Return the HTML of the page. charts: (title, SVG) pairs."""
    environment = Environment(loader=PackageLoader("tinyvlm_cli.report", "."), autoescape=True)
    questions, pictures = disagreements(runs)
    configurations = {run.folder.name: configuration(run) for run in runs}
    data = {"runs": configurations, "questions": questions, "pictures": pictures}
    tables = []
    for sheet in sheets:
        headers = sheet.text.loc[[kind in MAIN for kind in sheet.kinds], sheet.headers]
        values = [(place, title, sorted(set(headers[title]))) for place, title in enumerate(sheet.headers)]
        filters = [one for one in values if one[0] and len(one[2]) > 1]  # headers with several values, except the first
        tables.append((sheet, _blocks(sheet), filters))
    text = environment.get_template("web/page.html.j2").render(
        sheets=tables,
        charts=list(charts),
        # In a script element, "</script" ends the element and "<!--<script" hides its end.
        data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
        runs=list(configurations),
    )
    return text.encode("utf-8", "backslashreplace").decode()  # a name may contain unpaired surrogates


def configuration(run: Run) -> dict[str, str]:
    """Return a run's resolved configuration and software versions as a dict of dotted names and values."""

    def flat(node: Any, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                yield from flat(value, f"{name}.{key}" if name else str(key))
        else:
            yield name, json.dumps(node, ensure_ascii=False) if isinstance(node, list) else str(node)

    return dict([*flat(Results.read_config(run), ""), *flat(run.made_with, "made_with")])


def disagreements(runs: Sequence[Run]) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Return for each benchmark the questions whose scores differ between runs, and a list of all their pictures.

    At most MAX_QUESTIONS per benchmark, drawn at random. A question has its key, its prompt, a (score from 0 to 1,
    answer) pair for each run that answered it, and the index of its picture, or None.
    """
    folders: dict[str, dict[str, Path]] = {}  # benchmark -> run folder -> folder of its answers
    for run in runs:
        for benchmark, folder in Results.answered(run).items():
            folders.setdefault(benchmark, {})[run.folder.name] = folder
    found = {}
    pictures: dict[str, int] = {}
    for benchmark, of_runs in folders.items():
        scores = {name: Results.read_per_question(folder) for name, folder in of_runs.items()}
        everything = list(dict.fromkeys(key for of_run in scores.values() for key in of_run))
        drawn = (everything[place] for place in np.random.default_rng(SEED).permutation(len(everything)))
        differing = (key for key in drawn if len({of_run[key] for of_run in scores.values() if key in of_run}) > 1)
        if not (keys := list(islice(differing, MAX_QUESTIONS))):
            continue
        answers = {name: Results.find_answers(folder, keys) for name, folder in of_runs.items()}
        images = thumbnails(list(of_runs.values()), set(keys))
        questions = []
        for key in keys:
            given = {name: answer for name, of_run in answers.items() if (answer := of_run.get(key))}
            prompts = [answer.prompt for answer in given.values() if answer.prompt]
            texts = {name: given[name].text[:MAX_CHARACTERS] if name in given else "" for name in scores}
            questions.append(
                {
                    "key": key,
                    "prompt": prompts[0][:MAX_CHARACTERS] if prompts else "",
                    "runs": {name: (of_run[key], texts[name]) for name, of_run in scores.items() if key in of_run},
                    "picture": pictures.setdefault(images[key], len(pictures)) if key in images else None,
                }
            )
        found[benchmark] = questions
    return found, list(pictures)


def thumbnails(folders: Sequence[Path], keys: set[str]) -> dict[str, str]:
    """Return the questions' images as data URIs, by Question.key, without missing and unreadable images.

    folders: answer folders of one benchmark, each with or without a benchmark.yaml.
    """
    found: dict[str, str] = {}
    tried = set()
    for path in (folder / "benchmark.yaml" for folder in folders):
        try:
            node = read_yaml(path, "no images are shown") if path.is_file() else None
            if (text := repr(node)) not in tried:
                tried.add(text)
                found.update(_pictures(node, keys - found.keys()))
        except (ValueError, OSError) as error:
            log.info("%s: the page shows no images for this benchmark: %s", path, error)
    return found


def _pictures(node: Any, keys: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the keys and pictures of one benchmark's questions, opening each image only once.

    node: a resolved benchmark configuration, or any other content of a YAML file.
    """
    target = str(node.get("_target_")) if isinstance(node, dict) else ""
    if not keys or not (target.startswith(OUR_BENCHMARKS) or is_trusted(target.rpartition(".")[0])):
        return
    pictures: dict[str, str] = {}  # "" for an image that cannot be read
    # In file order, as adjacent rows of a parquet file are read together.
    for question in build(node, Benchmark).questions:
        if question.key not in keys or question.image is None:
            continue
        if question.image_key not in pictures:
            try:
                image = open_image(question.encoded()[0])
                image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
                file = io.BytesIO()
                image.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
                uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
            except (ValueError, OSError):  # UserError is a ValueError
                uri = ""
            pictures[question.image_key] = uri
        if pictures[question.image_key]:
            yield question.key, pictures[question.image_key]
    if unreadable := list(pictures.values()).count(""):
        log.info("%s: %d of %d images could not be read for the page", node.get("name"), unreadable, len(pictures))


def _blocks(sheet: Sheet) -> list[list[dict[str, Any]]]:
    """Return the rows in groups that stay together when the table is sorted."""
    blocks: list[list[dict[str, Any]]] = []
    for kind, texts, values, ranks in zip(
        sheet.kinds, sheet.text.to_numpy(), sheet.values.to_numpy(), sheet.ranks.to_numpy(), strict=True
    ):
        width = len(sheet.headers)
        cells = [
            {"text": text, "value": None if np.isnan(value) else value, "rank": rank}
            for text, value, rank in zip(texts[width:], values.tolist(), ranks, strict=True)
        ]
        if kind in MAIN or not blocks:
            blocks.append([])
        blocks[-1].append({"kind": kind.value, "headers": texts[:width], "cells": cells})
    return blocks
