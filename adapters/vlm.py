"""Vision-language models, Gemma 3 and Qwen3-VL and their kind: the puzzle as text, as a picture, or both; the answer as text.

The paper asks with one whether it is the picture that helps a video model: the same question is shown as JSON, as the
picture that the video arms see, or as both, and the answer is always a JSON array. The loss is on its tokens only. LoRA
lies on the language model's layers; the vision tower stays as it was pretrained, as the video arms' autoencoder does.

The paper gives no settings for its Gemma; here it learns and answers as its language models (table 6 there). As with them,
`temperature: 0` is greedy, for a headline that does not roll dice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

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
    mean_of_means,
    rounded,
    undated,
    unpacked,
)
from adapters.pictures import question
from tasks.base import Example, UserError, suggest
from tasks.render import STYLES
from tasks.text import write

if TYPE_CHECKING:
    import torch
    import transformers
    from torch import Tensor
else:
    torch, transformers = Lazy("torch"), Lazy("transformers")

ARM = "language"
SHOWN = ("text", "image", "both")

_TINY = {"optim.lr": 5e-3, "optim.schedule": "cosine", "options.style": "video-8"}
FLAVOURS = {
    "tiny": Flavour("tiny", "", "Gemma 3's real classes with random weights, for tests", 146_720, False, _TINY),
    "google/gemma-3-4b-it": Flavour(
        "google/gemma-3-4b-it",
        "google/gemma-3-4b-it",
        "the paper's vision-language model; its licence has to be accepted on the hub",
        4_300_079_472,
        True,
        # It sees every picture at 896 x 896: drawn near that size, cells are hardly resampled.
        {**PUBLISHED_PROTOCOL, "options.pixels": 896},
    ),
    "Qwen/Qwen3-VL-4B-Instruct": Flavour(
        "Qwen/Qwen3-VL-4B-Instruct",
        "Qwen/Qwen3-VL-4B-Instruct",
        "sees pictures at their own size; 32 pixels are a token, so a cell is one",
        4_437_815_808,
        True,
        {**PUBLISHED_PROTOCOL, "options.style": "video-32"},
    ),
}
# The published configs, as far as a sketch needs them, for where they were not downloaded.
PUBLISHED: dict[str, dict[str, Any]] = {
    "google/gemma-3-4b-it": {
        "model_type": "gemma3",
        "text_config": {
            "vocab_size": 262208,
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": 1024,
        },
        "vision_config": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "mm_tokens_per_image": 256,
        "eos_token_id": [1, 106],
    },
    "Qwen/Qwen3-VL-4B-Instruct": {
        "model_type": "qwen3_vl",
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
            "eos_token_id": 151645,
        },
        "vision_config": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "patch_size": 16,
            "out_hidden_size": 2560,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True)
class Options:
    """How the puzzle is shown and text becomes an answer."""

    shown: str = "both"  # text (JSON, as the language models get it) | image (as the video models get it) | both
    style: str = "video-16"  # how a grid is drawn
    pixels: int = 0  # >0: enlarge cells in whole steps until the longer side comes nearest to this
    canvas: tuple[int, int] | None = None  # a fixed picture size in cells
    constrained: bool = False  # only let through what is a grid that fits on the canvas
    max_new_tokens: int | None = None  # none: as many as the largest grid on the canvas needs
    temperature: float = 0.0  # 0: greedy; above, sampled, each answer from its own seed
    top_p: float = 1.0  # sampled answers only: from the fewest likeliest tokens that hold this share; 1: from all
    top_k: int = 0  # sampled answers only: from the k likeliest tokens; 0: from all
    batch: int = 16  # answers generated at once
    loss_chunk: int = 1024  # answer tokens whose logits are in memory at once

    # no part of training: may change after it
    asked: ClassVar[tuple[str, ...]] = ("constrained", "max_new_tokens", "temperature", "top_p", "top_k", "batch")

    def __post_init__(self) -> None:
        for value, known in ((self.shown, SHOWN), (self.style, tuple(STYLES))):
            if value not in known:
                raise UserError(f"Unknown choice '{value}'.{suggest(value, known)} One of: {', '.join(known)}.")
        check(self)


@dataclass(frozen=True, eq=False)
class Question:
    """What the arm is asked: the question's JSON, its picture, or both. The canvas, which is public, tells how large the
    picture is and bounds how long an answer gets."""

    text: str  # "" where only the picture is shown
    picture: np.ndarray | None  # uint8 (H, W, 3)
    canvas: tuple[int, int]  # (rows, cols)

    def __str__(self) -> str:
        if self.picture is None:
            return self.text
        height, width = self.picture.shape[:2]
        return f"(a picture of {height} x {width} pixels)" + (f"\n{self.text}" if self.text else "")


def frame(example: Example, options: Options) -> Sample:
    """`given`: a Question. `wanted`: the answer's JSON text."""
    text = "" if options.shown == "image" else write(example.question)
    picture = None if options.shown == "text" else question(example, options).picture
    return Sample(Question(text, picture, example.canvas), write(example.answer), example.key)


