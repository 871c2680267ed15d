"""easy-VQA's test images as multiple choice: ScienceQA and MMBench."""

import base64
import csv
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tinyvlm_cli.demo.easyvqa_files import copy_image, write_json
from tinyvlm_cli.demo.easyvqa_source import Picture
from tinyvlm_cli.demo.easyvqa_text import LETTERS, choice_text, options_of

ROTATION = 1_000_000  # added to a question's index for each rotation of its options
MMBENCH_COLUMNS = (
    "index", "question", "hint", *LETTERS, "answer", "category", "image", "source", "l2-category", "comment", "split"
)  # fmt: skip
KINDS = ("colour", "shape")


def write_scienceqa(pictures: Sequence[Picture], folder: Path) -> None:
    """60 questions with an image each, every second one about colour."""
    draw = random.Random("scienceqa")
    problems, asked = {}, []
    for number, picture in enumerate(draw.sample(pictures, 60), 1):
        key, image = str(number), f"{number}/image.png"
        question, options, answer = options_of(picture, KINDS[number % 2], draw)
        copy_image(picture, folder / "images" / "test" / image)
        problems[key] = {
            "question": question,
            "choices": options,
            "answer": options.index(answer),
            "hint": "",
            "image": "image.png",
            "subject": "natural science",
            "grade": "grade1",
        }
        text = f"<image>\n{choice_text(question, options)}"
        asked.append({"id": key, "image": image, "conversations": [{"from": "human", "value": text}]})
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"test": list(problems)})
    write_json(folder / "llava_test_CQM-A.json", asked)


def write_mmbench(pictures: Sequence[Picture], folder: Path) -> None:
    """40 questions with every rotation of their options: 20 of four about colour, 20 of three about shape."""
    folder.mkdir(parents=True)
    draw = random.Random("mmbench")
    chosen = draw.sample(pictures, 40)
    with (folder / "mmbench_dev_20230712.tsv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, MMBENCH_COLUMNS, delimiter="\t", restval="")
        table.writeheader()
        for index, picture in enumerate(chosen):
            table.writerows(_rotations(index, picture, KINDS[index % 2], draw))


def _rotations(index: int, picture: Picture, kind: str, draw: random.Random) -> Iterator[dict[str, Any]]:
    question, options, answer = options_of(picture, kind, draw)
    for turned in range(len(options)):
        rotated = options[turned:] + options[:turned]
        yield {
            "index": index + turned * ROTATION,
            "question": question,
            **dict(zip(LETTERS, rotated, strict=False)),
            "answer": LETTERS[rotated.index(answer)],
            "category": "attribute_recognition" if kind == "colour" else "object_localization",
            "l2-category": "finegrained_perception (instance-level)",
            "image": base64.b64encode(picture.file.read_bytes()).decode(),
            "source": "easy-vqa",
            "split": "dev",
        }
