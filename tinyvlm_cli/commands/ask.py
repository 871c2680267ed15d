"""Ask a trained run one question about one image; the answer appears as it is written."""

from pathlib import Path

from tinyvlm_cli.command_config import Ask
from tinyvlm_cli.config import Precision
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results import find_runs
from tinyvlm_cli.train.job import is_done


def run(config: Ask) -> int:
    """Print the answer. Returns the exit code."""
    runs = find_runs(Path(config.results_dir), config.run)
    if len(runs) > 1:
        raise UserError(f"run={config.run}: one run answers; choose from {', '.join(one.folder.name for one in runs)}")
    (one,) = runs
    folders = [Path(config.results_dir) / "stages" / folder for folder in one.stages.values()]
    unfinished = [folder for folder in folders if not is_done(folder)]
    if unfinished:
        raise UserError(f"{unfinished[0]}: this stage is not trained; run the run's `tinyvlm train` again")
    from tinyvlm_cli.data.images import open_image

    open_image(Path(config.image))  # a bad image shows before the model is loaded
    _answer(config, one.folder, list(one.stages)[-1], folders)
    return 0


def _answer(config: Ask, run_dir: Path, stage: str, folders: list[Path]) -> None:
    import torch
    from transformers import TextStreamer

    from tinyvlm_cli.checkpoint.parts import build_model
    from tinyvlm_cli.config import Train, from_yaml
    from tinyvlm_cli.evaluate.benchmark import Question
    from tinyvlm_cli.evaluate.runner import Answerer
    from tinyvlm_cli.model.llm import load_tokenizer

    trained = from_yaml(Train, run_dir / "config.yaml")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if trained.engine.precision is Precision.bf16 else torch.float32
    model = build_model(trained, folders, dtype=dtype, attention="sdpa").to(device).eval()
    tokenizer = load_tokenizer(trained.llm)
    answerer = Answerer(model, tokenizer, trained, trained.recipe.stages[stage].image_mode)
    question = Question("0", "0", config.question, Path(config.image), config.image)
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    answerer([question], max_new_tokens=config.max_new_tokens, streamer=streamer)
