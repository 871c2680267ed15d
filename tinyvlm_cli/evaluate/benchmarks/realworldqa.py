"""RealWorldQA (x.ai, 2024): multiple-choice and short answers about photos, mostly taken from cars.

There is no official scorer. The rules are those of lmms-eval before and after April 2026; their scores differ. The
questions end with their own instructions.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from tinyvlm_cli.evaluate.benchmark import Item, Result
from tinyvlm_cli.evaluate.means import MeanBenchmark
from tinyvlm_cli.evaluate.reading import NUMBERS, lettered, ranked_letter

OPTION = re.compile(r"\b[A-Z]\.\s+([^\n]*)")
MARK = re.compile(r"[^\w\s]")
LETTERS = dict.fromkeys("ABCD", "")


class Truth(NamedTuple):
    """The ground truth of a question."""

    answer: str  # a letter, a word or a number
    options: dict[str, str]  # text -> letter, {} if the question has no options


@dataclass(frozen=True, kw_only=True)
class RealWorldQA(MeanBenchmark):
    """The answer must equal the truth in any case, after the rule has looked for an option."""

    ids_are_rows: ClassVar[bool] = True

    def items(self) -> Iterator[Item]:
        """Yield the questions in row order."""
        for number, row in enumerate(self.rows("question", "answer", optional=("image",))):
            texts = [text.strip() for text in OPTION.findall(row["question"])]
            truth = Truth(row["answer"], {text: letter for letter, text in lettered(texts).items()})
            yield Item(key=str(number), truth=truth, text=row["question"].strip(), image=row.get("image"))

    def read(self, text: str, item: Item) -> str | None:
        """Return the answer as the rule compares it."""
        truth: Truth = item.truth
        if self.rule == "2026":
            if truth.answer.strip().upper() in LETTERS:
                return (ranked_letter(text, LETTERS) or "").lower() or None
        else:
            digit = NUMBERS.get(text.lower()) if text.lower() != "none" else None
            text = MARK.sub("", text if digit is None else str(digit)).strip()
            found = re.search("|".join(map(re.escape, truth.options)), text)  # anywhere, also in a word
            text = truth.options.get(found[0], text) if found else text
        return text.lower().strip().rstrip(".") or None

    def point(self, result: Result) -> float:
        return float(result.meaning == result.item.truth.answer.lower().strip())
