"""The command line as a user sees it: help, mistakes, completion."""

import json
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.composed import composed

from tinyvlm_cli.cli.commands import COMMANDS, Command
from tinyvlm_cli.cli.main import main
from tinyvlm_cli.cli.run_command import Job
from tinyvlm_cli.config.schema import Lora, SecondEncoder
from tinyvlm_cli.errors import UserError, WorkerError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys; from tinyvlm_cli.cli.main import main; main(['--help']); "
        "sys.exit(bool({'torch', 'hydra', 'pandas', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_help_about_a_command_is_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "plan"]) == 0
    assert capsys.readouterr().out.startswith("Show what `tinyvlm train` would do")
    assert main(["help", "plna"]) == 2
    assert "did you mean 'plan'?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--cfg", "job"]])
def test_output_may_be_cut_off(arguments: list[str]) -> None:
    """As in `tinyvlm --help | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tinyvlm_cli", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 1 and not done.stderr


def test_compiled_layers_are_kept(tmp_path: Path) -> None:
    """Importing PyTorch chooses a folder for them, which must not be in the command's temporary folder."""
    code = (
        "import sys; sys.argv = ['tinyvlm', 'train', '--help']; from tinyvlm_cli.cli.main import main; main(); import "
        "torch._dynamo.package; from torch._inductor.runtime.cache_dir_utils import cache_dir; print(cache_dir())"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(tmp_path / "tinyvlm" / "compiled")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"\n  tinyvlm {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        ("report", {"table"}),
        ("eval", {"benchmark", "judge"}),
        ("data", {"benchmark", "data", "llm", "vision"}),
        ("train", {"connector", "data", "llm", "recipe", "sweep", "vision"}),
        ("demo", set()),
    ],
)
def test_help_lists_the_groups_that_a_command_reads(
    command: str, groups: set[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for group in ("table", "llm"):
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "mine.yaml").touch()
    assert main([command, "--help"]) == 0
    lines = [line.strip().partition(": ") for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    listed = {name: options.split(", ") for name, colon, options in lines if colon and " " not in name}
    assert set(listed) == groups
    assert all("mine" in listed[group] for group in groups & {"table", "llm"})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("trian", "unknown command; did you mean 'train'?"),
        ("train llm=phi3", "llm=phi3: 'phi3' does not exist; did you mean 'phi2'?"),
        ("train hydra/launcher=joblb", "hydra/launcher=joblb: 'joblb' does not exist; did you mean 'joblib'?"),
        ("train lm=phi2", "lm=phi2: unknown setting 'lm'; did you mean 'llm'?"),
        (
            "train recipe.stages.pretrian.lr=1",
            "did you mean recipe.stages.pretrain?",
        ),
        ("train recipe.lr=1", "recipe.lr: unknown setting; did you mean recipe.stages.NAME.lr?"),
        ("train +recipe.lrr=1", "recipe.lrr: unknown setting; did you mean"),
        ("train connector.dpth=1", "did you mean connector.depth?"),
        ("train seed=1.5", "seed: found 1.5; use an integer"),
        ("train recipe.stages.finetune.lr=x", "recipe.stages.finetune.lr: found 'x'; use a number"),
        ("train engine.compile=maybe", "engine.compile: found 'maybe'; use true or false"),
        ("train data_dir=[a]", "data_dir: found ['a']; use text"),
        ("train seed=null", "seed: found null; use a value"),
        ("train llm.path=${a.b}", "llm.path: found ${a.b}, but there is no such setting"),
        ("train seed=${data_dir}", "seed: found 'data'; use an integer"),
        ("train ~llm", "~llm: expected one name; choose from gemma"),
        ("train vision=[clip,siglip]", "vision=[clip,siglip]: expected one name; choose from clip"),
        ("eval run=all benchmark=[pope,gqaa]", "benchmark=gqaa: 'gqaa' does not exist; did you mean 'gqa'?"),
        ("train recipe.stages.finetune.batch_size=8", "unknown setting; choose from start, split"),
        ("train engine.precision=fp8", "engine.precision: found 'fp8'; choose from bf16, fp32"),
        ("train llm=phi2,tinyllama", "add -m to run one job for each"),
        ("train sweep=recipee", "sweep=recipee: 'recipee' does not exist; did you mean 'recipe'?"),
        ("train sweep=llm,vision", "only one sweep per command"),
        ("report table.others.runs.seed=1", "table.others: 'others' is not selected; add table=others"),
        ("bench eval +workloads.x={questions:1}", "workloads.x: not an entry; add it in a copy of conf/"),
        ("train llm", "llm: missing value; write llm=VALUE"),
        ("data chekc data=llava15", "unknown action 'chekc'; choose from get, check, prepare"),
        ("eval", "run: not set; add run=..."),
        ("train seed=range(1,3)", "add -m to run one job for each"),
        ("train vision.mean=[0,0", "vision.mean: expected a list"),
        ("train seed=<x", "seed: found '<x'; use an integer"),
        ("train llm@x!=1", "llm@x!=1: invalid override; put the value in quotes"),
        ("train then", "then: unknown setting"),
        ("train -m llm=tiny,phi2 --cfg job", "--cfg: shows one configuration; remove -m"),
        ("train -m llm=tiny,phi2,tiny", "llm=tiny,phi2,tiny: tiny is given 2 times; give it once"),
        ("train llm=null", "llm=null: expected one name; choose from gemma, phi2"),
        (
            "train llm=tiny evaluate.benchmarks=[popes]",
            "evaluate.benchmarks: 'popes' does not exist; did you mean 'pope'?",
        ),
        ("score benchmark=pope answers=a.jsonl", "data_dir: not set; add data_dir=..."),
        ("train connector={depth:1}", "connector={depth:1}: expected one name; choose from identity"),
        ("train recipe.stages.finetune.lora.rnk=8", "did you mean recipe.stages.finetune.lora.rank?"),
        ("train recipe.stages.finetune.lora={rank:x}", "recipe.stages.finetune.lora.rank: found 'x'; use an integer"),
        ("train recipe.stages.finetune.lora=[1]", "recipe.stages.finetune.lora: expected a mapping"),
        ("train recipe.stages.finetune.lora=3", "recipe.stages.finetune.lora: expected a mapping"),
        ("train recipe.optim.betas={a:1}", "recipe.optim.betas: expected a list"),
        ("train vision.unused=3", "vision.unused: expected a list"),
        ("data check data.splits.finetune.images=x", "data.splits.finetune.images: no data is selected; add data=NAME"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tinyvlm {arguments.split(maxsplit=1)[0]}: ")
    assert expected in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_long_word_is_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "x" * 5000], ["9" * 5000], ["train", f"seed={'9' * 5000}"], ["eval", f"run={'x' * 5000}"]):
        assert main(words) == 2
        assert "..." in (text := capsys.readouterr().err) and len(text) < 1000


def test_settings_that_are_null_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    config = composed("train", "llm=tiny", "recipe.stages.finetune.lora={rank: 8, alpha: 16, dropout: 0.05}")
    assert config.recipe.stages["finetune"].lora == Lora(8, 16, 0.05)
    config = composed(
        "train", "llm=tiny", "vision.second.path=x", "vision.second={unused: [a]}", "llm.prepare.folder=y"
    )
    assert config.vision.second == SecondEncoder("x", ["a"]) and config.llm.prepare == {"folder": "y"}
    assert main(["train", "recipe.stages.finetune.lora.rank=8"]) == 2
    assert "recipe.stages.finetune.lora.alpha: not set; add" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path",
    [
        "données", "数据", "bob's", 'a"b', "C&A", "lr=1", "a (1)", "a#b", "a;b", "x!", "1e3", "2026_11", "true", "inf",
        "~x", "a~", "'a", "a$b", "a\\b", "<x>", "a|b", "C:\\x", "-x", "@x", "naïve/été=1", "[x", "{x", "`x`",
    ],
)  # fmt: skip
def test_a_path_needs_no_quotes(path: str) -> None:
    assert composed("report", f"results_dir={path}").results_dir == path
    assert composed("report", f"output={path}").output == path
    assert composed("import", f"path={path}").path == path
    config = composed("plan", "llm=tiny", f"data_dir={path}", f"data.splits.finetune.images={path}", f"llm.path={path}")
    assert (config.data.splits["finetune"].images, config.llm.path) == (path, path)
    assert config.data.splits["finetune"].annotations.startswith(f"{path}/")


