"""Loss curves of the stages behind a table."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results import Run, read_jsonl

INCHES = (4.2, 3.2)  # of one panel
SMOOTHED = 50  # a curve is the running mean over one part in so many of its steps


def losses(runs: Sequence[Run], results_dir: Path) -> dict[str, dict[str, list[float]]]:
    """Stage name -> run folders -> loss of every step. Runs that share a stage share its curve."""
    curves: dict[str, dict[str, list[float]]] = defaultdict(dict)
    names: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        for folder in run.stages.values():
            # Not the shown name: runs with other seeds have the same, and one curve would hide the rest.
            names[folder].append(run.folder.name)
    for run in runs:
        for stage, folder in run.stages.items():
            path = results_dir / "stages" / folder / "train.jsonl"
            if path.is_file():
                label = "\n".join(dict.fromkeys(names[folder]))
                curves[stage][label] = _read(path)
    return dict(curves)


def draw_losses(curves: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Write a PNG with one panel for each stage: every step pale, the running mean on top."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    width, height = INCHES
    figure, axes = pyplot.subplots(1, len(curves), figsize=(width * len(curves), height), squeeze=False)
    for panel, (stage, lines) in zip(axes[0], curves.items(), strict=True):
        for label, values in lines.items():
            steps = range(1, len(values) + 1)
            (line,) = panel.plot(steps, values, alpha=0.25, linewidth=0.8)
            panel.plot(steps, running_mean(values), color=line.get_color(), label=label)
        panel.set(title=stage, xlabel="optimizer step", ylabel="loss", yscale="log")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean over the last `len / SMOOTHED` values at each place; over fewer at the beginning."""
    window = max(1, len(values) // SMOOTHED)
    total, means = 0.0, []
    for place, value in enumerate(values):
        total += value - (values[place - window] if place >= window else 0.0)
        means.append(total / min(place + 1, window))
    return means


def _read(path: Path) -> list[float]:
    try:
        return [float(record["loss"]) for record in read_jsonl(path)]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: a line has no loss ({error!r}); delete that line") from None
