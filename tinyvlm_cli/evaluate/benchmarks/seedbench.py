"""SEED-Bench (arXiv 2307.16125), image part: multiple-choice questions of nine types.

Tables of LLaVA-1.5 with the title SEED include the videos; their column SEED-IMG, like this benchmark, does not.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from tinyvlm_cli.evaluate.benchmark import Item, Score
from tinyvlm_cli.evaluate.means import Choice, MultipleChoice
from tinyvlm_cli.evaluate.reading import Reader, vlmevalkit_letter
from tinyvlm_cli.results.records import Answer


@dataclass(frozen=True, kw_only=True)
class SEEDBench(MultipleChoice):
    """LLaVA's rule accepts only the letter itself. The last answer to a repeated id counts for both questions."""

    types: list[str]  # names of the types 1, 2, ...
    keeps_unanswered: ClassVar[bool] = True
    unanswered: ClassVar[str] = "they count as wrong"
    readers: ClassVar[Mapping[str, Reader]] = {
        "strict": lambda text, options: text if text in options else None,
        "first_letter": lambda text, options: letter if (letter := text.strip()[:1].upper()) in options else None,
        "vlmevalkit": vlmevalkit_letter,
    }

    def items(self) -> Iterator[Item]:
        """Yield the questions about images. The second question with an id has another key."""
        columns = ("question_id", "question", "answer", "data_type", "question_type_id")
        choices = map("choice_{}".format, "abcd")
        rows = self.records(*columns, *choices, optional=("image", "data_id"), inside="questions")
        seen: set[str] = set()
        for row in (row for row in rows if row["data_type"] == "image"):
            name = str(row["question_id"])
            key = f"{name} again" if name in seen else name
            seen.add(name)
            options = {letter: str(row[f"choice_{letter.lower()}"]) for letter in "ABCD"}
            stored = row.get("image", [] if self.parquet_files() else [self.image_dir / row["data_id"]])
            image = stored[0] if isinstance(stored, list) and stored else stored or None
            yield Item(
                key=key, question_id=name, truth=Choice(row["answer"], options), image=image,
                image_key=str(row.get("data_id") or ""), text=self.prompt(row["question"], options),
                category=self.types[int(row["question_type_id"]) - 1],
            )  # fmt: skip

    def tables(self, item: Item) -> list[tuple[str, str]]:
        return [("types", item.category)]

    def score(self, answers: Sequence[Answer], asked: Collection[str] | None = None, *, partial: bool = False) -> Score:
        last = {answer.question_id: answer for answer in answers if not answer.key}
        twice = (i for i in self.known_items.values() if i.key != i.question_id and i.question_id in last)
        more = [replace(last[item.question_id], key=item.key) for item in twice]
        return super().score([*answers, *more], asked, partial=partial)
