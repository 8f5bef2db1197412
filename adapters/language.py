"""What all language arms share: the loss on an answer's tokens, an answer written token by token, and its reading.

Prompt and answer are made into tokens apart from each other, in training as in generation, so that the tokens which
training asks for are the tokens that generation can write.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from adapters.base import Answer, Arm, Cancelled, Lazy, Lora, Sample, Watch, sample_generator
from tasks.base import UserError
from tasks.text import Grammar, ParseError, parse, write

if TYPE_CHECKING:
    import torch
    import transformers
    from torch import Tensor
else:
    torch, transformers = Lazy("torch"), Lazy("transformers")

ZOO = (
    Path(__file__).resolve().parents[1] / "pretrain" / "zoo" / "causal_lm"
)  # the small model; its tokenizer serves all
IGNORED = -100  # the label of a token that is not learned
INSTRUCTION = "Answer with a JSON array and nothing else."
TARGETS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


# Table 6 of "Rethinking Visual Intelligence". Its batches of 1 and 2 are accumulated to 8; how large a part fits is the device's.
PUBLISHED_PROTOCOL = {
    "optim.lr": 2e-4,
    "optim.schedule": "linear",
    "optim.warmup": 5,
    "optim.weight_decay": 0.01,
    "optim.batch": 8,
    "lora.rank": 32,
    "lora.alpha": 32,
    "lora.dropout": 0.0,
    "options.temperature": 0.7,
    "options.top_p": 0.8,
    "options.top_k": 20,
    "options.max_new_tokens": 4096,
}


class Writing(Protocol):
    """The options that say how an answer is written and learned."""

    @property
    def constrained(self) -> bool: ...
    @property
    def max_new_tokens(self) -> int | None: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def loss_chunk(self) -> int: ...


def check(options: Writing) -> None:
    """Raises UserError for a value out of range."""
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise UserError(f"max_new_tokens = {options.max_new_tokens}: give 1 or more, or leave it out.")
    if options.temperature < 0 or options.batch < 1:
        raise UserError("temperature must be 0 or more, and batch at least 1.")
    if not 0 < options.top_p <= 1:
        raise UserError(f"top_p = {options.top_p}: give a share above 0 and at most 1; 1 keeps every token.")
    if options.top_k < 0:
        raise UserError(f"top_k = {options.top_k}: give 1 or more tokens; 0 keeps every token.")
    if options.loss_chunk < 1:
        raise UserError(f"loss_chunk = {options.loss_chunk}: give 1 token or more, such as 1024.")


class Asked(Protocol):
    """What a language arm is asked, as far as writing an answer needs it."""

    @property
    def canvas(self) -> tuple[int, int]: ...


class LanguageArm(Arm):
    """A model that writes the answer as text. A family adds `collate`, `loss` and `prepared`."""

    layout = "peft"
    model: Any
    answer_pace = 0.03  # token by token: the device waits for its memory, and for the next kernel

    def __init__(self, model: Any, tokenizer: Any, options: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.options = options
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

    unsaid: Mapping[str, Any] = MappingProxyType({"day": "the day of training", "enlarged": True})

    def attach(self, lora: Lora, seed: int = 0) -> None:
        """As every arm's. Raises UserError where the model lacks some of the layers that are asked for: peft puts up with that as
        long as it has one of them, and this arm would learn with less than its rival."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        super().attach(lora, seed)
        layers = [(name, m) for name, m in self.model.named_modules() if isinstance(m, BaseTunerLayer)]
        have = {getattr(layer, "parameter_name", name.rpartition(".")[2]) for name, layer in layers}
        if "gate_up_proj" in have:  # of experts, for some of which peft itself knows what is fused in it
            have |= {"gate_proj", "up_proj"}
        lacking = {kind: [name for name in TARGETS[kind] if name not in have] for kind in lora.targets}
        if missing := [name for names in lacking.values() for name in names]:
            self.detach()
            whole = [kind for kind, names in lacking.items() if not names]
            way = f"Set lora.targets to {', '.join(whole)}" if whole else "Take another model, such as Qwen/Qwen3-8B"
            raise UserError(
                f"This model has fused projections, or names of its own: no layers {', '.join(missing)}. A LoRA would cover a "
                f"part of lora.targets only. {way}."
            )

    # Text and tokens

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def answer_ids(self, sample: Sample) -> list[int]:
        """The tokens that are learned: the answer's, and the end."""
        return [*self.encode(sample.wanted), self.tokenizer.eos_token_id]

    @cached_property
    def writable(self) -> dict[int, str]:
        """The tokens that a grid can be made of, and their text."""
        special = set(self.tokenizer.all_special_ids)
        texts = {i: self.decode([i]) for i in range(len(self.tokenizer)) if i not in special}
        return {i: text for i, text in texts.items() if text and set(text) <= set("[],0123456789")}

    def longest(self, canvas: tuple[int, int]) -> int:
        """Tokens of the longest text that is a grid on this canvas, and the end token."""
        return len(self.encode(write(np.full(canvas, 10, np.int8)))) + 1

    # The verbs

    def prepared(self, givens: Sequence[Any]) -> dict[str, Tensor]:
        """The model's inputs for these questions: input_ids and attention_mask (B, T), padded on the left, and what else
        the model wants to see."""
        raise NotImplementedError

    def rehearsal(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The batch, and `learned` int64 (N,): on the meta device nobody can count the labels that are learned."""
        count = sum(len(self.answer_ids(sample)) for sample in samples)
        learned = torch.zeros(count, dtype=torch.long, device=self.device)
        return {**self.collate(samples, [0] * len(samples)), "learned": learned}

    def rehearse(self, batch: Mapping[str, Tensor]) -> Tensor:
        hidden = self.hidden(batch).flatten(0, 1)  # (B T, D)
        learned = batch["learned"]
        return head_nll(self.model, hidden[learned], learned, self.options.loss_chunk).mean()

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the body makes of a rehearsal's batch (B, T, D)."""
        with unpacked():
            found: Tensor = self.model.base_model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        return found

    def predict(self, givens: Sequence[Any], seeds: Sequence[int], watch: Watch | None = None) -> list[Answer]:
        """Write an answer to each question and read it. `watch` sees the texts so far of the batch at hand."""
        self.model.eval()
        answers: list[Answer] = []
        for start in range(0, len(givens), self.options.batch):
            began = time.monotonic()
            part = slice(start, start + self.options.batch)
            texts = self.generate(givens[part], seeds[part], watch)
            seconds = (time.monotonic() - began) / len(texts)
            answers += [read(text, seconds) for text in texts]
        return answers

    def generate(self, givens: Sequence[Any], seeds: Sequence[int], watch: Watch | None = None) -> list[str]:
        """The raw texts, each cut where its array closes."""
        inputs = self.prepared(givens)
        length = inputs["input_ids"].shape[1]
        limit = self.options.max_new_tokens or max(self.longest(given.canvas) for given in givens)
        closing = Closing(self, length, limit, len(givens), watch)
        steps: list[Any] = []
        if self.options.constrained:
            steps.append(Constrained(self, length, [given.canvas for given in givens]))
        steps += sampling(self.options, seeds)
        # Blocks that were compiled to learn know no cache: each would be compiled again for every layer and every length.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            self.model.generate(
                **inputs,
                max_new_tokens=limit,
                stopping_criteria=transformers.StoppingCriteriaList([closing]),
                logits_processor=transformers.LogitsProcessorList(steps),
            )
        return closing.texts()

    def codec(self, samples: Sequence[Sample]) -> list[Answer]:
        """The true text through the tokenizer and back, then read."""
        return [read(self.decode(self.encode(sample.wanted)), 0.0) for sample in samples]


