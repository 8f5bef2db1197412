"""Causal language models, Qwen3 and Llama 3.1 and their kind: the puzzle is a JSON array, the answer is another.

The prompt says nothing about the task: an array goes in, an array comes out. The loss is on the answer's tokens only.
Answers are generated in batches, each row until its array closes, and read by the strict parser of `tasks.text`.
Prompt and answer are made into tokens apart from each other, in training as in generation, so that the tokens which
training asks for are the tokens that generation can write.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adapters.base import Answer, Arm, Cancelled, Flavour, Lazy, Sample, Watch, load_errors, sample_generator
from tasks.base import Example, UserError, suggest
from tasks.text import Grammar, ParseError, parse, write

if TYPE_CHECKING:
    import torch
    import transformers
    from torch import Tensor
else:
    torch, transformers = Lazy("torch"), Lazy("transformers")

ARM = "language"
ZOO = Path(__file__).resolve().parents[1] / "pretrain" / "zoo" / "causal_lm"
IGNORED = -100  # the label of a token that is not learned
PROMPTS = ("auto", "chat", "plain")
TARGETS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
INSTRUCTION = "Answer with a JSON array and nothing else."

_SMALL = {"optim.lr": 5e-3, "optim.schedule": "cosine"}
_PUBLISHED = {"optim.lr": 2e-4, "optim.schedule": "linear", "optim.batch": 8, "lora.rank": 32, "lora.alpha": 32}
FLAVOURS = {
    "small": Flavour(
        "small",
        str(ZOO),
        "ships with the project; pretrained by us on the standard library's source and procedural text",
        1_312_768,
        False,
        _SMALL,
    ),
    "tiny": Flavour("tiny", "", "the real class with random weights, for tests", 127_360, False, _SMALL),
    "Qwen/Qwen3-4B-Instruct-2507": Flavour(
        "Qwen/Qwen3-4B-Instruct-2507",
        "Qwen/Qwen3-4B-Instruct-2507",
        "the paper's language model",
        4_022_468_096,
        True,
        _PUBLISHED,
    ),
    "meta-llama/Llama-3.1-8B-Instruct": Flavour(
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Llama-3.1-8B-Instruct",
        "the paper's second language model; its licence has to be accepted on the hub",
        8_030_261_248,
        True,
        {**_PUBLISHED, "lora.alpha": 64, "lora.dropout": 0.05},
    ),
}
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "layer_types": ["full_attention"] * 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.25,  # a width of 64 needs it to tell 1000 tokens apart
}


@dataclass(frozen=True)
class Options:
    """How the puzzle becomes a prompt and text becomes an answer."""

    prompt: str = "auto"  # chat (the model's own template) | plain (for a base model) | auto: chat where there is one
    constrained: bool = False  # only let through what is a grid that fits on the canvas
    max_new_tokens: int | None = None  # none: as many as the largest grid on the canvas needs
    temperature: float = 0.0  # 0: greedy; above, sampled, each answer from its own seed
    batch: int = 16  # answers generated at once

    def __post_init__(self) -> None:
        if self.prompt not in PROMPTS:
            known = ", ".join(PROMPTS)
            raise UserError(f"Unknown prompt '{self.prompt}'.{suggest(self.prompt, PROMPTS)} One of: {known}.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens = {self.max_new_tokens}: give 1 or more, or leave it out.")
        if self.temperature < 0 or self.batch < 1:
            raise UserError("temperature must be 0 or more, and batch at least 1.")


@dataclass(frozen=True)
class Question:
    """What the arm is asked: the question's JSON. The canvas, which is public, only bounds how long an answer gets."""

    text: str
    canvas: tuple[int, int]  # (rows, cols)

    def __str__(self) -> str:
        return self.text


def frame(example: Example, options: Options) -> Sample:
    """`given`: a Question. `wanted`: the answer's JSON text."""
    return Sample(Question(write(example.question), example.canvas), write(example.answer), example.key)


