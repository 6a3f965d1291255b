#!/usr/bin/env python3
"""Save a model's keys, values and queries as `kvarn report` reads them (docs/report.md).

For scripts that have them as NumPy arrays of one sequence, heads first as many libraries keep them:
``save_dump("model.kv.safetensors", layers)``. Run by itself, this makes fixtures/heads-first.kv.safetensors,
whose numbers say where they stood, so that a test of the reader sees that they are in their places.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import save

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "heads-first.kv.safetensors"
KV_HEADS = 2
QUERY_HEADS = 4
TOKENS = 5
HEAD_DIM = 16
QUERY_TOKENS = 3

Layer = tuple[np.ndarray, np.ndarray, np.ndarray]


def pack_dump(layers: Iterable[Layer], query_tokens: int = 128) -> bytes:
    """Lay out the file. Of each layer, k, v and q are ``[heads, tokens, headDim]``, k and q after RoPE; of q
    the last ``query_tokens`` tokens are kept."""
    tensors = {}
    for i, (k, v, q) in enumerate(layers):
        for name, array in (("k", k), ("v", v), ("q", q[:, -query_tokens:])):
            tensors[f"layers.{i}.{name}"] = np.ascontiguousarray(array.transpose(1, 0, 2), dtype=np.float16)
    return save(tensors)


def save_dump(path: str | Path, layers: Iterable[Layer], query_tokens: int = 128) -> None:
    """Write the file."""
    Path(path).write_bytes(pack_dump(layers, query_tokens))


def numbered(heads: int) -> np.ndarray:
    """At head h, token t and channel d, 128h + 16t + d + 1: exact in binary16."""
    h, t, d = np.ogrid[:heads, :TOKENS, :HEAD_DIM]
    return 128 * h + 16 * t + d + 1


def main() -> int:
    """Write the file of numbers, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing: compare the file")
    arguments = parser.parse_args()
    # The values are 512 more than the keys, and everything in the second layer is negative.
    k, q = numbered(KV_HEADS), numbered(QUERY_HEADS)
    layers = [(sign * k, sign * (k + 512), sign * q) for sign in (1, -1)]
    same = True
    if arguments.check:
        file = pack_dump(layers, QUERY_TOKENS)
        same = OUT.is_file() and OUT.read_bytes() == file
        print(f"{OUT.name}: {'the same bytes' if same else 'DIFFERENT or missing'}")
    else:
        save_dump(OUT, layers, QUERY_TOKENS)
        file = OUT.read_bytes()
    print(f"{len(file)} bytes, sha256 {hashlib.sha256(file).hexdigest()}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
