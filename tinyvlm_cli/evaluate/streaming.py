"""An answer's text while it is being written."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerFast


class Pieces:
    """What `generate` calls a streamer: hands on an answer's text token by token, in all the stripped answer.

    All tokens so far are decoded anew each time: some tokenizers write a word otherwise at a text's beginning, so
    pieces decoded alone would not add up.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, on_text: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.on_text = on_text
        self.ids: list[int] | None = None  # None: the prompt comes first
        self.said = ""

    def put(self, value: Any) -> None:
        """value: [1, T] the prompt, then [1] each new token."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        text = self._text()
        if not text.endswith("\ufffd"):  # a character of several tokens is not there yet
            self._say(text)

    def end(self) -> None:
        """The answer is complete."""
        self._say(self._text())

    def _text(self) -> str:
        text: str = self.tokenizer.decode(self.ids or [], skip_special_tokens=True)
        return text.strip()

    def _say(self, text: str) -> None:
        if text.startswith(self.said) and text != self.said:
            self.on_text(text[len(self.said) :])
            self.said = text
