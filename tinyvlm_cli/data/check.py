"""Looks at every record and every image of a split before a GPU is used."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyvlm_cli.config.schema import Split
from tinyvlm_cli.console import progress
from tinyvlm_cli.data.annotations import read_annotations
from tinyvlm_cli.data.cores import on_all_cores
from tinyvlm_cli.data.faults import FaultError, Finding, Kind
from tinyvlm_cli.data.images import resolve
from tinyvlm_cli.data.look import look_at
from tinyvlm_cli.data.records import Record, check_marks, parse_record, speakers_take_turns


@dataclass(frozen=True)
class Checked:
    """What was looked at, and everything worth telling of it."""

    num_records: int
    num_images: int  # files: many records can share one
    findings: list[Finding]  # in the records' order


def check_split(split: Split) -> Checked:
    """Look at every record, and at every image file once."""
    census = _Census(Path(split.images))
    size = Path(split.annotations).stat().st_size
    with progress(f"reading {Path(split.annotations).name}", size) as bar:
        for raw in read_annotations(split, bar.advance):
            census.add(raw)
    census.ids.clear()
    findings = [*census.findings, *_look(census)]
    findings.sort(key=lambda finding: finding.number)
    return Checked(census.num_records, len(census.images), findings)


@dataclass
class _Census:
    """What the check keeps of the records: no more, so that a million of them fit into memory."""

    root: Path
    findings: list[Finding] = field(default_factory=list)
    num_records: int = 0
    images: dict[str, int] = field(default_factory=dict)  # path -> its place in this mapping
    owners: "array[int]" = field(default_factory=lambda: array("i"))  # records of the images to open ...
    places: "array[int]" = field(default_factory=lambda: array("i"))  # ... and those images
    ids: set[str] = field(default_factory=set)

    def add(self, raw: Any) -> None:
        """Look at the next record."""
        number = self.num_records
        self.num_records += 1
        try:
            record = parse_record(raw)
            for image in record.images:
                resolve(self.root, image)
                self.owners.append(number)
                self.places.append(self.images.setdefault(image, len(self.images)))
        except FaultError as fault:
            self.findings.append(Finding(number, fault.kind, str(fault)))
        else:
            self.findings += _oddities(number, record, raw, self.ids)
            self.ids.add(record.id)


def _oddities(number: int, record: Record, raw: dict[str, Any], ids: set[str]) -> Iterator[Finding]:
    if record.id in ids and raw.get("id") is not None:
        yield Finding(number, Kind.repeated, f"record {record.id}: another record has this id")
    try:
        check_marks(record)
    except FaultError as fault:
        yield Finding(number, fault.kind, str(fault))
    if not speakers_take_turns(raw):
        says = "questions and answers are told apart by position, and the speakers say otherwise"
        yield Finding(number, Kind.speakers, f"record {record.id}: {says}")
    if not all(turn.answer.strip() for turn in record.turns):
        yield Finding(number, Kind.empty_answer, f"record {record.id}: an answer is empty")


def _look(census: _Census) -> Iterator[Finding]:
    """Findings on the images, for each record that has them."""
    paths = (census.root / name for name in census.images)
    looks = on_all_cores(look_at, paths, count=len(census.images), label="opening images")
    faults = {image: fault for image, fault in enumerate(looks) if fault is not None}
    names = {place: name for name, place in census.images.items() if place in faults}
    says = {place: str(fault) for place, fault in faults.items()}  # one text, however many records share the image
    for number, image in zip(census.owners, census.places, strict=True):
        if image in faults:
            yield Finding(number, faults[image].kind, says[image], names[image])
