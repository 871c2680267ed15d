"""Damaged and hostile versions of a valid file, drawn by hypothesis."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(
        [
            "", "0", "../../x", "/etc/passwd", "..", "a\0b", "\u2028", "\x1b[2J", "\ud83d", "${oc.env:HOME}", "$x^$",
            "</script><!--<script>", "=1+1", "[/b]", "x" * 5_000, 2**63, -(2**70), 1e308, -1, 10**6,
            float("nan"), float("inf"),
        ]
    ),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
PIECES = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\n", b"{", b"[", b"]", b'"', b",", b"\\ud83d", b"NaN",
    b"9" * 5_000, b"[" * 100_000, b'{"a":' * 100_000, b"&a [*a]", b"!!python/object/apply:os.system [false]", b"-",
    b"1e999",
)  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A copy of a JSON value with one to three of its parts replaced, removed or repeated."""
    found = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        parent, key, node = None, None, found
        while isinstance(node, dict | list) and node and draw(st.integers(0, 4)):
            parent, key = node, draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            node = node[key]
        if parent is None:
            return draw(VALUES)
        match draw(st.sampled_from(["replace", "replace", "remove", "repeat"])):
            case "replace":
                parent[key] = draw(VALUES)
            case "remove":
                del parent[key]
            case _ if isinstance(parent, list):
                parent.append(copy.deepcopy(node))
    return found


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes of a file that was cut off, overwritten or extended in one to three places."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.sampled_from([start, min(start + 1, len(data)), len(data)]))
        data = data[:start] + draw(st.sampled_from(PIECES) | st.binary(max_size=4)) + data[stop:]
    return data


@st.composite
def versions(draw: st.DrawFn, data: bytes) -> bytes:
    """Other versions of a file. The structure of JSON and JSON lines is changed as often as the bytes."""
    if draw(st.booleans()):
        return draw(damaged(data))
    if is_json(data):
        return json.dumps(draw(changed(json.loads(data)))).encode()
    lines = data.splitlines()
    place = draw(st.integers(0, max(0, len(lines) - 1)))
    if not lines or not is_json(lines[place]):
        return draw(damaged(data))
    lines[place] = json.dumps(draw(changed(json.loads(lines[place])))).encode()
    return b"\n".join(lines) + b"\n"


def is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
