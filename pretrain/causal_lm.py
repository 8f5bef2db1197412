"""A small language model from nothing: the tokenizer, then the transformer, in the published layout of Qwen3.

    vdmreason pretrain causal-lm --budget 60m

The corpus is described in `pretrain/text.py`. Documents are packed into rows that begin with a document. In a
conversation only the assistant's part is learned: what the user gives is often random, and nothing can predict it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pretrain.loop import Share, check_settings, fit, mean_over_processes, trapezoid
from pretrain.recipe import is_main, processes
from pretrain.text import Document, document

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IGNORED = -100

# How Qwen2 and later split text before merging: words with their space, every digit alone, runs of marks. One thing is
# ours: a digit takes a comma along, so a grid has one token a cell instead of two, and an update costs half.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N},?| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Size:
    vocabulary: int
    hidden: int
    layers: int
    heads: int  # of 32 channels each
    key_value_heads: int
    intermediate: int
    tokens: int = 2048  # an update
    length: int = 512  # a row; every eighth update has rows four times as long
    lr: float = 4e-3
    documents: int = 6000  # the tokenizer is made from this many
    held_out: int = 16  # batches of held-out documents at the end

    def row(self, long: bool) -> int:
        """Tokens of a row."""
        return self.length * (4 if long else 1)

    def rows(self, long: bool) -> int:
        """Rows of an update."""
        return max(1, self.tokens // self.row(long))


SIZES = {
    "tiny": Size(512, 64, 2, 2, 1, 128, tokens=256, length=64, documents=200, held_out=1),
    "small": Size(1024, 128, 6, 4, 2, 384),
    "large": Size(4096, 768, 12, 24, 8, 2048, tokens=131_072, length=1024, lr=1e-3),
}


def pretrain(
    out: Path | str,
    *,
    minutes: float | None = None,
    updates: int | None = None,
    size: str = "small",
    seed: int = 0,
    resume: bool = True,
) -> dict[str, Any]:
    """Train tokenizer and model and write the published layout to `out`; the work lies in `out/work`.

    Give the budget as `minutes` or as `updates`. After a kill the same call goes on where the newest checkpoint was,
    unless `resume` is off. Returns the record that is also written to `out/pretrain.json`.
    """
    out, s = Path(out), SIZES[size]
    if not resume and (out / "work").exists():
        import shutil

        shutil.rmtree(out / "work")
    if minutes is None and updates is None:
        minutes = 60.0
    settings = {"size": size, "seed": seed}
    for long in (False, True):  # now, and not at the first update with long rows
        Share(0, processes().num_processes).rows(s.rows(long))
    if is_main():  # before another's tokenizer is written
        check_settings(out / "work", settings)
    if not (out / "tokenizer.json").exists() or not resume:
        train_tokenizer(s.vocabulary, s.documents, seed).save_pretrained(out)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    torch.manual_seed(seed)
    model = build(s, tokenizer)
    log = fit(
        Loss(model),
        Rows(tokenizer, s, seed),
        out / "work",
        updates=updates,
        minutes=minutes,
        schedule=trapezoid(s.lr, decay=0.5),
        weight_decay=0.01,
        betas=(0.9, 0.97),
        settings=settings,
        on_checkpoint=lambda step: save(out, model),
        title="language model",
    )
    save(out, model)
    record = {
        "size": size,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": log["updates"] * s.tokens,
        "minutes": round(log["seconds"] / 60, 1),
        "machine": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU thread(s)",
        "held_out_loss": held_out_loss(model, tokenizer, s),
        **log,
    }
    (out / "pretrain.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


# Tokenizer


def train_tokenizer(vocabulary: int, documents: int, seed: int = 0) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the corpus, split by `SPLIT`."""
    raw = Tokenizer(models.BPE(byte_fallback=False))
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for i in range(documents) for _, text in document(i, seed).parts)
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=END,
        pad_token=END_OF_TEXT,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


# Rows


