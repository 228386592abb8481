import gzip
import io
import json
import random
import re
from pathlib import Path

import pytest
import zstandard

from data_pipelines.prepare import documents
from data_pipelines.prepare.corpus import Span, TextFile, find_text_files, measure_sizes
from data_pipelines.prepare.documents import Document, DocumentRules, read_documents
from data_pipelines.prepare.folder import Rejected


def file_of(path: Path, content: bytes) -> TextFile:
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".zst":
        content = zstandard.ZstdCompressor().compress(content)
    path.write_bytes(content)
    (file,) = measure_sizes(find_text_files(path), num_workers=1, report=lambda done: None)
    return file


def whole(file: TextFile, **rules: object) -> list[str]:
    """Texts; of what is rejected its place and reason."""
    return read(Span(file, 0, file.size), **rules)


def read(span: Span, **rules: object) -> list[str]:
    found = read_documents(span, DocumentRules(**rules))  # type: ignore[arg-type]
    return [one.text if isinstance(one, Document) else f"{one.source}: {one.reason}" for one in found]


def test_blank_lines_separate_documents(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfone\n  indented \n\n \t\n\ntwo\r\nlines\r\n\r\n\x0c\nthree"
    assert whole(file_of(tmp_path / "a.txt", content)) == ["one\n  indented ", "two\nlines", "three"]


def test_every_line_is_a_document(tmp_path: Path) -> None:
    assert whole(file_of(tmp_path / "a.txt", b"one\n\n  two \r\n \nthree"), boundary="line") == [
        "one",
        "  two ",
        "three",
    ]


def test_the_file_is_a_document(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.txt", b"\none\n\ntwo\n")
    assert whole(file, boundary="file") == ["one\n\ntwo"]
    assert [read(Span(file, *span), boundary="file") for span in ((0, 3), (3, 10))] == [["one\n\ntwo"], []]


def test_a_field_of_every_line_of_json_is_a_document(tmp_path: Path) -> None:
    texts = ["one\n\ntwo", "naïve ☃ 🙂", ' "quoted" ']
    lines = [json.dumps({"id": 1, "text": texts[0], "title": "t"}), json.dumps({"text": texts[1]}), ""]
    lines += [json.dumps({"text": texts[2]}, ensure_ascii=False)]
    file = file_of(tmp_path / "a.jsonl", "\n".join(lines).encode())
    for boundary in ("blank", "line", "file"):
        assert whole(file, boundary=boundary) == texts
    file = file_of(tmp_path / "b.jsonl", b'{"body": "x", "text": 1}\n')
    assert whole(file, field="body") == ["x"]


def test_what_cannot_be_used_is_rejected_with_place_and_reason(tmp_path: Path) -> None:
    bad = {
        b'{"text": "a"': "not JSON (Expecting ',' delimiter: line 1 column 13 (char 12))",
        b"[" * 100_000: "not JSON (maximum recursion depth exceeded",
        b'{"text": ' + b"9" * 5000 + b"}": "not JSON (Exceeds the limit (4300 digits)",
        b'["text"]': "not a JSON object",
        b'{"body": "a"}': "field 'text' is missing (--text-field)",
        b'{"text": 1}': "field 'text' is no text (--text-field)",
        b'{"text": null}': "field 'text' is no text (--text-field)",
        b'{"text": " \\n"}': "is empty",
        b'{"text": "a\\ud800"}': "field 'text' holds half a surrogate pair",
        b'{"text": "\xff"}': "not UTF-8 (byte 0xff)",
        b'{"text": "%s"}' % (b"a" * 200_000): "longer than the cap of 150,000 bytes (--max-document-mb)",
    }
    good = b'{"text": "good"}'
    lines = [line for one in bad for line in (good, one)] + [good]
    found = whole(file_of(tmp_path / "a.jsonl", b"\n".join(lines)), max_document_bytes=150_000)
    assert found[::2] == ["good"] * (len(bad) + 1)
    offset = 0
    for result, (line, reason) in zip(found[1::2], bad.items(), strict=True):
        offset += len(good) + 1
        assert result.startswith(f"a.jsonl at byte {offset:,}: {reason}")
        assert "\n" not in result
        offset += len(line) + 1


def test_a_bad_document_among_blank_lines_is_rejected_alone(tmp_path: Path) -> None:
    content = b"one\n\nt\xe9t\xe9\nlong\n\n" + b"three\n" * 100 + b"\n" + b"4" * 500 + b"\n\nfive\n"
    assert whole(file_of(tmp_path / "a.txt", content), max_document_bytes=100) == [
        "one",
        "a.txt at byte 5: not UTF-8 (byte 0xe9)",
        "a.txt at byte 16: longer than the cap of 100 bytes (--max-document-mb)",
        "a.txt at byte 617: longer than the cap of 100 bytes (--max-document-mb)",
        "five",
    ]
    exact = b"x" * 99 + b"\n\n" + b"y" * 100 + b"\n"
    assert whole(file_of(tmp_path / "b.txt", exact), max_document_bytes=100) == [
        "x" * 99,
        "b.txt at byte 101: longer than the cap of 100 bytes (--max-document-mb)",
    ]


def test_files_that_are_no_text_are_rejected_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.pdf").write_bytes(b"x" * 100)
    (tmp_path / "c.txt.gz").write_bytes(b"x" * 100)
    files = measure_sizes(find_text_files(tmp_path), num_workers=1, report=lambda done: None)
    found = [one for file in files for one in read_documents(Span(file, 0, file.size), DocumentRules())]
    assert found[:2] == [
        Rejected("a.txt", "is empty"),
        Rejected("b.pdf", "is no .txt or .jsonl file (or .gz, .zst of one)"),
    ]
    assert found[2] == Rejected("c.txt.gz at byte 0", "cannot be read to its end: Not a gzipped file (b'xx')")
    assert len(found) == 3


def test_a_file_that_vanished_is_rejected(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.txt", b"one")
    file.path.unlink()
    assert whole(file) == ["a.txt: cannot be read to its end: No such file or directory"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_the_whole_documents_before_damage_are_kept_and_the_damage_is_told_once(tmp_path: Path, name: str) -> None:
    generator = random.Random(0)
    texts = [f"{number} {generator.getrandbits(400):x}" for number in range(40_000)]
    path = tmp_path / name
    file_of(path, "\n\n".join(texts).encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (file,) = measure_sizes(find_text_files(path), num_workers=1, report=lambda done: None)
    *kept, last = whole(file)
    assert kept == texts[: len(kept)]
    assert 15_000 < len(kept) < 22_000
    assert last == f"{name} at byte {file.size:,}: {file.damage}"
    in_parts = [one for begin in range(0, file.size, 900_000) for one in read(part(file, begin, 900_000))]
    assert [one for one in in_parts if one.startswith(name)] == [last]
    assert in_parts[: len(kept)] == kept


def part(file: TextFile, begin: int, size: int) -> Span:
    return Span(file, begin, min(file.size, begin + size))


def random_text(generator: random.Random) -> bytes:
    """Short lines of few kinds, so that every kind of cut happens."""
    lines = (b"a", b"bb", b"  c", b"", b"", b" ", b"\r", b"dddd")
    text = b"\n".join(generator.choices(lines, k=generator.randrange(30)))
    return text + generator.choice((b"", b"\n"))


@pytest.mark.parametrize("boundary", ["blank", "line", "file"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_wherever_a_file_is_cut_each_document_is_read_once(tmp_path: Path, boundary: str, suffix: str) -> None:
    generator = random.Random(len(suffix) * 10 + len(boundary))
    for trial in range(60 if suffix == "" else 12):
        text = random_text(generator)
        file = file_of(tmp_path / f"{trial}.txt{suffix}", text)
        if file.size == 0:
            continue
        plain = text.decode().replace("\r\n", "\n").replace("\r", "")
        if boundary == "blank":
            expected = [one.strip("\n") for one in re.split(r"\n(?:[ \r]*\n)+", "\n" + plain + "\n") if one.strip()]
        elif boundary == "line":
            expected = [line for line in plain.split("\n") if line.strip()]
        else:
            expected = [plain.strip("\n")] if plain.strip() else ["0"]
        for size in range(1, 1 + min(12, file.size)):
            spans = [part(file, begin, size) for begin in range(0, file.size, size)]
            found = [one.replace("\r", "") for span in spans for one in read(span, boundary=boundary)]
            if boundary == "file" and not plain.strip():
                assert found == [f"{file.name} at byte 0: is empty"]
            else:
                assert found == expected, (text, size)


def test_documents_belong_to_the_span_that_they_begin_in(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.txt", b"one\none\n\ntwo\ntwo\n\nthree\n")
    assert [read(Span(file, *span)) for span in ((0, 8), (8, 17), (17, 24))] == [
        ["one\none"],
        ["two\ntwo"],  # the blank line before it is byte 8
        ["three"],
    ]


def test_a_document_that_is_too_long_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(tmp_path / "a.txt", b"x\n" * 200_000)
    positions: list[int] = []

    class Watched(io.BytesIO):
        def __exit__(self, *_: object) -> None:
            positions.append(self.tell())

    monkeypatch.setattr(documents, "open_text", lambda file: Watched(file.path.read_bytes()))
    first, *others = (read(part(file, begin, 100_000), max_document_bytes=1000) for begin in range(0, 400_000, 100_000))
    assert first == ["a.txt at byte 0: longer than the cap of 1,000 bytes (--max-document-mb)"]
    assert others == [[], [], []]
    assert positions == [100_002, 200_002, 300_002, 400_000]