def read(text: str, seconds: float) -> Answer:
    """A text as an answer, by the strict parser. Where it is no grid, the answer's problem says where."""
    try:
        return Answer(parse(text), text, seconds=seconds)
    except ParseError as error:
        return Answer(None, text, problem=str(error), seconds=seconds)


def rounded(model: Any, kind: torch.dtype) -> Any:
    """The model with its parameters in `kind`. Random ones are drawn in fp32 first, so that they are the same in every precision;
    and not `model.to`: positions and scales are kept in fp32, as in a loaded model."""
    for weight in model.parameters():
        weight.data = weight.data.to(kind)
    return model


_DAY = datetime(2024, 7, 26)  # what templates of Llama say where they know no date
_CODES = {c: _DAY.strftime("%" + c) for c in "aAbBcdHIjmMpSUwxXyY"} | {"-d": "26", "-m": "7", "e": "26"}
_CODES |= {"F": "2024-07-26", "T": "00:00:00", "-H": "0", "-I": "12", "Z": "UTC", "z": "+0000"}
_TOLD = "".join(f" | replace('%{c}', '{said}')" for c, said in _CODES.items())


def undated(template: str) -> str:
    """A chat template that says the same on every day, by a macro in the place of transformers' `strftime_now`: training and a
    later question have to be one prompt. A template that asks for no date is handed back as it is."""
    if "strftime_now" not in template:
        return template
    return f"{{% macro strftime_now(format) %}}{{{{ format{_TOLD} }}}}{{% endmacro %}}\n{template}"  # the line's end is trimmed


