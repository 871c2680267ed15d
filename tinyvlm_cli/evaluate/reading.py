"""How the official scorers read an answer. Their slips are kept: they are part of every published number.

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
# Meant to spare the point after a digit, but it spares only the one before: "3." loses it, "3.5" and ".5" do not.
PERIOD = re.compile(r"\.(?!\d)")
MAX_PERIODS = 32  # re.UNICODE stands where re.sub takes its count
NUMBERS = dict(
    zip("none zero one two three four five six seven eight nine ten".split(), (0, *range(11)), strict=True)  # noqa: SIM905
)
ARTICLES = frozenset(("a", "an", "the"))

# A word without its apostrophe gets it back; of a word with several, the forms that lack one of them.
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
} | {"somebody'd": "somebodyd"}  # the official table has this one the wrong way round


def one_line(text: str) -> str:
    """What the VQA scorer does to every answer first."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 17)
def vqa_words(text: str) -> str:
    """Punctuation, numerals, articles and contractions after the VQA scorer's rules, in its order."""
    words = [str(NUMBERS.get(word, word)) for word in _drop_marks(text).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 17)
def m4c_words(text: str) -> str:
    """The answer after mmf's rules: like `vqa_words`, but commas and question marks go first and 's stands alone."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return vqa_words(one_line(text.strip()))


def _drop_marks(text: str) -> str:
    """A mark that touches a space goes, another becomes a space; one digit-comma-digit anywhere makes them all go."""
    if ANY_MARK.search(text):
        all_go = DIGIT_COMMA_DIGIT.search(text) is not None
        source = text
        for mark in MARKS:
            if mark in source:
                goes = all_go or f"{mark} " in source or f" {mark}" in source
                text = text.replace(mark, "" if goes else " ")
    return PERIOD.sub("", text, count=MAX_PERIODS)


def leave_one_out(answer: str, truths: Sequence[str]) -> float:
    """VQA accuracy: the mean over the annotators of min(1, agreeing others / 3)."""
    agreeing = truths.count(answer)
    if not agreeing:
        return 0.0
    return sum(min(1, float(agreeing - (truth == answer)) / 3) for truth in truths) / len(truths)


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """The VQA scorer's accuracy of one answer. Where all annotators agree nothing is normalised: case counts."""
    return prepared_accuracy(answer, prepare_truths(truths))


def prepare_truths(truths: Sequence[str]) -> tuple[bool, tuple[str, ...]]:
    """Whether answers are to be normalised for these annotators, and the annotators' answers as they are compared."""
    lines = tuple(one_line(truth) for truth in truths)
    differ = len(set(lines)) > 1
    return differ, tuple(vqa_words(line) for line in lines) if differ else lines


def prepared_accuracy(answer: str, prepared: tuple[bool, tuple[str, ...]]) -> float:
    """`vqa_accuracy` for truths that went through `prepare_truths`."""
    normalise, truths = prepared
    line = one_line(answer)
    return leave_one_out(vqa_words(line) if normalise else line, truths)


def pope_says_no(text: str) -> bool:
    """POPE's reader: a bare "No", "no" or "not" in the first sentence means no, anything else means yes."""
    words = text.split(".", maxsplit=1)[0].replace(",", "").split(" ")
    return not {"No", "not", "no"}.isdisjoint(words)


def mme_word(text: str) -> str:
    """MME's reader: "yes" or "no" within the first four characters, else "other"."""
    start = text.lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")


SCIENCEQA_LETTERS = "ABCDE"
# The point is a wildcard: "The answer is B" at the very end is not found, "The answer is Blue" gives B.
THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")


def scienceqa_choice(text: str, choices: int) -> int | None:
    """The index of the option that an answer names, after LLaVA's rule; None when it names none of `choices`."""
    if text and text[0] in SCIENCEQA_LETTERS and (len(text) == 1 or text[1:3] == ". "):
        letter = text[0]
    else:
        named = THE_ANSWER_IS.findall(text)
        letter = named[0] if len(named) == 1 else ""
    index = SCIENCEQA_LETTERS.find(letter) if letter else -1
    return index if 0 <= index < choices else None


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
