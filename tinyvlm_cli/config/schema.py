"""Types and units of a run's settings. The values are in conf/*.yaml and are not repeated here.

Hydra checks each YAML file against these classes when it composes a command's configuration, so that misspelled keys
and wrong types are rejected immediately. `connector` and `benchmark` entries are open mappings because their keys are
the constructor arguments of the class in `_target_`; `build.py` checks them.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from tinyvlm_cli.config.datasets import Data
from tinyvlm_cli.config.evaluation import Evaluate, Tracker
from tinyvlm_cli.config.ranges import integer, number


class Prompt(Enum):
    """Text format of a training record."""

    plain = "plain"  # image, caption, newline; the loss covers the caption
    chat = "chat"  # the LLM's chat format; the loss covers the answers and their end tokens


class ImageMode(Enum):
    """Preprocessing of images that are not square."""

    square = "square"  # the encoder's own resizing: CLIP crops, SigLIP stretches
    pad = "pad"  # pad to a square with the encoder's mean colour, then resize


class Tune(Enum):
    """Training mode of one part of the model in a stage."""

    frozen = "frozen"
    full = "full"
    lora = "lora"  # low-rank updates of the part's linear layers (arXiv 2106.09685)
    qlora = "qlora"  # LoRA on frozen weights in 4 bits (arXiv 2305.14314)


PARTS = ("vision", "connector", "llm")  # parts of a model; fields of Parts and Rates
ADAPTED = (Tune.lora, Tune.qlora)


class Loss(Enum):
    """Averaging of the loss over an optimizer step."""

    token_mean = "token_mean"  # mean over all supervised tokens of the step
    mean_of_means = "mean_of_means"  # as in TinyLLaVA_Factory: token mean of each per-device batch, then their mean


class Resize(Enum):
    """Method of resizing an image to the encoder's input size."""

    crop = "crop"  # resize the shortest edge to the size, then centre-crop
    stretch = "stretch"  # resize both edges to the size, ignoring the aspect ratio


class Tokens(Enum):
    """Output tokens of the vision encoder that are passed to the connector."""

    all = "all"
    drop_first = "drop_first"  # for encoders with a CLS token


class Precision(Enum):
    """Training precision. With bf16, the optimizer keeps fp32 master weights."""

    bf16 = "bf16"
    fp32 = "fp32"


@dataclass
class Chat:
    """A chat format: system, followed by user + question + assistant + " " + answer + end for each turn."""

    system: str = MISSING  # includes the separator before the first turn
    user: str = MISSING  # precedes each question
    assistant: str = MISSING  # follows each question; prompts for inference end here
    end: str = MISSING  # end token after each answer; the next turn follows without a space


@dataclass
class LLM:
    """A causal language model that transformers supports."""

    name: str = MISSING
    label: str = MISSING  # short name in run names, as in the paper: TL, SLM, Phi
    path: str = MISSING  # hub id or local folder for from_pretrained
    chat: Chat = field(default_factory=Chat)
    pad_token: str = MISSING
    tokenizer: str | None = None  # SHA-256 of the published vocabulary and merges; null: not compared
    max_length: int = integer(1)  # in tokens, including image tokens; longer samples are truncated
    precision: Precision = MISSING  # training precision, unless engine.precision is set
    architecture: dict[str, Any] | None = None  # transformers config, so that plan, bench and tests need no weights
    prepare: dict[str, Any] | None = None  # `_target_` with which `tinyvlm data prepare` creates `path`


@dataclass
class SecondEncoder:
    """A second vision encoder on the same pixels. Its tokens are interleaved with the first encoder's."""

    path: str = MISSING  # hub id or local folder for from_pretrained
    unused: list[str] = MISSING
    architecture: dict[str, Any] | None = None


@dataclass
class Vision:
    """A vision encoder that transformers supports, and its preprocessing."""

    name: str = MISSING
    label: str = MISSING  # short name in run names, as in the paper: C, Sig
    path: str = MISSING  # hub id or local folder for from_pretrained
    feature_layer: int = integer(-1000, 1000)  # index into the hidden states; 0: embeddings, -1: last layer
    tokens: Tokens = MISSING
    unused: list[str] = MISSING  # modules after the last layer, which do not affect the features
    image_size: int = integer(1, 10_000)  # width and height in pixels
    resize: Resize = MISSING
    mean: list[float] = number(0, 1, length=3)  # mean of the RGB channels, in 0..1
    std: list[float] = number(above=0, length=3)
    partial_from_layer: int = integer(0)  # first trained layer in recipes that train only the upper layers
    second: SecondEncoder | None = None  # uses the same feature layer, tokens and pixels
    architecture: dict[str, Any] | None = None
    prepare: dict[str, Any] | None = None


@dataclass
class Parts:
    """Training mode of each part of the model in a stage."""

    vision: Tune = MISSING
    connector: Tune = MISSING  # frozen or full
    llm: Tune = MISSING


@dataclass
class Rates:
    """Peak learning rates of individual parts; null: the stage's learning rate."""

    vision: float | None = number(above=0, default=None)
    connector: float | None = number(above=0, default=None)
    llm: float | None = number(above=0, default=None)