class Rows:
    """`rows(step, share)`: input_ids and labels (B, T), a function of the step. Labels are -100 where nothing is learned."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, size: Size, seed: int = 0, held_out: bool = False) -> None:
        self.tokenizer, self.size, self.seed, self.held_out = tokenizer, size, seed, held_out

    def __call__(self, step: int, share: Share = Share()) -> dict[str, Tensor]:  # noqa: B008 (frozen)
        long = step % 8 == 7
        rows = [self.row((step, r), self.size.row(long), long) for r in share.rows(self.size.rows(long))]
        return {"input_ids": torch.stack([x for x, _ in rows]), "labels": torch.stack([y for _, y in rows])}

    def row(self, name: tuple[int, int], length: int, long: bool) -> tuple[Tensor, Tensor]:
        """Documents one after another until the row is full; the last one is cut. Each int64 (length,)."""
        step, r = name
        ids: list[int] = []
        labels: list[int] = []
        first = (step * 1024 + r) * 64  # numbers of documents that no other row uses
        for n in range(64 * length):
            for token, learned in self.encode(document(first + n, self.seed, long, self.held_out)):
                ids.append(token)
                labels.append(token if learned else IGNORED)
            if len(ids) >= length:
                break
        return torch.tensor(ids[:length]), torch.tensor(labels[:length])

    def encode(self, document: Document) -> Iterator[tuple[int, bool]]:
        """(token, whether it is learned), in the form of the chat template where the document is a conversation."""
        code = self.tokenizer.backend_tokenizer
        for role, text in document.parts:
            if role == "text":
                yield from ((t, True) for t in code.encode(text).ids)
            else:
                head = code.encode(f"{START}{role}\n").ids
                body = code.encode(f"{text}{END}").ids
                yield from ((t, False) for t in head)
                yield from ((t, role == "assistant") for t in body)
                yield from ((t, False) for t in code.encode("\n").ids)
        yield token_id(self.tokenizer, END_OF_TEXT), document.parts[0][0] == "text"


# Model


def build(s: Size, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The real class at our size, tied embeddings, random weights from torch's current seed."""
    end, pad = token_id(tokenizer, END), token_id(tokenizer, END_OF_TEXT)
    config = Qwen3Config(
        vocab_size=s.vocabulary,
        hidden_size=s.hidden,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.key_value_heads,
        head_dim=32,
        intermediate_size=s.intermediate,
        tie_word_embeddings=True,
        initializer_range=s.hidden**-0.5,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = Qwen3ForCausalLM(config)
    for name, weight in model.named_parameters():
        # Normed queries and keys of 32 channels can give at most half of the attention to one place among 300.
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            nn.init.constant_(weight, 1.5)
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[end, pad], pad_token_id=pad)
    return model


class Loss(nn.Module):
    """Mean negative log likelihood, in nats, of the tokens that are learned."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        hidden = self.model.model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        learned = wanted != IGNORED
        logits = self.model.lm_head(hidden[learned])  # (N, vocabulary): only where something is learned
        loss = nn.functional.cross_entropy(logits.float(), wanted[learned], reduction="sum")
        return loss / (mean_over_processes(learned.sum()) if self.model.training else learned.sum())


@torch.no_grad()
def held_out_loss(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, s: Size) -> float:
    """The loss on documents that training never draws: held-out files, other numbers."""
    rows = Rows(tokenizer, s, seed=10**6, held_out=True)
    loss = Loss(model.eval())
    device = model.device
    total = sum(loss(**{k: v.to(device) for k, v in rows(step).items()}).item() for step in range(s.held_out))
    model.train()
    return round(total / s.held_out, 4)


def save(out: Path, model: Qwen3ForCausalLM) -> None:
    """config.json, generation_config.json and model.safetensors, in fp16: half the size; loaders say which type."""
    copy = Qwen3ForCausalLM(model.config).half()
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    copy.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model; the same folder resumes")
    parser.add_argument("--minutes", type=float, help="time budget (default 60)")
    parser.add_argument("--updates", type=int, help="budget in updates instead of time")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--afresh", action="store_true", help="do not resume")
    a = parser.parse_args()
    began = time.monotonic()
    record = pretrain(a.out, minutes=a.minutes, updates=a.updates, size=a.size, seed=a.seed, resume=not a.afresh)
    print(json.dumps({**record, "this_call_seconds": round(time.monotonic() - began)}, indent=1))


if __name__ == "__main__":
    main()
