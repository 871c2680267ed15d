"""Official rules of reading an answer, slips included. Expected values are those of the official code."""

import hashlib

import pytest

from tinyvlm_cli.evaluate.reading import (
    CHOICE_RULES,
    CONTRACTIONS,
    leave_one_out,
    m4c_words,
    one_line,
    vqa_accuracies,
    vqa_words,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Red, blue", "red blue"),  # a mark that touches a space goes ...
        ("red/blue", "red blue"),  # ... another becomes a space
        ("red/blue, green/pink", "red blue green pink"),  # each mark for itself
        ("a-b -c", "ab c"),  # a space on either side of one of them is enough for all
        ("a-b- c", "ab c"),
        ("a/-b c-d", "b c d"),  # what was there first decides, not what other marks left
        ("red/\nblue x/y", "red blue xy"),  # a line break counts as a space
        ("red/\tblue x/y", "red blue xy"),
        ("1,000-2,000", "10002000"),  # digit, comma, digit: all marks go, and leave no space
        ("a-b 1,0", "ab 10"),
        ("10:30", "10:30"),  # not in the list
        ("50% & $5 #1 *", "50% & $5 #1 *"),
        ("3.", "3"),  # the look-behind is misspelt: the point after a digit goes ...
        ("3.5", "3.5"),  # ... unless a digit follows
        ("a.5 b.", "a.5 b"),
        ("." * 34, ".."),  # re.UNICODE is the count: 32 go
        ("None", "0"),
        ("zero", "0"),
        ("ten eleven", "10 eleven"),
        ("a one", "1"),  # the numeral first, then the article
        ("The cat an", "cat"),
        ("dont", "don't"),
        ("couldn'tve", "couldn't've"),
        ("Im", "im"),  # the table's "Im" is never met: words are lower-cased
        ("somebody'd", "somebodyd"),
        ("let's", "let's"),
        ("two  \n dogs", "2 dogs"),
    ],
)
def test_vqa_words(text: str, words: str) -> None:
    assert vqa_words(one_line(text)) == words


def test_the_official_table_has_every_contraction() -> None:
    # The official table's 120 entries, less those whose keys hold capitals and those that change nothing.
    assert len(CONTRACTIONS) == 114
    digest = hashlib.sha256(repr(sorted(CONTRACTIONS.items())).encode()).hexdigest()
    assert digest[:16] == "3bbe719c676d7e82"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("red/\nblue x/y", "red blue xy"),  # a line break is a space before the marks go
        ("1,000-2,000", "1000 2000"),  # commas go first, so that the digit rule cannot fire
        ("dog's?", "dog 's"),
        ("What?now", "whatnow"),
        ("The Dog.", "dog"),
    ],
)
def test_m4c_words(text: str, words: str) -> None:
    assert m4c_words(text) == words


@pytest.mark.parametrize(("agreeing", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_an_annotator_is_not_compared_with_their_own_answer(agreeing: int, score: float) -> None:
    truths = ["yes"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert leave_one_out("yes", truths) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "score"), [("Two", 1), ("two", 0), ("2", 0), ("Two.", 0), ("the Two", 0), (" Two\n", 1)]
)
def test_nothing_is_normalised_where_all_agree(answer: str, score: float) -> None:
    assert vqa_accuracies([answer], ["Two"] * 10) == [score]
    assert vqa_accuracies([answer], ["Two"] * 9 + ["three"]) == [1]


def test_all_agree_when_their_answers_do_once_stripped() -> None:
    assert vqa_accuracies(["Two dogs", "two dogs"], [" Two\ndogs"] * 5 + ["Two\tdogs "] * 5) == [1, 0]


@pytest.mark.parametrize(
    ("answer", "old", "new"),
    [
        ("B", "B", "B"),
        ("(B)", "B", "B"),
        ("b", "", ""),
        ("B or C", "", ""),
        ("A dog", "A", "A"),  # an article counts as the letter
        ("D cannot be told from here at all", "D", ""),  # 2026: not among the last four words
        ("It looks like it could be D here", "D", "D"),
        ("the correct answer is **B** because of A and C", "", "B"),
        ("The answer is blue and C or D", "", "B"),  # no border after the letter
        ("a small green parrot", "C", "C"),  # the only option whose text is in it
        ("a green parrot " + "indeed " * 20, "C", ""),  # 2026: longer than twice the options
        ("green parrot or yellow lion", "", ""),
        ("Cannot determine the answer, maybe B", "Z", "Z"),
        ("Z", "Z", "Z"),
        ("", "", ""),
    ],
)
def test_choices_are_read_as_in_both_versions_of_vlmevalkit(answer: str, old: str, new: str) -> None:
    options = {"A": "red fox", "B": "blue whale", "C": "green parrot", "D": "yellow lion"}
    assert [CHOICE_RULES[rule].read(answer, options) for rule in ("2024", "2026")] == [old, new]


ANIMALS = {"A": "cat", "B": "dog", "C": "bird", "D": "horse"}  # 15 characters


@pytest.mark.parametrize("mark", ".()[],:;!*#{}")
def test_a_letter_may_touch_these_marks(mark: str) -> None:
    assert CHOICE_RULES["2024"].read(f"{mark}B{mark}", ANIMALS) == "B"


@pytest.mark.parametrize("mark", "?'\"-/")
def test_other_marks_hide_the_letter(mark: str) -> None:
    assert CHOICE_RULES["2024"].read(f"B{mark}", ANIMALS) == ""


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Sorry, I can't help with images of people yet. B", "Z"),
        ("I can't process this file. B", "Z"),
        ("I'm sorry, but without the image provided: B", "Z"),
        ("i can't process this file. B", "B"),  # in another case it is not a refusal
        ("B Failed to obtain answer via API", ""),
        ("dog Failed to obtain answer via API", "B"),  # but option texts are searched for
        ("B or Z", "B"),
        ("A or B or Z", ""),
        ("It is a DOG", "B"),
    ],
)
def test_refusals_and_option_texts(answer: str, letter: str) -> None:
    assert CHOICE_RULES["2024"].read(answer, ANIMALS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B x y z", "B"),  # the fourth from the end
        ("B w x y z", ""),
        ("B w x y z B", ""),  # the first time counts
        ("a dog" + "." * 25, "B"),  # twice the options' 15 characters
        ("a dog" + "." * 26, ""),
        ("The correct answer is bird. A", "A"),  # a lone letter comes before the declaration
        ("A or B? Answer is C: yes", "C"),
    ],
)
def test_the_rule_of_2026(answer: str, letter: str) -> None:
    assert CHOICE_RULES["2026"].read(answer, ANIMALS) == letter


def test_a_letter_without_an_option_is_not_read() -> None:
    two = {"A": "cats", "B": "dogs"}
    assert CHOICE_RULES["2024"].read("C", two) == ""
    assert CHOICE_RULES["2026"].read("answer is Cats", two) == "A"  # by its text: C is no option
