"""MMBench (arXiv 2307.06281): a question counts when it is answered right under every rotation of its options.

The rotations are rows of the official TSV, `index` = first row's index + k * 1,000,000. Prompt as LLaVA-1.5
(llava/eval/model_vqa_mmbench.py), score as VLMEvalKit's evaluator of MMBench, which is the official one.
"""

import hashlib
import re
import string
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmark import Question, Score
from tinyvlm_cli.evaluate.benchmarks import mmbench_judge
from tinyvlm_cli.evaluate.benchmarks.mmbench_judge import Verdict
from tinyvlm_cli.evaluate.benchmarks.mmbench_table import (
    Row,
    by_question,
    decode_image,
    image_cells,
    read_rows,
    read_stored_rows,
    write_sheet,
)
from tinyvlm_cli.evaluate.choices import CHOICE_RULES, ChoiceRule
from tinyvlm_cli.evaluate.judge import Judged, provenance
from tinyvlm_cli.evaluate.pairing import pair
from tinyvlm_cli.results.records import Answer

EMPTY_CELL = "nan"  # VLMEvalKit reads answers from a sheet, where an empty one becomes this text
ABBREVIATIONS = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}


@dataclass(frozen=True, kw_only=True)
class MMBench(Judged):
    """Answers are read by rule; those that the rule cannot read are wrong, or go to the judge."""

    file: str
    suffix: str  # added to each question, after a newline
    choice_rule: str  # which version of VLMEvalKit reads the answers
    upload_suffix: ClassVar[str] = ".xlsx"

    def __post_init__(self) -> None:
        if str(self.choice_rule) not in CHOICE_RULES:
            allowed = " or ".join(CHOICE_RULES)
            raise UserError(
                f"benchmark.{self.name}.choice_rule={self.choice_rule}: there is no such rule; use {allowed}"
            )

    def files(self) -> list[Path]:
        """The table, which holds the images too."""
        return [self.folder / self.file]

    def wanted(self) -> list[str]:
        """What would make a judge's verdicts the official ones."""
        return mmbench_judge.wanted(self.folder)

    def questions(self) -> list[Question]:
        """Every row, rotations too."""
        rows = self._rows(with_images=True)
        cells = image_cells(rows)
        images: dict[str, bytes] = {}  # many questions share one
        questions = []
        for row in rows:
            if row.stored:
                questions.append(Question(row.key, row.key, self._prompt(row), row.stored, str(row.base), row.category))
                continue
            image_key = hashlib.sha1(cells[row.key].encode()).hexdigest()
            if image_key not in images:
                images[image_key] = decode_image(cells[row.key], f"{self.files()[0]}: row {row.index}")
            questions.append(Question(row.key, row.key, self._prompt(row), images[image_key], image_key, row.category))
        return questions

    def score(self, answers: Sequence[Answer], asked: Collection[str] | None = None, *, partial: bool = False) -> Score:
        """Share of the questions whose rows are all right, in percent. Unreadable answers are wrong or judged."""
        groups = self._groups(asked)
        rows = [row for group in groups.values() for row in group]
        paired = pair([row.key for row in rows], answers)
        notes = list(paired.notes)
        if paired.missing:
            notes.append(f"{len(paired.missing)} rows have no answer (first: {paired.missing[0]}); they count as wrong")
        rule = CHOICE_RULES[str(self.choice_rule)]
        texts = {key: text or EMPTY_CELL for key, text in paired.texts.items()}
        read = {row.key: rule.read(texts.get(row.key, ""), row.options) for row in rows}
        verdicts = self._verdicts(groups, read, texts, rule)
        judged = [verdict for verdict in verdicts.values() if verdict and verdict.replies]
        replies = [reply for verdict in judged for reply in verdict.replies]
        pending = sum(verdict is None for verdict in verdicts.values())
        hits = {base: verdict.hit for base, verdict in verdicts.items() if verdict}
        report = {} if pending else _report(groups, hits)
        own_words = bool(judged) and bool(self.wanted())
        notes += self._judge_notes(verdicts.values(), pending, own_words=own_words)
        details = {
            "choice_rule": str(self.choice_rule),
            "protocol": "tinyvlm" if own_words else "official",
            "vanilla": _percent(read[group[0].key] == group[0].answer for group in groups.values()),
            "undecided_rows": sum(not letter for letter in read.values()),
            "judged_questions": len(judged),
            **({"judge": provenance(replies)} if replies else {}),
            **report,
        }
        return Score(
            metric="circular accuracy",
            value=report.get("overall"),
            n=len(groups),
            valid=sum(bool(letter) for letter in read.values()) / len(read),
            details=details,
            per_question={str(base): float(hit) for base, hit in hits.items()},
            judge=self.judge.model if self.judge and (judged or pending) else None,
            notes=tuple(notes),
            pending=pending,
        )

    def export(self, answers: Sequence[Answer], path: Path) -> None:
        """Write the sheet that the test server takes: every row, rotations too."""
        rows = self._rows(with_images=False)
        texts = pair([row.key for row in rows], answers).texts
        letters = sorted({*"ABCD", *(letter for row in rows for letter in row.options)})
        table = pd.DataFrame(
            {
                "index": row.index,
                "question": row.question,
                **{letter: row.options.get(letter) for letter in letters},
                # A sheet cannot hold control characters.
                "prediction": re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", " ", texts.get(row.key, "")),
                "answer": row.answer,
                "split": row.split,
            }
            for row in rows
        )
        if not table["answer"].any():
            table = table.drop(columns="answer")
        write_sheet(table, path)

    def _rows(self, *, with_images: bool) -> list[Row]:
        if parquet := self.parquet_files():
            return read_stored_rows(parquet)
        return read_rows(self.need(self.files()[0]), with_images=with_images)

    def _groups(self, asked: Collection[str] | None) -> dict[int, list[Row]]:
        """Each question's rows, those of `asked` only."""
        rows, place = self._rows(with_images=False), self.files()[0]
        if not all(row.answer for row in rows):
            raise UserError(f"{place}: the table has no answers; only its server can score it")
        groups = by_question(rows, place)
        kept = {base: [row for row in group if asked is None or row.key in asked] for base, group in groups.items()}
        return {base: group for base, group in kept.items() if group}

    def _prompt(self, row: Row) -> str:
        # LLaVA stops at the first option that is not given.
        letters = takewhile(lambda letter: letter in row.options, string.ascii_uppercase)
        lines = [row.question, *(f"{letter}. {row.options[letter]}" for letter in letters), self.suffix]
        return "\n".join([row.hint, *lines] if row.hint else lines)

    def _verdicts(
        self, groups: dict[int, list[Row]], read: Mapping[str, str], texts: Mapping[str, str], rule: ChoiceRule
    ) -> dict[int, Verdict | None]:
        """For each question hit or miss; None while the judge owes a reply."""
        verdicts: dict[int, Verdict | None] = {}
        open_groups = {}
        for base, group in groups.items():
            letters = [read[row.key] for row in group]
            # A wrong answer among those that the rule reads settles the question without asking anyone.
            miss = any(letter and letter != row.answer for letter, row in zip(letters, group, strict=True))
            unanswered = any(row.key not in texts for row in group)
            if miss or unanswered or all(letters) or self.judge is None:
                verdicts[base] = Verdict(all(letters) and not miss, undecided=not (miss or unanswered or all(letters)))
            else:
                verdicts[base] = None
                open_groups[base] = group
        if open_groups and self.judge is not None:
            judge, template = self.judge, mmbench_judge.read_prompt(self.folder)
            asked = judge.grade_all(
                open_groups.values(),
                lambda group: mmbench_judge.settle(group, read, texts, rule=rule, judge=judge, template=template),
            )
            verdicts.update(zip(open_groups, asked, strict=True))
        return verdicts

    def _judge_notes(self, verdicts: Iterable[Verdict | None], pending: int, *, own_words: bool) -> list[str]:
        notes = []
        undecided = sum(verdict is not None and verdict.undecided for verdict in verdicts)
        if undecided and self.judge is None:
            notes.append(
                f"{undecided} questions have an answer that the rule cannot read and count as wrong: no judge is set"
            )
        elif undecided:
            notes.append(
                f"{undecided} questions have an answer that the judge could not read either and count as wrong; "
                "VLMEvalKit draws an option at random"
            )
        if own_words:
            notes.append(f"some answers were judged in tinyvlm's own words; for the official ones: {self.wanted()[0]}")
        if pending and self.judge:
            notes.append(f"{pending} questions wait for the judge ({self.judge.failure_reason}); run again")
        return notes


def _report(groups: Mapping[int, Sequence[Row]], hits: Mapping[int, bool]) -> dict[str, Any]:
    """Percent right: of all questions, of each ability, and both again for each split."""
    firsts = [group[0] for group in groups.values()]

    def table(rows: Sequence[Row]) -> dict[str, Any]:
        abilities, leaves = defaultdict(list), defaultdict(list)
        for row in rows:
            abilities[ABBREVIATIONS.get(row.l2_category.lower(), row.l2_category)].append(hits[row.base])
            leaves[row.category].append(hits[row.base])
        return {
            "overall": _percent(hits[row.base] for row in rows),
            "l2": {name: _percent(abilities[name]) for name in sorted(abilities) if name},
            "abilities": {name: _percent(leaves[name]) for name in sorted(leaves) if name},
        }

    splits = sorted({row.split for row in firsts})
    by_split = {split or "none": table([row for row in firsts if row.split == split]) for split in splits}
    return {**table(firsts), "splits": by_split}


def _percent(hits: Iterable[bool]) -> float:
    found = list(hits)
    return 100 * sum(found) / len(found)
