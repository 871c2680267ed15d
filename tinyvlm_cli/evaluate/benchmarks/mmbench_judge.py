"""The judge's part in MMBench: which option an answer means when the rule cannot tell.

VLMEvalKit asks with the prompt of its own file, three times at most; that file is read when the user puts it there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.benchmarks.mmbench_table import Row
from tinyvlm_cli.evaluate.choices import ChoiceRule
from tinyvlm_cli.evaluate.judge import Judge, Reply, Request
from tinyvlm_cli.evaluate.official_files import python_string

ATTEMPTS = 3  # askings about one answer
JUDGE_FILE = "multiple_choice.py"  # vlmeval/dataset/utils/ of VLMEvalKit, whose prompt it holds
MAX_TOKENS = 2048  # of a reply, as VLMEvalKit's client

# Used when VLMEvalKit's file is not there.
OWN_PROMPT = """A question with lettered options was answered in free words. Name the option that the answer means.
Reply with its capital letter alone, or with Z when the answer means none of the options.

Question: {}
{}
Answer: {}
Letter: """


@dataclass(frozen=True)
class Verdict:
    """What became of one question."""

    hit: bool
    replies: tuple[Reply, ...] = ()  # of the judge
    undecided: bool = False  # an answer that neither the rule nor the judge could read


def wanted(data_dir: Path) -> list[str]:
    """The file without which the verdicts are not the official ones, when it is not there."""
    path = data_dir / JUDGE_FILE
    return [] if path.exists() else [f"{path} is not there; copy vlmeval/dataset/utils/{JUDGE_FILE} of VLMEvalKit"]


def read_prompt(data_dir: Path) -> str:
    """The prompt, with places for question, options and answer."""
    if wanted(data_dir):
        return OWN_PROMPT
    path = data_dir / JUDGE_FILE
    template = python_string(path, "tmpl", inside="build_prompt")
    if template.count("{}") != OWN_PROMPT.count("{}"):
        raise UserError(f"{path}: the prompt has no places for question, options and answer; get VLMEvalKit's of 2024")
    return template


def settle(
    group: Sequence[Row],
    read: Mapping[str, str],
    texts: Mapping[str, str],
    *,
    rule: ChoiceRule,
    judge: Judge,
    template: str,
) -> Verdict:
    """Ask about the rows that the rule could not read, in order, until one is wrong."""
    replies: list[Reply] = []
    for row in group:
        letter = read[row.key]
        for attempt in range(0 if letter else ATTEMPTS):
            replies.append(judge.reply(_request(template, row, texts[row.key]), str(attempt)))
            letter = rule.read(replies[-1].text, row.options)
            if letter:
                break
        if letter != row.answer:
            return Verdict(False, tuple(replies), undecided=not letter)
    return Verdict(True, tuple(replies))


def _request(template: str, row: Row, text: str) -> Request:
    options = "There are several options: \n" + "".join(f"{letter}. {text}\n" for letter, text in row.options.items())
    prompt = template.format(row.question, options, text)
    return Request(messages=(("user", prompt),), temperature=0.0, max_tokens=MAX_TOKENS)
