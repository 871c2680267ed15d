"""Reads the records of a split, whatever their form, and hashes them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tinyvlm_cli.config.datasets import Split
from tinyvlm_cli.console import ProgressBar, progress
from tinyvlm_cli.data.image_store import PARQUET, TAR, ImageStore, is_shard, record_files, shard_name
from tinyvlm_cli.data.records import FaultError, Record, parse_record, resolve
from tinyvlm_cli.data.sources import parquet, webdataset
from tinyvlm_cli.data.sources.forms import KEY, LLAVA, as_llava
from tinyvlm_cli.data.sources.json_list import json_items
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.folder import Results
from tinyvlm_cli.untrusted import JSON_ERRORS, check_file, json_reason

JSON_LINES = ".jsonl"


def read_records(split: Split, label: str, images: ImageStore) -> Iterator[tuple[Any, Record | FaultError]]:
    """Yield each record of a split in LLaVA's format as JSON data, with the `Record` parsed from it or the fault.

    The files can be larger than memory.

    label: label of the progress bar. images: the split's images.
    Raises UserError, with the number of the record, for an invalid file.
    """
    for _, record, parsed in _read(split, label, images, ()):
        yield record, parsed


def read_columns(
    split: Split, names: Sequence[str], label: str, images: ImageStore
) -> Iterator[tuple[Mapping[str, Any], Record | FaultError]]:
    """Yield the columns of each record as they are written, and the `Record` or the fault. See `read_records`.

    names: columns to read from a parquet file, in addition to those that contain the record.
    """
    for raw, _, parsed in _read(split, label, images, names):
        yield raw if isinstance(raw, Mapping) else {}, parsed


def _read(
    split: Split, label: str, images: ImageStore, more: Sequence[str]
) -> Iterator[tuple[Any, Any, Record | FaultError]]:
    """Yield each record as it is written, in LLaVA's format, and parsed. more: additional columns of parquet files."""
    paths = record_files(split) or [Path(split.annotations)]
    is_empty = True
    for path in paths:
        check_file(path)
        try:
            for raw in _raw_records(path, split, f"{label} {path.name}", images, more):
                is_empty = False
                record = as_llava(raw, split.columns)
                try:
                    parsed = parse_record(record)
                    for image in parsed.images:
                        resolve(Path(split.images or ""), image)
                except FaultError as fault:
                    yield raw, record, fault
                else:
                    yield raw, record, parsed
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; get it from {split.source}") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if is_empty:
        raise UserError(f"{split.annotations}: the list is empty; expected at least one record")


def _raw_records(path: Path, split: Split, label: str, images: ImageStore, more: Sequence[str]) -> Iterator[Any]:
    """Yield the records of a file as they are written. The images in a shard are replaced by their names."""
    suffix = path.suffix.lower()
    if suffix == PARQUET:
        yield from _parquet_records(path, split, label, images, more)
        return
    if suffix == TAR:
        yield from webdataset.samples(path, shard_name(split, path), split.columns, images.contains)
        return
    again = f"get it again from {split.source}"
    try:
        with path.open(encoding="utf-8-sig") as file, progress(label, path.stat().st_size) as bar:
            yield from _json_lines(file, bar) if suffix == JSON_LINES else json_items(file, bar)
    except RecursionError:
        raise UserError(f"{path}: the JSON is nested too deeply; {again}") from None
    except ValueError as error:  # invalid JSON, invalid UTF-8, or an integer with thousands of digits
        text = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        form = "file of JSON lines" if suffix == JSON_LINES else "JSON list"
        raise UserError(f"{path}: not a valid {form} ({text}); {again}") from None


def _json_lines(file: Any, bar: ProgressBar) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        bar.advance(len(line))
        if line.strip():
            try:
                yield json.loads(line)
            except JSON_ERRORS as error:
                raise ValueError(f"line {number:,}: {json_reason(error)}") from None


def _parquet_records(
    path: Path, split: Split, label: str, images: ImageStore, more: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file, without the images' bytes. more: additional columns, if the file has them."""
    columns = split.columns
    file = parquet.open_parquet(path)
    found = file.schema_arrow.names
    for setting, name in (("images", columns.images), ("text", columns.text)):
        if name is not None and name not in found:
            raise UserError(f"columns.{setting}: {path} has no column {name!a:.40}; choose from {', '.join(found)}")
    encoded = parquet.bytes_leaf(file, columns.images) if columns.images else None
    read = dict.fromkeys(name for name in (columns.id, columns.images, columns.text, *more) if name in found)
    leaves = [leaf for name in filter(None, read) for leaf in parquet.leaves(file, name) if leaf != encoded]
    shard = shard_name(split, path)
    with progress(label, file.metadata.num_rows) as bar:
        for row, fields in enumerate(parquet.rows(path, leaves)):
            if columns.images and encoded is not None:
                fields[columns.images] = parquet.image_names(fields.get(columns.images), shard, row, images.contains)
            if columns.id not in found:
                fields[columns.id or KEY] = f"{shard}/{row}"
            yield fields
            bar.advance()


def records_hash(split: Split, results: Results, more: Sequence[str] = ()) -> str:
    """Return a hash of a split's records, without their images, so that records can be identified by their numbers.

    For a file in LLaVA's own format, it is that of the file. more: additional columns of parquet files to include.
    """
    paths = record_files(split) or [Path(split.annotations)]
    if len(paths) == 1 and split.columns == LLAVA and not is_shard(paths[0]):
        return results.file_hash(paths[0])
    columns = split.columns
    names = [name for name in (columns.id, columns.images, columns.text, *more) if name]
    part_digests = {
        PARQUET: partial(parquet.digest, columns=names), TAR: partial(webdataset.digest, columns=columns)
    }  # fmt: skip
    digests = []
    for path in paths:
        part = json.dumps(vars(columns) | ({"more": list(more)} if more else {})) if is_shard(path) else ""
        digests.append(results.file_hash(path, part_digests.get(path.suffix.lower()), part))
    return hashlib.sha256(json.dumps([digests, vars(columns)]).encode()).hexdigest()
