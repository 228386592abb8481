"""GPT-2's byte-level BPE written down slowly, after openai/gpt-2's encoder.py, and a small vocabulary made with it."""

import functools
import itertools
import json
from collections import Counter
from pathlib import Path

import regex

_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


@functools.cache
def byte_symbols() -> dict[int, str]:
    """Every byte as a visible character."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


def words_of(text: str) -> list[tuple[str, ...]]:
    return [tuple(byte_symbols()[byte] for byte in word.encode()) for word in _WORDS.findall(text)]


def merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    result: list[str] = []
    place = 0
    while place < len(word):
        if word[place : place + 2] == pair:
            result.append(word[place] + word[place + 1])
            place += 2
        else:
            result.append(word[place])
            place += 1
    return tuple(result)


def encode(text: str, ranks: dict[tuple[str, str], int], numbers: dict[str, int]) -> list[int]:
    """The pair of lowest rank is merged everywhere in the word, until no pair has a rank."""
    ids = []
    for word in words_of(text):
        while pairs := [pair for pair in itertools.pairwise(word) if pair in ranks]:
            word = merged(word, min(pairs, key=ranks.__getitem__))
        ids += [numbers[symbol] for symbol in word]
    return ids


def learn(text: str, num_merges: int) -> list[tuple[str, str]]:
    """The most frequent pair becomes a symbol, again and again (Sennrich, Haddow, Birch 2016)."""
    words = Counter(words_of(text))
    merges = []
    for _ in range(num_merges):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = Counter({merged(word, best): count for word, count in words.items()})
    return merges


def write_files(folder: Path, text: str, num_merges: int = 300) -> dict[str, bytes]:
    """encoder.json, vocab.bpe and dict.txt as GPT-2 and fairseq write them; the dictionary by frequency in the text."""
    merges = learn(text, num_merges)
    symbols = [*byte_symbols().values(), *("".join(pair) for pair in merges), "<|endoftext|>"]
    numbers = {symbol: number for number, symbol in enumerate(symbols)}
    counts = Counter(encode(text, {pair: rank for rank, pair in enumerate(merges)}, numbers))
    by_frequency = sorted(numbers.values(), key=lambda number: (-counts[number], number))
    dictionary = "".join(f"{number} {counts[number]}\n" for number in by_frequency) + "madeupword0000 0\n"
    files = {
        "encoder.json": json.dumps(numbers).encode(),
        "vocab.bpe": ("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)).encode(),
        "dict.txt": dictionary.encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files
