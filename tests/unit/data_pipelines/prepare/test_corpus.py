import gzip
import itertools
from pathlib import Path

import pytest
import zstandard

from data_pipelines.errors import DataError
from data_pipelines.prepare.corpus import (
    Span,
    TextFile,
    cut_into_pieces,
    find_text_files,
    measure_sizes,
    open_text,
    spread_windows,
)

TEXT = b"".join(b"line %d of a text\n" % number for number in range(200_000))


def measured(source: Path, num_workers: int = 1) -> list[TextFile]:
    return measure_sizes(find_text_files(source), num_workers=num_workers, report=lambda done: None)


def sizes(source: Path) -> dict[str, int]:
    return {file.name: file.size for file in measured(source)}


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def test_files_are_found_in_one_order_and_measured_decompressed(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_bytes(TEXT[:100])
    (tmp_path / "b" / "one.txt.gz").write_bytes(gzip.compress(TEXT))
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(TEXT))
    (tmp_path / "picture.png").write_bytes(TEXT)
    (tmp_path / "archive.tar.gz").write_bytes(gzip.compress(TEXT))
    (tmp_path / "z.jsonl").write_bytes(b"")
    expected = {"a.jsonl.zst": len(TEXT), "archive.tar.gz": 0, "picture.png": 0, "z.jsonl": 0}
    expected |= {"b/one.txt.gz": len(TEXT), "b/two.txt": 100}
    assert sizes(tmp_path) == expected
    assert list(sizes(tmp_path)) == list(expected)
    assert measured(tmp_path, num_workers=2) == measured(tmp_path)
    assert {file.name: file.suffix for file in measured(tmp_path)}["a.jsonl.zst"] == ".jsonl"


def test_the_progress_of_measuring_is_in_stored_bytes(tmp_path: Path) -> None:
    for name in ("a.txt.gz", "b.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(TEXT))
    files = find_text_files(tmp_path)
    done: list[int] = []
    measure_sizes(files, num_workers=1, report=done.append)
    assert done[-1] == sum(path.stat().st_size for path in tmp_path.iterdir()) == sum(file.size for file in files)


def test_members_and_frames_in_a_row_are_one_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT[:1000]) + gzip.compress(TEXT[1000:]))
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    (tmp_path / "b.txt.zst").write_bytes(zstd(TEXT[:1000]) + skippable + zstd(b"") + zstd(TEXT[1000:]))
    for file in measured(tmp_path):
        assert (file.size, file.damage) == (len(TEXT), "")
        with open_text(file) as stream:
            assert stream.read() == TEXT


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_a_compressed_file_that_was_cut_short_is_noticed(tmp_path: Path, name: str, share: float) -> None:
    data = gzip.compress(TEXT) if name.endswith("gz") else zstd(TEXT)
    (tmp_path / name).write_bytes(data[: 1 + int(share * (len(data) - 2))])
    (file,) = measured(tmp_path)
    assert file.damage.startswith("cannot be read to its end: Compressed file ended before")
    assert file.size <= len(TEXT) * share + (1 << 20)
    assert file.size >= len(TEXT) * share / 2 - (1 << 20)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_other_damage_is_noticed(tmp_path: Path, name: str) -> None:
    data = bytearray(gzip.compress(TEXT) if name.endswith("gz") else zstd(TEXT))
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    (tmp_path / name).write_bytes(data)
    (file,) = measured(tmp_path)
    assert file.damage.startswith("cannot be read to its end: ") and file.size < len(TEXT)
    (tmp_path / name).write_bytes(TEXT)
    (file,) = measured(tmp_path)
    assert file.damage and file.size == 0


def test_a_source_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^/nowhere: cannot be read: No such file or directory$"):
        find_text_files(Path("/nowhere"))
    with pytest.raises(DataError, match=r"holds no .txt or .jsonl file \(or .gz, .zst of one\)$"):
        find_text_files(tmp_path)
    (tmp_path / "a.md").touch()
    with pytest.raises(DataError, match=r"a.md: is no .txt or .jsonl file"):
        find_text_files(tmp_path / "a.md")


def files_of(*some: int) -> list[TextFile]:
    return [TextFile(f"{number}.txt", Path(f"{number}.txt"), size) for number, size in enumerate(some)]


def test_pieces_cover_every_byte_once_and_name_every_file() -> None:
    files = files_of(250, 0, 30, 20, 100, 0)
    pieces = cut_into_pieces(files, 100)
    assert [sum(span.end - span.begin for span in piece) for piece in pieces] == [100, 100, 100, 100]
    spans = [span for piece in pieces for span in piece]
    for file in files:
        ranges = [(span.begin, span.end) for span in spans if span.file == file]
        assert ranges[0][0] == 0 and ranges[-1][1] == file.size
        assert all(one[1] == other[0] for one, other in itertools.pairwise(ranges))


def test_windows_are_spread_evenly() -> None:
    files = files_of(300, 600, 100)
    windows = spread_windows(files, 100, 10)
    starts = {"0.txt": 0, "1.txt": 300, "2.txt": 900}
    assert [starts[span.file.name] + span.begin for span in windows] == list(range(0, 1000, 100))
    assert all(span.end - span.begin == 10 for span in windows)
    assert spread_windows(files, 1000, 10) == [Span(file, 0, file.size) for file in files]
    assert sum(span.end - span.begin for span in spread_windows(files, 999, 7)) == 7 * (999 // 7)
