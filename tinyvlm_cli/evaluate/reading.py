"""Official rules of reading answers that several benchmarks share. Their slips are kept: published numbers have them.

VQA rules: vqaEval.py of github.com/GT-Vision-Lab/VQA. m4c rules: EvalAIAnswerProcessor of mmf, as LLaVA-1.5 uses it
for TextVQA and to convert VQAv2 answers before upload.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

MARKS = ';/[]"{}()=+\\_-><@`,?!'  # the apostrophe, colon, %, &, $, # and * stay
ANY_MARK = re.compile(f"[{re.escape(MARKS)}]")
DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# The official look-behind for a digit is misspelt and has no effect: "3." loses its point, "3.5" and ".5" keep it.
PERIOD = re.compile(r"\.(?!\d)")
MAX_PERIODS = 32  # the official code passes re.UNICODE as the count of re.sub
NUMBERS = dict(
    zip("none zero one two three four five six seven eight nine ten".split(), (0, *range(11)), strict=True)  # noqa: SIM905
)
ARTICLES = frozenset(("a", "an", "the"))

# A word without its apostrophe gets it back; a word with several has an entry for each form that lacks one of them.
APOSTROPHES = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're "
    "you've"
)
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in APOSTROPHES.split() for at, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # key and value are swapped in the official table


def one_line(text: str) -> str:
    """Return the text as the VQA scorer first makes it: on one line, without outer white space."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 17)
def vqa_words(text: str) -> str:
    """Normalise punctuation, numerals, articles and contractions by the VQA scorer's rules, in its order."""
    # A mark that touches a space is deleted, another becomes a space; one digit-comma-digit anywhere deletes them all.
    if ANY_MARK.search(text):
        deletes_all = DIGIT_COMMA_DIGIT.search(text) is not None
        source = text
        for mark in MARKS:
            if mark in source:
                is_deleted = deletes_all or f"{mark} " in source or f" {mark}" in source
                text = text.replace(mark, "" if is_deleted else " ")
    text = PERIOD.sub("", text, count=MAX_PERIODS)
    words = [str(NUMBERS.get(word, word)) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 17)
def m4c_words(text: str) -> str:
    """Normalise by mmf's rules: as `vqa_words`, but commas and question marks are deleted first and 's is set apart."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return vqa_words(one_line(text.strip()))


def leave_one_out(answer: str, truths: Sequence[str]) -> float:
    """Return the VQA accuracy: the mean over the annotators of min(1, agreeing others / 3)."""
    agreeing = truths.count(answer)
    if not agreeing:
        return 0.0
    return sum(min(1, float(agreeing - (truth == answer)) / 3) for truth in truths) / len(truths)


def vqa_accuracies(answers: Sequence[str], truths: Sequence[str]) -> list[float]:
    """Return the VQA scorer's accuracy of each of several answers to one question.

    truths: the annotators' answers. Where they are all equal nothing is normalised: case counts.
    """
    given, known = [one_line(answer) for answer in answers], [one_line(truth) for truth in truths]
    if len(set(known)) > 1:
        given, known = [vqa_words(line) for line in given], [vqa_words(line) for line in known]
    return [leave_one_out(answer, known) for answer in given]


NO_OPTION = "Z"  # the answer refuses to choose
NO_ANSWER = "Failed to obtain answer via API"  # VLMEvalKit writes it for a model that did not reply
CHOICE_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
# Nothing has to end the letter: "the answer is Blue" is B.
DECLARATION = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)


@dataclass(frozen=True)
class ChoiceRule:
    """One version of VLMEvalKit's `can_infer` (vlmeval/utils/matching_util.py), which reads multiple-choice answers."""

    num_last_words: int | None  # a single letter counts only among this many last words; None: anywhere
    reads_declarations: bool  # "the correct answer is **B**"
    longest_answer: float | None  # option texts are searched for in answers up to this multiple of their joint length

    def read(self, answer: str, options: Mapping[str, str]) -> str:
        """Return the letter of the option that the answer means, NO_OPTION for a refusal, "" if that is not clear.

        options: letter -> text
        """
        if NO_ANSWER not in answer:
            if any(refusal in answer for refusal in REFUSALS):
                return NO_OPTION
            words = answer.translate(CHOICE_PUNCTUATION).split()
            # Exactly one option's letter must be among the words. An article "A" counts as the letter.
            letters = [letter for letter in options if letter in words]
            if len(letters) == 1 and words.index(letters[0]) >= len(words) - (self.num_last_words or len(words)):
                return letters[0]
            if not letters and NO_OPTION in words:
                return NO_OPTION
            declared = DECLARATION.search(answer) if self.reads_declarations else None
            if declared and declared[1].upper() in options:
                return declared[1].upper()
        lowered = answer.lower()
        if self.longest_answer is not None and len(lowered) > self.longest_answer * sum(map(len, options.values())):
            return ""
        letters = [letter for letter, text in options.items() if text.lower() in lowered]
        return letters[0] if len(letters) == 1 else ""


# The rule of 2024, with which the papers' MMBench numbers were made, and that of June 2026 (pull requests 1175 and
# 1552). They agree on answers that are a bare letter.
CHOICE_RULES = {
    "2024": ChoiceRule(num_last_words=None, reads_declarations=False, longest_answer=None),
    "2026": ChoiceRule(num_last_words=4, reads_declarations=True, longest_answer=2),
}