def load(
    flavour: Flavour,
    options: Options,
    *,
    init: str = "pretrained",
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> VLM:
    """Load processor and model from a hub id or a folder. `init="random"` draws all of the model's weights anew from `seed`
    (`drawn`) and keeps the processor. Raises UserError, in one line, for what a person can mend."""
    kind = getattr(torch, dtype)
    if not flavour.base:
        processor, config = tiny()
        return VLM(drawn(config, seed, kind).to(device), processor, options)
    base = flavour.base
    model: Any
    with load_errors(base):
        config = transformers.AutoConfig.from_pretrained(base, trust_remote_code=False)
        processor = processor_of(base, config)
        if init == "pretrained":
            model = transformers.AutoModelForImageTextToText.from_pretrained(
                base, dtype=kind, use_safetensors=True, trust_remote_code=False
            )
        else:
            text = config.get_text_config()
            text.initializer_range = (
                text.hidden_size**-0.5
            )  # as causal_lm draws, so that a LoRA can make an answer likely
            model = drawn(config, seed, kind)
    return VLM(model.to(device), processor, options)


def sketch(flavour: Flavour, options: Options, dtype: str = "float32") -> VLM:
    """The arm on the meta device: the real classes at true size, no weights, no download."""
    base = flavour.base
    caveats: tuple[str, ...] = ()
    if not base:
        processor, config = tiny()
    else:
        config = known_config(base, PUBLISHED)
        try:
            processor = processor_of(base, config, local_files_only=True)
        except (OSError, ValueError):
            processor = stand_in(base, config)
            caveats = ("text is counted by the small model's tokenizer: the backbone's own is not on this machine",)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(
            config, dtype=getattr(torch, dtype), trust_remote_code=False
        )
    if options.shown != "text" and hasattr(processor.image_processor, "merge_size"):
        caveats += ("the vision tower's own work is left out: it cannot be sketched",)
    arm = VLM(model, processor, options)
    arm.caveats = caveats
    return arm


def stand_in(base: str, config: Any) -> Any:
    """A processor that gives a picture as many tokens as the backbone's own, which is not on this machine."""
    seen = config.vision_config
    if config.model_type == "gemma3":
        return gemma_processor(seen.image_size, config.mm_tokens_per_image)
    if config.model_type == "qwen3_vl":
        return qwen_processor(seen.patch_size, seen.spatial_merge_size)
    raise UserError(
        f"'{base}': what it makes of a picture is not known here. Get its processor first: hf download {base}"
    )


def drawn(config: Any, seed: int, kind: torch.dtype) -> Any:
    """Random weights from `seed`, drawn in fp32 so that they are the same in every precision.

    Gemma's own draw leaves the way from the vision tower into the language model at zero, for pretraining to open. A control
    that is blind would say nothing, so such a matrix is drawn too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForImageTextToText.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
        for weight in model.parameters():
            if weight.ndim == 2 and not weight.any():
                torch.nn.init.normal_(weight, std=weight.shape[0] ** -0.5)
    return rounded(model, kind)


def processor_of(base: str, config: Any, **how: Any) -> Any:
    """The model's own processor. Where torchvision is not installed, a processor that also takes videos comes without that
    part, which needs it; pictures do not."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    kind = PROCESSOR_MAPPING[type(config)] if type(config) in PROCESSOR_MAPPING else None
    if kind is None or is_torchvision_available() or "video_processor" not in kind.get_attributes():
        kind = transformers.AutoProcessor
    else:
        kind = pictures_only(kind)
    return unenlarged(kind.from_pretrained(base, trust_remote_code=False, **how))


def unenlarged(processor: Any) -> Any:
    """The processor, which leaves small pictures as they are. Qwen's enlarges them to 256 x 256 pixels, whatever the puzzle: its
    cells, drawn as large as a token, would then lie across tokens."""
    seen: Any = getattr(processor, "image_processor", None)
    if hasattr(seen, "merge_size") and "shortest_edge" in seen.size:  # which here says pixels of the whole picture
        least = min(seen.size["shortest_edge"], (seen.patch_size * seen.merge_size) ** 2)
        seen.size = type(seen.size)(**dict(seen.size) | {"shortest_edge": least})
    return processor


def pictures_only(kind: Any) -> Any:
    """A processor's class without its part for videos."""

    class Pictures(kind):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != "video_processor"]

    Pictures.__name__ = kind.__name__  # the name that is saved, and looked up when loaded
    return Pictures


