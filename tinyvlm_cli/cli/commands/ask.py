"""Ask a trained run about images: questions from the command line, a conversation on a terminal, or lines of a pipe."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinyvlm_cli.config.commands import Ask
from tinyvlm_cli.data.images import STDIN, image_source, open_image
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.decoding import Decoding
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.models import find_model

log = logging.getLogger(__name__)

History = list[tuple[str, str]]
AskOne = Callable[[Path | bytes, str, History], str]  # prints the answer and returns it


def run(config: Ask) -> int:
    """Print the answers. Returns the exit code."""
    found = find_model(Results(config.results_dir), config.run, stage=config.stage)
    decoding = Decoding(config.max_new_tokens, config.temperature, config.top_p, config.num_beams, config.seed)
    if not decoding.samples and decoding.top_p != 1:
        log.warning("top_p=%g: has no effect at temperature=0, where every answer is greedy", decoding.top_p)
    questions = _texts("question", config.question)
    sources = _sources(_texts("image", config.image), has_questions=bool(questions))

    from tinyvlm_cli.evaluate.loaded import Loaded

    model = Loaded(found, device=None, dtype=None)

    def ask(image: Path | bytes, question: str, history: History) -> str:
        text = model.ask(image, question, history=history, on_text=_say, **vars(decoding))
        print()
        return text

    if questions:
        _ask_all(sources, questions, ask, is_titled=len(sources) * len(questions) > 1)
    elif sys.stdin.isatty():
        _talk(sources, ask)
    elif not _ask_all(sources, _piped(), ask, is_titled=True):
        raise UserError("question: not set, and standard input has none; add question=...")
    return 0


def _sources(images: list[str], *, has_questions: bool) -> list[tuple[str, Path | bytes]]:
    """The images by name, each tried: a bad one shows before the model is loaded."""
    if not images:
        raise UserError("image: none is named; add image=FILE")
    if STDIN in images and not has_questions:
        raise UserError("question: not set, and standard input brings the image; add question=...")
    sources = [(name, image_source(name)) for name in images]
    for _, source in sources:
        open_image(source)
    return sources


def _texts(setting: str, value: Any) -> list[str]:
    """The texts of a setting that is a text, a list of them, or null."""
    texts = value if isinstance(value, list) else [] if value is None else [value]
    for text in texts:
        if isinstance(text, dict | list) or text is None or not str(text).strip():
            raise UserError(f"{setting}={text!r}: a text is needed, or a list of texts as in '{setting}=[...,...]'")
    return [str(text) for text in texts]


def _ask_all(sources: list[tuple[str, Path | bytes]], questions: Iterable[str], ask: AskOne, *, is_titled: bool) -> int:
    """Every question about every image, each for itself as in evaluation. Returns the number of questions."""
    asked = 0
    for question in questions:
        asked += 1
        for name, image in sources:
            if is_titled:
                print(f"[{name}] {question}", flush=True)
            ask(image, question, [])
    return asked


def _talk(sources: list[tuple[str, Path | bytes]], ask: AskOne) -> None:
    """A conversation about each image, with the same questions, until an empty line or the end of input."""
    with suppress(ImportError):
        import readline  # noqa: F401 - lets a line be edited
    print(f"About {', '.join(name for name, _ in sources)}. An empty line or Ctrl-D ends.", file=sys.stderr)
    histories: list[History] = [[] for _ in sources]
    while question := _typed():
        for (name, image), history in zip(sources, histories, strict=True):
            if len(sources) > 1:
                print(f"[{name}]", flush=True)
            history.append((question, ask(image, question, history)))


def _typed() -> str:
    """The next line from the terminal; "" at its end."""
    prompt = "> "
    if not sys.stdout.isatty():  # answers alone go there
        print(prompt, end="", file=sys.stderr, flush=True)
        prompt = ""
    try:
        return input(prompt).strip()
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        return ""


def _piped() -> Iterator[str]:
    """The questions on standard input, a line each, as they come; empty lines say nothing."""
    try:
        for line in sys.stdin:
            if line.strip():
                yield line.strip()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: not a text in {error.encoding}; questions are lines of text") from None


def _say(piece: str) -> None:
    print(piece, end="", flush=True)
