"""Ask a trained run about images, with questions from the command line, a terminal conversation or a pipe."""

import logging
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinyvlm_cli.config.commands import Ask
from tinyvlm_cli.console import printable
from tinyvlm_cli.data.images import UPRIGHT, examine
from tinyvlm_cli.data.user_images import STDIN, image_source
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.models import find_model

log = logging.getLogger(__name__)

Sources = list[tuple[str, list[Path | bytes]]]  # (names on the command line, images of one question)
History = list[tuple[str, str]]
AskOne = Callable[[list[Path | bytes], str, History], str]  # prints and returns the answer


def run(config: Ask) -> int:
    """Print the answers and return the exit code."""
    found = find_model(Results(config.results_dir), config.run, stage=config.stage)
    questions = _texts("question", config.question)
    groups = config.image if isinstance(config.image, list) else [config.image]
    images = [_texts("image", group) for group in groups]  # a nested list has the images of one question
    if not all(images) or not images:
        raise UserError("image: not set; add image=FILE")
    if [STDIN] in images and not questions:
        raise UserError("question: not set, but the image is read from standard input; add question=...")
    sources: Sources = [(", ".join(names), [image_source(name) for name in names]) for names in images]
    # Report unreadable images before loading the model.
    rotated = [name for name, group in sources for source in group if examine(source).orientation != UPRIGHT]

    from tinyvlm_cli.evaluate.generation import Decoding
    from tinyvlm_cli.evaluate.loaded import Loaded

    decoding = Decoding(config.max_new_tokens, config.temperature, config.top_p, config.num_beams, config.seed)
    if not decoding.samples and decoding.top_p != 1:
        log.warning("top_p=%g: has no effect with temperature=0 (greedy decoding)", decoding.top_p)
    model = Loaded(found, device=None, dtype=None)
    if rotated and not model.turns_images:
        log.warning("image=%s: its Exif rotation is ignored, as in the training of this model", rotated[0])

    def ask(images: list[Path | bytes], question: str, history: History) -> str:
        def show(piece: str) -> None:
            print(printable(piece), end="", flush=True)

        text = model.ask(images, question, history=history, on_text=show, **vars(decoding))
        print()
        return text

    if questions:
        _ask_all(sources, questions, ask, is_titled=len(sources) * len(questions) > 1)
    elif sys.stdin.isatty():
        _converse(sources, ask)
    else:
        lines = (line.strip() for line in sys.stdin if line.strip())  # lazy: each line is answered as it arrives
        try:
            num_asked = _ask_all(sources, lines, ask, is_titled=True)
        except UnicodeDecodeError as error:
            raise UserError(f"standard input: not valid {error.encoding} text; write one question per line") from None
        if not num_asked:
            raise UserError("question: not set, and standard input is empty; add question=...")
    return 0


def _texts(setting: str, value: Any) -> list[str]:
    """Convert the value of a setting (a string, a list of strings or null) to a list of strings."""
    texts = value if isinstance(value, list) else [] if value is None else [value]
    for text in texts:
        if isinstance(text, dict | list) or text is None or not str(text).strip():
            raise UserError(f"{setting}={text!r}: expected a non-empty string, or a list as in '{setting}=[...,...]'")
    return [str(text) for text in texts]


def _ask_all(sources: Sources, questions: Iterable[str], ask: AskOne, *, is_titled: bool) -> int:
    """Ask each question about each image independently, as in evaluation. Returns the number of questions."""
    asked = 0
    for question in questions:
        asked += 1
        for name, images in sources:
            if is_titled:
                print(printable(f"[{name}] {question}"), flush=True)
            ask(images, question, [])
    return asked


def _converse(sources: Sources, ask: AskOne) -> None:
    """Hold a conversation about each image, with the same questions, until an empty line or the end of input."""
    with suppress(ImportError):
        import readline  # noqa: F401 - enables line editing
    names = printable(", ".join(name for name, _ in sources))
    print(f"Images: {names}. Enter an empty line or Ctrl-D to quit.", file=sys.stderr)
    histories: list[History] = [[] for _ in sources]
    while True:
        if not sys.stdout.isatty():  # keep the prompt out of redirected answers
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            question = input("> " if sys.stdout.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if not question:
            return
        for (name, images), history in zip(sources, histories, strict=True):
            if len(sources) > 1:
                print(printable(f"[{name}]"), flush=True)
            history.append((question, ask(images, question, history)))
