"""MMStar (arXiv 2403.20330): multiple-choice questions that cannot be answered without the image.

The official rule compares the first letter of the answer, also if it begins a word: "Both" is B.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from tinyvlm_cli.evaluate.benchmark import Item
from tinyvlm_cli.evaluate.means import Choice, MultipleChoice
from tinyvlm_cli.evaluate.reading import Reader, ranked_letter, vlmevalkit_letter

LETTERS = "ABCD"
OPTION = re.compile(r"\b([A-D]): (.*?)(?=,? [A-D]: |\s*\Z)", re.DOTALL)
STARTS = ("", "(", "option ", "the answer is ")  # that may precede the letter
UNKNOWN = "\0"  # text of an option that the question does not list; no answer contains it


def leading_letter(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that the MMStar repository reads."""
    line = text.lower().strip().replace("\n", " ")
    letters = (line[len(start) : len(start) + 1].upper() for start in STARTS if line.startswith(start))
    return next((letter for letter in letters if letter in options), None)


@dataclass(frozen=True, kw_only=True)
class MMStar(MultipleChoice):
    """The headline is the accuracy; lmms-eval reports the unweighted mean over the 18 categories of level 2."""

    readers: ClassVar[Mapping[str, Reader]] = {
        "official": leading_letter,
        "lmms": ranked_letter,
        "lmms_2024": leading_letter,
        "vlmevalkit": vlmevalkit_letter,
    }

    @property
    def averaged(self) -> str:
        return "l2_categories" if self.rule.startswith("lmms") else ""

    def items(self) -> Iterator[Item]:
        """Yield the questions, which include their options."""
        columns = ("index", "question", "answer", "category", "l2_category")
        for row in self.rows(*columns, optional=("image",)):
            listed = dict(OPTION.findall(row["question"].rpartition("Options:")[2]))
            truth = Choice(row["answer"].strip().upper(), dict.fromkeys(LETTERS, UNKNOWN) | listed)
            text = f"{row['question'].strip()}\n{self.suffix}"
            category = f"{row['category']}/{row['l2_category']}"
            yield Item(key=str(row["index"]), truth=truth, text=text, image=row.get("image"), category=category)

    def tables(self, item: Item) -> Iterator[tuple[str, str]]:
        """Yield the two levels of categories."""
        return zip(("categories", "l2_categories"), item.category.split("/", maxsplit=1), strict=True)