def test_the_home_folder_may_be_abbreviated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "conf/data").mkdir(parents=True)
    split = "{annotations: ~/a.json, images: ~/, count: 1, source: here}"
    (tmp_path / "conf/data/mine.yaml").write_text(f"name: mine\nsplits: {{finetune: {split}}}\n", encoding="utf-8")
    config = composed("train", "llm=tiny", "llm.path=~/llm", "recipe=custom", "data=mine", "results_dir='~/r'")
    assert (config.llm.path, config.results_dir) == (str(tmp_path / "home/llm"), str(tmp_path / "home/r"))
    split = config.data.splits["finetune"]
    assert (split.annotations, split.images) == (str(tmp_path / "home/a.json"), str(tmp_path / "home"))
    asked = composed("ask", "run=x", "image=~/a.jpg", "question=~/a?")
    assert (asked.image, asked.question) == (str(tmp_path / "home/a.jpg"), "~/a?")
    assert main(["report", "results_dir=~/r", "trust=~/x"]) == 0


def test_flags_and_settings_may_be_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llm=tiny", "-m", "vision=tiny", "recipe=base,share"]) == 0
    shown = capsys.readouterr().out
    assert "TinyLLaVA-base-tiny-tiny" in shown and "TinyLLaVA-share-tiny-tiny" in shown


