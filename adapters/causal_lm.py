"""Causal language models, Qwen3 and Llama 3.1 and their kind: the puzzle is a JSON array, the answer is another.

The prompt says nothing about the task: an array goes in, an array comes out. The loss is on the answer's tokens only.
Answers are generated in batches, each row until its array closes, and read by the strict parser of `tasks.text`.

The published models come with the paper's settings (its table 6): LoRA, batches, and generation by sampling at 0.7. One
answer a question, drawn by chance, is a noisy measure; for a headline that does not roll dice set `temperature: 0`, which
is greedy and the default of the small model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from adapters.base import Flavour, Lazy, Sample, load_errors
from adapters.language import (
    IGNORED,
    INSTRUCTION,
    PUBLISHED_PROTOCOL,
    TARGETS,
    ZOO,
    LanguageArm,
    answer_nll,
    check,
    day_of,
    known_config,
    known_tokenizer,
    mean_of_means,
    rounded,
    undated,
)
from tasks.base import Example, UserError, suggest
from tasks.text import write

if TYPE_CHECKING:
    import torch
    import transformers
    from torch import Tensor
else:
    torch, transformers = Lazy("torch"), Lazy("transformers")

ARM = "language"
PROMPTS = ("auto", "chat", "plain")

_SMALL = {"optim.lr": 12e-3, "optim.schedule": "cosine"}  # protocols/learning_rate.yaml: bf16, n = 100, one seed
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
        PUBLISHED_PROTOCOL,
    ),
    "Qwen/Qwen3-8B": Flavour(
        "Qwen/Qwen3-8B",
        "Qwen/Qwen3-8B",
        "the paper's larger Qwen; it would think aloud first and is asked not to",
        8_190_735_360,
        True,
        PUBLISHED_PROTOCOL,
    ),
    "meta-llama/Llama-3.1-8B-Instruct": Flavour(
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Llama-3.1-8B-Instruct",
        "the paper's Llama; its licence has to be accepted on the hub",
        8_030_261_248,
        True,
        # The paper puts a LoRA on this model's lm_head too. Here it is left out, so that both arms get the same kinds of
        # layers: attention and mlp.
        {**PUBLISHED_PROTOCOL, "lora.alpha": 64, "lora.dropout": 0.05},
    ),
}
# The published configs, as far as a sketch needs them, for where they were not downloaded.
_QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "eos_token_id": 151645,
    "pad_token_id": 151643,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-4B-Instruct-2507": {
        **_QWEN3,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-8B": {**_QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
    "meta-llama/Llama-3.1-8B-Instruct": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "eos_token_id": 128009,
    },
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
    # sampled answers only: from the fewest likeliest tokens that hold this share; 1: from all
    top_p: float = field(default=1.0, metadata={"later": True})
    top_k: int = field(default=0, metadata={"later": True})  # sampled answers only: from the k likeliest tokens; 0: all
    loss_chunk: int = field(default=1024, metadata={"later": True})  # answer tokens whose logits are in memory at once
    # several samples in a row instead of padding; none sees another
    packed: bool = field(default=False, metadata={"later": True})

    # no part of training: may change after it
    asked: ClassVar[tuple[str, ...]] = ("constrained", "max_new_tokens", "temperature", "top_p", "top_k", "batch")

    def __post_init__(self) -> None:
        if self.prompt not in PROMPTS:
            known = ", ".join(PROMPTS)
            raise UserError(f"Unknown prompt '{self.prompt}'.{suggest(self.prompt, PROMPTS)} One of: {known}.")
        check(self)


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
                model = transformers.AutoModelForCausalLM.from_config(
                    config, dtype=torch.float32, trust_remote_code=False
                )
            rounded(model, kind)
    return CausalLM(model.to(device), tokenizer, options)


def sketch(flavour: Flavour, options: Options, dtype: str = "float32") -> CausalLM:
    """The arm on the meta device: the real class at true size, no weights, no download."""
    base = flavour.base or str(ZOO)
    config = known_config(base, PUBLISHED)
    if not flavour.base:
        config.update(_TINY)
    tokenizer, caveats = known_tokenizer(base)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), trust_remote_code=False
        )
    arm = CausalLM(model, tokenizer, options)
    arm.caveats = caveats
    return arm


class CausalLM(LanguageArm):
    targets = TARGETS

    def __init__(self, model: Any, tokenizer: Any, options: Options) -> None:
        super().__init__(model, tokenizer, options)
        has_template = bool(tokenizer.chat_template)
        if options.prompt == "chat" and not has_template:
            raise UserError("This model has no chat template. Set options.prompt to plain or auto.")
        self.chat = has_template and options.prompt != "plain"
        self.template = undated(tokenizer.get_chat_template()) if self.chat else ""
        # A layer that carries a state along the row, as linear attention does, would carry it into the next sample.
        mixed = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if options.packed and mixed:
            raise UserError(
                f"This model has layers of {sorted(mixed)[0]}, which see across samples. Set packed to false."
            )

    def conventions(self) -> dict[str, Any]:
        return {"prompt": "chat" if self.chat else "plain", "instruction": INSTRUCTION, **day_of(self.template)}

    def frame(self, example: Example) -> Sample:
        return frame(example, self.options)

    def prompt(self, given: Question) -> str:
        """What the model is shown, special tokens included."""
        if not self.chat:
            return f"{self.tokenizer.bos_token or ''}Input:\n{given.text}\nOutput:\n"
        message = {"role": "user", "content": f"{INSTRUCTION}\n{given.text}"}
        # `enable_thinking` is for templates of models that would think aloud first; others ignore it
        text: str = self.tokenizer.apply_chat_template(
            [message], chat_template=self.template, add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        return text

    # The verbs

    def collate(self, samples: Sequence[Sample], seeds: Sequence[int]) -> dict[str, Tensor]:
        """input_ids, labels int64 (B, T), padded on the right. Labels are -100 on prompt and padding.

        Packed: (R, T), R rows of several samples; and position_ids, which start again with each sample and with the
        padding, and sample, which says whose token each is, int64 (R, T).
        """
        prompts = [self.encode(self.prompt(s.given)) for s in samples]
        answers = [self.answer_ids(s) for s in samples]
        lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
        length = max(lengths)
        rows = packed_rows(lengths, length) if self.options.packed else [[n] for n in range(len(samples))]
        ids = torch.full((len(rows), length), self.pad)
        labels = torch.full((len(rows), length), IGNORED)
        positions = torch.zeros((len(rows), length), dtype=torch.long)
        owner = torch.zeros((len(rows), length), dtype=torch.long)
        for row, members in enumerate(rows):
            at = 0
            for n in members:
                end = at + lengths[n]
                ids[row, at:end] = torch.tensor(prompts[n] + answers[n])
                labels[row, at + len(prompts[n]) : end] = torch.tensor(answers[n])
                positions[row, at:end] = torch.arange(lengths[n])
                owner[row, at:end] = n
                at = end
            positions[row, at:] = torch.arange(length - at)
        batch = {"input_ids": ids, "labels": labels}
        if self.options.packed:
            batch |= {"position_ids": positions, "sample": owner}
        return {name: value.to(self.device) for name, value in batch.items()}

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean over samples of each sample's mean negative log likelihood of its answer's tokens, in fp32.

        Padding lies to the right, where a causal model cannot see it, so no mask is needed. Packed, the model itself makes
        the mask, from positions that start again: transformers does so where no attention mask and no cache is given.
        """
        labels = batch["labels"]
        learned = labels != IGNORED
        owner = batch["sample"][learned] if "sample" in batch else learned.nonzero()[:, 0]  # (N,)
        inputs = {name: value for name, value in batch.items() if name in ("input_ids", "position_ids")}
        nll = answer_nll(self.model, labels, self.options.loss_chunk, inputs)
        return mean_of_means(nll, owner, int(owner.max()) + 1)

    def prepared(self, givens: Sequence[Question]) -> dict[str, Tensor]:
        """input_ids, attention_mask int64 (B, T), padded on the left."""
        prompts = [self.encode(self.prompt(given)) for given in givens]
        length = max(map(len, prompts))
        padded = torch.tensor([[self.pad] * (length - len(p)) + p for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        return {"input_ids": padded, "attention_mask": mask}


def packed_rows(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which samples lie in which row of `room` tokens: first-fit decreasing, the longest first, each into the first row
    that still has room for it."""
    rows: list[list[int]] = []
    left: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        row = next((r for r, free in enumerate(left) if free >= lengths[n]), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(room)
        rows[row].append(n)
        left[row] -= lengths[n]
    return rows
