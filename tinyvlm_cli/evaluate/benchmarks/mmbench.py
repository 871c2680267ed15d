"""MMBench (arXiv 2307.06281): a question is correct if it is answered correctly under every rotation of its options.

The rotations are rows of the official TSV file, with `index` = index of the first row + k * 1,000,000. The prompt
follows LLaVA-1.5 (llava/eval/model_vqa_mmbench.py), and the score follows VLMEvalKit, the official evaluator. Answers
that its rule cannot read can be sent to a judge, with VLMEvalKit's prompt if its file is in the data folder.
"""

import base64
import hashlib
import re
import string
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Item, Result, Score, grouped, percent
from tinyvlm_cli.evaluate.judge import Judged, provenance
from tinyvlm_cli.evaluate.reading import CHOICE_RULES
from tinyvlm_cli.evaluate.replies import Reply, Request
from tinyvlm_cli.evaluate.sources import python_string
from tinyvlm_cli.files import replaced
from tinyvlm_cli.results.records import Answer

ROTATION = 1_000_000  # added to the index of a question for each rotation of its options
MAX_REFERENCE = 64  # characters; a cell of at most this length is the index of the row with the image
EMPTY_CELL = "nan"  # VLMEvalKit reads answers from a spreadsheet, which turns empty answers into this text
ABBREVIATIONS = {
    "coarse_perception": "CP", "finegrained_perception (instance-level)": "FP-S", "logic_reasoning": "LR",
    "finegrained_perception (cross-instance)": "FP-C", "relation_reasoning": "RR", "attribute_reasoning": "AR",
}  # fmt: skip
UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")  # not allowed in a spreadsheet
CHINESE = re.compile(r"[\u4e00-\u9fff]")
ATTEMPTS = 3  # maximum number of requests per answer
MAX_TOKENS = 2048  # per reply, as in VLMEvalKit's client

# Used if VLMEvalKit's file is missing. Changing it invalidates cached replies.
OWN_PROMPT = """A question with lettered options was answered in free words. Name the option that the answer means.
Reply with its capital letter alone, or with Z when the answer means none of the options.

Question: {}
{}
Answer: {}
Letter: """


class Truth(NamedTuple):
    """A row of the table: a question with one rotation of its options."""

    question: str
    options: dict[str, str]  # letter -> text
    answer: str  # letter; "" in test splits
    ability: str  # one of six, level 2 of the hierarchy
    split: str


class Verdict(NamedTuple):
    """The outcome of a question over all of its rows."""

    hit: bool | None  # whether every row is correct; None: an answer is unreadable, which counts as wrong
    replies: list[Reply]  # from the judge


