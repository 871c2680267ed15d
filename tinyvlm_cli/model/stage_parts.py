"""What a stage's settings say of the model's parts. Needs no model, and so no torch."""

from tinyvlm_cli.config.schema import Stage, Tune

PARTS = ("vision", "connector", "llm")
ADAPTED = (Tune.lora, Tune.qlora)


def trained_parts(stage: Stage) -> list[str]:
    """The parts that a stage changes."""
    return [part for part in PARTS if getattr(stage.train, part) is not Tune.frozen]


def four_bit_parts(stage: Stage) -> list[str]:
    """The parts that a stage keeps in 4 bits."""
    return [part for part in PARTS if getattr(stage.train, part) is Tune.qlora]


def how_trained(stage: Stage, part: str) -> str:
    """What a stage trains of a part, in words: "full", "full from layer 12", "lora of rank 128"."""
    tune: Tune = getattr(stage.train, part)
    if tune in ADAPTED and stage.lora:
        return f"{tune.value} of rank {stage.lora.rank}"
    first = {"vision": stage.vision_from_layer, "llm": stage.llm_from_layer}.get(part, 0)
    return f"{tune.value} from layer {first}" if tune is Tune.full and first else tune.value


def part_rates(stage: Stage) -> dict[str, float]:
    """Each part's learning rate relative to the stage's."""
    rates = {part: getattr(stage.part_lr, part) for part in PARTS}
    return {part: 1.0 if rate is None else rate / stage.lr for part, rate in rates.items()}