def day_of(template: str) -> dict[str, str]:
    """What an adapter says of the date in its prompts, where there is one."""
    return {"day": f"{_DAY:%Y-%m-%d}"} if "macro strftime_now" in template else {}


# The loss


def answer_nll(model: Any, labels: Tensor, chunk: int, inputs: Mapping[str, Tensor]) -> Tensor:
    """Negative log likelihood of each learned token, in fp32 (N,), in the order of `labels[labels != IGNORED]`.

    Over a large vocabulary logits are what fills the memory: 0.6 MB a token in Qwen3, twice that with their softmax. So
    they are made on learned tokens only, `chunk` at a time, and once more in the backward pass instead of being kept.
    """
    rows, at = (labels != IGNORED).nonzero(as_tuple=True)  # (N,) each
    wanted = labels[rows, at]
    before = at - 1  # the token before predicts it
    if model.base_model is model:  # no body apart from the head: all that is left is the model's own forward
        logits = model(**inputs, use_cache=False).logits[rows, before]
        return torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none")
    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[rows, before]  # (N, D)
    return head_nll(model, hidden, wanted, chunk)


def head_nll(model: Any, hidden: Tensor, wanted: Tensor, chunk: int) -> Tensor:
    """Negative log likelihood (N,) of the tokens `wanted` (N,) after the hidden states (N, D)."""
    head = head_of(model)

    def part(hidden: Tensor, wanted: Tensor) -> Tensor:
        logits = head(inputs_embeds=hidden[None]).logits[0]  # (n, vocabulary)
        return torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none")

    from torch.utils.checkpoint import checkpoint

    parts = zip(hidden.split(chunk), wanted.split(chunk), strict=True)
    return torch.cat([checkpoint(part, h, w, use_reentrant=False) for h, w in parts])


def mean_of_means(nll: Tensor, owner: Tensor, samples: int) -> Tensor:
    """Scalar: the mean over the samples of each sample's own mean. `owner` int64 (N,) says whose token each of `nll` is."""
    total = nll.new_zeros(samples).index_add(0, owner, nll)
    count = nll.new_zeros(samples).index_add(0, owner, torch.ones_like(nll))
    return (total / count).mean()


