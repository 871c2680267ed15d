"""A run's folder with the files that the page reads, the data of a benchmark with images, and the data of a page."""

import base64
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from support.from_conf import node_of
from tinyvlm_cli.results.records import Run


def write_run(
    folder: Path, name: str, scores: dict[str, float], *, says: str, benchmark: str = "gqa", node: Any = None
) -> Run:
    """Write a run's folder. says: every answer; node: the content of benchmark.yaml."""
    here = folder / name / "eval/finetune" / benchmark
    here.mkdir(parents=True)
    (here / "per_question.json").write_text(json.dumps(scores), encoding="utf-8")
    lines = [json.dumps({"key": key, "prompt": f"What is {key}?", "text": says}) + "\n" for key in scores]
    (here / "answers-0.jsonl").write_text("".join(lines), encoding="utf-8")
    if node is not None:
        (here / "benchmark.yaml").write_text(yaml.safe_dump(node), encoding="utf-8")
    (folder / name / "config.yaml").write_text(f"llm: {{name: {name}, sizes: [1, 2]}}\n", encoding="utf-8")
    return Run(folder / name, name, "l", "v", "c", "d", "r", 0, {}, {"python": "3"})


def write_mmvet(folder: Path, images: dict[str, str], there: Iterable[str]) -> dict[str, Any]:
    """Write MM-Vet's files with one question for each key of `images`. Returns the content of benchmark.yaml.

    images: question -> the name of its image; there: the images that have a file.
    """
    (folder / "images").mkdir(parents=True)
    items = {
        key: {"imagename": image, "question": f"What is {key}?", "answer": "a truth", "capability": ["rec"]}
        for key, image in images.items()
    }
    (folder / "mm-vet.json").write_text(json.dumps(items), encoding="utf-8")
    for name in there:
        Image.new("RGB", (320, 240), "red").save(folder / "images" / name)
    return node_of("mmvet", folder)


def data_of(page: str) -> Any:
    """Return the data in a page's HTML."""
    packed = page.split('id="data">')[1].split("</script>", maxsplit=1)[0]
    return json.loads(gzip.decompress(base64.b64decode(packed)))
