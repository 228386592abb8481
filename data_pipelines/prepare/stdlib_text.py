"""English that is on every machine: what the Python standard library says about itself, about 2 MB."""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.atomic import replacing
from data_pipelines.errors import DataError

_OTHERS = ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_TOPICS = "pydoc_data/topics.py"  # chapters of the language reference, which help() shows


def write_stdlib_text(out_file: Path) -> int:
    """Write the documentation strings of the standard library, a document per module, blank lines between them.

    Nothing is imported; the same Python gives the same bytes.

    Returns:
        The number of documents.
    Raises:
        DataError: if the library's sources are not there, or the file cannot be written.
    """
    library = Path(sysconfig.get_path("stdlib"))
    documents = [document for path in _sources(library) for document in _documents(library, path)]
    if not documents:
        raise DataError(f"{library}: holds no sources of the Python standard library")
    with replacing(out_file) as stream:
        stream.write("\n".join(f"{document}\n" for document in documents).encode("utf-8", "replace"))
    return len(documents)


def _sources(library: Path) -> Iterator[Path]:
    for path in sorted(library.rglob("*.py")):
        if not set(path.relative_to(library).parts) & set(_OTHERS):
            yield path


def _documents(library: Path, path: Path) -> list[str]:
    """What one source gives: the chapters that it holds, or all its documentation strings in a row."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []
    if path.relative_to(library).as_posix() == _TOPICS:
        strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        return [_without_blank_lines(one) for one in strings if isinstance(one, str) and "\n" in one]
    docs = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, _DOCUMENTED))
    return [text] if (text := _without_blank_lines("\n".join(filter(None, docs)))) else []


def _without_blank_lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
