"""The choice of a memory layout, and the measurement behind it."""

import pytest
import torch

from tinyvlm_cli.config.schema import Engine, Precision
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.train.layout import GIB, MAX_TOKENS, Layout, Need, Needs, choose
from tinyvlm_cli.train.memory import need_of

KEPT, RECOMPUTED = Need(1 * GIB, 2**21), Need(1 * GIB, 2**19)  # 2 MiB per token, or half of one


def settings(micro_tokens: int | None = None, recompute: float | None = None) -> Engine:
    return Engine(zero=1, precision=Precision.bf16, micro_tokens=micro_tokens, recompute=recompute, save_every=1)


@pytest.mark.parametrize(
    ("room", "asked", "layout"),
    [
        (100, settings(), Layout(MAX_TOKENS, 0.0)),  # more would gain little
        (33, settings(), Layout(16384, 0.0)),  # shorter rows come first,
        (14, settings(), Layout(8192, 0.25)),  # then layers are recomputed, as few as possible,
        (4, settings(), Layout(3328, 0.75)),  # then rows get as short as one sample
        (100, settings(recompute=0.5), Layout(MAX_TOKENS, 0.5)),
        (100, settings(micro_tokens=4096), Layout(4096, 0.0)),
        (20, settings(micro_tokens=16384), Layout(16384, 0.75)),
    ],
)
def test_long_rows_are_preferred_and_little_is_recomputed(room: int, asked: Engine, layout: Layout) -> None:
    assert choose(asked, room * GIB, Needs(KEPT, RECOMPUTED), most=MAX_TOKENS, max_length=3072) == layout


@pytest.mark.parametrize("asked", [settings(), settings(micro_tokens=16384), settings(recompute=0.0)])
def test_rows_that_do_not_fit_are_rejected(asked: Engine) -> None:
    with pytest.raises(
        UserError, match=r"^engine: rows of \d+ tokens need \d+\.\d GiB more memory than this GPU has; [^\n]*$"
    ):
        choose(asked, 2 * GIB, Needs(KEPT, RECOMPUTED), most=MAX_TOKENS, max_length=3072)


@pytest.mark.parametrize(
    ("holds", "layout"),
    [
        (30, Layout(14848, 0.0)),
        (9, Layout(9216, 0.75)),  # 8,192 tokens can be measured only with every layer recomputed
        (6, Layout(10240, 1.0)),  # here not even one sample can be measured otherwise
    ],
)
def test_rows_that_run_out_of_memory_are_measured_shorter(holds: int, layout: Layout) -> None:
    def peak_of(need: Need):
        def peak(tokens: int) -> int:
            if need.bytes(tokens) > holds * GIB:
                raise torch.cuda.OutOfMemoryError
            return int(need.bytes(tokens))

        return peak

    needs = Needs(need_of(peak_of(KEPT), 3072), need_of(peak_of(RECOMPUTED), 3072))
    assert choose(settings(), holds * GIB, needs, most=MAX_TOKENS, max_length=3072) == layout


def test_rows_that_cannot_be_measured_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"^engine: rows of 3072 tokens need more memory than this GPU has; "):
        choose(settings(recompute=0.5), 2 * GIB, Needs(None, RECOMPUTED), most=MAX_TOKENS, max_length=3072)
