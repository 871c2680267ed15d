"""The command line as a user meets it: help, mistakes, completion."""

import subprocess
import sys
from pathlib import Path

import pytest

from tinyvlm_cli.cli.main import ACTIONS, COMMANDS, main


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_starts_fast_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tinyvlm_cli.cli.main import main; main(['--help']); "
        "sys.exit(bool({'torch', 'hydra', 'pandas', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"\n  tinyvlm {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("report then evl run=all", "tinyvlm evl: there is no such command; did you mean 'eval'?"),
        ("report then eval", "tinyvlm eval: run: not set; add run=..."),
        ("report then eval run=all benchmark=pope", "coco_pope_random.json"),
        ("report then", "tinyvlm then: a command stands before and after this word"),
    ],
)
def test_later_commands_are_checked_before_the_first_runs(
    words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    told = capsys.readouterr()
    assert says in told.err and not told.out


def test_commands_run_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "format=csv", "then", "report", "table=comparison", "format=csv"]) == 0
    first, second = capsys.readouterr().out.split("\n$ tinyvlm report table=comparison format=csv\n")
    assert "\nvariants,published," in first and "\ncomparison,published," in second


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("trian", "there is no such command; did you mean 'train'?"),
        ("train llm=phi3", "llm=phi3: there is no such llm; did you mean 'phi2'?"),
        ("train hydra/launcher=joblb", "hydra/launcher=joblb: there is no such hydra/launcher; did you mean 'joblib'?"),
        ("train lm=phi2", "lm=phi2: there is no setting 'lm'; did you mean 'llm'?"),
        ("train recipe.stages.pretrian.lr=1", "did you mean recipe.stages.NAME.lr?"),
        ("train +recipe.lrr=1", "recipe.lrr: there is no such setting"),
        ("train seed=1.5", "seed=1.5: Value '1.5' of type 'float' could not be converted to Integer"),
        ("train engine.precision=fp8", "engine.precision=fp8: Invalid value 'fp8', expected one of [bf16, fp32]"),
        ("train llm=phi2,tinyllama", "add -m to run one job for each"),
        ("train sweep=recipee", "sweep=recipee: there is no such sweep; did you mean 'recipe'?"),
        ("train sweep=llm,vision", "one sweep at a time"),
        ("report table.llm.runs.seed=1", "there is no table.llm here; choose it with table=llm"),
        ("train llm", "llm: a word without a value; write llm=VALUE"),
        ("data chekc data=llava15", "'chekc' is not an action of data; choose check or prepare"),
        ("eval", "run: not set; add run=..."),
    ],
)
def test_a_mistake_is_one_sentence(words: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tinyvlm {words.split(maxsplit=1)[0]}: ")
    assert says in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_flag_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llm=tiny", "-m", "vision=tiny", "recipe=base,share"]) == 0
    shown = capsys.readouterr().out
    assert "TinyLLaVA-base-tiny-tiny" in shown and "TinyLLaVA-share-tiny-tiny" in shown


def test_missing_files_are_named_all_at_once_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", "recipe=share", "data=llava15"]) == 2
    error = capsys.readouterr().err
    for setting in ("pretrain.annotations", "pretrain.images", "finetune.annotations"):
        assert f"data.splits.{setting}: no data/" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("connector=mof_mlp", "has a projector for each of two encoders and found one"),
        ("connector=identity", "connector: identity needs an encoder as wide as the LLM"),
        (
            "recipe.stages.finetune.train.vision=full recipe.stages.finetune.vision_from_layer=77",
            "recipe.stages.finetune: vision_from_layer: 77 is not one of the 4 layers",
        ),
        ("recipe.stages.finetune.train.connector=lora", "recipe.stages.finetune: train.connector: frozen or full"),
    ],
)
def test_what_a_later_stage_cannot_train_is_said_before_the_first(
    words: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", "llm=tiny", "vision=tiny", "data=easyvqa", *words.split()]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("tinyvlm tr", {"train"}),
        ("tinyvlm train llm=ph", {"llm=phi2"}),
        ("tinyvlm train sweep=cros", {"sweep=crossed"}),
        ("tinyvlm train sweep=crossed then ev", {"eval"}),
        ("tinyvlm train then report table=oth", {"table=others"}),
        ("tinyvlm train engine.z", {"engine.zero="}),
        ("tinyvlm data ", set(ACTIONS["data"])),
        ("tinyvlm trian llm=", set()),
    ],
)
def test_tab_completes(
    line: str, offers: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    assert set(capsys.readouterr().out.split()) == offers
