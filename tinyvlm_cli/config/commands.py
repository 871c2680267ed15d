"""The settings of the commands other than `train`. Values are in conf/*.yaml."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from tinyvlm_cli.config.schema import LLM, Data, Precision, Prompt, Train, Vision

TEXT = {"text": True}  # metadata of a free-text setting: taken as typed, with commas and quotes


@dataclass
class Judge:
    """An OpenAI-compatible endpoint that grades open answers. The key comes from the environment only."""

    base_url: str | None = None  # null: OPENAI_BASE_URL, else the client's default
    model: str | None = None  # null: judged benchmarks are shown as "not judged"
    key_variable: str = MISSING  # environment variable that holds the key
    concurrency: int = MISSING  # requests in flight
    timeout_s: float = MISSING
    retries: int = MISSING  # of transport errors, with exponential back-off
    official_failures: bool = MISSING  # LLaVA-W: an unreadable reply counts as -1; false: the judge is asked again


@dataclass
class Eval:
    """Settings of `tinyvlm eval`."""

    run: str = MISSING  # run folder name, its shown name, or "all"; or a model folder in Hugging Face form
    stage: str | None = None  # null: the run's last
    benchmark: dict[str, Any] = MISSING  # name -> `_target_` and the class's arguments
    blind: bool = MISSING  # answer again with images shuffled between questions: what the text alone gives away
    batch_size: int = MISSING  # questions answered together
    limit: int | None = None  # first questions only; such scores are marked and kept out of tables
    judge: Judge = field(default_factory=Judge)
    gpus: int | None = None
    seed: int = MISSING  # of the blind control's shuffle
    eval_dir: str = MISSING  # folder with one folder per benchmark, in LLaVA's layout
    data_dir: str = MISSING
    results_dir: str = MISSING


@dataclass
class Score:
    """Settings of `tinyvlm score`."""

    benchmark: dict[str, Any] = MISSING
    answers: str = MISSING  # JSONL with question_id, prompt, text; or a folder of `tinyvlm eval` with such files
    data_dir: str = MISSING  # the benchmark's own folder
    partial: bool = MISSING  # score answers that do not cover the benchmark; the score is marked as not comparable
    choice_rule: str | None = None  # of MMBench; null: its own
    runs: int | None = None  # gradings of MM-Vet and LLaVA-W; null: their own
    output: str | None = None  # JSON file for the score, its details and the per-question results
    upload: str | None = None  # file for the benchmark's server
    judge: Judge = field(default_factory=Judge)
    results_dir: str = MISSING  # judge replies are cached there


@dataclass
class Ask:
    """Settings of `tinyvlm ask`."""

    run: str = MISSING
    stage: str | None = None  # null: the run's last
    image: Any = field(default=MISSING, metadata=TEXT)  # file, http(s) address, "-" for standard input; or a list
    question: Any = field(default=None, metadata=TEXT)  # text or a list; null: from the terminal or a pipe
    max_new_tokens: int = MISSING  # an answer is cut off there
    temperature: float = MISSING  # 0: greedy
    top_p: float = MISSING  # sampling: of the most likely tokens whose probabilities sum to this; 1: of all
    num_beams: int = MISSING  # 1: no beam search
    seed: int = MISSING  # of the sampling
    results_dir: str = MISSING


@dataclass
class Import:
    """Settings of `tinyvlm import`."""

    path: str = MISSING  # folder of the checkpoint
    name: str | None = None  # of the run; null: the folder's
    vision_dir: str | None = None  # folder of TinyLLaVABench's vision encoder
    second_vision_dir: str | None = None  # folder with the config of MoF's second encoder; null: the published one's
    qformer_dir: str | None = None  # folder with the config of the Q-Former's BERT; null: BERT-base's
    results_dir: str = MISSING


class ExportFormat(Enum):
    """Formats of `tinyvlm export`."""

    llava = "llava"  # a Hugging Face LlavaForConditionalGeneration folder
    parts = "parts"  # vision, connector and llm, each in its own folder


@dataclass
class Export:
    """Settings of `tinyvlm export`."""

    run: str = MISSING  # run folder name, or its shown name
    stage: str | None = None  # null: the run's last
    format: ExportFormat = MISSING
    output: str | None = None  # folder to write, which must not exist; null: exports_dir/RUN-FORMAT
    precision: Precision | None = None  # of the weights; null: that of the run's training
    lossy: bool = MISSING  # drop weights that the format cannot hold, and report how much the logits change
    exports_dir: str = MISSING
    results_dir: str = MISSING


class Format(Enum):
    """Output formats of `tinyvlm report`."""

    terminal = "terminal"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    html = "html"  # one file, results_dir/report.html or in `output`


@dataclass
class Published:
    """Rows of published_scores.csv in a table, in file order."""

    table: str = MISSING  # value of the file's column `table`
    models: list[str] | None = None  # null: all of them


@dataclass
class Column:
    """A column of scores."""

    benchmark: str = MISSING
    label: str = MISSING  # its title
    detail: list[str] = field(default_factory=list)  # keys into the score's details; none: the score itself


@dataclass
class Table:
    """A table of the report."""

    title: str = MISSING
    published: list[Published] = MISSING
    runs: dict[str, Any] = MISSING  # field of a score row -> the value, or list of values, that it must have; null: any
    headers: dict[str, str] = MISSING  # field that says what a table row is -> its title
    columns: list[Column] = MISSING
    own_benchmarks: bool = False  # only columns of benchmarks that own scores have, and one for each not in `columns`
    # Setting -> value of the row that otherwise equal rows are compared with; none: nothing is marked.
    against: dict[str, str] = field(default_factory=dict)
    between: list[str | None] | None = None  # the two runs whose differences are the rows; null: rows are runs
    blind: bool = MISSING  # a row with the blind control under each run that has one
    intervals: bool = MISSING  # a row with each score's 95% interval under each run
    footnotes: list[str] = MISSING


@dataclass
class Report:
    """Settings of `tinyvlm report`."""

    table: dict[str, Table] = MISSING  # name -> the table
    a: str | None = None  # with table=compare: the run that `b` is compared with
    b: str | None = None
    format: Format = MISSING  # of what is printed; `output` gets all of them
    output: str | None = None  # folder for the files; null: print
    verbose: bool = MISSING  # footnotes also say where published numbers were found
    only_fitting: bool = False  # only the tables into which own runs fit; set by table=auto
    results_dir: str = MISSING


@dataclass
class DataCommand:
    """Settings of `tinyvlm data check` and `tinyvlm data prepare`."""

    action: str = MISSING  # check or prepare
    data: Data | None = None
    benchmark: dict[str, Any] = field(default_factory=dict)
    llm: LLM | None = None
    vision: Vision | None = None
    prompts: dict[str, Prompt] = MISSING  # split -> how recipes read it; `prepare` builds these indexes
    convert_gifs: bool = MISSING  # prepare: images named .jpg that are of another type become JPEGs, in place
    eval_dir: str = MISSING
    data_dir: str = MISSING
    results_dir: str = MISSING


@dataclass
class Mix:
    """Sample lengths of a training set."""

    text: float = MISSING  # tokens of a sample on average, its images not counted
    spread: float = MISSING  # standard deviation of their logarithm
    supervised: float = MISSING  # share of the text
    text_only: float = MISSING  # share of the samples that have no image


@dataclass
class Assumed:
    """Assumed properties of a GPU, where `tinyvlm bench train` has not measured a stage."""

    tflops: float = MISSING  # 1e12 operations a second of a large matrix product on one GPU
    mfu: float = MISSING  # share of them that training uses (model FLOPs utilization)
    memory_gib: float = MISSING  # of one GPU


@dataclass
class Plan(Train):
    """Settings of `tinyvlm plan`."""

    mixes: dict[str, Mix] = MISSING  # split -> its samples
    assumed: Assumed = field(default_factory=Assumed)


@dataclass
class Bench(Train):
    """Settings of `tinyvlm bench train` and `tinyvlm bench data`."""

    action: str = MISSING  # train or data
    stage: str = MISSING  # of the recipe
    steps: int = MISSING  # timed optimizer steps, after three for warm-up
    mixes: dict[str, Mix] = MISSING  # split -> its samples
    image_sizes: list[list[int]] = MISSING  # width and height of the JPEGs in pixels, used in turn


@dataclass
class Demo:
    """Settings of `tinyvlm demo`."""

    commands: list[str] = MISSING  # one command line each, without `tinyvlm`
