"""Images in archives and shards are found by the names that records use; damaged and hostile files are findings."""

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from support.forms import encoded, talk, training_set, with_bytes, write_parquet, write_tar, write_zip

from tinyvlm_cli.config.datasets import Columns, Split
from tinyvlm_cli.data.check import check_before_training
from tinyvlm_cli.data.image_store import ImageStore, missing_files, open_images
from tinyvlm_cli.data.reading import read_records, records_hash
from tinyvlm_cli.data.records import FaultError, Kind, Record
from tinyvlm_cli.data.sources import places
from tinyvlm_cli.data.sources.parquet import rows
from tinyvlm_cli.data.sources.places import Method
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.results.folder import Results

PICTURE = encoded(np.random.default_rng(0), "PNG", (9, 9))
OTHER = encoded(np.random.default_rng(1), "PNG", (9, 9))


def store(folder: Path, annotations: str = "r.json", images: str | None = "images", **more: Any) -> ImageStore:
    place = None if images is None else str(folder / images)
    split = Split(str(folder / annotations), place, 1, "here", **more)
    return open_images(split, Results(folder / "results"))


@pytest.mark.parametrize("prefix", ["", "train2017/", "./train2017/"])
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_an_archive_stands_for_the_folder_that_it_would_be_unpacked_to(tmp_path: Path, prefix: str, form: str) -> None:
    (tmp_path / "images/own").mkdir(parents=True)
    (tmp_path / "images/own/a.png").write_bytes(OTHER)
    write = write_zip if form == "zip" else write_tar
    path = write(tmp_path / f"anything.{form}", {f"{prefix}a.png": PICTURE, f"{prefix}b/a.png": OTHER})
    archives = {"coco/train2017": str(path), "own": str(tmp_path / "gone.zip"), "gone": str(tmp_path / "gone.tar")}
    images = store(tmp_path, archives=archives)
    names = ["coco/train2017/a.png", "coco/train2017/b/a.png", "own/a.png", "coco/train2017/c.png", "coco/a.png"]
    assert images.missing(names) == names[3:]
    found = [images.source(name) for name in names[:3]]
    assert found == [PICTURE, OTHER, tmp_path / "images/own/a.png"]
    (tmp_path / "images/coco/train2017").mkdir(parents=True)  # the folder is preferred
    assert store(tmp_path, archives=archives).missing(names) == [*names[:2], *names[3:]]


@pytest.mark.parametrize("prefix", ["", "images/"])
def test_an_archive_can_be_the_image_root(tmp_path: Path, prefix: str) -> None:
    path = write_zip(tmp_path / "images.zip", {f"{prefix}00/a.png": PICTURE, "__MACOSX/._a.png": b"x"})
    for images in (store(tmp_path, images="images.zip"), store(tmp_path, archives={".": str(path)})):
        assert images.source("00/a.png") == PICTURE
        assert images.open("00/a.png").size == (9, 9)
        assert images.missing(["00/a.png", "._a.png", "b.png"]) == ["._a.png", "b.png"]


