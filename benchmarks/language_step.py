"""What the language arm's step keeps in memory and how many places of its rows are padding, with and without what saves them.

    python benchmarks/language_step.py        # results/language_step.{json,md}

The head: bytes that autograd keeps between forward and backward from the hidden states to the loss, over a vocabulary of Qwen3's
size, in fp32; once with the library's own cross-entropy over all tokens, once on those that are learned, in the chunks of
`options.loss_chunk`. The rows: sixteen samples of ARC, Life and mazes, padded to the longest and packed (`options.packed`).
Counted, not timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from effects import commit  # noqa: E402
from torch import Tensor  # noqa: E402

import adapters  # noqa: E402
import tasks  # noqa: E402
from adapters import base  # noqa: E402
from adapters.language import answer_nll  # noqa: E402
from vdmreason import store  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "language_step.json"
VOCABULARY = 151_936
MIXED = {"arc1/training/0dfd9992": 2, "arc1/training/007bbfb7": 2, "life/B3S23": 6, "maze/7x7": 6}  # samples of each
FEW = {"life/B3S23": 4, "maze/7x7": 4}  # for the head: all logits of the others would fill 24 GB


def samples_of(arm: base.Arm, of: dict[str, int]) -> list[base.Sample]:
    return [arm.frame(example) for name, n in of.items() for example in tasks.examples(name, "train", n)]


def loaded(**options: object) -> base.Arm:
    family = adapters.family("causal_lm")
    return family.load(base.flavour(family, "small"), family.Options(**options))


def kept(arm: base.Arm, loss_of: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the way back, the model's weights left out."""
    weights = {w.untyped_storage().data_ptr() for w in arm.model.parameters()}
    storages: dict[int, tuple[int, Tensor]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_of()
    return sum(size for size, _ in storages.values())


def main() -> None:
    torch.manual_seed(0)
    arm = loaded()
    arm.model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    batch = arm.collate(samples_of(arm, FEW), [0] * sum(FEW.values()))
    labels, inputs = batch["labels"], {"input_ids": batch["input_ids"]}
    body = kept(arm, lambda: arm.model.base_model(**inputs, use_cache=False).last_hidden_state.sum())

    def plain() -> Tensor:
        logits = arm.model(**inputs, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
        )

    def chunked() -> Tensor:
        return answer_nll(arm.model, labels, arm.options.loss_chunk, inputs).mean()

    head = {way: kept(arm, loss) - body for way, loss in (("plain", plain), ("in chunks", chunked))}
    places = {}
    for packed in (False, True):
        other = loaded(packed=packed)
        samples = samples_of(other, MIXED)
        places["packed" if packed else "padded"] = other.collate(samples, [0] * len(samples))["input_ids"].numel()
    found = {
        "command": "python benchmarks/language_step.py", "commit": commit(), "torch": torch.__version__, "seed": 0,
        "vocabulary": VOCABULARY, "tokens": labels.numel(), "answer tokens": int((labels != -100).sum()),
        "chunk": arm.options.loss_chunk, "samples": {"head": FEW, "rows": MIXED},
        "bytes kept by the head": head, "places": places,
    }  # fmt: skip
    store.write_json(RESULTS, found)
    learned = f"{found['answer tokens']:,} of {found['tokens']:,} tokens learned"
    what = f"{VOCABULARY:,} words, {learned}, in chunks of {found['chunk']}"
    rows = f"token places of {sum(MIXED.values())} samples, packed into common rows"
    lines = [
        f"What the language arm's step keeps (`language_step.json`, `{found['command']}`, commit {found['commit']}).", "",
        "| | without | with |", "|---|---|---|",
        f"| MB that the head keeps for the way back: {what} | {head['plain'] / 1e6:,.0f} | {head['in chunks'] / 1e6:,.1f} |",
        f"| {rows} | {places['padded']:,} | {places['packed']:,} |",
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    RESULTS.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
