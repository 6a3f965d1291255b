#!/usr/bin/env python3
"""Make fixtures/tiny-decoder: a small decoder with random weights, as transformers.js loads it.

Two layers of a Llama with grouped queries; its tokens are bytes. Inputs and outputs are those of
any decoder exported with past keys and values: ``past_key_values.{i}.key`` in, ``present.{i}.key``
out, ``[batch, kvHeads, tokens, headDim]``, keys after RoPE. The files are the same bytes on every
machine: the weights are drawn by numpy's PCG64 and stored in binary16.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "tiny-decoder"
SEED = 2606
LAYERS = 2
QUERY_HEADS = 4
KV_HEADS = 2
HEAD_DIM = 32
HIDDEN = 64
INTERMEDIATE = 64
VOCABULARY = 257  # the bytes, and an end
END = 256
POSITIONS = 1024
ROPE_THETA = 10_000.0
NORM_EPS = 1e-5
# Without it random queries and keys hardly prefer any token, and attention has little to lose.
QUERY_GAIN = 2.0

OPSET = 17
IR_VERSION = 8
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class Graph:
    """Collects nodes and weights, and names them."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.Generator(np.random.PCG64(SEED))

    def op(self, kind: str, *inputs: str, name: str = "", **attributes) -> str:
        """Add a node of one output; returns the output's name."""
        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, value: np.ndarray) -> str:
        """Add an array that nodes read."""
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def integers(self, *values: int) -> str:
        """Add a shape, axes, and the like."""
        return self.constant(np.array(values, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """Add a number."""
        return self.constant(np.array(value, dtype=np.float32))

    def weight(self, rows: int, columns: int, gain: float = 1.0) -> str:
        """Add a random matrix, in binary16, that keeps the size of what it multiplies."""
        values = self.random.standard_normal((rows, columns)) * gain / np.sqrt(rows)
        return self.op("Cast", self.constant(values.astype(np.float16)), to=FLOAT)


def rms_norm(graph: Graph, x: str) -> str:
    """Scale each token to unit root mean square."""
    mean = graph.op("ReduceMean", graph.op("Mul", x, x), axes=[-1])
    return graph.op("Div", x, graph.op("Sqrt", graph.op("Add", mean, graph.scalar(NORM_EPS))))


def split_heads(graph: Graph, x: str, heads: int) -> str:
    """[batch, tokens, heads * headDim] to [batch, heads, tokens, headDim]."""
    apart = graph.op("Reshape", x, graph.integers(0, 0, heads, HEAD_DIM))
    return graph.op("Transpose", apart, perm=[0, 2, 1, 3])


def rope(graph: Graph, x: str, cos: str, sin: str) -> str:
    """Rotate the channel pairs (i, i + headDim/2)."""
    half = HEAD_DIM // 2
    last = graph.integers(3)
    first = graph.op("Slice", x, graph.integers(0), graph.integers(half), last)
    second = graph.op("Slice", x, graph.integers(half), graph.integers(HEAD_DIM), last)
    turned = graph.op("Concat", graph.op("Neg", second), first, axis=-1)
    return graph.op("Add", graph.op("Mul", x, cos), graph.op("Mul", turned, sin))


def rope_angles(graph: Graph, positions: str) -> str:
    """The angles by which each channel is turned, as [batch, 1, tokens, headDim]."""
    exponents = np.arange(0, HEAD_DIM, 2) / HEAD_DIM
    frequencies = np.tile(ROPE_THETA**-exponents, 2).astype(np.float32)
    column = graph.op("Unsqueeze", graph.op("Cast", positions, to=FLOAT), graph.integers(1, 3))
    return graph.op("Mul", column, graph.constant(frequencies))


def repeat_heads(graph: Graph, x: str) -> str:
    """Each KV head once for every query head that reads it."""
    owners = np.arange(QUERY_HEADS) // (QUERY_HEADS // KV_HEADS)
    return graph.op("Gather", x, graph.constant(owners.astype(np.int64)), axis=1)


def causal_mask(graph: Graph, past: str, positions: str) -> str:
    """0 where a query sees a key, very small elsewhere: [tokens, past + tokens]."""
    axis = graph.integers(0)
    count = graph.op("Gather", graph.op("Shape", positions), graph.constant(np.int64(1)))
    length = graph.op("Gather", graph.op("Shape", past), graph.constant(np.int64(2)))
    end = graph.op("Add", length, count)
    zero, one = graph.constant(np.int64(0)), graph.constant(np.int64(1))
    keys = graph.op("Unsqueeze", graph.op("Range", zero, end, one), axis)
    queries = graph.op("Unsqueeze", graph.op("Range", length, end, one), graph.integers(1))
    hidden = graph.op("Greater", keys, queries)
    return graph.op("Where", hidden, graph.scalar(-1e9), graph.scalar(0.0))


def attention(graph: Graph, x: str, layer: int, cos: str, sin: str, mask: str) -> str:
    """Grouped-query attention over past and present tokens."""
    q = graph.op("MatMul", x, graph.weight(HIDDEN, QUERY_HEADS * HEAD_DIM, QUERY_GAIN))
    k = graph.op("MatMul", x, graph.weight(HIDDEN, KV_HEADS * HEAD_DIM))
    v = graph.op("MatMul", x, graph.weight(HIDDEN, KV_HEADS * HEAD_DIM))
    q = rope(graph, split_heads(graph, q, QUERY_HEADS), cos, sin)
    k = rope(graph, split_heads(graph, k, KV_HEADS), cos, sin)
    v = split_heads(graph, v, KV_HEADS)
    past, present = f"past_key_values.{layer}", f"present.{layer}"
    k = graph.op("Concat", f"{past}.key", k, axis=2, name=f"{present}.key")
    v = graph.op("Concat", f"{past}.value", v, axis=2, name=f"{present}.value")
    keys = graph.op("Transpose", repeat_heads(graph, k), perm=[0, 1, 3, 2])
    scores = graph.op("Mul", graph.op("MatMul", q, keys), graph.scalar(HEAD_DIM**-0.5))
    weights = graph.op("Softmax", graph.op("Add", scores, mask), axis=-1)
    out = graph.op("MatMul", weights, repeat_heads(graph, v))
    together = graph.op("Transpose", out, perm=[0, 2, 1, 3])
    flat = graph.op("Reshape", together, graph.integers(0, 0, QUERY_HEADS * HEAD_DIM))
    return graph.op("MatMul", flat, graph.weight(QUERY_HEADS * HEAD_DIM, HIDDEN))


def feed_forward(graph: Graph, x: str) -> str:
    """The SwiGLU block."""
    gate = graph.op("MatMul", x, graph.weight(HIDDEN, INTERMEDIATE))
    up = graph.op("MatMul", x, graph.weight(HIDDEN, INTERMEDIATE))
    active = graph.op("Mul", graph.op("Mul", gate, graph.op("Sigmoid", gate)), up)
    return graph.op("MatMul", active, graph.weight(INTERMEDIATE, HIDDEN))


def make_model() -> onnx.ModelProto:
    """The decoder, from token numbers to logits."""
    graph = Graph()
    angles = rope_angles(graph, "position_ids")
    cos, sin = graph.op("Cos", angles), graph.op("Sin", angles)
    mask = causal_mask(graph, "past_key_values.0.key", "position_ids")
    x = graph.op("Gather", graph.weight(VOCABULARY, HIDDEN, np.sqrt(VOCABULARY)), "input_ids")
    for layer in range(LAYERS):
        x = graph.op("Add", x, attention(graph, rms_norm(graph, x), layer, cos, sin, mask))
        x = graph.op("Add", x, feed_forward(graph, rms_norm(graph, x)))
    graph.op("MatMul", rms_norm(graph, x), graph.weight(HIDDEN, VOCABULARY, 2.0), name="logits")

    def tokens(name: str, length: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, INT64, ["batch_size", length])

    def cache(prefix: str, length: str) -> list[onnx.ValueInfoProto]:
        shape = ["batch_size", KV_HEADS, length, HEAD_DIM]
        return [
            helper.make_tensor_value_info(f"{prefix}.{layer}.{part}", FLOAT, shape)
            for layer in range(LAYERS)
            for part in ("key", "value")
        ]

    inputs = [tokens("input_ids", "tokens"), tokens("position_ids", "tokens")]
    logits = helper.make_tensor_value_info("logits", FLOAT, ["batch_size", "tokens", VOCABULARY])
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "tiny-decoder",
            inputs + cache("past_key_values", "past_tokens"),
            [logits, *cache("present", "all_tokens")],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tools/make_tiny_decoder.py",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level tokenizers: itself where it prints."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def make_config() -> dict:
    """What transformers.js reads of the model's shape."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": LAYERS,
        "num_attention_heads": QUERY_HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": POSITIONS,
        "rope_theta": ROPE_THETA,
        "rms_norm_eps": NORM_EPS,
        "vocab_size": VOCABULARY,
        "eos_token_id": END,
    }


def make_tokenizer() -> dict:
    """A token for each byte, and nothing merged."""
    end = {"id": END, "content": "<end>", "special": True, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    return {
        "version": "1.0",
        "added_tokens": [{**end, "single_word": False, "lstrip": False, "rstrip": False}],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": False},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {letter: byte for byte, letter in enumerate(byte_letters())},
            "merges": [],
        },
    }


def make_files() -> dict[str, bytes]:
    """All files by their names."""

    def text(value: dict) -> bytes:
        return (json.dumps(value, indent=2) + "\n").encode()

    return {
        "onnx/model.onnx": make_model().SerializeToString(deterministic=True),
        "config.json": text(make_config()),
        "generation_config.json": text({"eos_token_id": END, "do_sample": False}),
        "tokenizer.json": text(make_tokenizer()),
        "tokenizer_config.json": text(
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
        ),
    }


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing: compare the files")
    arguments = parser.parse_args()
    same = True
    for name, data in make_files().items():
        path = OUT / name
        if arguments.check:
            equal = path.is_file() and path.read_bytes() == data
            same = same and equal
            print(f"{name}: {'the same bytes' if equal else 'DIFFERENT or missing'}")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        print(f"{name}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
