#!/usr/bin/env python3
"""Make ``fixtures/llama/tiny.gguf``: a Llama with random weights, small enough for every test run.

The architecture, the metadata and the types of its tensors are those of SmolLM2-135M-Instruct as
llama.cpp quantizes it to Q4_1. Its tokens are bytes and a few merges of them. The file is the same
on every machine: the weights are drawn by numpy's PCG64 and quantized by gguf.

    python tools/make_tiny_llama.py            # write the file
    python tools/make_tiny_llama.py --check    # write nothing; compare
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quantize

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "llama" / "tiny.gguf"
SEED = 2606
LAYERS = 2
QUERY_HEADS = 6
KV_HEADS = 2
HEAD_DIM = 16
HIDDEN = QUERY_HEADS * HEAD_DIM
FEED_FORWARD = 160
CONTEXT = 2048
ROPE_THETA = 100_000.0
NORM_EPS = 1e-5
# Without it random queries and keys hardly prefer any token.
QUERY_GAIN = 2.5

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (
    *("Ġ t", "h e", "Ġ a", "i n", "Ġt he", "e r", "o n", "r e", "Ġ w", "a t", "Ġ s", "o u", "Ġ o", "n d"),
    *("Ġ m", "e n", "Ġ c", "i s", "in g", "Ġa nd", "Ġt o", "Ġo f", "l e", "e d", "Ġ b", "i t", "Ġ h", "o r"),
    # Which text never comes to, as its digits are cut apart before.
    *("Ġ 1", "1 8"),
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_characters() -> list[str]:
    """The characters that byte-level BPE writes bytes as: printable ones as they are, others from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    others = (byte for byte in range(256) if byte not in printable)
    names = {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [names.get(byte, chr(byte)) for byte in range(256)]


def add_metadata(writer: GGUFWriter, tokens: list[str]) -> None:
    """What the model is, and its tokenizer."""
    writer.add_name("tiny")
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_1)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(QUERY_HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    kinds = [TokenType.CONTROL] * len(CONTROL) + [TokenType.NORMAL] * (len(tokens) - len(CONTROL))
    writer.add_token_types(kinds)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def add_tensors(writer: GGUFWriter, vocabulary: int) -> None:
    """Random weights: matrices that keep the size of what they multiply, times a gain."""
    random = np.random.Generator(np.random.PCG64(SEED))

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0, kind: str = "Q4_1") -> None:
        values = (random.standard_normal((rows, columns)) * gain / np.sqrt(columns)).astype(np.float32)
        quantization = GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.weight", quantize(values, quantization), raw_dtype=quantization)

    def norm(name: str) -> None:
        values = (1 + 0.2 * random.standard_normal(HIDDEN)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", values)

    # Rows of about unit length, so that logits, their products with normalized states, are of some size.
    matrix("token_embd", vocabulary, HIDDEN, 3.0, "Q8_0")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        matrix(f"{block}.attn_q", HIDDEN, HIDDEN, QUERY_GAIN)
        matrix(f"{block}.attn_k", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(f"{block}.attn_v", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(f"{block}.attn_output", HIDDEN, HIDDEN)
        norm(f"{block}.ffn_norm")
        matrix(f"{block}.ffn_gate", FEED_FORWARD, HIDDEN, 2.0)
        matrix(f"{block}.ffn_up", FEED_FORWARD, HIDDEN)
        matrix(f"{block}.ffn_down", HIDDEN, FEED_FORWARD)
    norm("output_norm")


def make_file() -> bytes:
    """The whole file."""
    tokens = [*CONTROL, *byte_characters(), *(merge.replace(" ", "") for merge in MERGES)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / OUT.name
        writer = GGUFWriter(path, "llama")
        add_metadata(writer, tokens)
        add_tensors(writer, len(tokens))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def main() -> int:
    """Make the file, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing: compare")
    check = parser.parse_args().check
    file = make_file()
    print(f"{len(file)} bytes, sha256 {hashlib.sha256(file).hexdigest()}")
    if check:
        same = OUT.is_file() and OUT.read_bytes() == file
        print(f"{OUT.name}: {'the same bytes' if same else 'DIFFERENT or missing'}")
        return 0 if same else 1
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_bytes(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
