"""Train all stages of one run, on every visible GPU or on the CPU."""

import logging
import os
import shutil
from pathlib import Path

from tinyvlm_cli.config.build import check
from tinyvlm_cli.config.schema import Train, to_yaml
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.files import locked, write_text
from tinyvlm_cli.launch import workers as launch
from tinyvlm_cli.launch.slurm import invitation, invited, this_node
from tinyvlm_cli.model.tuning import untrainable
from tinyvlm_cli.plan.estimate import misset
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.results.records import Run, provenance
from tinyvlm_cli.train.job import mismatch, write_job
from tinyvlm_cli.train.stages import (
    StageNode,
    continued,
    recipe_name,
    run_folder,
    run_name,
    stage_nodes,
    stage_split,
    start_folders,
)  # fmt: skip

log = logging.getLogger(__name__)


def run(config: Train) -> int:
    """Train what is not trained yet. Returns the exit code."""
    config = continued(config)
    results = Results(config.results_dir)
    nodes = stage_nodes(config)
    missing = [node for node in nodes if not results.is_done(results.stage_dir(node.folder))]
    findings = [finding for node in nodes for finding in mismatch(results.stage_dir(node.folder), node)]
    findings += [
        f"start={config.start}: its stage {folder} is not trained; run its `tinyvlm train` again"
        for folder in start_folders(config)
        if not results.is_done(results.stage_dir(folder))
    ]
    findings += _findings(config, missing)
    if findings:
        raise UserError("\n".join(findings))
    for node in nodes:
        train_node(config, node)
    run_dir = results.run_dir(run_folder(config, nodes))
    if _is_main():
        _write_run(config, nodes, run_dir)
    log.info("%s is trained; evaluate it with: tinyvlm eval run=%s", run_name(config), run_dir.name)
    return 0


def train_node(config: Train, node: StageNode) -> None:
    """Train one stage unless it is trained already, by this run or another."""
    folder = Results(config.results_dir).stage_dir(node.folder)
    if Results.is_done(folder):
        log.info("%s: trained already", node.folder)
    elif launch.is_rank() and os.environ["RANK"] != "0":
        launch.run("train", folder, gpus=config.engine.gpus)
    elif not this_node().is_first:
        _join(config, folder)
    else:
        with locked(folder):
            if Results.is_done(folder):  # by the process that we waited for
                log.info("%s: trained by another process meanwhile", node.folder)
                return
            write_job(config, node)
            try:
                with invitation(folder, this_node()):
                    launch.run("train", folder, gpus=config.engine.gpus, node=this_node())
            except UserError:
                if not (folder / "train.jsonl").exists():  # it came before the first step: leave nothing behind
                    shutil.rmtree(folder)
                raise
            Results.mark_done(folder)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _join(config: Train, folder: Path) -> None:
    """Train a stage together with the first node of this step, when that is ready."""
    if invited(folder, Results.is_done):
        launch.run("train", folder, gpus=config.engine.gpus, node=this_node())


def _findings(config: Train, missing: list[StageNode]) -> list[str]:
    """Everything that would stop the run later, as sentences."""
    findings = check(config.connector, {"vision_dim", "llm_dim"}, where="connector") + misset(config.engine)
    for part, spec in (("llm", config.llm), ("vision", config.vision)):
        if spec.prepare and not Path(spec.path).is_dir():
            findings.append(
                f"{part}.path: no folder {spec.path}; make it with: tinyvlm data prepare {part}={spec.name}"
            )
    if not findings:  # those above would come again in other words
        findings += untrainable(config, [node.name for node in missing])
    for name in dict.fromkeys(config.recipe.stages[node.name].split for node in missing):
        split = stage_split(config, name)
        for what, there in (
            ("annotations", Path(split.annotations).is_file()),
            ("images", Path(split.images).is_dir()),
        ):
            if not there:
                setting = f"data.splits.{name}.{what}"
                how = f"get it from {split.source}, or set data_dir or {setting} to where it is"
                if config.data.prepare:
                    how = f"make it with: tinyvlm data prepare data={config.data.name}"
                findings.append(f"{setting}: no {getattr(split, what)}; {how}")
    return findings


def _write_run(config: Train, nodes: list[StageNode], run_dir: Path) -> None:
    write_text(run_dir / "config.yaml", to_yaml(config))
    run = Run(
        folder=run_dir,
        name=run_name(config),
        llm=config.llm.name,
        vision=config.vision.name,
        connector=config.connector["name"],
        data=config.data.name,
        recipe=recipe_name(config),
        seed=config.seed,
        stages={node.name: node.folder for node in nodes},
        made_with=provenance(),
        before=start_folders(config),
    )
    Results.write_run(run)


def _is_main() -> bool:
    return os.environ["RANK"] == "0" if launch.is_rank() else this_node().is_first
