"""The types and units of a run's settings. Values live in conf/*.yaml; this file states none of them twice.

Hydra checks each YAML against these classes when it composes a command's configuration, so a misspelt key or a
wrong type fails before anything else happens. `connector` and `benchmark` entries are open mappings because their
fields are the constructor arguments of the class named by `_target_`; `build.py` checks those.
"""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinyvlm_cli.errors import UserError


class Prompt(Enum):
    """Text format of a record (reference-system facts B4)."""

    plain = "plain"  # image, caption, newline: the loss is on the caption
    chat = "chat"  # the LLM's chat format: the loss is on the answers and their end token


class ImageMode(Enum):
    """Treatment of an image that is not square."""

    square = "square"  # the encoder's own resize: CLIP crops, SigLIP stretches
    pad = "pad"  # first pasted on a square canvas of the encoder's mean colour


class Tune(Enum):
    """Training of one part of the model in a stage."""

    frozen = "frozen"
    full = "full"
    lora = "lora"  # low-rank updates of its linear layers (arXiv 2106.09685)
    qlora = "qlora"  # the same, over weights kept in 4 bits (arXiv 2305.14314)


PARTS = ("vision", "connector", "llm")  # of a model; fields of Parts and Rates
ADAPTED = (Tune.lora, Tune.qlora)


class Loss(Enum):
    """Weighting of the samples in an optimizer step's loss."""

    token_mean = "token_mean"  # mean over the step's supervised tokens
    mean_of_means = "mean_of_means"  # mean over groups of samples of each group's mean: the reference's micro-batches


class Resize(Enum):
    """Resizing of an image to the encoder's input size."""

    crop = "crop"  # shortest edge to the size, centre crop
    stretch = "stretch"  # both edges to the size, aspect ratio not kept


class Tokens(Enum):
    """Positions of the vision encoder's output that go to the connector."""

    all = "all"
    drop_first = "drop_first"  # the encoder has a CLS token


class Precision(Enum):
    """Arithmetic of training. Under bf16 the optimizer keeps fp32 master weights."""

    bf16 = "bf16"
    fp32 = "fp32"


@dataclass
class Chat:
    """A chat format: system + (user + question + assistant + " " + answer + end) for each turn."""

    system: str = MISSING  # ends with the separator before the first turn
    user: str = MISSING  # precedes a question
    assistant: str = MISSING  # follows a question; a prompt for inference ends here
    end: str = MISSING  # end token, written after each answer; the next turn follows without a space


@dataclass
class LLM:
    """A causal language model of transformers."""

    name: str = MISSING
    label: str = MISSING  # short name in run names, as in the paper: TL, SLM, Phi
    path: str = MISSING  # hub id, or a local folder that from_pretrained reads
    chat: Chat = field(default_factory=Chat)
    pad_token: str = MISSING
    max_length: int = MISSING  # tokens, image tokens included; longer samples lose their tail
    precision: Precision = MISSING  # of its training, unless engine.precision is set
    architecture: dict[str, Any] | None = None  # transformers config, for plan, bench and tests without the weights
    prepare: dict[str, Any] | None = None  # `_target_` that makes `path` on this machine (`tinyvlm data prepare`)


@dataclass
class SecondEncoder:
    """A second vision encoder for the same pixels. Its tokens are interleaved with those of the first."""

    path: str = MISSING  # hub id, or a local folder that from_pretrained reads
    unused: list[str] = MISSING
    architecture: dict[str, Any] | None = None


@dataclass
class Vision:
    """A vision encoder of transformers and its preprocessing."""

    name: str = MISSING
    label: str = MISSING  # short name in run names, as in the paper: C, Sig
    path: str = MISSING  # hub id, or a local folder that from_pretrained reads
    feature_layer: int = MISSING  # index into the hidden states, 0 = embeddings, -1 = last layer
    tokens: Tokens = MISSING
    unused: list[str] = MISSING  # modules after the last layer, which the features do not pass through
    image_size: int = MISSING  # pixels
    resize: Resize = MISSING
    mean: list[float] = MISSING  # of RGB in 0..1
    std: list[float] = MISSING
    partial_from_layer: int = MISSING  # first encoder layer that a recipe trains if it trains the encoder partially
    second: SecondEncoder | None = None  # same feature layer, kept tokens and pixels
    architecture: dict[str, Any] | None = None
    prepare: dict[str, Any] | None = None


@dataclass
class Split:
    """One training set: a LLaVA-style JSON list and the folder its image paths start from."""

    annotations: str = MISSING
    images: str = MISSING
    count: int = MISSING  # published number of records, for plans made before the files are downloaded
    source: str = MISSING  # public name of the place that provides the files


@dataclass
class Data:
    """A family of training sets, one for each kind of stage."""

    name: str = MISSING
    splits: dict[str, Split] = MISSING  # stage split name -> files
    image_sources: dict[str, str] = field(default_factory=dict)  # folder in an image path -> where to get its images
    prepare: dict[str, Any] | None = None


@dataclass
class Parts:
    """Training of each part in a stage."""

    vision: Tune = MISSING
    connector: Tune = MISSING  # frozen or full
    llm: Tune = MISSING


@dataclass
class Rates:
    """Peak learning rates of single parts; null: the stage's rate."""

    vision: float | None = None
    connector: float | None = None
    llm: float | None = None


