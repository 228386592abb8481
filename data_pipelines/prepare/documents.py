"""Documents of text files. What cannot be used is rejected with its place and reason; nothing that is read crashes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from data_pipelines.errors import DataError
from data_pipelines.prepare.corpus import DAMAGE, SUFFIXES, Span, describe_damage, open_text, skip
from data_pipelines.prepare.folder import Rejected

_BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DocumentRules:
    """Where a document ends, and what is too large for one."""

    boundary: str = "blank"
    """In .txt files: ``blank`` lines separate documents, every ``line`` is one, or the ``file`` is one."""
    field: str = "text"
    """In .jsonl files: the field that holds the document of a line."""
    max_document_bytes: int = 16 << 20
    """Longer documents, and longer lines of .jsonl, are rejected."""


class Document(NamedTuple):
    """Some text that belongs together."""

    text: str
    end: int
    """Offset behind it in the text of its file."""


class _Entry(NamedTuple):
    """Bytes that should be a document; where there are more than the cap, one more than that, or some more lines."""

    begin: int
    end: int
    data: bytes | bytearray


def read_documents(span: Span, rules: DocumentRules) -> Iterator[Document | Rejected]:
    """The documents that begin in a span, in order. Spans that cover a file give each of its documents once.

    A line begins at its first byte; a document between blank lines begins with the last blank line before it, and
    the first of a file at its start.
    """
    file = span.file
    if file.suffix not in SUFFIXES:
        yield Rejected(file.name, f"is no {' or '.join(SUFFIXES)} file (or .gz, .zst of one)")
        return
    try:
        with open_text(file) as stream:
            for entry in _entries(stream, span, rules):
                yield _document(entry, span, rules)
    except DAMAGE as error:
        if not file.damage:
            yield Rejected(file.name, describe_damage(error))
    if file.damage and span.end == file.size:
        yield Rejected(f"{file.name} at byte {file.size:,}", file.damage)
    elif file.size == 0:
        yield Rejected(file.name, "is empty")


def _entries(stream: BinaryIO, span: Span, rules: DocumentRules) -> Iterator[_Entry]:
    cap = rules.max_document_bytes
    if span.file.suffix == ".txt" and rules.boundary == "file":
        return _whole_file(stream, span, cap)
    offset = _next_line(stream, span)
    lines = _lines(stream, offset, cap)
    if span.file.suffix == ".txt" and rules.boundary == "blank":
        return _between_blank_lines(lines, span, cap)
    return _single_lines(lines, span)


def _next_line(stream: BinaryIO, span: Span) -> int:
    """Go to the first line that begins in the span; returns its offset (or one behind the span)."""
    if span.begin == 0:
        return 0
    offset = span.begin - 1  # if the line before ends here, the next one begins at span.begin
    skip(stream, span.file, offset)
    while offset < span.end and (part := stream.readline(_CHUNK_BYTES)):
        offset += len(part)
        if part.endswith(b"\n"):
            break
    return offset


def _lines(stream: BinaryIO, offset: int, cap: int) -> Iterator[tuple[int, int, bytes]]:
    """Begin, end and bytes of every line from here on; of a too long one no more than the cap is ever in memory."""
    while line := stream.readline(cap + 1):
        begin, offset = offset, offset + len(line)
        part = line
        while len(line) > cap and not part.endswith(b"\n") and (part := stream.readline(_CHUNK_BYTES)):
            offset += len(part)
        yield begin, offset, line  # a plain tuple: there are many


def _whole_file(stream: BinaryIO, span: Span, cap: int) -> Iterator[_Entry]:
    if span.begin == 0 and span.file.size > 0:
        yield _Entry(0, span.file.size, stream.read(cap + 1))


def _single_lines(lines: Iterator[tuple[int, int, bytes]], span: Span) -> Iterator[_Entry]:
    for begin, end, line in lines:
        if begin >= span.end:
            return
        if line.strip():
            yield _Entry(begin, end, line)


def _between_blank_lines(lines: Iterator[tuple[int, int, bytes]], span: Span, cap: int) -> Iterator[_Entry]:
    ours = span.begin == 0  # whether a document that comes now begins in the span
    begin, end, data = -1, 0, bytearray()  # of the open document; -1: none is open
    for line_begin, line_end, line in lines:
        if not line.strip():
            if begin >= 0:
                yield _Entry(begin, end, data)
                begin, data = -1, bytearray()
            if line_begin >= span.end:
                return
            ours = True
        elif ours:
            begin, end = begin if begin >= 0 else line_begin, line_end
            if len(data) <= cap:
                data += line
            elif line_begin >= span.end:
                break  # it is too long already: no need to find its end
        elif line_begin >= span.end:
            return
    if begin >= 0:
        yield _Entry(begin, end, data)


def _document(entry: _Entry, span: Span, rules: DocumentRules) -> Document | Rejected:
    data = entry.data.removeprefix(_BOM) if entry.begin == 0 else entry.data
    reason = "is empty"
    if len(data) > rules.max_document_bytes:
        reason = f"longer than the cap of {rules.max_document_bytes:,} bytes (--max-document-mb)"
    else:
        try:
            text = data.decode("utf-8")
            if span.file.suffix == ".jsonl":
                text = _field(text, rules.field)
            if text.strip():
                return Document(text.replace("\r\n", "\n").strip("\r\n"), entry.end)
        except UnicodeDecodeError as error:
            reason = f"not UTF-8 (byte 0x{data[error.start]:02x})"
        except DataError as error:
            reason = str(error)
    return Rejected(f"{span.file.name} at byte {entry.begin:,}", reason)


def _field(line: str, field: str) -> str:
    """The document in a line of JSON."""
    try:
        values = json.loads(line.rstrip())
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})") from error
    if not isinstance(values, dict):
        raise DataError("not a JSON object")
    text = values.get(field)
    if not isinstance(text, str):
        raise DataError(f"field {field!r} is {'missing' if field not in values else 'no text'} (--text-field)")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"field {field!r} holds half a surrogate pair") from error
    return text
