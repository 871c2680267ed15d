"""Official rules for parsing answers, shared by several benchmarks. Their bugs are kept to match published scores.

VQA rules: vqaEval.py of github.com/GT-Vision-Lab/VQA. m4c rules: EvalAIAnswerProcessor of mmf, which LLaVA-1.5 uses
for TextVQA and to convert VQAv2 answers before upload.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, eq=False)
class VQARule:
    """A variant of the VQA scorer's normalisation."""

    period: re.Pattern[str] = PERIOD  # periods that are deleted
    contractions: Mapping[str, str] = field(default_factory=lambda: CONTRACTIONS)


VQA = VQARule()
VLMEVALKIT = VQARule(period=re.compile(r"(?<!\d)\.(?!\d)"))
# The API's table writes most of its apostrophes as backquotes, so that these words equal no annotator's answer.
UNCHANGED = frozenset(("aint", "arent", "cant", "couldve", "couldnt", "weve", "wheres", "whove"))
VIZWIZ = VQARule(
    contractions={
        short: word if short in UNCHANGED else word.replace("'", "`")
        for short, word in CONTRACTIONS.items()
        if "'" not in short
    }
)


def one_line(text: str) -> str:
    """Return the text on one line without outer white space, as in the first step of the VQA scorer."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def without_punctuation(text: str, period: re.Pattern[str] = PERIOD) -> str:
    """Delete marks next to a space, and all marks if there is a digit-comma-digit; replace other marks by spaces."""
    if ANY_MARK.search(text):
        deletes_all = DIGIT_COMMA_DIGIT.search(text) is not None
        source = text
        for mark in MARKS:
            if mark in source:
                is_deleted = deletes_all or f"{mark} " in source or f" {mark}" in source
                text = text.replace(mark, "" if is_deleted else " ")
    return period.sub("", text, count=MAX_PERIODS)


@lru_cache(maxsize=1 << 17)
def vqa_words(text: str, rule: VQARule = VQA) -> str:
    """Normalise punctuation, numerals, articles and contractions by the VQA scorer's rules, in its order."""
    words = [str(NUMBERS.get(word, word)) for word in without_punctuation(text, rule.period).lower().split()]
    return " ".join(rule.contractions.get(word, word) for word in words if word not in ARTICLES)


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


def relaxed_match(target: str, answer: str) -> bool:
    """Return whether an answer is a number within 5% of the target, or else the same text in any case.

    Equals `relaxed_correctness` of google-research/pix2struct: "45%" is 0.45, and "1,000" is not a number.
    """
    number, goal = _number(answer), _number(target)
    if number is not None and goal:  # a target of 0 is compared as text
        return abs(number - goal) / abs(goal) <= 0.05
    return answer.lower() == target.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def anls(
    answer: str, truths: Sequence[str], *, least: float = 0.5, keeps_least: bool = True, keeps_spaces: bool = False
) -> float:
    """Return the normalised Levenshtein similarity to the most similar truth, as in the DocVQA scorer.

    Distances ignore case and repeated spaces, but are divided by the length of the longer of the original texts.
    least: lower similarities count as 0. keeps_least: whether `least` itself is kept. keeps_spaces: whether repeated
    and outer spaces are compared, too.
    """
    best = 0.0
    given = answer.lower() if keeps_spaces else " ".join(answer.lower().split())
    for truth in truths:
        known = truth.lower() if keeps_spaces else " ".join(truth.lower().split())
        length = max(len(truth.upper()), len(answer.upper()))
        if abs(len(known) - len(given)) > length * (1 - max(best, least)):  # the distance is at least this difference
            continue
        best = max(best, 1 - levenshtein(known, given) / length if length else 1.0)
    return best if best > least or (keeps_least and best == least) else 0.0


def levenshtein(a: str, b: str) -> int:
    """Return the number of characters to insert, delete or replace to turn one text into the other."""
    if a == b:
        return 0
    row = list(range(len(b) + 1))
    for number, letter in enumerate(a, 1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(b, 1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (letter != other))
    return row[-1]


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

Reader = Callable[[str, Mapping[str, str]], str | None]  # (answer, letter -> option) -> letter, None: unreadable


def lettered(options: Sequence[str]) -> dict[str, str]:
    """Return the options by letter: A, B, C, ..."""
    return dict(zip(string.ascii_uppercase, options, strict=False))


def vlmevalkit_letter(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that VLMEvalKit reads without a judge, by its rule of June 2026."""
    letter = CHOICE_RULES["2026"].read(text, options)
    return letter if letter in options else None


# Besides the start and the end of an answer, lmms-eval looks for letters after these phrases and in these formats, the
# most reliable first.
PHRASES = (
    "the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is", "best answer is",
    "the correct option is", "correct option is", "the best option is", "best option is", "the choice is", "choice is",
    "the correct choice is", "correct choice is", "i choose", "i select", "i pick", "my answer is", "my choice is",
)  # fmt: skip
FORMATS = ("({})", "{}.", "{}:", "{})", "{} ")


def ranked_letter(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that lmms-eval reads since April 2026 (9ca4445d): the last one in the most reliable format."""
    bare = text.strip()
    for mark in ",.!?;:'\"":
        bare = bare.strip(mark)
    padded, bare = f" {bare} ", bare.strip()
    found: list[tuple[int, int, int]] = []  # (reliability, position, minus the letter's number)
    for number, letter in enumerate(options):
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((len(FORMATS) + 2, 0, -number))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            found.append((len(FORMATS) + 1, 0, -number))
        for phrase in PHRASES:
            after = padded.lower().find(phrase)
            place = padded.find(letter, after + len(phrase)) if after >= 0 else -1
            found += [(len(FORMATS), place, -number)] * (place >= 0)
        for rank, form in enumerate(reversed(FORMATS)):
            place = padded.rfind(form.format(letter))
            found += [(rank, place, -number)] * (place >= 0)
    if not found:  # any capital letter, also in a word
        found = [(0, padded.rfind(letter), -number) for number, letter in enumerate(options) if letter in padded]
    return list(options)[-max(found)[2]] if found else None