def tiny() -> tuple[Any, Any]:
    """(processor, config) of a Gemma 3 that a CPU trains in seconds: the small language model's tokenizer, pictures of 64 x 64
    pixels in 64 tokens, two layers of width 64."""
    side, patch = 64, 8
    processor = gemma_processor(side, (side // patch) ** 2)
    tokenizer = processor.tokenizer
    config = transformers.Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "initializer_range": 0.25,  # a width of 64 needs it to tell 1000 tokens apart
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": side,
            "patch_size": patch,
            "vision_use_head": False,
        },
        mm_tokens_per_image=(side // patch) ** 2,
        image_token_id=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    return processor, config


def gemma_processor(side: int, tokens: int) -> Any:
    """Gemma 3's, for pictures of `side` x `side` pixels in so many tokens, with the small language model's tokenizer."""
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    return transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessorPil(size={"height": side, "width": side}),
        tokenizer=transformers.AutoTokenizer.from_pretrained(ZOO, extra_special_tokens=names, trust_remote_code=False),
        image_seq_length=tokens,
        chat_template=_TEMPLATE,
    )


def qwen_processor(patch: int, merge: int) -> Any:
    """Qwen3-VL's, for pictures alone, a token for `merge` x `merge` patches, with the small language model's tokenizer."""
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    names |= {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    return pictures_only(transformers.Qwen3VLProcessor)(
        image_processor=transformers.Qwen2VLImageProcessorPil(
            patch_size=patch,
            merge_size=merge,
            temporal_patch_size=2,
            size={"shortest_edge": (patch * merge) ** 2, "longest_edge": 4096 * 4096},  # as `unenlarged`
        ),
        tokenizer=transformers.AutoTokenizer.from_pretrained(ZOO, extra_special_tokens=names, trust_remote_code=False),
        chat_template=_TEMPLATE.replace("<start_of_image>", picture),
    )


_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class VLM(LanguageArm):
    def __init__(self, model: Any, processor: Any, options: Options) -> None:
        super().__init__(model, processor.tokenizer, options)
        self.processor = processor
        self.template = processor.chat_template or processor.tokenizer.chat_template
        if not self.template:
            raise UserError("This model has no chat template, so it cannot be shown a picture. Take an instruct model.")
        self.template = undated(self.template)
        self.targets = targets_of(model)

    def conventions(self) -> dict[str, Any]:
        o = self.options
        drawn: dict[str, Any] = {} if o.shown == "text" else {"style": o.style}
        if drawn and hasattr(self.processor.image_processor, "merge_size"):
            drawn["enlarged"] = False
        return {"shown": o.shown, "instruction": INSTRUCTION, **drawn, **day_of(self.template)}

    def frame(self, example: Example) -> Sample:
        return frame(example, self.options)

    def prompt(self, given: Question) -> str:
        """What the model is shown, special tokens included; the picture is one token, which the processor widens."""
        picture = [] if given.picture is None else [{"type": "image"}]
        text = {"type": "text", "text": f"{INSTRUCTION}\n{given.text}" if given.text else INSTRUCTION}
        # by the tokenizer, which hands on to the template what it does not know itself: `enable_thinking` is for templates
        # of models that would think aloud first; others ignore it
        shown: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": [*picture, text]}],
            chat_template=self.template,
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=False,
        )
        return shown

    def seen(self, given: Question) -> dict[str, Tensor]:
        """The processor's tensors for one question: input_ids int64 (1, T), what else goes by token, and the picture's own."""
        picture = {} if given.picture is None else {"images": [Image.fromarray(given.picture)]}
        # the template has written the special tokens already
        inputs = self.processor(text=[self.prompt(given)], **picture, add_special_tokens=False, return_tensors="pt")
        return dict(inputs)

    def joined(
        self, seen: Sequence[Mapping[str, Tensor]], answers: Sequence[Sequence[int]], left: bool
    ) -> dict[str, Tensor]:
        """One batch. What goes by token gets room for the answer and is padded, by zeros but for input_ids; pictures follow
        one another."""
        length = max(s["input_ids"].shape[1] + len(a) for s, a in zip(seen, answers, strict=True))
        batch = {}
        for name in seen[0]:
            parts = [s[name] for s in seen]
            if parts[0].shape != seen[0]["input_ids"].shape:
                batch[name] = torch.cat(parts)
                continue
            is_text = name == "input_ids"
            rows = torch.full((len(seen), length), self.pad if is_text else 0)
            for row, part, answer in zip(rows, parts, answers, strict=True):
                whole = torch.cat([part[0], torch.tensor(answer if is_text else [0] * len(answer), dtype=torch.long)])
                row[slice(length - len(whole), None) if left else slice(len(whole))] = whole
            batch[name] = rows
        return {name: value.to(self.device) for name, value in batch.items()}

    # The verbs

    def collate(self, samples: Sequence[Sample], seeds: Sequence[int]) -> dict[str, Tensor]:
        """input_ids, labels int64 (B, T), padded on the right, and what the processor gives beside: by token (B, T), and the
        pictures. Labels are -100 on prompt, picture and padding."""
        seen = [self.seen(s.given) for s in samples]
        answers = [self.answer_ids(s) for s in samples]
        batch = self.joined(seen, answers, left=False)
        del batch["attention_mask"]  # padding lies to the right, where a causal model cannot see it
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, one, answer in zip(labels, seen, answers, strict=True):
            start = one["input_ids"].shape[1]
            row[start : start + len(answer)] = torch.tensor(answer)
        return {**batch, "labels": labels}

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean over samples of each sample's mean negative log likelihood of its answer's tokens, in fp32."""
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        owner = (labels != IGNORED).nonzero()[:, 0]  # (N,)
        nll = answer_nll(self.model, labels, self.options.loss_chunk, inputs)
        return mean_of_means(nll, owner, len(labels))

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The tower sees the pictures, and the language model as many vectors as there are tokens. The model's own forward
        would look where among them the pictures are. A tower that is told their sizes looks at these: it is left out."""
        with unpacked():
            vectors = self.model.get_input_embeddings()(batch["input_ids"])  # (B, T, D)
            if "pixel_values" in batch and "image_grid_thw" not in batch:
                seen = self.model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
                seen = seen.reshape(len(vectors), -1, vectors.shape[2])  # (B, tokens of the picture, D)
                vectors = torch.cat([seen.to(vectors.dtype), vectors[:, seen.shape[1] :]], 1)
            decoder, masks = self.model.get_decoder(), None
            if "token_type_ids" in batch:  # tokens of one picture see each other both ways, so masks are written out
                mask = torch.ones(vectors.shape[0], 1, *2 * vectors.shape[1:2], dtype=torch.bool, device=self.device)
                masks = {kind: mask.clone() for kind in set(decoder.config.layer_types)}
            found: Tensor = decoder(inputs_embeds=vectors, attention_mask=masks, use_cache=False).last_hidden_state
        return found

    def prepared(self, givens: Sequence[Question]) -> dict[str, Tensor]:
        """The processor's tensors, those by token (B, T) and padded on the left."""
        return self.joined([self.seen(given) for given in givens], [()] * len(givens), left=True)


def targets_of(model: Any) -> dict[str, tuple[str, ...]]:
    """The language model's linear layers by their full names: the vision tower's are called the same, and stay frozen."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    names = [f"{prefix}.{name}" for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)]
    return {kind: tuple(n for n in names if n.rpartition(".")[2] in ends) for kind, ends in TARGETS.items()}