def head_of(model: Any) -> Any:
    """The same model, its weights shared, whose body hands on what it is given as `inputs_embeds`.

    So whatever the model's own forward does between hidden states and logits is done, by its own code: Gemma caps its
    logits, Granite and Cohere scale them, and a list of such configs here would be out of date with the next model.
    """

    class Body(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Handed:
            return _Handed(inputs_embeds)

    head = copy.copy(model)
    head.__dict__["_modules"] = {**model._modules, model.base_model_prefix: Body()}
    return head


class _Handed:
    """What a body that was left out "returned": the hidden states (1, n, D), and None for all else a forward may ask for."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, _: int) -> Tensor:
        return self.last_hidden_state

    def __getattr__(self, _: str) -> None:
        return None


# Sketches


def known_config(base: str, published: Mapping[str, Mapping[str, Any]]) -> Any:
    """A checkpoint's config without a download: from the folder or the hub's cache, else from a family's table of published
    ones. UserError where neither knows it."""
    try:
        return transformers.AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if base in published:
            return transformers.AutoConfig.for_model(**published[base])
        raise UserError(
            f"'{base}' is not on this machine, so its size is not known. Get its config first: hf download {base} config.json"
        ) from error


@contextmanager
def unpacked() -> Iterator[None]:
    """transformers looks at the values of the positions whether a row holds several samples; a sketch has none to look at."""
    from transformers import masking_utils

    looking = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None  # type: ignore[assignment, return-value]
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = looking


def known_tokenizer(base: str) -> tuple[Any, tuple[str, ...]]:
    """A checkpoint's tokenizer without a download, or else the small model's with a line that says so."""
    try:
        return transformers.AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False), ()
    except (OSError, ValueError):
        tokenizer = transformers.AutoTokenizer.from_pretrained(ZOO, trust_remote_code=False)
        return tokenizer, (
            "tokens are counted by the small model's tokenizer: the backbone's own is not on this machine",
        )


# Generation


class Closing:
    """A stopping criterion: a row is done when its array has closed, or at an end token. Here `watch` looks on."""

    def __init__(self, arm: LanguageArm, prompt: int, limit: int, rows: int, watch: Watch | None) -> None:
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


class Constrained:
    """A logits processor: only tokens that keep the text a grid which fits on its canvas."""

    def __init__(self, arm: LanguageArm, prompt: int, canvases: Sequence[tuple[int, int]]) -> None:
        self.prompt, self.canvases, self.ends = prompt, canvases, arm.ends
        self.tokens = arm.writable
        self.grammars = [Grammar() for _ in canvases]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        blocked = torch.full_like(scores, float("-inf"))
        for row, (grammar, canvas) in enumerate(zip(self.grammars, self.canvases, strict=True)):
            if input_ids.shape[1] > self.prompt and not grammar.done:
                for character in self.tokens[int(input_ids[row, -1])]:
                    grammar.advance(character)
            may = [i for i, text in self.tokens.items() if fits(grammar, text, canvas)] or self.ends
            blocked[row, may] = scores[row, may]
        return blocked


def fits(grammar: Grammar, text: str, canvas: tuple[int, int]) -> bool:
    """Whether `text` may follow and the grid can still end within `canvas`. A comma promises one more value or row."""
    trial = grammar.copy()
    for character in text:
        full = trial.values >= canvas[1] if trial.depth == 2 else trial.rows >= canvas[0]
        if character not in trial.allowed() or (character == "," and full):
            return False
        trial.advance(character)
    return True


def sampling(options: Writing, seeds: Sequence[int]) -> list[Any]:
    """The logits processors of a sampled answer, in the order of transformers' own sampling: temperature, top-k, top-p, and
    then the draw. None where the temperature is 0: the greatest logit is the same under all of them."""
    if not options.temperature:
        return []
    steps: list[Any] = [transformers.TemperatureLogitsWarper(float(options.temperature))]
    if options.top_k:
        steps.append(transformers.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        steps.append(transformers.TopPLogitsWarper(options.top_p))
    return [*steps, Gumbel(seeds)]


class Gumbel:
    """A logits processor: adds Gumbel noise, so that the greatest logit is a sample. Each row draws from its own seed, so an
    answer does not depend on what else is in the batch."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [sample_generator(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators])
        return scores.float() - noise.to(scores.device).log()
