"""LLaVA's evaluation folder."""

from pathlib import Path

from tinyvlm_cli.evaluate.benchmark import Question
from tinyvlm_cli.evaluate.official_files import read_lines


def llava_questions(path: Path, images: Path) -> list[Question]:
    """The questions of one of LLaVA's files, in its order; their ids serve as keys."""
    return [
        Question(
            key=str(line["question_id"]),
            question_id=str(line["question_id"]),
            text=line["text"],
            image=images / line["image"],
            image_key=line["image"],
            category=line.get("category", ""),
        )
        for line in read_lines(path, "question_id", "image", "text")
    ]


def first_of(*paths: Path) -> Path:
    """The first path that exists, else the last."""
    return next((path for path in paths if path.exists()), paths[-1])