def test_all_missing_files_are_reported_before_training_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", "recipe=share", "data=llava15"]) == 2
    error = capsys.readouterr().err
    for setting in ("pretrain.annotations", "pretrain.images", "finetune.annotations"):
        assert f"data.splits.{setting}: data/" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("connector=mof_mlp", "requires two vision encoders but found one"),
        ("connector=identity", "connector: identity requires the vision encoder and the LLM"),
        (
            "recipe.stages.finetune.train.vision=full recipe.stages.finetune.vision_from_layer=77",
            "recipe.stages.finetune: vision_from_layer: 77 is out of range",
        ),
        (
            "recipe.stages.finetune.train.connector=lora",
            "recipe.stages.finetune: train.connector: the connector is too small",
        ),
    ],
)
def test_errors_in_a_later_stage_are_reported_before_the_first_is_trained(
    arguments: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", "llm=tiny", "vision=tiny", "data=easyvqa", *arguments.split()]) == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("tinyvlm tr", {"train"}),
        ("tinyvlm train llm=ph", {"llm=phi2"}),
        ("tinyvlm train sweep=cros", {"sweep=crossed"}),
        ("tinyvlm report table=oth", {"table=others"}),
        ("tinyvlm train engine.z", {"engine.zero="}),
        ("tinyvlm data ", set(COMMANDS["data"].actions)),
        ("tinyvlm trian llm=", set()),
    ],
)
def test_tab_completes(
    line: str, completions: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    assert set(capsys.readouterr().out.split()) == completions


MINE = """
from torch import nn

from tinyvlm_cli.model.connectors import Connector


class Mine(Connector):
    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_dim, llm_dim)

    def forward(self, features):
        return self.linear(features)

    def num_tokens(self, num_patches: int) -> int:
        return num_patches
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A working folder with a connector in the user's own module, and the console script as pip writes it."""
    (tmp_path / "my_connectors.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "conf/connector").mkdir(parents=True)
    (tmp_path / "conf/connector/mine.yaml").write_text("_target_: my_connectors.Mine\n", encoding="utf-8")
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]["tinyvlm"]
    module, _, function = entry.partition(":")
    (tmp_path / "bin").mkdir()
    text = f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n"
    (tmp_path / "bin/tinyvlm").write_text(text, encoding="utf-8")
    return tmp_path


def tinyvlm(study: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # The package's own folder only: an installed console script has no working folder on its path.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(study / "bin/tinyvlm"), *arguments]
    return subprocess.run(command, cwd=study, env=environment, capture_output=True, text=True, check=False)


TINY = ("llm=tiny", "vision=tiny", "data=easyvqa", "connector=mine")
SHORT = ("steps=1", "recipe.stages.finetune.samples_per_step=8")


def test_a_module_in_the_working_folder_is_found_under_the_console_script(study: Path) -> None:
    done = tinyvlm(study, "plan", *TINY)
    assert done.returncode == 0, done.stderr
    assert "TinyLLaVA-base-tiny-tiny-mine-easyvqa" in done.stdout


def test_modules_of_a_results_folder_are_not_found(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place and Path(place) != study])
    assert main(["plan", *TINY, "results_dir=."]) == 2
    assert "my_connectors" in capsys.readouterr().err
    for name in ("runs", "stages"):  # someone's results, whatever `results_dir` is
        (study / name).mkdir()
    assert main(["plan", *TINY]) == 2  # nor is its ./conf used
    assert "connector=mine: 'mine' does not exist" in capsys.readouterr().err
    assert str(study) not in [*sys.path, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]


@pytest.mark.e2e
def test_a_file_in_the_working_folder_replaces_no_package(tmp_path: Path) -> None:
    for name in ("torch", "hydra", "yaml", "deepspeed", "gzip"):
        (tmp_path / f"{name}.py").write_text("print('executed')\nraise SystemExit(7)\n", encoding="utf-8")
    command = [sys.executable, "-m", "tinyvlm_cli", "bench", "train", "llm=tiny", "vision=tiny", *SHORT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "executed" not in done.stdout + done.stderr, done.stderr


@pytest.mark.e2e
@pytest.mark.parametrize("launcher", ["basic", "joblib", "local"])
def test_workers_find_a_module_in_the_working_folder(study: Path, launcher: str) -> None:
    words = ["action=train", "-m", *TINY, *SHORT, "seed=1", f"hydra/launcher={launcher}"]
    done = tinyvlm(study, "bench", *words)
    assert done.returncode == 0, done.stderr
    (path,) = (study / "results/bench").glob("*/bench.json")
    assert json.loads(path.read_text("utf-8"))["made_with"]["command"] == shlex.join(["tinyvlm", "bench", *words])


def test_a_launched_job_reports_in_json(tmp_path: Path) -> None:
    """Its file may come from another machine: it is data, not a pickle."""
    job = Job("train", tmp_path / "outcomes")
    (tmp_path / "outcomes").mkdir()
    for number, text in enumerate(
        [
            '{"overrides": "seed=1", "code": 0, "error": null}',
            '{"overrides": "seed=2", "code": 2, "error": "no data"}',
            '{"overrides": "seed=3", "code": 1, "error": "worker 0 stopped"}',
        ]
    ):
        (tmp_path / f"outcomes/{number:06}.json").write_text(text, encoding="utf-8")
    outcomes = job.outcomes()
    assert [(outcome.overrides, outcome.code) for outcome in outcomes] == [("seed=1", 0), ("seed=2", 2), ("seed=3", 1)]
    assert [type(outcome.error) for outcome in outcomes] == [type(None), UserError, WorkerError]


def test_full_error_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match="phi3"):
        main(["train", "llm=phi3"])


def test_an_error_in_a_step_of_the_demo_names_the_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["demo", "commands=['train llm=phi3', 'report']"]) == 2
    assert capsys.readouterr().err.startswith("tinyvlm train: llm=phi3: ")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match="phi3"):
        main(["demo", "commands=['train llm=phi3']"])


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("x"), 2), (WorkerError("x"), 1), (KeyboardInterrupt(), 130), (BrokenPipeError(), 1), (None, 3)],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes(error: BaseException | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: Command, config: object) -> int:
        if error is not None:
            raise error
        return 3

    monkeypatch.setattr(Command, "run", run)
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # of standard output, when its reader is gone
    assert main(["report"]) == code