def load(
    flavour: Flavour,
    options: Options,
    *,
    init: str = "pretrained",
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> CausalLM:
    """Load tokenizer and model from a hub id or a folder. `init="random"` draws the model's weights anew from `seed`
    (standard deviation hidden_size ** -0.5) and keeps the tokenizer. Raises UserError, in one line, for what a person
    can mend."""
    kind = getattr(torch, dtype)
    base = flavour.base or str(ZOO)
    if base == str(ZOO) and not (ZOO / "tokenizer.json").exists():
        raise UserError(f"{ZOO} is empty. Make the small model: vdmreason pretrain causal-lm --budget 60m")
    model: Any
    with load_errors(base):
        tokenizer = transformers.AutoTokenizer.from_pretrained(base, trust_remote_code=False)
        if flavour.base and init == "pretrained":
            model = transformers.AutoModelForCausalLM.from_pretrained(
                base, dtype=kind, use_safetensors=True, trust_remote_code=False
            )
        else:
            config = transformers.AutoConfig.from_pretrained(base, trust_remote_code=False)
            # The usual 0.02 suits a width of 2500. In a narrow model whose embeddings are frozen and also write the
            # output, it leaves logits so small that no LoRA can make an answer likely: the control would fail by scale.
            config.initializer_range = config.hidden_size**-0.5
            if not flavour.base:
                config.update(_TINY)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = transformers.AutoModelForCausalLM.from_config(config, dtype=kind, trust_remote_code=False)
    return CausalLM(model.to(device), tokenizer, options)


class CausalLM(Arm):
    layout = "peft"
    targets = TARGETS
    model: Any

    def __init__(self, model: Any, tokenizer: Any, options: Options) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.options = options
        has_template = bool(tokenizer.chat_template)
        if options.prompt == "chat" and not has_template:
            raise UserError("This model has no chat template. Set options.prompt to plain or auto.")
        self.chat = has_template and options.prompt != "plain"
        known = model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])} - {None}
        self.ends: list[int] = sorted(ends)
        self.pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.ends[0]
        # Greedy by itself: a published generation_config may ask for sampling and repetition penalties.
        model.generation_config = transformers.GenerationConfig(
            do_sample=False, eos_token_id=self.ends, pad_token_id=self.pad
        )

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def conventions(self) -> dict[str, Any]:
        return {"prompt": "chat" if self.chat else "plain", "instruction": INSTRUCTION}

    def frame(self, example: Example) -> Sample:
        return frame(example, self.options)

    # Text and tokens

    def prompt(self, given: Question) -> str:
        """What the model is shown, special tokens included."""
        if not self.chat:
            return f"{self.tokenizer.bos_token or ''}Input:\n{given.text}\nOutput:\n"
        message = {"role": "user", "content": f"{INSTRUCTION}\n{given.text}"}
        # `enable_thinking` is for templates of models that would think aloud first; others ignore it
        text: str = self.tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        return text

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def writable(self) -> dict[int, str]:
        """The tokens that a grid can be made of, and their text."""
        special = set(self.tokenizer.all_special_ids)
        texts = {i: self.decode([i]) for i in range(len(self.tokenizer)) if i not in special}
        return {i: text for i, text in texts.items() if text and set(text) <= set("[],0123456789")}

    # The verbs

    def collate(self, samples: Sequence[Sample], seeds: Sequence[int]) -> dict[str, Tensor]:
        """input_ids, labels int64 (B, T), padded on the right. Labels are -100 on prompt and padding."""
        prompts = [self.encode(self.prompt(s.given)) for s in samples]
        answers = [[*self.encode(s.wanted), self.tokenizer.eos_token_id] for s in samples]
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.full((len(samples), length), self.pad)
        labels = torch.full((len(samples), length), IGNORED)
        for row, (p, a) in enumerate(zip(prompts, answers, strict=True)):
            ids[row, : len(p) + len(a)] = torch.tensor(p + a)
            labels[row, len(p) : len(p) + len(a)] = torch.tensor(a)
        return {"input_ids": ids.to(self.device), "labels": labels.to(self.device)}

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean over samples of each sample's mean negative log likelihood of its answer's tokens, in fp32.

        Padding lies to the right, where a causal model cannot see it, so no mask is needed. Logits are made only from
        the first answer token of the batch on: over a large vocabulary they are what fills the memory.
        """
        ids, labels = batch["input_ids"], batch["labels"]
        learned = labels != IGNORED  # (B, T)
        first = int(learned.any(0).nonzero()[0])
        keep = ids.shape[1] - first + 1  # the token before predicts the first
        logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits[:, :-1].float()
        wanted = labels[:, first:]  # (B, T - first), logits (B, T - first, vocabulary)
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")
        return (nll.sum(1) / learned.sum(1)).mean()

    def predict(self, givens: Sequence[Question], seeds: Sequence[int], watch: Watch | None = None) -> list[Answer]:
        """Write an answer to each question and read it. `watch` sees the texts so far of the batch at hand."""
        self.model.eval()
        answers: list[Answer] = []
        for start in range(0, len(givens), self.options.batch):
            began = time.monotonic()
            part = slice(start, start + self.options.batch)
            texts = self.generate(givens[part], seeds[part], watch)
            seconds = (time.monotonic() - began) / len(texts)
            answers += [_read(text, seconds) for text in texts]
        return answers

    def generate(self, givens: Sequence[Question], seeds: Sequence[int], watch: Watch | None = None) -> list[str]:
        """The raw texts, each cut where its array closes."""
        prompts = [self.encode(self.prompt(given)) for given in givens]
        length = max(map(len, prompts))
        padded = torch.tensor([[self.pad] * (length - len(p)) + p for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        limit = self.options.max_new_tokens or max(self.longest(given.canvas) for given in givens)
        closing = _Closing(self, length, limit, len(givens), watch)
        steps: list[Any] = []
        if self.options.constrained:
            steps.append(_Constrained(self, length, [given.canvas for given in givens]))
        if self.options.temperature:
            steps.append(_Sampled(self.options.temperature, seeds))
        with torch.no_grad():
            self.model.generate(
                input_ids=padded,
                attention_mask=mask,
                max_new_tokens=limit,
                stopping_criteria=transformers.StoppingCriteriaList([closing]),
                logits_processor=transformers.LogitsProcessorList(steps),
            )
        return closing.texts()

    def longest(self, canvas: tuple[int, int]) -> int:
        """Tokens of the longest text that is a grid on this canvas, and the end token."""
        return len(self.encode(write(np.full(canvas, 10, np.int8)))) + 1

    def codec(self, samples: Sequence[Sample]) -> list[Answer]:
        """The true text through the tokenizer and back, then read."""
        return [_read(self.decode(self.encode(sample.wanted)), 0.0) for sample in samples]


def _read(text: str, seconds: float) -> Answer:
    try:
        return Answer(parse(text), text, seconds=seconds)
    except ParseError as error:
        return Answer(None, text, problem=str(error), seconds=seconds)


class _Closing:
    """A stopping criterion: a row is done when its array has closed, or at an end token. Here `watch` looks on."""

    def __init__(self, arm: CausalLM, prompt: int, limit: int, rows: int, watch: Watch | None) -> None:
        self.arm, self.prompt, self.limit, self.watch = arm, prompt, limit, watch
        self.written: list[list[int]] = [[] for _ in range(rows)]
        self.depth = [0] * rows
        self.done = [False] * rows
        self._text: dict[int, str] = {}

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self.done[row]:
                self._take(row, token)
        step = input_ids.shape[1] - self.prompt
        if self.watch and self.watch(step, self.limit, self.texts) is False:
            raise Cancelled("Cancelled.")
        return torch.tensor(self.done, device=input_ids.device)

    def _take(self, row: int, token: int) -> None:
        if token in self.arm.ends:
            self.done[row] = True
            return
        self.written[row].append(token)
        if token not in self._text:
            self._text[token] = self.arm.decode([token])
        for character in self._text[token]:
            self.depth[row] += {"[": 1, "]": -1}.get(character, 0)
            if character == "]" and self.depth[row] <= 0:
                self.done[row] = True

    def texts(self) -> list[str]:
        """The texts so far. What a row's last token holds after the closing bracket was never asked for."""
        texts = [self.arm.decode(ids) for ids in self.written]
        return [t[: t.rfind("]") + 1] if done and "]" in t else t for t, done in zip(texts, self.done, strict=True)]


