"""Where a benchmark's files lie in LLaVA's evaluation folder, and what is said when they do not."""

from collections.abc import Iterable
from pathlib import Path

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Answer, Question
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
    """The first path that exists, else the first."""
    return next((path for path in paths if path.exists()), paths[0])


def need(path: Path, source: str) -> Path:
    """`path`, which is there."""
    if not path.is_file():
        raise UserError(f"{path} is not there; get {source}")
    return path


def lacking(paths: Iterable[Path], source: str) -> list[str]:
    """A line for each file that is not there."""
    return [f"{path} is not there; get {source}" for path in paths if not path.exists()]


def lacking_images(questions: Iterable[Question], source: str) -> list[str]:
    """One line when images are not there, with their number and the first."""
    images = {question.image for question in questions if isinstance(question.image, Path)}
    absent = sorted(image for image in images if not image.exists())
    return [f"{len(absent)} images are not there (first: {absent[0]}); get {source}"] if absent else []


def are_ours(answers: Iterable[Answer]) -> bool:
    """Whether `tinyvlm eval` wrote all the answers: it leaves the last questions out only when told to by `limit=`."""
    return all(answer.key for answer in answers)
