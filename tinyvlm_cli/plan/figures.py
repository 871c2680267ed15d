"""A stage in figures: its samples, its model, and the memory and disk that follow from them. Needs no torch."""

from dataclasses import dataclass

from tinyvlm_cli.config.schema import Engine, Precision, Stage
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.train.layout import GIB, USED, Layout, Need, Needs, choose, longest_row, without_choice

WEIGHT_BYTES = {Precision.bf16: 2, Precision.fp32: 4}
SUM_BYTES = 4  # of a trained parameter's gradient, added up over a step in fp32
OPTIMIZER_BYTES = 12  # of a trained parameter: its fp32 master weight and Adam's two moments


@dataclass(frozen=True)
class Row:
    """Numbers that a row keeps for its backward pass."""

    kept: float  # for each token
    again: float  # for each token where every layer is computed again
    fixed: float


@dataclass(frozen=True)
class Peak:
    """The most memory that a GPU needs, and how its rows are laid out then."""

    bytes: float
    layout: Layout


@dataclass(frozen=True)
class Estimate:
    """What a stage would take, whatever the machine."""

    samples: int  # published number of records of the split
    steps: int  # optimizer steps
    every: dict[str, int]  # parameters of each part as kept in memory
    trained: dict[str, int]  # of which this stage changes
    tokens_per_image: int
    tokens: int | None  # of all steps, image tokens included; None: nothing is known about the split's samples
    operations: float | None  # that all steps need (flops.py)
    row: Row


def held_bytes(figure: Estimate, stage: Stage, engine: Engine) -> float | None:
    """Bytes that each GPU holds all the time; a step's activations come on top. None: 4-bit weights, not worked out.

    ZeRO-1 spreads the optimizer over the GPUs, ZeRO-2 the gradients too, ZeRO-3 also the weights (arXiv 1910.02054).
    """
    if stage.four_bit_parts:
        return None
    trained = sum(figure.trained.values())

    def spread(per_gpu: float, *, from_zero: int) -> float:
        return per_gpu / (engine.gpus or 1) if engine.zero >= from_zero else per_gpu

    return (
        spread(OPTIMIZER_BYTES * trained, from_zero=1)
        + spread(SUM_BYTES * trained, from_zero=2)
        + spread(WEIGHT_BYTES[engine.precision] * sum(figure.every.values()), from_zero=3)
    )


def peak(held: float, row: Row, engine: Engine, *, gpu_bytes: float, max_length: int) -> Peak:
    """What training would choose for a GPU of that size. held: bytes that it holds all the time

    Raises UserError where nothing fits.
    """
    width = WEIGHT_BYTES[engine.precision]
    needs = Needs(*(Need(width * row.fixed, width * per_token) for per_token in (row.kept, row.again)))
    room = USED * gpu_bytes - held
    if engine.zero == 3:
        layout = without_choice(engine, max_length)
    else:
        most = longest_row(engine, engine.gpus or 1, max_length)
        layout = choose(engine, room, needs, most=most, max_length=max_length)
    need = needs.at(layout.recompute)
    assert need is not None, "both are known"
    total = held + need.bytes(layout.micro_tokens)
    if (short := total - USED * gpu_bytes) > 0:
        raise UserError(
            f"engine: rows of {layout.micro_tokens} tokens need {short / GIB:.1f} GiB more than this GPU has; "
            "use more GPUs, lower engine.micro_tokens, or raise engine.recompute"
        )
    return Peak(total, layout)


def written_bytes(figure: Estimate, stage: Stage, engine: Engine) -> int:
    """Bytes of the stage's weights on disk: whole parts, of adapted ones the low-rank updates. No checkpoints."""
    written = ((figure.trained if part in stage.adapted_parts else figure.every)[part] for part in stage.trained_parts)
    return WEIGHT_BYTES[engine.precision] * sum(written)
