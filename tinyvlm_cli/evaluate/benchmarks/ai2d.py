"""AI2D (arXiv 1603.07396): multiple-choice questions about diagrams, whose labels are covered by letters ("with mask").

There is no official scorer. The default follows lmms-eval.
"""

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from tinyvlm_cli.evaluate.benchmark import Item
from tinyvlm_cli.evaluate.means import Choice, MultipleChoice
from tinyvlm_cli.evaluate.reading import Reader, lettered, vlmevalkit_letter

LETTER = re.compile(r"\s*([A-Z])\.")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def lmms_letter(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of an answer that consists of it, or that begins with it and a period."""
    found = LETTER.match(text)
    letter = (found[1] if found else text.strip()).lower().translate(NO_PUNCTUATION).upper()
    return letter if letter in options else None


def named_option(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option whose text is the answer, as Qwen-VL scores it."""
    given = text.strip().lower()
    return next((letter for letter, option in options.items() if option.strip().lower() == given), None)


@dataclass(frozen=True, kw_only=True)
class AI2D(MultipleChoice):
    """The files contain the indices of the correct options, as text."""

    ids_are_rows: ClassVar[bool] = True
    readers: ClassVar[Mapping[str, Reader]] = {
        "lmms": lmms_letter, "vlmevalkit": vlmevalkit_letter, "qwen_vl": named_option
    }  # fmt: skip

    def items(self) -> Iterator[Item]:
        """Yield the questions in row order."""
        for number, row in enumerate(self.rows("question", "options", "answer", optional=("image",))):
            options = lettered(row["options"])
            truth = Choice(list(options)[int(row["answer"])], options)
            text = self.prompt(row["question"], options)
            yield Item(key=str(number), truth=truth, text=text, image=row.get("image"))
