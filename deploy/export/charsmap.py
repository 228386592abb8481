"""Sentencepiece's normalisation of characters (its ``precompiled_charsmap``) as normalizers of ``tokenizer.json``.

Sentencepiece goes through a text from the left and replaces the longest sequence that it has a rule for. The library's
own ``Precompiled`` does so within what it takes for one visible character: it drops the combining marks behind a
character with a rule, and knows no sequences of six bytes or more, such as those of Hangul. So the text is cut where
sentencepiece cuts it, ``Precompiled`` is given single characters only, and NFC composes what belongs together, for
that is what rules for sequences are: the few that are not are replaced first.
"""

import base64
import struct
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

_CUT, _JOINT = "\ufdd0", "\ufdd1"
"""Between sequences, and inside them. No text holds these code points: Unicode reserves them for programs."""
_ASCII = r"\x20-\x7e"
_END = ""
_Tree = dict[str, "_Tree"]


def normalizers(charsmap: bytes) -> list[dict[str, Any]]:
    """What does to a text what a charsmap says."""
    rules = read_rules(charsmap)
    sequences = [key for key in rules if len(key) > 1]
    exceptions = defaultdict(list)
    for key in sequences:
        if unicodedata.normalize("NFC", "".join(rules.get(char, char) for char in key)) != rules[key]:
            exceptions[-len(key), rules[key]].append(key)
    steps = [_replace(_any_of(keys), output) for (_, output), keys in sorted(exceptions.items())]  # longest first
    ascii_run = f"[{_ASCII}]+(?![^{_ASCII}])"  # no sequence begins inside of it
    return [
        *steps,
        _replace(rf"(?:{_pattern(sequences)}|{ascii_run}|(?m:.))\K", _CUT),
        _replace(rf"(?<=[^{_CUT}])(?=[^\x00-\x7f{_CUT}])", _JOINT),
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode("ascii")},
        {"type": "Replace", "pattern": {"String": _JOINT}, "content": ""},
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"String": _CUT}, "content": ""},
    ]


def read_rules(charsmap: bytes) -> dict[str, str]:
    """All rules: sequence of characters -> what replaces it.

    The format is that of ``Normalizer`` of sentencepiece: the size of a double-array trie, the trie as darts-clone
    lays it out (one word for each node; subtrees are shared), and the replacements, each ended by a zero byte.
    """
    (size,) = struct.unpack_from("<I", charsmap)
    units = struct.unpack_from(f"<{size // 4}I", charsmap, 4)
    texts = charsmap[4 + size :]
    bases = [node ^ (unit >> 10 << ((unit & 0x200) >> 6)) for node, unit in enumerate(units)]
    children: dict[int, list[int]] = defaultdict(list)
    for node, unit in enumerate(units):
        if 0 < unit & 0x8000_00FF < 0x100:  # neither a value nor the byte that leads to one
            children[node ^ unit & 0xFF].append(node)
    rules, remaining = {}, [(0, b"")]
    while remaining:
        node, key = remaining.pop()
        if units[node] >> 8 & 1:
            start = units[bases[node]] & 0x7FFF_FFFF
            rules[key.decode()] = texts[start : texts.index(b"\0", start)].decode()
        remaining += [(child, key + bytes([units[child] & 0xFF])) for child in children[bases[node]]]
    return rules


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _any_of(keys: Iterable[str]) -> str:
    return "|".join("".join(map(_code, key)) for key in sorted(keys))


def _pattern(sequences: Iterable[str]) -> str:
    """A regular expression of the longest of some sequences; a look at two characters rules out most places."""
    tree: _Tree = {}
    for sequence in sequences:
        node = tree
        for char in sequence:
            node = node.setdefault(char, {})
        node[_END] = {}
    second = {char for node in tree.values() for char in node}
    return f"(?={_class_of(tree)}{_class_of(second)}){_branches(tree)}"


def _branches(tree: _Tree) -> str:
    """Characters that are followed by the same share one class: thousands of sequences become a few kilobytes."""
    followed: dict[str, list[str]] = defaultdict(list)
    for char, node in tree.items():
        if char != _END:
            followed[_branches(node)].append(char)
    if not followed:
        return ""
    ways = "|".join(sorted(_class_of(chars) + rest for rest, chars in followed.items()))
    return f"(?:{ways}){'?' if _END in tree else ''}"


def _class_of(chars: Iterable[str]) -> str:
    ranges: list[list[int]] = []
    for code in sorted(map(ord, chars)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join(f"{_code(chr(first))}-{_code(chr(last))}" for first, last in ranges) + "]"


def _code(char: str) -> str:
    return f"\\x{{{ord(char):x}}}"