@dataclass
class Lora:
    """Low-rank updates, W + (alpha / rank) B A, of all linear layers of a part except the LLM's head."""

    rank: int = integer(1)
    alpha: int = integer(1)
    dropout: float = number(0, below=1)

    @property
    def scale(self) -> float:
        """Scaling factor of the product B A."""
        return self.alpha / self.rank


@dataclass
class Optim:
    """AdamW with linear warm-up and cosine decay to zero."""

    betas: list[float] = number(0, below=1, length=2)
    eps: float = number(above=0)
    weight_decay: float = number(0)
    warmup_ratio: float = number(0, 1)  # share of the stage's optimizer steps
    max_grad_norm: float = number(0)  # gradient clipping threshold, over all trained parameters


@dataclass
class Stage:
    """One training stage of a recipe."""

    start: str | None = None  # stage to continue from; null: the pretrained weights
    split: str = MISSING  # split of the data group
    prompt: Prompt = MISSING
    image_mode: ImageMode = MISSING
    train: Parts = field(default_factory=Parts)
    vision_from_layer: int = integer(0)  # with train.vision=full: first trained layer; 0: the whole encoder
    llm_from_layer: int = integer(0, default=0)  # with train.llm=full: first trained layer, besides the head; 0: all
    lora: Lora | None = None  # for parts whose `train` is lora or qlora
    lr: float = number(above=0)  # peak learning rate, after warm-up
    part_lr: Rates = field(default_factory=Rates)
    samples_per_step: int = integer(1)  # samples per optimizer step, over all GPUs
    epochs: int = integer(1)
    max_steps: int | None = integer(1, default=None)  # maximum number of optimizer steps; null: no limit
    loss: Loss = Loss.token_mean
    samples_per_mean: int | None = integer(1, default=None)  # with loss=mean_of_means: per-device batch size

    @property
    def trained_parts(self) -> list[str]:
        """Parts that the stage trains."""
        return [part for part in PARTS if getattr(self.train, part) is not Tune.frozen]

    @property
    def adapted_parts(self) -> list[str]:
        """Parts that the stage trains with low-rank updates."""
        return [part for part in PARTS if getattr(self.train, part) in ADAPTED]

    @property
    def four_bit_parts(self) -> list[str]:
        """Parts whose weights are stored in 4 bits during the stage."""
        return [part for part in PARTS if getattr(self.train, part) is Tune.qlora]

    @property
    def rate_scales(self) -> dict[str, float]:
        """Ratio of each part's learning rate to the stage's."""
        rates = {part: getattr(self.part_lr, part) for part in PARTS}
        return {part: 1.0 if rate is None else rate / self.lr for part, rate in rates.items()}

    def describe_training(self, part: str) -> str:
        """Return a description of how the stage trains a part, such as "full from layer 12" or "lora of rank 128"."""
        tune: Tune = getattr(self.train, part)
        if tune in ADAPTED and self.lora:
            return f"{tune.value} of rank {self.lora.rank}"
        first = {"vision": self.vision_from_layer, "llm": self.llm_from_layer}.get(part, 0)
        return f"{tune.value} from layer {first}" if tune is Tune.full and first else tune.value


@dataclass
class Recipe:
    """The training stages of a run. Each stage's `start` setting names the stage that it continues from."""

    name: str = MISSING
    paper_data: str | None = MISSING  # data group used in the paper; run names mention any other group
    optim: Optim = field(default_factory=Optim)
    stages: dict[str, Stage] = MISSING


@dataclass
class Engine:
    """Settings of the training engine. Only `precision` changes the weights by more than rounding errors."""

    zero: int = integer(1, 3)  # DeepSpeed ZeRO stage 1, 2 or 3
    precision: Precision = MISSING
    micro_tokens: int | None = integer(1, default=None)  # maximum tokens per micro-batch and GPU; null: automatic
    recompute: float | None = number(0, 1, default=None)  # share of recomputed layers; null: the least that fits
    compile: bool | None = None  # compile layers with PyTorch; null: on a GPU, except with ZeRO-3
    workers: int | None = integer(0, 256, default=None)  # image-loading processes per GPU; null: automatic
    save_every: int = integer(1)  # optimizer steps between checkpoints
    gpus: int | None = integer(1, 256, default=None)  # worker processes on this machine; null: one per GPU


@dataclass
class Train:
    """Settings of `tinyvlm train`, which `plan` and `bench` extend."""

    llm: LLM = field(default_factory=LLM)
    vision: Vision = field(default_factory=Vision)
    connector: dict[str, Any] = MISSING  # name, `_target_` and constructor arguments
    data: Data = field(default_factory=Data)
    recipe: Recipe = field(default_factory=Recipe)
    engine: Engine = field(default_factory=Engine)
    start: str | None = None  # run to continue training from; null: the pretrained weights
    evaluate: Evaluate | None = None  # None in the files of earlier versions
    tracker: Tracker | None = None  # service that receives the metrics as well as TensorBoard; null: none
    seed: int = integer(0, 2**32 - 1)
    data_dir: str = MISSING
    results_dir: str = MISSING
