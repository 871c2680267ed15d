"""How an answer is written: greedily, by sampling, or by beam search."""

from dataclasses import dataclass, fields
from typing import Any

from tinyvlm_cli.errors import UserError


@dataclass(frozen=True)
class Decoding:
    """Settings of the generation; `tinyvlm ask` takes its values from conf/ask.yaml."""

    max_new_tokens: int  # an answer is cut there
    temperature: float  # 0: always the likeliest token
    top_p: float  # sampling: only the likeliest tokens that together are this probable; 1: all
    num_beams: int  # 1: no beam search
    seed: int  # of the sampling

    def __post_init__(self) -> None:
        findings = [
            f"{setting}={getattr(self, setting)}: {allowed}"
            for setting, allowed, holds in (
                ("max_new_tokens", "one token at least", self.max_new_tokens >= 1),
                ("temperature", "0 (greedy) or more", self.temperature >= 0),
                ("top_p", "a share above 0, up to 1", 0 < self.top_p <= 1),
                ("num_beams", "1 (no beam search) or more", self.num_beams >= 1),
            )
            if not holds
        ]
        if findings:
            raise UserError("\n".join(findings))

    @property
    def samples(self) -> bool:
        """Whether chance has a part in it."""
        return self.temperature > 0


def greedy(max_new_tokens: int) -> Decoding:
    """How benchmarks are answered."""
    return Decoding(max_new_tokens, temperature=0, top_p=1, num_beams=1, seed=0)


def decoding(standard: dict[str, Any], given: dict[str, Any]) -> Decoding:
    """The settings `given` by name, and those of `standard` for the others."""
    known = [field.name for field in fields(Decoding)]
    for setting in given:
        if setting not in known:
            raise UserError(f"{setting}: there is no such setting of an answer; choose from {', '.join(known)}")
    return Decoding(**{name: given.get(name, standard[name]) for name in known})