@dataclass
class Lora:
    """Low-rank updates: W + alpha / rank * B A, on every linear layer of a part except the LLM's head."""

    rank: int = MISSING
    alpha: int = MISSING
    dropout: float = MISSING

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.alpha / self.rank


@dataclass
class Optim:
    """AdamW with linear warm-up and cosine decay to zero."""

    betas: list[float] = MISSING
    eps: float = MISSING
    weight_decay: float = MISSING
    warmup_ratio: float = MISSING  # share of the stage's steps
    max_grad_norm: float = MISSING  # over all trained parameters


@dataclass
class Stage:
    """One training of a recipe."""

    start: str | None = None  # the stage whose weights this one continues; null: the published weights
    split: str = MISSING  # which split of the data group
    prompt: Prompt = MISSING
    image_mode: ImageMode = MISSING
    train: Parts = field(default_factory=Parts)
    vision_from_layer: int = MISSING  # with train.vision=full: the first encoder layer that learns; 0 = everything
    llm_from_layer: int = 0  # with train.llm=full: the first layer that learns, with the head; 0 = everything
    lora: Lora | None = None  # of the parts whose `train` is lora or qlora
    lr: float = MISSING  # peak, after warm-up
    part_lr: Rates = field(default_factory=Rates)
    samples_per_step: int = MISSING  # records in an optimizer step, over all GPUs
    epochs: int = MISSING
    max_steps: int | None = None  # optimizer steps at most; null: all of the epochs
    loss: Loss = Loss.token_mean
    samples_per_mean: int | None = None  # with loss=mean_of_means: the reference's batch of one device

    @property
    def trained_parts(self) -> list[str]:
        """The parts whose weights the stage changes."""
        return [part for part in PARTS if getattr(self.train, part) is not Tune.frozen]

    @property
    def adapted_parts(self) -> list[str]:
        """The parts of which the stage learns low-rank updates."""
        return [part for part in PARTS if getattr(self.train, part) in ADAPTED]

    @property
    def four_bit_parts(self) -> list[str]:
        """The parts whose weights the stage keeps in 4 bits."""
        return [part for part in PARTS if getattr(self.train, part) is Tune.qlora]

    @property
    def rate_scales(self) -> dict[str, float]:
        """Each part's learning rate divided by the stage's."""
        rates = {part: getattr(self.part_lr, part) for part in PARTS}
        return {part: 1.0 if rate is None else rate / self.lr for part, rate in rates.items()}

    def describe_training(self, part: str) -> str:
        """Return in words how the stage trains a part: "full", "full from layer 12", "lora of rank 128"."""
        tune: Tune = getattr(self.train, part)
        if tune in ADAPTED and self.lora:
            return f"{tune.value} of rank {self.lora.rank}"
        first = {"vision": self.vision_from_layer, "llm": self.llm_from_layer}.get(part, 0)
        return f"{tune.value} from layer {first}" if tune is Tune.full and first else tune.value


@dataclass
class Recipe:
    """An order of stages, given by each stage's `start`."""

    name: str = MISSING
    paper_data: str | None = MISSING  # the data group that the paper uses with it; any other appears in a run's name
    optim: Optim = field(default_factory=Optim)
    stages: dict[str, Stage] = MISSING


@dataclass
class Engine:
    """Execution of training on the machine. Only `precision` changes the trained weights beyond rounding."""

    zero: int = MISSING  # DeepSpeed ZeRO stage 1, 2 or 3
    precision: Precision = MISSING
    micro_tokens: int | None = None  # most tokens of a micro-batch on one GPU; null: as many as fit and make it faster
    recompute: float | None = None  # share of the layers with activation checkpointing; null: as few as memory requires
    compile: bool | None = None  # layers compiled by PyTorch; null: on a GPU, except with ZeRO-3
    workers: int | None = None  # image-loading processes per GPU; 0: none; null: up to 16, on a CPU none
    save_every: int = MISSING  # optimizer steps between checkpoints
    gpus: int | None = None  # worker processes on this machine; null: one for each visible GPU, one on a CPU


@dataclass
class Train:
    """Settings of `tinyvlm train`; `plan` and `bench` add to them."""

    llm: LLM = field(default_factory=LLM)
    vision: Vision = field(default_factory=Vision)
    connector: dict[str, Any] = MISSING  # name, `_target_` and the class's arguments
    data: Data = field(default_factory=Data)
    recipe: Recipe = field(default_factory=Recipe)
    engine: Engine = field(default_factory=Engine)
    start: str | None = None  # a run whose parts and weights the first stage continues; null: published weights
    seed: int = MISSING
    data_dir: str = MISSING
    results_dir: str = MISSING


C = TypeVar("C")


def to_yaml(config: Any) -> str:
    """Return a configuration object as YAML, with every value resolved."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(kind: type[C], path: Path) -> C:
    """Return the configuration object that `to_yaml` wrote, also that of an earlier version.

    Raises UserError when the file has settings that this version does not know.
    """
    try:
        written = OmegaConf.load(path)
        if isinstance(data := OmegaConf.select(written, "data"), DictConfig):
            data.pop("label", None)  # a setting of earlier versions
        loaded = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), written))
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0]
        text = f"{path}: not a configuration of this version of tinyvlm ({reason}); train the run again"
        raise UserError(text) from None
    assert isinstance(loaded, kind)
    return loaded