def zip_of(path: Path, change: Callable[[zipfile.ZipFile], None]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        change(file)
    return path


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_within_a_zip_is_a_finding(tmp_path: Path, method: int) -> None:
    path = zip_of(tmp_path / "i.zip", lambda file: file.writestr("a.png", PICTURE, method))
    data = path.read_bytes()
    for at in (2, 60, 30 + len("a.png") + 5):  # the local header, and twice its data
        path.write_bytes(data)
        flipped(path, at)
        with pytest.raises(FaultError, match=r"^image a.png: cannot be read .*; download i.zip again$") as caught:
            store(tmp_path, images="i.zip").open("a.png")
        assert caught.value.kind is Kind.damaged


def test_a_local_header_may_be_longer_than_the_central_one(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "i.zip", {"a.png": PICTURE})
    data = path.read_bytes()
    extra = struct.pack("<HH", 0x9999, 400) + bytes(400)
    start = 30 + len("a.png")
    longer = bytearray(data[:start] + extra + data[start:])
    longer[28:30] = struct.pack("<H", len(extra))
    end = longer.rindex(b"PK\5\6")
    longer[end + 16 : end + 20] = struct.pack("<I", struct.unpack("<I", longer[end + 16 : end + 20])[0] + len(extra))
    path.write_bytes(longer)
    assert store(tmp_path, images="i.zip").source("a.png") == PICTURE


def test_members_that_cannot_be_read_are_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(file: zipfile.ZipFile) -> None:
        file.writestr("lzma.png", PICTURE, zipfile.ZIP_LZMA)
        file.writestr("bomb.png", bytes(5000), zipfile.ZIP_DEFLATED)
        file.writestr("twice.png", b"first")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("twice.png", PICTURE)

    zip_of(tmp_path / "i.zip", write)
    images = store(tmp_path, images="i.zip")
    assert images.source("twice.png") == PICTURE  # as when the archive is unpacked
    monkeypatch.setattr(places, "MAX_BYTES", 1000)
    for name, says in (("lzma.png", "unsupported method"), ("bomb.png", "more than")):
        with pytest.raises(FaultError, match=says) as caught:
            images.open(name)
        assert caught.value.kind is Kind.unreadable


def test_only_regular_files_of_a_tar_are_images(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PICTURE)
    with tarfile.open(tmp_path / "i.tar", "w") as file:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret.png")
            file.addfile(info)
        info = tarfile.TarInfo("../../up.png")
        info.size = len(PICTURE)
        file.addfile(info, io.BytesIO(PICTURE))
    names = ["link.png", "hard.png", "pipe.png", "up.png"]
    assert store(tmp_path, images="i.tar").missing(names) == names


def test_images_without_bytes_in_a_tar_are_cut(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "i.tar", {"a.png": PICTURE, "b.png": PICTURE})
    images = store(tmp_path, images="i.tar")
    path.write_bytes(path.read_bytes()[:600])  # while a training runs
    with pytest.raises(FaultError, match=r"download i\.tar again"):
        images.open("b.png")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("i.zip", b"PK\3\4nothing", "not a complete zip archive"),
        ("i.zip", b"", "not a complete zip archive"),
        ("i.tar", b"\x1f\x8b\x08" + bytes(2000), "not a complete tar archive.*decompressed first"),
        ("s.parquet", b"PAR1", "not a parquet file"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    annotations, images = (name, None) if name.endswith("parquet") else ("r.json", name)
    with pytest.raises(UserError, match=rf"{name}: {says}") as caught:
        store(tmp_path, annotations, images)
    assert len(str(caught.value).splitlines()) == 1
    assert not [path for path in (tmp_path / "results/cache/images").iterdir() if path.is_dir()]


def rows_of(count: int) -> tuple[list[dict[str, Any]], list[tuple[str, bytes]]]:
    """Return rows with lists of images, and the names and contents of the images in a.parquet."""
    records, images = training_set(count, seed=3)
    rows = [with_bytes({"id": one["id"], "images": one["image"], "text": "x"}, images) for one in records]
    expected = [
        (f"a.parquet/{row}/{place}{Path(image['path']).suffix}", image["bytes"])
        for row, cells in enumerate(rows)
        for place, image in enumerate(cells["images"])
        if image["bytes"] is not None
    ]
    return rows, expected


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}], ids=str)
@pytest.mark.parametrize("codec", ["snappy", "none", "zstd", "gzip", "lz4"])
def test_every_image_of_a_parquet_file_is_read_from_its_place(
    tmp_path: Path, codec: str, options: dict[str, Any]
) -> None:
    rows, expected = rows_of(90)
    write_parquet(tmp_path / "a.parquet", rows, compression=codec, row_group_size=40, **options)
    images = store(tmp_path, "a.parquet", None, columns=Columns("id", "images", "text"))
    assert images.missing([name for name, _ in expected]) == []
    assert [images.source(name) for name, _ in expected] == [content for _, content in expected]
    assert images.places is not None and len(images.places) == len(expected)
    methods = {place.method for name, _ in expected if (place := images.places.find(name))}
    assert (methods == {Method.cell}) is (codec == "lz4")


