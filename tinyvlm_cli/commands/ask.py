"""Ask a trained run one question about one image; the answer appears as it is written."""

from pathlib import Path

from tinyvlm_cli.command_config import Ask
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.evaluate.model_folder import STAGE, named_runs
from tinyvlm_cli.results import Run
from tinyvlm_cli.train.job import is_done


def run(config: Ask) -> int:
    """Print the answer. Returns the exit code."""
    results_dir = Path(config.results_dir)
    runs = named_runs(results_dir, config.run)
    if len(runs) > 1:
        raise UserError(f"run={config.run}: one run answers; choose from {', '.join(one.folder.name for one in runs)}")
    (one,) = runs
    stage = list(one.stages or [STAGE])[-1]
    folders = one.stage_dirs(results_dir, stage)
    unfinished = [folder for folder in folders if not is_done(folder)]
    if unfinished:
        raise UserError(f"{unfinished[0]}: this stage is not trained; run the run's `tinyvlm train` again")
    from tinyvlm_cli.data.images import open_image

    open_image(Path(config.image))  # a bad image shows before the model is loaded
    _answer(config, one, stage, folders)
    return 0


def _answer(config: Ask, run: Run, stage: str, folders: list[Path]) -> None:
    from transformers import TextStreamer

    from tinyvlm_cli.evaluate.answerer import load_answerer
    from tinyvlm_cli.evaluate.benchmark import Question

    answerer = load_answerer(run, stage, folders)
    question = Question("0", "0", config.question, Path(config.image), config.image)
    streamer = TextStreamer(answerer.tokenizer, skip_prompt=run.model is not None, skip_special_tokens=True)
    answerer([question], max_new_tokens=config.max_new_tokens, streamer=streamer)