class _Constrained:
    """A logits processor: only tokens that keep the text a grid which fits on its canvas."""

    def __init__(self, arm: CausalLM, prompt: int, canvases: Sequence[tuple[int, int]]) -> None:
        self.prompt, self.canvases, self.ends = prompt, canvases, arm.ends
        self.tokens = arm.writable
        self.grammars = [Grammar() for _ in canvases]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        blocked = torch.full_like(scores, float("-inf"))
        for row, (grammar, canvas) in enumerate(zip(self.grammars, self.canvases, strict=True)):
            if input_ids.shape[1] > self.prompt and not grammar.done:
                for character in self.tokens[int(input_ids[row, -1])]:
                    grammar.advance(character)
            may = [i for i, text in self.tokens.items() if _fits(grammar, text, canvas)] or self.ends
            blocked[row, may] = scores[row, may]
        return blocked


def _fits(grammar: Grammar, text: str, canvas: tuple[int, int]) -> bool:
    """Whether `text` may follow and the grid can still end within `canvas`. A comma promises one more value or row."""
    trial = grammar.copy()
    for character in text:
        full = trial.values >= canvas[1] if trial.depth == 2 else trial.rows >= canvas[0]
        if character not in trial.allowed() or (character == "," and full):
            return False
        trial.advance(character)
    return True


class _Sampled:
    """A logits processor: adds Gumbel noise, so that the greatest logit is a sample at `temperature`. Each row draws
    from its own seed, so an answer does not depend on what else is in the batch."""

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self.temperature = temperature
        self.generators = [sample_generator(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators])
        return scores.float() / self.temperature - noise.to(scores.device).log()