def test_pages_that_are_not_understood_are_left_to_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, expected = rows_of(30)
    for name in ("parquet_pages.PLAIN", "parquet_pages.MAX_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(f"tinyvlm_cli.data.sources.{name}", -1)
            path = tmp_path / name / "a.parquet"
            path.parent.mkdir()
            write_parquet(path, rows)
            images = store(path.parent, "a.parquet", None, columns=Columns("id", "images", "text"))
        assert [images.source(name) for name, _ in expected] == [content for _, content in expected]


def test_images_of_a_shard_are_its_own(tmp_path: Path) -> None:
    """Shards of several folders can have the same names."""
    columns = Columns(None, "images", "text")
    for folder, content in (("a", PICTURE), ("b", OTHER)):
        (tmp_path / folder).mkdir()
        write_parquet(tmp_path / folder / "0.parquet", [{"images": [{"bytes": content, "path": None}], "text": "x"}])
    split = Split(str(tmp_path / "*/0.parquet"), None, 2, "here", columns=columns)
    images = open_images(split, Results(tmp_path / "results"))
    records = [record for _, record in read_records(split, "", images)]
    found = [(record.id, record.images) for record in records if isinstance(record, Record)]
    assert found == [("a/0.parquet/0", ("a/0.parquet/0/0",)), ("b/0.parquet/0", ("b/0.parquet/0/0",))]
    assert [images.source(names[0]) for _, names in found] == [PICTURE, OTHER]


def test_the_hash_of_records_covers_their_text_and_not_their_images(tmp_path: Path) -> None:
    def hash_of(text: str, picture: bytes, form: str) -> str:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        if form == "parquet":
            write_parquet(folder / "a.parquet", [{"images": [{"bytes": picture, "path": None}], "text": text}])
        else:
            write_tar(folder / "a.tar", {"0.png": picture, "0.txt": text.encode()})
        columns = Columns(None, "images", "text") if form == "parquet" else Columns("__key__", "png", "txt")
        split = Split(str(folder / f"a.{form}"), None, 1, "here", columns=columns)
        return records_hash(split, Results(tmp_path / "results"))

    for form in ("parquet", "tar"):
        first = hash_of("a", PICTURE, form)
        assert first == hash_of("a", OTHER, form) != hash_of("b", PICTURE, form)


def test_a_table_is_written_again_when_its_archive_changes_or_it_is_damaged(tmp_path: Path) -> None:
    write_zip(tmp_path / "i.zip", {"a.png": PICTURE})
    images = store(tmp_path, images="i.zip")
    state = images.state("a.png")
    assert images.places is not None and images.is_unchanged("a.png", state)
    (images.places.folder / "places.npy").write_bytes(b"")
    assert store(tmp_path, images="i.zip").source("a.png") == PICTURE
    write_zip(tmp_path / "i.zip", {"b.png": OTHER, "a.png": PICTURE})
    again = store(tmp_path, images="i.zip")
    assert again.is_unchanged("a.png", state) and again.source("b.png") == OTHER
    write_zip(tmp_path / "i.zip", {"a.png": OTHER})
    assert not store(tmp_path, images="i.zip").is_unchanged("a.png", state)


def test_missing_settings_are_named(tmp_path: Path) -> None:
    split = Split(str(tmp_path / "*.parquet"), None, 1, "here")
    assert list(missing_files(split)) == ["annotations"]
    (tmp_path / "r.json").touch()
    assert list(missing_files(Split(str(tmp_path / "r.json"), None, 1, "here"))) == ["images"]
    assert list(missing_files(Split(str(tmp_path / "r.json"), str(tmp_path / "i.zip"), 1, "here"))) == ["images"]
    assert store(tmp_path, images="i.zip").missing(["a.png"]) == ["a.png"]  # for stages that are trained
    write_zip(tmp_path / "i.zip", {})
    assert missing_files(Split(str(tmp_path / "r.json"), str(tmp_path / "i.zip"), 1, "here")) == {}


CASES: dict[str, tuple[Any, Columns, list[list[str]]]] = {
    "turns": (
        {"images": 2, "texts": [{"user": "Hi", "assistant": "Yo"}, {"user": "So?", "assistant": "No"}]},
        Columns(None, "images", "texts"), [["<image><image>\nHi", "Yo"], ["So?", "No"]],
    ),
    "turns with placeholders": (
        {"images": 1, "texts": [{"user": "Hi", "assistant": "Yo"}, {"user": "<image> So?", "assistant": "No"}]},
        Columns(None, "images", "texts"), [["Hi", "Yo"], ["<image> So?", "No"]],
    ),
    "a caption": ({"images": 1, "caption": "A cat."}, Columns(None, "images", "caption"), [["<image>", "A cat."]]),
    "text only": ({"images": 0, "texts": [{"user": "Hi", "assistant": "Yo"}]}, Columns(None, "images", "texts"),
                  [["Hi", "Yo"]]),
    "parts of messages": (
        {"images": 2, "messages": [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": " or "},
                                         {"type": "image", "text": None}, {"type": "text", "text": "?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        ]},
        Columns(None, "images", "messages"), [["<image> or <image>?", "Yes."]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_forms_of_text(tmp_path: Path, name: str) -> None:
    row, columns, turns = CASES[name]
    pictures = [PICTURE, OTHER][: row["images"]]
    row = {**row, "images": [{"bytes": picture, "path": None} for picture in pictures]}
    write_parquet(tmp_path / "a.parquet", [row])
    split = Split(str(tmp_path / "a.parquet"), None, 1, "here", columns=columns)
    images = open_images(split, Results(tmp_path / "results"))
    ((_, record),) = read_records(split, "", images)
    assert isinstance(record, Record), record
    assert [[turn.question, turn.answer] for turn in record.turns] == turns
    assert [images.source(image) for image in record.images] == pictures
    check_before_training(record.images, split, images)


def test_samples_of_a_webdataset_by_their_extensions(tmp_path: Path) -> None:
    members = {
        "d/000.jpg": PICTURE, "d/000.txt": b"A cat.",
        "d/001.0.png": OTHER, "d/001.1.png": PICTURE, "d/001.txt": b"Two.",
        "d/002.txt": b"None.", "d/003.json": b"{", "d/003.jpg": PICTURE,
    }  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    split = Split(str(tmp_path / "a.tar"), None, 1, "here", columns=Columns("__key__", "jpg;png", "txt"))
    images = open_images(split, Results(tmp_path / "results"))
    *found, (_, broken) = read_records(split, "", images)
    assert isinstance(broken, FaultError) and broken.kind is Kind.broken
    records = [record for _, record in found if isinstance(record, Record)]
    assert [(record.id, record.turns[0].answer) for record in records] == [
        ("d/000", "A cat."), ("d/001", "Two."), ("d/002", "None.")
    ]  # fmt: skip
    assert [[images.source(name) for name in one.images] for one in records] == [[PICTURE], [OTHER, PICTURE], []]


def test_columns_that_are_missing_are_named_with_those_found(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"images": [], "texts": talk("a", "b")}])
    for columns, setting in ((Columns(None, "images", "text"), "text"), (Columns(None, "image", "texts"), "images")):
        split = Split(str(tmp_path / "a.parquet"), None, 1, "here", columns=columns)
        images = open_images(split, Results(tmp_path / "results"))
        with pytest.raises(UserError, match=rf"columns\.{setting}: .* choose from .*texts"):
            list(read_records(split, "", images))


def test_a_column_of_bytes_and_one_of_paths(tmp_path: Path) -> None:
    import pyarrow

    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images/x.png")
    for cells, root in (([PICTURE, OTHER], None), (["x.png", "x.png"], str(tmp_path / "images"))):
        parquet.write_table(pyarrow.table({"image": cells, "text": ["a", "b"]}), tmp_path / "a.parquet")
        split = Split(str(tmp_path / "a.parquet"), root, 1, "here", columns=Columns(None, "image", "text"))
        images = open_images(split, Results(tmp_path / "results"))
        records = [record for _, record in read_records(split, "", images)]
        sources = [images.source(record.images[0]) for record in records if isinstance(record, Record)]
        assert sources == ([PICTURE, OTHER] if root is None else [tmp_path / "images/x.png"] * 2)


def test_a_text_that_is_not_utf8_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": pa.array([b"\x81"], pa.binary()).view(pa.string())}), path)
    with pytest.raises(UserError, match=r"a\.parquet: damaged"):
        list(rows(path, ["text"]))
