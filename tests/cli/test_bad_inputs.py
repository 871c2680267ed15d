"""Bad command lines, one table for all commands: a sentence on stderr, exit code 2, and nothing is written."""

import shutil
from itertools import product
from pathlib import Path

import pytest

from tinyvlm_cli.cli.main import main

TINY = "llm=tiny vision=tiny recipe=demo data=easyvqa"
VALUES = ("-1", "1e99", "nan", "x", "[]", "''", "null", "99999999999999999999")
NUMBERS = {  # command line -> settings that are numbers with a range
    f"plan {TINY}": (
        "seed", "recipe.stages.finetune.lr", "recipe.stages.finetune.epochs", "recipe.stages.finetune.samples_per_step",
        "recipe.optim.warmup_ratio", "llm.max_length", "vision.image_size", "engine.zero", "recipe.stages.pretrain.lr",
        "assumed.mfu", "assumed.tflops", "assumed.memory_gib",
    ),
    "bench eval llm=tiny vision=tiny": ("images", "steps", "workloads.pope.answer_tokens", "workloads.pope.images"),
    "eval run=all": ("seed", "benchmark.pope.max_new_tokens", "judge.max_tokens"),
    "ask run=x image=x.jpg question=x": ("max_new_tokens", "temperature", "top_p", "num_beams"),
}  # fmt: skip
LARGE = ("lr", "tflops", "memory_gib", "temperature")  # settings that may be as large as 1e99


WORDS = """
nothing
--nothing
trian
train --cfg
train --cfg=nothing
train -c
train x
train =
train =x
train x=
train llm
train llm=
train llm=nothing
train llm=phi2,clip
train llm=[phi2]
train llm={a:1}
train llm=phi2=x
train llm.path=
train llm.nothing=1
train llm.chat.end=
train +llm=phi2
train ++llm.nothing=1
train ~llm
train vision=phi2
train vision.unused=[nothing]
train vision.feature_layer=99
train vision.mean=[1]
train vision.tokens=none
train connector=nothing
train connector._target_=os.system
train connector._target_=torch.hub.load
train connector.depth=x
train recipe=nothing
train recipe.stages=[]
train recipe.stages.nothing.lr=1
train recipe.stages.finetune.train.llm=some
train data=nothing
train data.splits.nothing.images=x
train engine.precision=fp8
train engine.gpus=0
train engine.gpus=999
train start=nothing
train start=../x
train sweep=nothing
train sweep=a sweep=b
train seed=1,2
train hydra.run.dir=
train hydra/launcher=nothing
train results_dir=
train -m
train -m llm=
train -m llm=nothing,phi2
eval
eval run=
eval run=nothing
eval run=../..
eval run=all benchmark=nothing
eval run=all benchmark=[]
eval run=all stage=nothing
eval run=all limit=0
eval run=all limit=-5
eval run=all gpus=-1
eval run=all blind=maybe
eval run=all judge.model=
eval run=all judge.base_url=x
eval run=all benchmark.pope.version=x
eval run=all batch_size=64
score
score benchmark=pope
score benchmark=nothing answers=x
score answers=x
score benchmark=pope answers=
score benchmark=pope answers=/dev/null
score benchmark=pope answers=.
score benchmark=pope answers=nothing.jsonl
score benchmark=[pope,gqa] answers=x
score benchmark=pope answers=x partial=perhaps
report table=nothing
report table=compare
report table=compare a=x
report table=compare a=x b=x
report format=docx
report output=/dev/null/x
report table=[llm,nothing]
report table.llm.nothing=1
report intervals=true
report verbose=5x
plan llm=nothing
plan sweep=nothing
plan start=nothing
plan assumed.nothing=1
data
data nothing
data check
data check data=nothing
data check benchmark=nothing
data check data=easyvqa data.nothing=1
data prepare
data prepare data=llava15 llm=nothing
data prepare data=easyvqa convert_gifs=some
data check llm=phi2 prompts.x=none
ask
ask image=x
ask run=nothing image=x.jpg question=x
ask run=x image=ftp://x question=x
ask run=x question=
ask run=x temperature=hot
import
import path=
import path=nothing
import path=. name=../x
import path=. name=a/b
import path=. name=..
import path=/dev/null
export
export run=nothing
export run=x format=nothing
export run=x output=
export run=x lossy=maybe
bench
bench nothing
bench train stage=nothing
bench train steps=0
bench eval images=0
bench eval +workloads.x={questions:1}
bench data vision=nothing
demo x
demo commands=x
demo --nothing
""".strip().splitlines()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fails(words: list[str], capsys: pytest.CaptureFixture[str], says: str = "") -> str:
    """Return what is wrong with how a bad command line ends; "" if it ends as it should. says: must be in the error."""
    wrong = []
    try:
        if (code := main(words)) != 2:
            wrong.append(f"exit code {code}")
    except Exception as error:  # the test lists all of them
        wrong.append(repr(error))
    error_text = capsys.readouterr().err
    lines = error_text.strip().splitlines()
    if "Traceback" in error_text or not lines or any(len(line) > 600 for line in lines) or says not in error_text:
        wrong.append(f"not a sentence: {error_text[-300:]!r}")
    # `status` shows the cells of a grid that were refused, so a grid leaves a record of each.
    if written := [str(path) for path in Path().rglob("*") if path.is_file() and path.parent.name != "attempts"]:
        wrong.append(f"wrote {written[:3]}")
    for path in Path().iterdir():
        shutil.rmtree(path)
    return f"{' '.join(words)}: {', '.join(wrong)}" if wrong else ""


@pytest.mark.e2e
def test_wrong_words_are_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert [found for line in WORDS if (found := fails(line.split(), capsys))] == []


@pytest.mark.e2e
@pytest.mark.parametrize("command", NUMBERS, ids=lambda command: command.split()[0])
def test_numbers_out_of_range_are_a_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (setting, value)
        for setting, value in product(NUMBERS[command], VALUES)
        if not (value in ("1e99", "99999999999999999999") and setting.rpartition(".")[2] in LARGE)
    ]
    assert [
        found
        for setting, value in cases
        if (found := fails([*command.split(), f"{setting}={value}"], capsys, says=setting.removeprefix("benchmark.")))
    ] == []


def test_the_table_has_250_bad_inputs() -> None:
    assert len(WORDS) + len(VALUES) * sum(map(len, NUMBERS.values())) >= 250
