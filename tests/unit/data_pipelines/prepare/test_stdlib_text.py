import inspect
import pydoc_data.topics
import textwrap
from pathlib import Path

import pytest

from data_pipelines.errors import DataError
from data_pipelines.prepare.corpus import Span, find_text_files, measure_sizes
from data_pipelines.prepare.documents import Document, DocumentRules, read_documents
from data_pipelines.prepare.stdlib_text import write_stdlib_text


def test_the_documentation_of_every_module_is_a_document(tmp_path: Path) -> None:
    number = write_stdlib_text(tmp_path / "a.txt")
    (file,) = measure_sizes(find_text_files(tmp_path), num_workers=1, report=lambda done: None)
    documents = list(read_documents(Span(file, 0, file.size), DocumentRules()))
    assert all(isinstance(one, Document) for one in documents)
    texts = [one.text for one in documents if isinstance(one, Document)]
    assert len(texts) == number > 300
    assert 1_500_000 < file.size < 6_000_000
    (ours,) = [text for text in texts if text.startswith("Text wrapping and filling.")]
    for member in (textwrap, textwrap.TextWrapper, textwrap.TextWrapper.wrap, textwrap.dedent):
        lines = (inspect.getdoc(member) or "").splitlines()
        assert "\n".join(line.rstrip() for line in lines if line.strip()) in ours
    chapter = pydoc_data.topics.topics["assert"].splitlines()
    assert "\n".join(line.rstrip() for line in chapter if line.strip()) in texts


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="holds no sources of the Python standard library"):
        write_stdlib_text(tmp_path / "a.txt")
    (tmp_path / "broken.py").write_text("'not closed")
    (tmp_path / "whole.py").write_text("'One.\\n\\nTwo.'\ndef f():\n  'Three \\ud800.'\n")
    assert write_stdlib_text(tmp_path / "a.txt") == 1
    assert (tmp_path / "a.txt").read_text() == "One.\nTwo.\nThree ?.\n"
    with pytest.raises(DataError, match="nowhere/a.txt: cannot be written: No such file"):
        write_stdlib_text(tmp_path / "nowhere" / "a.txt")
