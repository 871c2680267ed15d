"""The samples of a stage: those of one training set, or a mixture of several sets that the loader sees as one.

A mixture selects records of each source by conditions and by number, and states the share of each source. Which sample
a step has is decided in shares.py.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinyvlm_cli.config.datasets import Data, Source, Split
from tinyvlm_cli.config.schema import Chat, Prompt
from tinyvlm_cli.data.check import check_before_training, log_irregular_images
from tinyvlm_cli.data.conditions import NUM_IMAGES, NUM_TURNS, Condition, own_columns, parse_conditions
from tinyvlm_cli.data.image_store import ImageStore, MixedImages, open_images, record_files
from tinyvlm_cli.data.index import Sample, SplitIndex, open_index
from tinyvlm_cli.data.reading import read_columns, records_hash
from tinyvlm_cli.data.records import FaultError
from tinyvlm_cli.data.shares import MixedOrder, epoch_of, exact, shares_of
from tinyvlm_cli.data.skips import split_hash
from tinyvlm_cli.data.synthetic import SyntheticIndex
from tinyvlm_cli.errors import UserError, collected, raise_findings
from tinyvlm_cli.files import locked, replaced
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.untrusted import check_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

LIMIT_SEED = 0  # of the records that `limit` selects: the same for all seeds of a study

Sources = Mapping[str, Source]


def sources_of(data: Data, name: str) -> dict[str, Source]:
    """Return the sources of the samples of a split by name. A split that is not a mixture is its only source.

    Sources of weight 0 are left out. Raises UserError for an invalid mixture.
    """
    mixture = data.mixtures.get(name)
    if mixture is None:
        return {name: Source(split=data.splits[name])}
    setting = f"data.mixtures.{name}.sources"
    findings: list[str] = []
    for key, source in mixture.sources.items():
        with collected(findings):
            check_name(key, f"{setting}.{key}")
            parse_conditions(source.where, f"{setting}.{key}.where")
    weights = {key: source.weight for key, source in mixture.sources.items()}
    without = [key for key, weight in weights.items() if weight is None]
    if without and len(without) < len(weights):
        findings.append(f"{setting}: {', '.join(without)} have no weight, but others do; set all weights or none")
    elif not any(weight != 0 for weight in weights.values()):
        findings.append(f"{setting}: no source has a weight above 0; add a source or raise a weight")
    raise_findings(findings)
    used = {key: source for key, source in mixture.sources.items() if source.weight != 0}
    if len(used) == 1:  # whatever its weight
        used = {key: replace(source, weight=None) for key, source in used.items()}
    return used


def is_mixture(sources: Sources) -> bool:
    """Return whether sources are more than a single training set of which all records are used once per epoch."""
    return len(sources) > 1 or any(source != Source(split=source.split) for source in sources.values())


def sources_identity(sources: Sources, results: Results) -> Any:
    """Return what identifies the samples of a stage: for a single training set, the hash of its records.

    The names of sources are not part of it, but their order is, because random orders depend on it.
    """
    if not is_mixture(sources):
        (source,) = sources.values()
        return split_hash(source.split, results)
    shares = shares_of(list(sources.values()))
    identity = []
    for number, source in enumerate(sources.values()):
        conditions = parse_conditions(source.where, "")
        columns = _own(conditions) if record_files(source.split) else ()
        identity.append(
            {
                "records": split_hash(source.split, results),
                "share": None if shares is None else str(shares[number]),
                "limit": source.limit,
                "where": [str(condition) for condition in conditions],
                "columns": records_hash(source.split, results, columns) if columns else None,
                "repeat": None if source.repeat is None else str(exact(source.repeat)),
            }
        )
    return identity


@dataclass(frozen=True)
class Part:
    """The selected samples of a source."""

    name: str
    source: Source
    index: SplitIndex
    numbers: NDArray[np.int64]  # of the samples in `index`


class MixedIndex:
    """The samples of several sources. They are numbered through, source by source."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part.numbers) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def sample(self, number: int) -> Sample:
        """Return the sample with the given number. Raises UserError if it is damaged."""
        place = int(np.searchsorted(self._starts, number, side="right")) - 1
        part = self.parts[place]
        sample = part.index.sample(int(part.numbers[number - self._starts[place]]))
        return replace(sample, images=tuple(f"{part.name}/{image}" for image in sample.images), source=place)

    def lengths(self, tokens_per_image: int, max_length: int) -> NDArray[np.int32]:
        """Return the length of each sample, see `SplitIndex.lengths`."""
        return np.concatenate([part.index.lengths(tokens_per_image, max_length)[part.numbers] for part in self.parts])

    def pools(self, usable: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return the usable samples of each source. Raises UserError if a source has none."""
        pools = np.split(usable, np.searchsorted(usable, self._starts[1:-1]))
        for part, pool in zip(self.parts, pools, strict=True):
            if not len(pool):
                raise UserError(
                    f"source {part.name} of {part.source.split.annotations} has no usable samples; remove it"
                )
        return pools

    def order(self, usable: NDArray[np.int64], *, samples_per_step: int, seed: int) -> MixedOrder:
        """Return the order in which training takes the usable samples."""
        pools = self.pools(usable)
        epoch = epoch_of([part.source for part in self.parts], [len(pool) for pool in pools])
        return MixedOrder.build(epoch, pools, samples_per_step=samples_per_step, seed=seed)


Samples = SplitIndex | SyntheticIndex | MixedIndex


def open_samples(
    sources: Sources, *, tokenizer: "PreTrainedTokenizerFast", chat: Chat, prompt: Prompt, results: Results
) -> SplitIndex | MixedIndex:
    """Open the samples of a stage. The index of each source is built first if it does not exist, see `open_index`."""
    indexes = {
        name: open_index(source.split, tokenizer=tokenizer, chat=chat, prompt=prompt, results=results)
        for name, source in sources.items()
    }
    if not is_mixture(sources):
        return next(iter(indexes.values()))
    return MixedIndex(
        [Part(name, one, indexes[name], _selected(one, indexes[name], results)) for name, one in sources.items()]
    )


def open_all_images(sources: Sources, results: Results) -> ImageStore:
    """Return the images of a stage, under the names that its samples have."""
    stores = {name: open_images(source.split, results) for name, source in sources.items()}
    return MixedImages(Path("mixture"), stores=stores) if is_mixture(sources) else next(iter(stores.values()))


def check_images(samples: SplitIndex | MixedIndex, sources: Sources, results: Results, *, upright: bool) -> None:
    """Raise UserError if images that the samples use are missing. Log how many are irregular, by source."""
    if isinstance(samples, MixedIndex):
        found = [(part.source.split, part.index, part.index.images(part.numbers)) for part in samples.parts]
    else:
        found = [(source.split, samples, samples.images()) for source in sources.values()]
    for split, index, names in found:
        check_before_training(names, split, open_images(split, results))
        log_irregular_images(index.irregular_images, split, results, upright=upright)


def known_size(source: Source, results: Results) -> tuple[int, bool]:
    """Return the number of records that a source selects, without reading them, and whether `where` is accounted for.

    It is computed from the published number of records, or counted if the conditions were evaluated before.
    """
    conditions = parse_conditions(source.where, "")
    size, is_counted = source.split.count, not conditions
    if conditions and record_files(source.split):
        mask = _read_mask(_mask_path(source.split, conditions, results))
        if mask is not None:
            size, is_counted = int(mask.sum()), True
    return (size, is_counted) if source.limit is None else (min(size, source.limit), is_counted)


def _selected(source: Source, index: SplitIndex, results: Results) -> NDArray[np.int64]:
    """Return the numbers of the samples that `where` and `limit` select.

    The samples of a lower limit are among those of a higher one.
    """
    numbers = np.arange(len(index))
    if conditions := parse_conditions(source.where, ""):
        numbers = numbers[_kept(source.split, conditions, results)[index.record_numbers]]
    if not len(numbers):
        raise UserError(
            f"where: no usable record of {source.split.annotations} satisfies {_listed(conditions)}; change it"
        )
    if source.limit is not None:
        order = np.random.default_rng(LIMIT_SEED).permutation(len(numbers))
        numbers = np.sort(numbers[order[: source.limit]])
    return numbers


def _kept(split: Split, conditions: Sequence[Condition], results: Results) -> NDArray[np.bool_]:
    """Return whether each record of a split satisfies all conditions. The result is cached in a file."""
    path = _mask_path(split, conditions, results)
    with locked(path):
        kept = _read_mask(path)
        if kept is None:
            kept = _evaluated(split, conditions, results)
            with replaced(path) as draft, draft.open("wb") as file:
                np.save(file, kept)
    log.info(
        "%s: %s of %s records satisfy %s", split.annotations, f"{kept.sum():,}", f"{len(kept):,}", _listed(conditions)
    )
    return kept


def _evaluated(split: Split, conditions: Sequence[Condition], results: Results) -> NDArray[np.bool_]:
    wanted = _own(conditions)
    unknown, shown = set(wanted), ""
    kept = []
    for number, (raw, record) in enumerate(read_columns(split, wanted, "selecting", open_images(split, results))):
        unknown -= raw.keys()
        shown = shown or ", ".join(sorted(map(str, raw)))
        if isinstance(record, FaultError):
            kept.append(False)
            continue
        columns = {**raw, **own_columns(record)}
        try:
            kept.append(all(condition.holds(columns) for condition in conditions))
        except UserError as error:
            raise UserError(f"{split.annotations}: record {number:,}: {error}; change the condition") from None
    if unknown:
        names = (
            f"{', '.join(sorted(unknown))}; its first record has {shown}, and {NUM_IMAGES} and {NUM_TURNS} are counted"
        )
        raise UserError(f"where: no record of {split.annotations} has a column {names}")
    return np.array(kept, np.bool_)


def _own(conditions: Sequence[Condition]) -> list[str]:
    """Return the columns of the records that conditions use."""
    return sorted({condition.column for condition in conditions} - {NUM_IMAGES, NUM_TURNS})


def _mask_path(split: Split, conditions: Sequence[Condition], results: Results) -> Path:
    key = json.dumps([records_hash(split, results, _own(conditions)), *map(str, conditions)])
    return results.root / "cache" / "selected" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"


def _read_mask(path: Path) -> NDArray[np.bool_] | None:
    """Return a cached selection, or None if there is none or it is damaged."""
    try:
        mask: NDArray[np.bool_] = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return mask if mask.dtype == np.bool_ and mask.ndim == 1 else None


def _listed(conditions: Sequence[Condition]) -> str:
    return " and ".join(map(str, conditions))