@dataclass(frozen=True, kw_only=True)
class MMBench(Judged):
    """Answers that the rule cannot read are sent to the judge, or count as wrong without one."""

    file: str  # the official table
    choice_rule: str  # key of CHOICE_RULES
    rules: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(CHOICE_RULES, "VLMEvalKit"))
    rule_setting: ClassVar[str] = "choice_rule"
    metric: ClassVar[str] = "circular accuracy"
    shows_images: ClassVar[bool] = True
    upload_suffix: ClassVar[str] = ".xlsx"
    keeps_unanswered: ClassVar[bool] = True
    unanswered: ClassVar[str] = "they count as wrong"
    judge_files: ClassVar[tuple[str, ...]] = ("multiple_choice.py",)
    judge_source: ClassVar[str] = "vlmeval/dataset/utils/multiple_choice.py of VLMEvalKit"

    def files(self) -> list[Path]:
        """Return the official table, which includes the images."""
        return [self.folder / self.file]

    def items(self) -> Iterator[Item]:
        """Yield the rows in table order. Images that cannot be decoded are None."""
        path = self.files()[0]
        if self.parquet_files():
            optional = ("hint", *string.ascii_uppercase, "answer", "category", "l2-category", "L2-category", "split")
            records: Sequence[Mapping[Any, Any]] = list(self.rows("index", "question", "image", optional=optional))
        else:
            try:
                # The options "None" and "NA" are text, not missing values.
                table = pd.read_csv(self.need(path), sep="\t", dtype=str, keep_default_na=False)
            except ValueError as error:
                raise UserError(f"{path}: not a tab-separated file ({error}); download it again") from None
            if absent := {"index", "question", "A", "B"} - set(table.columns):
                raise UserError(f"{path}: columns {', '.join(sorted(absent))} are missing; get {self.source}")
            records = table.to_dict("records")
        for number, record in enumerate(records, 1):
            if not re.fullmatch(r"[0-9]{1,18}", cell := str(record["index"])):
                raise UserError(f"{path}, row {number}: index '{cell:.40}' is not a number; download it again")
        cells = {str(int(record["index"])): record.get("image") for record in records}
        images: dict[str, bytes | None] = {}  # decoded once, because many rows share an image
        for record in records:
            texts = defaultdict(str, {name: str(value) for name, value in record.items() if value is not None})
            index = int(texts["index"])
            image, image_key = record.get("image"), str(index % ROTATION)
            if isinstance(image, str):  # base64, or the index of the row with the image
                cell = cells.get(image) or "" if len(image) <= MAX_REFERENCE else image
                image_key = hashlib.sha1(cell.encode()).hexdigest()
                if image_key not in images:
                    try:
                        images[image_key] = base64.b64decode(cell, validate=True) or None
                    except ValueError:
                        images[image_key] = None
                image = images[image_key]
            options = {name: texts[name] for name in string.ascii_uppercase if texts[name] not in ("", "nan")}
            ability = texts["l2-category"] or texts["L2-category"]
            truth = Truth(texts["question"], options, texts["answer"], ability, texts["split"])
            letters = takewhile(options.__contains__, string.ascii_uppercase)  # LLaVA stops at the first missing option
            hint = [texts["hint"]] if texts["hint"].lower() not in ("", "nan", "none") else []
            lines = [*hint, texts["question"], *(f"{letter}. {options[letter]}" for letter in letters), self.suffix]
            text, category = "\n".join(lines), texts["category"]
            yield Item(key=str(index), truth=truth, text=text, image=image, image_key=image_key, category=category)

    def read(self, text: str, item: Item) -> str | None:
        """Return the letter of the chosen option, or Z for a refusal."""
        return CHOICE_RULES[self.choice_rule].read(text or EMPTY_CELL, item.truth.options) or None

    def check(self, items: Mapping[str, Item], answers: Sequence[Answer]) -> list[str]:
        """Raise UserError if the table cannot be used for scoring."""
        for key, item in self.known_items.items():
            first = str(int(key) % ROTATION)
            if first not in self.known_items:
                raise UserError(
                    f"{self.files()[0]}: row {first}, which row {key} rotates, is missing; get {self.source}"
                )
            if not item.truth.answer:
                raise UserError(f"{self.files()[0]}: the table has no answers; only the server can score this split")
        return []

    def headline(self, results: Sequence[Result]) -> Score:
        """Return the percentage of questions that are correct in every row."""
        by_index = sorted(results, key=lambda result: int(result.item.key))
        groups = grouped((int(result.item.key) % ROTATION, result) for result in by_index)
        if self.judge is None:
            outcomes: list[Verdict | None] = [self._verdict(group) for group in groups.values()]
        else:
            outcomes = self.judge.grade_all(groups.values(), self._verdict)
        pending = outcomes.count(None)
        verdicts = {str(index): verdict for index, verdict in zip(groups, outcomes, strict=True) if verdict}
        judged = [verdict for verdict in verdicts.values() if verdict.replies]
        own_prompt = bool(judged) and bool(self.wanted())
        notes = []
        if undecided := sum(verdict.hit is None for verdict in verdicts.values()):
            with_judge = "the judge cannot read (VLMEvalKit would choose an option at random)"
            reason = with_judge if self.judge else "the rule cannot read, and no judge is set"
            notes.append(f"{undecided} questions count as wrong, because they have an answer that {reason}")
        if own_prompt:
            notes.append(f"some answers were judged with tinyvlm's own prompt: {self.wanted()[0]}")
        if pending and self.judge:
            notes.append(f"{pending} questions are not graded yet ({self.judge.failure_reason}); run the command again")
        firsts = [group[0] for group in groups.values()]
        details: dict[str, Any] = {
            "choice_rule": self.choice_rule,
            "protocol": "tinyvlm" if own_prompt else "official",
            "vanilla": percent(result.meaning == result.item.truth.answer for result in firsts),
            "undecided_rows": sum(result.meaning is None for result in results),
            "judged_questions": len(judged),
        }
        if judged:
            details["judge"] = provenance([reply for verdict in judged for reply in verdict.replies])
        if not pending:
            hits = [(first.item, bool(verdict.hit)) for first, verdict in zip(firsts, verdicts.values(), strict=True)]
            splits = grouped((item.truth.split, (item, hit)) for item, hit in hits)
            details |= _table(hits)
            details["splits"] = {name or "none": _table(members) for name, members in splits.items()}
        points = {key: float(bool(verdict.hit)) for key, verdict in verdicts.items()}
        score = self.scored(details.get("overall"), results, points, details, notes=notes)
        judge = self.judge.model if self.judge and (judged or pending) else None
        return replace(score, n=len(groups), judge=judge, pending=pending)

    def export(self, answers: Sequence[Answer], path: Path) -> None:
        """Write the spreadsheet for the evaluation server, with all rows."""
        given = dict(self.pair(self.known_items, answers)[0])
        letters = sorted({*"ABCD", *(letter for item in self.known_items.values() for letter in item.truth.options)})
        rows: list[dict[str, Any]] = []
        for key, item in self.known_items.items():
            text = UNWRITABLE.sub(" ", given[key].text) if key in given else ""
            options = {letter: item.truth.options.get(letter) for letter in letters}
            row = {"index": int(key), "question": item.truth.question, **options, "prediction": text}
            rows.append({**row, "answer": item.truth.answer, "split": item.truth.split})
        table = pd.DataFrame(rows)
        if not table["answer"].any():
            table = table.drop(columns="answer")
        try:
            with replaced(path) as draft, draft.open("wb") as file, pd.ExcelWriter(file, engine="openpyxl") as writer:
                table.to_excel(writer, index=False)
                for cell in (cell for row in writer.book.active.iter_rows() for cell in row):
                    if cell.data_type == "f":  # an answer that starts with "=" is text, not a formula
                        cell.data_type = "s"
        except ImportError:
            raise UserError(f"{path}: writing it requires the package openpyxl; run `pip install openpyxl`") from None

    def _verdict(self, group: Sequence[Result]) -> Verdict:
        """Return the outcome of a question from its rows. Raises NoReplyError.

        The question is wrong if the rule reads a wrong answer in any row. Otherwise the judge reads the answers that
        the rule cannot read, in order, until one is wrong.
        """
        if any(row.answer is None or row.meaning not in (None, row.item.truth.answer) for row in group):
            return Verdict(False, [])
        replies: list[Reply] = []
        for row in group:
            letter = row.meaning
            if letter is None and self.judge:
                truth = row.item.truth
                options = "".join(f"{name}. {text}\n" for name, text in truth.options.items())
                parts = (truth.question, f"There are several options: \n{options}", row.text or EMPTY_CELL)
                prompt = self._judge_prompts[CHINESE.search(truth.question) is not None].format(*parts)
                request = Request((("user", prompt),), temperature=0.0, max_tokens=MAX_TOKENS)
                for attempt in range(ATTEMPTS):
                    replies.append(self.judge.reply(request, str(attempt)))
                    if letter := CHOICE_RULES[self.choice_rule].read(replies[-1].text, truth.options):
                        break
            if letter != row.item.truth.answer:
                return Verdict(False if letter else None, replies)
        return Verdict(True, replies)

    @cached_property
    def _judge_prompts(self) -> list[str]:
        """VLMEvalKit's English and Chinese prompt, or tinyvlm's own. Placeholders: question, options, answer."""
        path = self.judge_file
        if not path:
            return [OWN_PROMPT] * 2
        templates = [python_string(path, "tmpl", inside=name) for name in ("build_prompt", "build_prompt_cn")]
        if any(template.count("{}") != OWN_PROMPT.count("{}") for template in templates):
            raise UserError(f"{path}: expected prompts with 3 placeholders; download the version of 2024")
        return templates


def _table(hits: Sequence[tuple[Item, bool]]) -> dict[str, Any]:
    """Return the accuracy in percent: overall, per level-2 ability, and per leaf ability.

    hits: the first row of each question, and whether all of its rows are correct.
    """
    abilities = grouped((ABBREVIATIONS.get(item.truth.ability.lower(), item.truth.ability), hit) for item, hit in hits)
    leaves = grouped((item.category, hit) for item, hit in hits)
    return {
        "overall": percent(hit for _, hit in hits),
        "l2": {name: percent(members) for name, members in abilities.items() if name},
        "abilities": {name: percent(members) for name, members in leaves.items() if name},
    }
