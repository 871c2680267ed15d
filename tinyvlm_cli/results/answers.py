"""The files in a folder of answers: the answers in LLaVA's format, and the score of each question."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import append_jsonl, read_jsonl, write_text
from tinyvlm_cli.results.records import Answer, Run
from tinyvlm_cli.untrusted import JSON_ERRORS, check_file, read_text

ANSWER_KEY = re.compile(rb'"key": ("[^"\\]*+(?:\\.[^"\\]*+)*+")')  # in a line of an answers file
ANSWER_FIELDS = ("question_id", "prompt", "text", "key")


def append_answers(
    answers_dir: Path, rank: int, answers: Iterable[Answer], *, model_id: str, max_new_tokens: int,
    images: Mapping[str, Any] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Append answers in LLaVA's format to the file of this rank. images: Question.key -> state of its image."""
    records = []
    for answer in answers:
        metadata = {"max_new_tokens": max_new_tokens}
        if answer.key in images:
            metadata["image"] = images[answer.key]
        records.append(asdict(answer) | {"answer_id": answer.key, "model_id": model_id, "metadata": metadata})
    append_jsonl(answers_dir / f"answers-{rank}.jsonl", *records)


def existing_answers(
    answers_dir: Path, asked: dict[str, str], *, max_new_tokens: int,
    is_current: Callable[[str, Any], bool] = lambda key, image: True,
) -> dict[str, Answer]:  # fmt: skip
    """Return the existing answers, by Question.key.

    asked: Question.key -> text of the question. Answers to a different text or with a different token limit are
    ignored. is_current: returns whether the image of a question is still in its recorded state. It is not called for
    answers of earlier versions, which have no recorded state.
    """
    answers: dict[str, Answer] = {}
    for path in sorted(answers_dir.glob("answers-*.jsonl")):
        for record in read_jsonl(path):
            try:
                question_id, prompt, text, key = (_text_of(record, name) for name in ANSWER_FIELDS)
                answer = Answer(question_id, prompt, text, key)
                limit, metadata = record["metadata"]["max_new_tokens"], record["metadata"]
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path}: an answer has no valid field {error}; delete the file to answer again"
                ) from None
            is_same = asked.get(answer.key) == answer.prompt and limit == max_new_tokens
            if is_same and ("image" not in metadata or is_current(answer.key, metadata["image"])):
                answers[answer.key] = answer
    return answers


def answered_benchmarks(run: Run) -> dict[str, Path]:
    """Return the folder of answers for each benchmark, from the last stage that was evaluated on it."""
    order = {stage: place for place, stage in enumerate(run.stages)}
    paths = sorted(
        run.folder.glob("eval/*/*/per_question.json"), key=lambda path: (order.get(path.parts[-3], -1), path)
    )
    return {path.parent.name: path.parent for path in paths if "." not in path.parent.name}  # no blind controls


def write_per_question(answers_dir: Path, scores: dict[str, float], benchmark: dict[str, Any]) -> None:
    """Write the score of each question, from 0 to 1, by Question.key, and the configuration of the benchmark."""
    write_text(answers_dir / "per_question.json", json.dumps(scores))
    write_text(answers_dir / "benchmark.yaml", yaml.safe_dump(benchmark, sort_keys=False))


def read_per_question(answers_dir: Path) -> dict[str, float]:
    """Return the score of each question, from 0 to 1, by Question.key."""
    path = answers_dir / "per_question.json"
    text = read_text(path, "delete it and run `tinyvlm eval` again")
    try:
        return {key: float(score) for key, score in json.loads(text).items()}
    except (*JSON_ERRORS, TypeError, AttributeError, OverflowError):
        raise UserError(f"{path}: not valid per-question results; delete it and run `tinyvlm eval` again") from None


def find_answers(answers_dir: Path, keys: Iterable[str] | None = None) -> dict[str, Answer]:
    """Return the answers with these keys, without parsing the other lines, which are usually far more numerous.

    keys: None for all answers.
    """
    wanted = None
    if keys is not None:  # other programs escape characters beyond ASCII
        texts = (json.dumps(key, ensure_ascii=is_ascii) for key in keys for is_ascii in (False, True))
        wanted = {text.encode("utf-8", "surrogatepass") for text in texts}
    found = {}
    for path in sorted(answers_dir.glob("answers-*.jsonl")):
        check_file(path)
        data = path.read_bytes()
        ends = [match.end() for match in ANSWER_KEY.finditer(data) if wanted is None or match[1] in wanted]
        for line in (data[data.rfind(b"\n", 0, end) + 1 : data.find(b"\n", end) + 1 or None] for end in ends):
            with suppress(*JSON_ERRORS, KeyError):  # incomplete line of a killed process
                record = json.loads(line)
                prompt, text = str(record.get("prompt", "")), str(record.get("text", ""))
                key = _text_of(record, "key")
                found[key] = Answer(record.get("question_id", ""), prompt, text, key)
    return found


def _text_of(record: dict[str, Any], name: str) -> Any:
    """Return a field of an answer, which is a string; `question_id` may also be a number, as in LLaVA's files."""
    value = record[name]
    if not isinstance(value, str) and not (name == "question_id" and type(value) is int):
        raise ValueError(f"'{name}'")
    return value
