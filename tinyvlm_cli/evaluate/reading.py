"""Official rules for parsing answers, shared by several benchmarks. Their bugs are kept to match published scores.

VQA rules: vqaEval.py of github.com/GT-Vision-Lab/VQA. m4c rules: EvalAIAnswerProcessor of mmf, which LLaVA-1.5 uses
for TextVQA and to convert VQAv2 answers before upload.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

MARKS = ';/[]"{}()=+\\_-><@`,?!'  # apostrophes, colons, %, &, $, # and * are kept
ANY_MARK = re.compile(f"[{re.escape(MARKS)}]")
DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# The official look-behind for a digit has a typo and no effect: "3." loses its period, "3.5" and ".5" keep it.
PERIOD = re.compile(r"\.(?!\d)")
MAX_PERIODS = 32  # the official code passes re.UNICODE as the count of re.sub
NUMBERS = dict(
    zip("none zero one two three four five six seven eight nine ten".split(), (0, *range(11)), strict=True)  # noqa: SIM905
)
ARTICLES = frozenset(("a", "an", "the"))

# Missing apostrophes are restored. A word with two apostrophes has one entry for each form that lacks one of them.
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
    """Return the text on one line without outer white space, as in the first step of the VQA scorer."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 17)
def vqa_words(text: str) -> str:
    """Normalise punctuation, numerals, articles and contractions by the VQA scorer's rules, in its order."""
    # A mark next to a space is deleted, any other becomes a space. A digit-comma-digit anywhere deletes all marks.
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
    """Normalise by mmf's rules: delete commas and question marks, separate 's, then apply `vqa_words`."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return vqa_words(one_line(text.strip()))


def leave_one_out(answer: str, truths: Sequence[str]) -> float:
    """Return the VQA accuracy: the mean over annotators of min(1, number of other annotators who agree / 3)."""
    agreeing = truths.count(answer)
    if not agreeing:
        return 0.0
    return sum(min(1, float(agreeing - (truth == answer)) / 3) for truth in truths) / len(truths)


def vqa_accuracies(answers: Sequence[str], truths: Sequence[str]) -> list[float]:
    """Return the VQA scorer's accuracy for each of several answers to one question.

    truths: the annotators' answers. If all are equal, nothing is normalised, so the comparison is case-sensitive.
    """
    given, known = [one_line(answer) for answer in answers], [one_line(truth) for truth in truths]
    if len(set(known)) > 1:
        given, known = [vqa_words(line) for line in given], [vqa_words(line) for line in known]
    return [leave_one_out(answer, known) for answer in given]


NO_OPTION = "Z"  # the model declines to choose
NO_ANSWER = "Failed to obtain answer via API"  # written by VLMEvalKit if the model did not reply
CHOICE_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
# No word boundary is required after the letter: "the answer is Blue" is read as B.
DECLARATION = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)


@dataclass(frozen=True)
class ChoiceRule:
    """A version of VLMEvalKit's `can_infer` (vlmeval/utils/matching_util.py), which parses multiple-choice answers."""

    num_last_words: int | None  # a letter must be among the last `num_last_words` words; None: anywhere
    reads_declarations: bool  # such as "the correct answer is **B**"
    longest_answer: float | None  # maximum length for matching option texts, as a multiple of their total length

    def read(self, answer: str, options: Mapping[str, str]) -> str:
        """Return the letter of the chosen option, NO_OPTION for a refusal, or "" if the answer is ambiguous.

        options: letter -> text
        """
        if NO_ANSWER not in answer:
            if any(refusal in answer for refusal in REFUSALS):
                return NO_OPTION
            words = answer.translate(CHOICE_PUNCTUATION).split()
            # Exactly one option letter must occur as a word. The article "A" counts as a letter.
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


# The rule of 2024, which the papers' MMBench scores use, and that of June 2026 (pull requests 1175 and 1552). Both
# read an answer that is a single letter in the same way.
CHOICE_RULES = {
    "2024": ChoiceRule(num_last_words=None, reads_declarations=False, longest_answer=None),
    "2026": ChoiceRule(num_last_words=4, reads_declarations=True, longest_answer=2),
}
