"""A text encoder and its vocabulary as CogVideoX and LTX-Video publish them, at tiny size: T5, and a SentencePiece file alone."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
from transformers import T5Config, T5EncoderModel

WORDS = [f"{a}{b} puzzle way {a}" for a in "abcdefghij" for b in "klmnopqrst"]


def leave(folder: Path, width: int = 8, length: int = 226) -> None:
    """`tokenizer/` and `text_encoder/` of a checkpoint; no tokenizer.json, as in the published folders."""
    place = folder / "tokenizer"
    place.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS), model_prefix=str(place / "spiece"), vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, num_threads=1,
    )  # fmt: skip
    (place / "spiece.vocab").unlink()
    says = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": length}
    says |= {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "additional_special_tokens": []}
    (place / "tokenizer_config.json").write_text(json.dumps(says))
    config = T5Config(
        vocab_size=64, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")
