"""Which option an answer to a multiple-choice question means, as VLMEvalKit's `can_infer` reads it.

vlmeval/utils/matching_util.py: the rule of 2024, when the papers' MMBench numbers were made, and that of June 2026
(pull requests 1175 and 1552). For answers that are a bare letter they agree.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

NO_OPTION = "Z"  # the answer says that it chooses none

NO_ANSWER = "Failed to obtain answer via API"  # what VLMEvalKit writes for a model that did not reply
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
# Without a border after the letter: "the answer is Blue" is B.
_DECLARED = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)


@dataclass(frozen=True)
class ChoiceRule:
    """One version of the reading."""

    last_words: int | None  # a lone letter counts only among so many last words; None: anywhere
    reads_declarations: bool  # "the correct answer is **B**"
    longest_answer: float | None  # option texts are looked for in answers up to so many times their joint length

    def read(self, answer: str, options: Mapping[str, str]) -> str:
        """The letter of the option that `answer` means, `NO_OPTION` for a refusal, "" when that is not clear."""
        return self._letter(answer, options) or self._text(answer, options)

    def _letter(self, answer: str, options: Mapping[str, str]) -> str:
        if NO_ANSWER in answer:
            return ""
        if any(refusal in answer for refusal in _REFUSALS):
            return NO_OPTION
        words = answer.translate(_PUNCTUATION).split()
        # Exactly one option's letter among the words. An article "A" counts as the letter.
        letters = [letter for letter in options if letter in words]
        if len(letters) == 1 and words.index(letters[0]) >= len(words) - (self.last_words or len(words)):
            return letters[0]
        if not letters and NO_OPTION in words:
            return NO_OPTION
        declared = _DECLARED.search(answer) if self.reads_declarations else None
        return declared[1].upper() if declared and declared[1].upper() in options else ""

    def _text(self, answer: str, options: Mapping[str, str]) -> str:
        lowered = answer.lower()
        if self.longest_answer is not None and len(lowered) > self.longest_answer * sum(map(len, options.values())):
            return ""
        letters = [letter for letter, text in options.items() if text.lower() in lowered]
        return letters[0] if len(letters) == 1 else ""


CHOICE_RULES = {
    "2024": ChoiceRule(last_words=None, reads_declarations=False, longest_answer=None),
    "2026": ChoiceRule(last_words=4, reads_declarations=True, longest_answer=2),
}
