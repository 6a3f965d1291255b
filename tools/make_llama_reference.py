#!/usr/bin/env python3
"""Make ``fixtures/llama/*.reference.safetensors``: what transformers computes of the models that
``examples/llama`` runs, for its tests to compare with.

transformers loads the GGUF file, dequantizes its weights and runs in f32 on the CPU. For a text: the
logits after some tokens, and the largest ones after every token. For a question put to the model as its
chat template says: the tokens that it answers, always the likeliest.

    python tools/make_llama_reference.py tiny                      # of fixtures/llama/tiny.gguf
    python tools/make_llama_reference.py smollm2 --model FILE      # of SmolLM2-135M-Instruct.Q4_1.gguf
    python tools/make_llama_reference.py tiny --check              # write nothing; compare

f32 sums differ from machine to machine in their last bits, so ``--check`` compares tokens exactly and logits
to 1e-3.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
TEXT = ROOT / "tools" / "fixture-text.txt"
OUT = ROOT / "fixtures" / "llama"
LARGEST = 8
GREEDY_TOKENS = 200
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Case:
    """A model, and what it is asked."""

    file: Path
    sha256: str
    text_tokens: int
    # After these tokens of the text all logits are kept.
    positions: tuple[int, ...]
    question: str


CASES = {
    "tiny": Case(
        OUT / "tiny.gguf",
        "37e62a076c3b1fc7288c70d94e4aa4ec2b9701d1bd96953607ad93ce7b2bee37",
        300,
        (0, 63, 64, 127, 299),
        "Who is there?",
    ),
    "smollm2": Case(
        Path("SmolLM2-135M-Instruct.Q4_1.gguf"),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        512,
        (63, 511),
        "How does a rainbow form? Explain it step by step, in detail.",
    ),
}


def read_text() -> str:
    """The text of the fixtures, without the lines that say where it is from."""
    lines = TEXT.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#")).strip()


def answer(model: torch.nn.Module, prompt: list[int]) -> tuple[list[int], float]:
    """The tokens that follow the prompt, and by how much the likeliest was ahead at least."""
    tokens, margin = [], np.inf
    output = model(torch.tensor([prompt]), use_cache=True)
    for _ in range(GREEDY_TOKENS):
        best = torch.topk(output.logits[0, -1], 2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        tokens.append(int(best.indices[0]))
        new = torch.tensor([tokens[-1:]])
        output = model(new, past_key_values=output.past_key_values, use_cache=True)
    return tokens, margin


def run(case: Case) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Everything that the file holds. Tokens are in f32, too, which holds them exactly."""
    path = case.file.resolve()
    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model.eval()
    text = tokenizer(read_text(), add_special_tokens=False).input_ids[: case.text_tokens]
    messages = [{"role": "user", "content": case.question}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(chat, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([text])).logits[0]
        greedy, margin = answer(model, prompt)
    largest = torch.topk(logits, LARGEST)
    tensors = {
        "text": np.array(text),
        "positions": np.array(case.positions),
        "logits": logits[list(case.positions)].numpy(),
        "largest.tokens": largest.indices.numpy(),
        "largest.logits": largest.values.numpy(),
        "prompt": np.array(prompt),
        "greedy": np.array(greedy),
    }
    metadata = {
        "model": f"{path.name}, sha256 {case.sha256}",
        "text": f"tools/{TEXT.name}",
        "question": case.question,
        "least_margin": f"{margin:.4f}",
        "generator": f"tools/{Path(__file__).name}, transformers {transformers.__version__}, torch "
        f"{torch.__version__.split('+')[0]}, f32",
    }
    print(f"least margin of a greedy token {margin:.4f}; logits {logits.min():.1f} to {logits.max():.1f}")
    print(tokenizer.decode(greedy)[:400])
    return {name: array.astype(np.float32) for name, array in tensors.items()}, metadata


def compare(path: Path, tensors: dict[str, np.ndarray]) -> bool:
    """Whether the file has the same tokens, and logits that differ by no more than rounding does."""
    kept = load_file(path)
    if kept.keys() != tensors.keys():
        return False
    same = True
    for name, array in tensors.items():
        tolerance = TOLERANCE if name.endswith("logits") else 0
        alike = kept[name].shape == array.shape and np.abs(kept[name] - array).max() <= tolerance
        print(f"{name}: {'the same' if alike else 'DIFFERENT'}")
        same = same and bool(alike)
    return same


def main() -> int:
    """Make a file, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--model", type=Path, help="where the model's file is")
    parser.add_argument("--check", action="store_true", help="write nothing: compare")
    arguments = parser.parse_args()
    case = CASES[arguments.case]
    if arguments.model:
        case = Case(arguments.model, case.sha256, case.text_tokens, case.positions, case.question)
    digest = hashlib.sha256(case.file.read_bytes()).hexdigest()
    if digest != case.sha256:
        sys.exit(f"{case.file.name}: sha256 {digest}, expected {case.sha256}")
    tensors, metadata = run(case)
    out = OUT / f"{arguments.case}.reference.safetensors"
    if arguments.check:
        return 0 if compare(out, tensors) else 1
    file = save(tensors, metadata)
    out.write_bytes(file)
    print(f"{len(file)} bytes, sha256 {hashlib.sha256(file).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
