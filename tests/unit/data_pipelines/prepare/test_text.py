import gzip
import inspect
import itertools
import json
import random
import textwrap
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_pipelines.errors import DataError
from data_pipelines.prepare.corpus import cut_into_pieces, find_text_files, measure_sizes
from data_pipelines.prepare.documents import Document, DocumentRules, read_documents
from data_pipelines.prepare.folder import Part, write_folder
from data_pipelines.prepare.text import Corpus, cut_into_blocks, plan_text, stored_tokenizer, train_tokenizer
from data_pipelines.reader import Reader
from data_pipelines.shards.manifest import DatasetManifest
from data_pipelines.tokenizers.base import Tokenizer
from data_pipelines.tokenizers.load import load_tokenizer
from data_pipelines.transforms.text import read_tokens
from tests.unit.data_pipelines.prepare.test_images import contents, rejected
from tests.unit.data_pipelines.tokenizers import gpt2

DOCUMENTS = [one.strip("\n") for module in (random, textwrap) for one in inspect.getsource(module).split("\n\n")]
DOCUMENTS = [one for one in DOCUMENTS if one.strip()]


def corpus_of(source: Path, num_workers: int = 1, **rules: str) -> Corpus:
    files = measure_sizes(find_text_files(source), num_workers=num_workers, report=lambda done: None)
    return Corpus(source, files, DocumentRules(**rules))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a plain file, a compressed one, and one of JSON."""
    folder = tmp_path_factory.mktemp("source")
    third = len(DOCUMENTS) // 3
    (folder / "a.txt").write_text("\n\n".join(DOCUMENTS[:third]) + "\n")
    (folder / "b.txt.gz").write_bytes(gzip.compress("\n\n".join(DOCUMENTS[third : 2 * third]).encode(), mtime=0))
    (folder / "c").mkdir()
    lines = (json.dumps({"text": one}) + "\n" for one in DOCUMENTS[2 * third :])
    (folder / "c" / "d.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def tokenizer(source: Path) -> Tokenizer:
    return train_tokenizer(corpus_of(source), 500, 1 << 20)


def prepare(source: Path, out: Path, tokenizer: Tokenizer, **options: int) -> DatasetManifest:
    limits = {"tokens_per_sample": 128, "piece_size_bytes": 20_000, **options}
    plan = plan_text(corpus_of(source), out, tokenizer=tokenizer, **limits)
    done: list[int] = []
    manifest = write_folder(plan, out, num_workers=1, report=done.append)
    if done:
        assert done[-1] == plan.total() == corpus_of(source).size_bytes
        assert done == sorted(done)
    return manifest


def blocks_by_shard(out: Path) -> list[list[list[int]]]:
    reader = Reader(str(out))
    samples = [reader.read(number) for number in range(len(reader))]
    grouped = itertools.groupby(samples, key=lambda sample: sample.key.split("-")[0])
    return [[read_tokens(sample.members["npy"]).tolist() for sample in group] for _, group in grouped]


def test_shards_are_fairseqs_blocks_of_the_documents_of_their_pieces(
    source: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """sample_break_mode none, written down over whole lists; the last block of a shard ends where its text ends."""
    manifest = prepare(source, tmp_path / "out", tokenizer)
    corpus = corpus_of(source)
    pieces = [
        [one.text for span in spans for one in read_documents(span, corpus.rules) if isinstance(one, Document)]
        for spans in cut_into_pieces(corpus.files, 20_000)
    ]
    assert list(itertools.chain.from_iterable(pieces)) == DOCUMENTS
    expected = []
    for texts in pieces:
        stream = [token for text in texts for token in (*tokenizer.encode(text), 2)]
        whole = [stream[start : start + 127] for start in range(0, len(stream) - 126, 127)]
        expected.append([[0, *block] for block in whole] + [[0, *stream[-127:]]] * (len(stream) % 127 > 0))
    assert blocks_by_shard(tmp_path / "out") == expected
    assert len(manifest.shards) == len(expected) == -(-corpus.size_bytes // 20_000) == 3


def test_the_summary_counts_samples_tokens_and_rejections(source: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    manifest = prepare(source, tmp_path / "out", tokenizer)
    blocks = list(itertools.chain.from_iterable(blocks_by_shard(tmp_path / "out")))
    assert manifest.num_samples == len(blocks)
    assert manifest.amounts == {"tokens": sum(map(len, blocks))}
    assert manifest.num_rejected == 0
    assert manifest.kind == "text"


def test_stock_webdataset_decodes_the_blocks(source: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    manifest = prepare(source, tmp_path / "out", tokenizer)
    shards = [str(tmp_path / "out" / name) for name in manifest.shards]
    decoded = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode())
    expected = list(itertools.chain.from_iterable(blocks_by_shard(tmp_path / "out")))
    assert [sample["npy"].tolist() for sample in decoded] == expected
    assert {sample["npy"].dtype for sample in decoded} == {np.dtype("uint16")}


def test_the_folder_is_the_same_by_workers_parts_and_interruptions(
    source: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prepare(source, tmp_path / "out", tokenizer)
    expected = contents(tmp_path / "out")
    assert expected["tokenizer.model"] == tokenizer.files["tokenizer.model"]
    options = {"tokens_per_sample": 128, "piece_size_bytes": 20_000}
    plan = plan_text(corpus_of(source, num_workers=2), tmp_path / "two", tokenizer=tokenizer, **options)
    write_folder(plan, tmp_path / "two", num_workers=2, report=lambda done: None)
    assert contents(tmp_path / "two") == expected
    for number in (2, 1):
        write_folder(plan, tmp_path / "parts", num_workers=1, report=lambda done: None, part=Part(number, 2))
    assert contents(tmp_path / "parts") == expected


def test_a_folder_of_other_text_options_or_tokenizer_is_refused(
    source: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prepare(source, tmp_path / "out", tokenizer)
    prepare(source, tmp_path / "out", tokenizer)  # nothing to do
    other = train_tokenizer(corpus_of(source), 501, 1 << 20)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("other text")
    for changed in (
        lambda: prepare(source, tmp_path / "out", tokenizer, tokens_per_sample=64),
        lambda: prepare(source, tmp_path / "out", tokenizer, piece_size_bytes=30_000),
        lambda: prepare(source, tmp_path / "out", other),
        lambda: prepare(tmp_path / "source", tmp_path / "out", tokenizer),
    ):
        with pytest.raises(DataError, match="out: holds another data set"):
            changed()


def test_rejections_are_listed_and_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b'{"text": "good"}\n{"text": 1}\nno\n' + b'{"text": "good again"}\n' * 50)
    (folder / "b.md").write_text("text")
    (folder / "c.txt").write_bytes(b"caf\xe9\n\ngood\n")
    manifest = prepare(folder, tmp_path / "out", tokenizer, piece_size_bytes=500)
    assert list(rejected(tmp_path / "out")) == ["a.jsonl at byte 17", "a.jsonl at byte 29", "b.md", "c.txt at byte 0"]
    assert manifest.num_rejected == 4
    stream = itertools.chain.from_iterable(itertools.chain.from_iterable(blocks_by_shard(tmp_path / "out")))
    assert "".join(map(tokenizer.piece, stream)).count("</s>") >= 52


def test_a_source_whose_documents_are_all_bad_is_refused_at_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"body": "text"}\n' * 20_000)
    with pytest.raises(
        DataError, match=r"a.jsonl at byte 0: field 'text' is missing \(--text-field\); no document among the"
    ):
        prepare(tmp_path / "a.jsonl", tmp_path / "out", tokenizer)
    (tmp_path / "b.txt").write_bytes(b"\n\n \n")
    with pytest.raises(DataError, match=r"b.txt: no document in it is usable$"):
        prepare(tmp_path / "b.txt", tmp_path / "out", tokenizer)
    (tmp_path / "b.txt").write_bytes(b"\xff\n")
    with pytest.raises(
        DataError, match=r"b.txt: no document in it is usable \(b.txt at byte 0: not UTF-8 \(byte 0xff\)\)"
    ):
        prepare(tmp_path / "b.txt", tmp_path / "out", tokenizer)
    with pytest.raises(DataError, match=r"^.*a.jsonl at byte 0: field 'text' is missing"):
        train_tokenizer(corpus_of(tmp_path / "a.jsonl"), 500, 1 << 20)
    with pytest.raises(DataError, match="--tokens-per-sample: must be at least 2, got 1"):
        prepare(tmp_path / "b.txt", tmp_path / "out", tokenizer, tokens_per_sample=1)
    with pytest.raises(DataError, match="out: lies inside the source"):
        prepare(tmp_path, tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()


def test_a_tiny_corpus_gives_one_short_block(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo words\n")
    prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer)
    expected = [0, *tokenizer.encode("one"), 2, *tokenizer.encode("two words"), 2]
    assert blocks_by_shard(tmp_path / "out") == [[expected]]


def test_gpt2s_vocabulary_is_stored_and_used(source: Path, tmp_path: Path) -> None:
    files = gpt2.write_files(tmp_path / "gpt2", DOCUMENTS[0], num_merges=20)
    tokenizer = load_tokenizer(tmp_path / "gpt2")
    (tmp_path / "a.txt").write_text("one\n\ntwo words\n")
    prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files
    ((block,),) = blocks_by_shard(tmp_path / "out")
    assert block == [0, *tokenizer.encode("one"), 2, *tokenizer.encode("two words"), 2]
    assert load_tokenizer(tmp_path / "out").decode(block) == "onetwo words"


@pytest.mark.parametrize("length", [1, 6, 7, 8, 13, 14, 15, 70, 71])
def test_blocks_are_full_lose_nothing_and_repeat_only_at_the_end(length: int) -> None:
    generator = random.Random(length)
    tokens = list(range(4, 4 + length))
    cuts = sorted(generator.choices(range(length + 1), k=5))
    stream = [tokens[begin:end] for begin, end in itertools.pairwise([0, *cuts, length])]
    blocks = list(cut_into_blocks(stream, 8))
    assert all(block[0] == 0 for block in blocks)
    assert [token for block in blocks[:-1] for token in block[1:]] == tokens[: 7 * (len(blocks) - 1)]
    assert blocks[-1][1:] == tokens[-7:]
    assert len(blocks) == -(-length // 7)


def test_no_tokens_give_no_block() -> None:
    assert list(cut_into_blocks([], 8)) == []
    assert list(cut_into_blocks([[]], 8)) == []


def test_the_tokenizer_is_trained_on_text_from_everywhere(tmp_path: Path) -> None:
    """Every part of the corpus has a letter of its own; what a vocabulary does not know is written in bytes."""
    letters = "αβγδεζηθικ"
    texts = ["\n\n".join(DOCUMENTS[number::10]).replace("e", letter) for number, letter in enumerate(letters)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts[:6]))
    (tmp_path / "b.txt").write_text("\n\n".join(texts[6:]))
    corpus = corpus_of(tmp_path)
    tokenizer = train_tokenizer(corpus, 400, corpus.size_bytes // 4)
    assert not any(tokenizer.piece(token).startswith("<0x") for token in tokenizer.encode(letters))
    assert train_tokenizer(corpus_of(tmp_path, num_workers=2), 400, corpus.size_bytes // 4).files == tokenizer.files
    with pytest.raises(
        DataError, match=f"^{tmp_path}: the vocabulary cannot be trained: the text is too small for 9,000"
    ):
        train_tokenizer(corpus, 9000, corpus.size_bytes // 4)


def test_a_stored_tokenizer_is_taken_if_it_has_the_size(source: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert stored_tokenizer(tmp_path, 500) is None
    prepare(source, tmp_path / "out", tokenizer)
    stored = stored_tokenizer(tmp_path / "out", 500)
    assert stored is not None and stored.files == tokenizer.files
    assert stored_tokenizer(tmp_path / "out", 501) is None
