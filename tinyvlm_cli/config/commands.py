"""Settings of the commands other than `train`. The values are in conf/*.yaml."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from tinyvlm_cli.config.datasets import Data
from tinyvlm_cli.config.evaluation import Judge
from tinyvlm_cli.config.ranges import integer, number
from tinyvlm_cli.config.schema import LLM, Precision, Prompt, Train, Vision

TEXT = {"text": True}  # metadata of a free-text setting, which is taken literally, including commas and quotes


@dataclass
class Eval:
    """Settings of `tinyvlm eval`."""

    run: str = MISSING  # a run's name or folder name, "all", or a model folder in Hugging Face format
    stage: str | None = None  # null: the last stage of the run
    benchmark: dict[str, Any] = MISSING  # name -> `_target_` and constructor arguments
    blind: bool = MISSING  # also answer with images shuffled between questions, as a text-only baseline
    limit: int | None = integer(
        0, default=None
    )  # number of questions to answer; null: all. Partial scores are excluded from tables
    judge: Judge = field(default_factory=Judge)
    gpus: int | None = integer(1, 256, default=None)
    seed: int = integer(0, 2**32 - 1)  # random seed for shuffling the images of the blind control
    eval_dir: str = MISSING  # folder with one subfolder per benchmark, in LLaVA's layout
    data_dir: str = MISSING
    results_dir: str = MISSING


@dataclass
class Score:
    """Settings of `tinyvlm score`."""

    benchmark: dict[str, Any] = MISSING
    answers: str = MISSING  # JSONL file with question_id, prompt and text, or an answers folder of `tinyvlm eval`
    data_dir: str = MISSING  # folder of the benchmark
    partial: bool = MISSING  # accept unanswered questions; the score is marked as not comparable
    choice_rule: str | None = None  # rule for reading MMBench answers; null: the benchmark's setting
    rule: str | None = None  # the scoring rule, or "all" to compare the rules; null: the benchmark's setting
    fallback: str | None = None  # for unreadable MMMU answers: none or random; null: the benchmark's setting
    runs: int | None = integer(
        1, 100, default=None
    )  # gradings per answer (MM-Vet, LLaVA-W); null: the benchmark's setting
    output: str | None = None  # JSON file for the score, its details and the per-question results
    upload: str | None = None  # upload file to write for the benchmark's test server
    judge: Judge = field(default_factory=Judge)
    results_dir: str = MISSING  # the judge's replies are cached here


@dataclass
class Ask:
    """Settings of `tinyvlm ask`."""

    run: str = MISSING
    stage: str | None = None  # null: the last stage of the run
    image: Any = field(
        default=MISSING, metadata=TEXT
    )  # file, http(s) URL, "-" for standard input, or a list of these or of lists
    question: Any = field(default=None, metadata=TEXT)  # string or list; null: read from the terminal or a pipe
    max_new_tokens: int = integer(1)  # maximum length of an answer in tokens
    temperature: float = number(0)  # 0: greedy decoding
    top_p: float = number(above=0, high=1)  # nucleus sampling: total probability of the candidate tokens; 1: all tokens
    num_beams: int = integer(1, 100)  # 1: no beam search
    seed: int = integer(0, 2**32 - 1)  # random seed for sampling
    results_dir: str = MISSING


@dataclass
class Import:
    """Settings of `tinyvlm import`."""

    path: str = MISSING  # folder of the checkpoint
    name: str | None = None  # run name; null: the name of the folder
    vision_dir: str | None = None  # folder of TinyLLaVABench's vision encoder
    second_vision_dir: str | None = None  # folder with the config of MoF's second encoder; null: the published config
    qformer_dir: str | None = None  # folder with the config of the Q-Former's BERT; null: the config of BERT-base
    results_dir: str = MISSING


class ExportFormat(Enum):
    """Formats of `tinyvlm export`."""

    llava = "llava"  # a Hugging Face LlavaForConditionalGeneration folder
    parts = "parts"  # vision, connector and llm, each in its own folder


@dataclass
class Export:
    """Settings of `tinyvlm export`."""

    run: str = MISSING  # a run's name or folder name
    stage: str | None = None  # null: the last stage of the run
    format: ExportFormat = MISSING
    output: str | None = None  # folder to create; null: exports_dir/RUN-FORMAT
    precision: Precision | None = None  # precision of the weights; null: the training precision of the run
    lossy: bool = MISSING  # drop weights that the format cannot store, and report the change of the logits
    card: bool = MISSING  # write a model card, README.md, to the folder
    hub: str | None = None  # USER/NAME of a model repository on the Hugging Face Hub to upload to; includes a card
    private: bool = MISSING  # whether a new repository is private
    exports_dir: str = MISSING
    results_dir: str = MISSING


class Format(Enum):
    """Output formats of `tinyvlm report`."""

    terminal = "terminal"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    html = "html"  # one file, report.html in `output` or in results_dir


@dataclass
class Published:
    """A selection of rows from published_scores.csv, in file order."""

    table: str = MISSING  # value in the file's column `table`
    models: list[str] | None = None  # null: all models


@dataclass
class Column:
    """A column of scores, or of a cost of the models."""

    benchmark: str = ""
    label: str = MISSING  # column title
    detail: list[str] = field(default_factory=list)  # path of keys into the score's details; empty: the headline score
    cost: str = ""  # instead of `benchmark`: gpu_hours, parameters or another cost, see docs/report.md


@dataclass
class Table:
    """A table of the report."""

    title: str = MISSING
    published: list[Published] = MISSING
    runs: dict[str, Any] = MISSING  # score field -> required value, or list of allowed values; null: any
    headers: dict[str, str] = MISSING  # score field that describes a table row -> column title
    columns: list[Column] = MISSING
    own_benchmarks: bool = False  # show the benchmarks and costs that the user's runs have, and no others
    # Group or "stage" -> baseline value. Rows are compared with the otherwise equal baseline row; empty: none.
    against: dict[str, str] = field(default_factory=dict)
    between: list[str | None] | None = None  # two runs to compare, with one row per benchmark; null: one row per run
    blind: bool = MISSING  # add a row with the blind control below each run that has one
    intervals: bool = MISSING  # add a row with 95% intervals below each run
    footnotes: list[str] = MISSING


@dataclass
class Report:
    """Settings of `tinyvlm report`."""

    table: dict[str, Table] = MISSING  # table name -> table
    a: str | None = None  # with table=compare: the baseline run
    b: str | None = None  # with table=compare: the run that is compared with `a`
    format: Format = MISSING  # format of the printed tables; `output` receives all formats
    output: str | None = None  # folder for files in all formats; null: print only
    verbose: bool = MISSING  # add the sources of published numbers to the footnotes
    only_fitting: bool = False  # only tables that match the user's runs; set by table=auto
    results_dir: str = MISSING


@dataclass
class DataCommand:
    """Settings of `tinyvlm data get`, `data check` and `data prepare`."""

    action: str = MISSING  # get, check or prepare
    data: Data | None = None
    benchmark: dict[str, Any] = field(default_factory=dict)
    llm: LLM | None = None
    vision: Vision | None = None
    prompts: dict[str, Prompt] = MISSING  # split -> prompt format of the index that `prepare` builds
    convert_gifs: bool = MISSING  # prepare: convert images that are named .jpg but are not JPEGs, in place
    eval_dir: str = MISSING
    data_dir: str = MISSING
    results_dir: str = MISSING


@dataclass
class Mix:
    """Distribution of sample lengths in a training set."""

    text: float = number(above=0)  # mean number of text tokens per sample
    spread: float = number(0)  # standard deviation of the logarithm of the number of text tokens
    supervised: float = number(above=0, high=1)  # share of the text tokens that are supervised
    text_only: float = number(0, 1)  # share of the samples without images


@dataclass
class Workload:
    """The size of a benchmark, and the lengths of its questions and answers."""

    questions: int = integer(1)
    images: int = integer(1)
    prompt_tokens: int = integer(1)  # after the image, on average
    answer_tokens: int = integer(1)  # including the end token


@dataclass
class SingleQuestion:
    """The question about one image with which `tinyvlm bench eval` measures the time to first token."""

    # Defaults serve measurements of earlier versions, which have no such settings.
    prompt_tokens: int = integer(1, default=0)  # after the image
    answer_tokens: int = integer(1, default=0)
    repeats: int = integer(1, 10_000, default=0)  # timed answers, after three warm-up answers


@dataclass
class Assumed:
    """Assumed properties of a GPU, for stages that `tinyvlm bench train` has not measured."""

    tflops: float = number(above=0)  # throughput of a large matrix product on one GPU, in TFLOP/s
    mfu: float = number(above=0, high=1)  # model FLOPs utilization of training, relative to `tflops`
    memory_gib: float = number(above=0)  # memory of one GPU


@dataclass
class Expected:
    """Assumed size and scores of a benchmark."""

    formula: str = MISSING  # of the headline: mean, f1 (POPE) or pairs (MME)
    groups: dict[str, int] = integer(1)  # group -> number of questions
    images: int = integer(1)
    accuracy: float = number(above=0, below=1)  # share of right answers
    seeds: float = number(0)  # standard deviation of the headline between seeds, in points


@dataclass
class Noise:
    """Assumed noise of scores, for benchmarks without earlier results."""

    between_settings: float = number(0, below=1)  # correlation of a question's scores between models
    between_seeds: float = number(0, below=1)  # the same between seeds of one model, which cannot be lower
    within_image: float = number(0, below=1)  # correlation of a model's scores of questions on the same image
    benchmarks: dict[str, Expected] = MISSING


@dataclass
class Plan(Train):
    """Settings of `tinyvlm plan`."""

    power: float | None = number(
        above=0, default=None
    )  # difference to find, in percent of a score's maximum; null: none
    noise: Noise = field(default_factory=Noise)
    mixes: dict[str, Mix] = MISSING  # split -> sample lengths
    assumed: Assumed = field(default_factory=Assumed)


class StatusFormat(Enum):
    """Output formats of `tinyvlm status`."""

    terminal = "terminal"
    json = "json"


@dataclass
class Status(Train):
    """Settings of `tinyvlm status`."""

    watch: bool = MISSING  # refresh until interrupted
    every_s: float = number(0.1, default=MISSING)  # seconds between refreshes
    format: StatusFormat = MISSING


@dataclass
class Bench(Train):
    """Settings of `tinyvlm bench train`, `bench data` and `bench eval`."""

    action: str = MISSING  # train, data or eval
    stage: str = MISSING  # a stage of the recipe
    steps: int = integer(1)  # timed optimizer steps, after three warm-up steps
    mixes: dict[str, Mix] = MISSING  # split -> sample lengths
    # Defaults serve measurements of earlier versions, which have no such settings.
    workloads: dict[str, Workload] = field(default_factory=dict)  # name -> benchmark to measure; for `bench eval`
    single: SingleQuestion = field(default_factory=SingleQuestion)  # for `bench eval`
    images: int = integer(1, default=0)  # images per benchmark that `bench eval` measures, at most
    image_sizes: list[list[int]] = integer(
        1, 10_000, length=2
    )  # [width, height] of the synthetic JPEGs in pixels, used in turn


@dataclass
class Demo:
    """Settings of `tinyvlm demo`."""

    commands: list[str] = MISSING  # command lines without `tinyvlm`
