"""Vision-language models: real classes at tiny size, the published layout of two kinds, the picture as a question."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import tasks
from adapters import pictures, vlm
from adapters.base import Flavour, Lora, flavour
from adapters.language import IGNORED
from adapters.vlm import Options, Question
from tasks.base import UserError
from tasks.text import write
from vdmreason import config

TINY = vlm.FLAVOURS["tiny"]
KINDS = ("gemma3", "qwen3_vl")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def examples(n: int, seed: int = 0):
    return tasks.examples("life/B3S23", "train", n, seed)


def turned(n: int = 2):
    """Small puzzles of different size, mirrored."""
    rng = np.random.default_rng(0)
    made = [replace(e, question=rng.integers(0, 4, (2, 2 + i)).astype(np.int8)) for i, e in enumerate(examples(n))]
    return [replace(e, answer=e.question[:, ::-1].copy(), canvas=(8, 8), frames=()) for e in made]


def tiny(shown: str = "both", lora: bool = True, seed: int = 0, **options):
    arm = vlm.load(TINY, Options(**{"shown": shown, "style": "video-8", **options}), seed=seed)
    if lora:
        arm.attach(Lora(), seed)
    return arm


def qwen(patch: int = 8, least: int = 256):
    """(processor, config) of a Qwen3-VL at tiny size: a token for 2 x 2 patches, pictures of `least` pixels at their own size."""
    import transformers
    from transformers.utils import is_torchvision_available

    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    names |= {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(vlm.ZOO, extra_special_tokens=names)
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    whole = is_torchvision_available()
    kind = transformers.Qwen3VLProcessor if whole else vlm.pictures_only(transformers.Qwen3VLProcessor)
    processor = kind(
        image_processor=transformers.Qwen2VLImageProcessorPil(
            patch_size=patch, merge_size=2, temporal_patch_size=2, size={"shortest_edge": least, "longest_edge": 2**20}
        ),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor() if whole else None,
        chat_template=vlm._TEMPLATE.replace("<start_of_image>", image),
    )
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    settings = transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rope_parameters": rope,
            "initializer_range": 0.25,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
        tie_word_embeddings=True,
    )
    return processor, settings


def published(folder, kind: str):
    """A checkpoint in the published layout at tiny size: processor, chat template, config, safetensors in shards."""
    from transformers import GenerationConfig

    processor, settings = vlm.tiny() if kind == "gemma3" else qwen()
    model = vlm.drawn(settings, 1, torch.float32)
    # as published ones have it: sampling, and a penalty that would spoil a grid
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, repetition_penalty=3.0, eos_token_id=[2]
    )
    model.save_pretrained(folder, max_shard_size="200KB")
    processor.save_pretrained(folder)
    return Flavour(str(folder), str(folder), "", published=True), model


def fit(arm, samples, updates: int, lr: float = 2e-2) -> float:
    optimizer = torch.optim.Adam(list(arm.trainable().values()), lr=lr)
    batch = arm.collate(samples, [0] * len(samples))
    for _ in range(updates):
        loss = arm.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


# What is asked


@pytest.mark.parametrize("shown", vlm.SHOWN)
def test_given_does_not_know_the_answer_nor_its_size(shown):
    options = Options(shown=shown)
    example = examples(1)[0]
    given = vlm.frame(example, options).given
    other = replace(example, answer=np.full((3, 2), 9, np.int8), frames=())
    again, wanted = vlm.frame(other, options).given, vlm.frame(other, options).wanted
    assert (given.text, given.canvas) == (again.text, again.canvas) and wanted == write(other.answer)
    assert given.text == ("" if shown == "image" else write(example.question))
    if shown == "text":
        assert given.picture is None
    else:
        assert np.array_equal(given.picture, again.picture)
        assert np.array_equal(given.picture, pictures.question(example, options).picture)


def test_only_what_is_shown_reaches_the_processor(monkeypatch):
    example = examples(1)[0]
    numbers = write(example.question)
    for shown in vlm.SHOWN:
        arm = tiny(shown, lora=False)
        asked = []
        call = type(arm.processor).__call__

        def spy(self, *args, asked=asked, call=call, **kwargs):
            asked.append(kwargs)
            return call(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(type(arm.processor), "__call__", spy)
            sample = arm.frame(example)
            batch, prepared = arm.collate([sample], [0]), arm.prepared([sample.given])
        assert len(asked) == 2
        for kwargs in asked:
            assert ("images" in kwargs) == (shown != "text") and (numbers in kwargs["text"][0]) == (shown != "image")
        assert ("pixel_values" in batch) == ("pixel_values" in prepared) == (shown != "text")
        assert (arm.tokenizer.image_token_id in batch["input_ids"]) == (shown != "text")
        assert not any(word in arm.prompt(sample.given).lower() for word in ("life", "cell", "maze", "puzzle", "grid"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shown", vlm.SHOWN)
def test_labels_are_the_answers_tokens_only(tmp_path, kind, shown):
    found, _ = published(tmp_path, kind)
    arm = vlm.load(found, Options(shown=shown))
    samples = [arm.frame(e) for e in turned()]
    batch = arm.collate(samples, [0, 0])
    for sample, ids, labels in zip(samples, batch["input_ids"], batch["labels"], strict=True):
        learned = labels != IGNORED
        assert labels[learned].equal(ids[learned])
        assert arm.tokenizer.decode(ids[learned]) == sample.wanted + arm.tokenizer.eos_token
        first = int(learned.nonzero()[0])
        assert ids[:first].equal(arm.seen(sample.given)["input_ids"][0])  # nothing learned, and nothing of the answer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shown", vlm.SHOWN)
def test_loss_is_the_mean_of_the_samples_means_by_the_models_own_forward(tmp_path, kind, shown):
    found, _ = published(tmp_path, kind)
    arm = vlm.load(found, Options(shown=shown, style="video-8", loss_chunk=5))
    samples = [arm.frame(e) for e in [*turned(), *tasks.examples("maze/7x7", "train", 1)]]
    by_hand = []
    for sample in samples:
        batch = arm.collate([sample], [0])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = arm.model(**batch).logits[0, :-1]
        by_hand.append(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED).item())
        assert arm.loss(arm.collate([sample], [0])).item() == pytest.approx(by_hand[-1], abs=1e-5)
    assert arm.loss(arm.collate(samples, [0] * 3)).item() == pytest.approx(np.mean(by_hand), abs=1e-5)


def test_codec_writes_and_reads_back():
    arm = tiny("image", lora=False)
    grids = [np.full((30, 30), 15, np.int8), np.arange(16, dtype=np.int8).reshape(4, 4)]
    samples = [replace(arm.frame(examples(1)[0]), wanted=write(grid)) for grid in grids]
    for grid, answer in zip(grids, arm.codec(samples), strict=True):
        assert np.array_equal(answer.grid, grid) and not answer.problem


# Training and answering


@pytest.mark.parametrize("shown", vlm.SHOWN)
def test_one_batch_is_overfitted_and_answered_exactly(shown):
    arm = tiny(shown)
    made = turned()
    samples = [arm.frame(e) for e in made]
    frozen = {name: p.clone() for name, p in arm.model.named_parameters() if not p.requires_grad}
    assert fit(arm, samples, 90) < 0.05
    for answer, example in zip(arm.predict([s.given for s in samples], [0, 0]), made, strict=True):
        assert answer.raw == write(example.answer) and np.array_equal(answer.grid, example.answer)
    now = dict(arm.model.named_parameters())
    assert all(now[name].equal(weight) for name, weight in frozen.items())
    if shown == "image":  # it is the picture that was learned from: the other picture gets the other answer
        pictured = [replace(samples[0].given, picture=samples[1].given.picture)]
        assert arm.predict(pictured, [0])[0].raw == write(made[1].answer)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_lies_on_the_language_model_alone(tmp_path, kind):
    found, _ = published(tmp_path, kind)
    arm = vlm.load(found, Options(style="video-8"))
    tower = {n for n, m in arm.model.named_modules() if isinstance(m, torch.nn.Linear) and "language_model" not in n}
    assert any("vision" in name or "visual" in name for name in tower)
    arm.attach(Lora(rank=2, alpha=2))
    layers = {name.split(".lora_")[0] for name in arm.trainable()}
    assert len(layers) == 2 * 7 and all(".language_model.layers." in name for name in layers)
    arm.loss(arm.collate([arm.frame(e) for e in turned()], [0, 0])).backward()
    for name, weight in arm.model.named_parameters():
        assert (weight.grad is not None) == ("lora_" in name), name
    attention = vlm.load(found, Options())
    attention.attach(Lora(rank=2, alpha=2, targets=("attention",)))
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in attention.trainable()} == set(vlm.TARGETS["attention"])


@pytest.mark.parametrize("kind", KINDS)
def test_answers_do_not_depend_on_the_batch_and_follow_their_seeds(tmp_path, kind):
    """Rows of different length, padded on the left, with pictures of different size."""
    found, _ = published(tmp_path, kind)
    arm = vlm.load(found, Options(style="video-8", max_new_tokens=8, temperature=8.0, batch=3))
    givens = [arm.frame(e).given for e in [*turned(), *tasks.examples("maze/7x7", "train", 1)]]
    together = [a.raw for a in arm.predict(givens, [1, 2, 3])]
    assert together == [arm.predict([g], [s])[0].raw for s, g in enumerate(givens, 1)]
    assert len(set(together)) == 3


def test_generation_does_not_change_the_loss(tmp_path):
    """Qwen keeps the shift of its positions from one call to the next."""
    found, _ = published(tmp_path, "qwen3_vl")
    for shown in vlm.SHOWN:
        arm = vlm.load(found, Options(shown=shown, style="video-8", max_new_tokens=4))
        samples = [arm.frame(e) for e in turned()]
        before = arm.loss(arm.collate(samples, [0, 0])).item()
        arm.predict([samples[0].given], [0])
        assert arm.loss(arm.collate(samples, [0, 0])).item() == before


def test_constrained_answers_always_parse():
    arm = tiny("image", constrained=True, temperature=5.0, top_k=5)
    givens = [arm.frame(replace(e, canvas=canvas)).given for e, canvas in zip(turned(), ((2, 3), (4, 3)), strict=True)]
    for answer, given in zip(arm.predict(givens, [0, 1]), givens, strict=True):
        assert answer.grid is not None and all(np.array(answer.grid.shape) <= given.canvas)


# Checkpoints and adapters


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_layout_loads_through_the_same_code(tmp_path, kind):
    found, model = published(tmp_path, kind)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert flavour(vlm, str(tmp_path)).base == str(tmp_path)
    arm = vlm.load(found, Options(style="video-8", max_new_tokens=8))
    weights, loaded = model.state_dict(), arm.model.state_dict()
    assert weights.keys() == loaded.keys() and all(loaded[k].equal(weights[k]) for k in weights)
    assert arm.model.generation_config.repetition_penalty in (None, 1.0) and not arm.model.generation_config.do_sample
    arm.attach(Lora(rank=2, alpha=2))
    samples = [arm.frame(e) for e in turned()]
    before = arm.loss(arm.collate(samples, [0, 0])).item()
    assert fit(arm, samples, 10, 1e-2) < before
    assert arm.predict([samples[0].given], [0])[0].raw == arm.predict([samples[0].given], [5])[0].raw


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_comes_back_and_peft_can_read_it(tmp_path, kind):
    from peft import PeftModel

    found, _ = published(tmp_path / "model", kind)
    options = Options(style="video-8", max_new_tokens=12)
    arm = vlm.load(found, options)
    arm.attach(Lora(rank=4, alpha=4))
    samples = [arm.frame(e) for e in turned()]
    fit(arm, samples, 20)
    arm.save(tmp_path / "adapter")
    texts = [a.raw for a in arm.predict([s.given for s in samples], [0, 0])]

    again = vlm.load(found, options)
    again.attach(Lora(rank=4, alpha=4), seed=9)
    assert [a.raw for a in again.predict([s.given for s in samples], [0, 0])] != texts
    again.restore(tmp_path / "adapter")
    assert [a.raw for a in again.predict([s.given for s in samples], [0, 0])] == texts

    inputs = {name: value for name, value in arm.collate(samples, [0, 0]).items() if name != "labels"}
    base = vlm.load(found, options).model
    with torch.no_grad():
        ours = arm.model(**inputs).logits
        theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()(**inputs).logits
    assert (ours - theirs).abs().max() < 1e-5

    other = vlm.load(found, replace(options, shown="text"))
    other.attach(Lora(rank=4, alpha=4))
    with pytest.raises(UserError, match="shown"):
        other.restore(tmp_path / "adapter")


@pytest.mark.parametrize("kind", KINDS)
def test_random_init_keeps_config_and_processor_follows_the_seed_and_is_not_blind(tmp_path, kind):
    found, model = published(tmp_path, kind)
    arms = [vlm.load(found, Options(shown="image", style="video-8"), init="random", seed=s) for s in (3, 3, 4)]
    one, two, other = (arm.model.state_dict() for arm in arms)
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert all(one[k].equal(two[k]) for k in one)
    matrices = [k for k, v in one.items() if v.ndim == 2]
    assert not any(one[k].equal(other[k]) or one[k].equal(model.state_dict()[k]) for k in matrices)
    samples = [arms[0].frame(e) for e in turned()]
    batch = arms[0].collate([samples[0]], [0])
    swapped = arms[0].collate([replace(samples[0], given=samples[1].given)], [0])
    assert arms[0].loss(batch).item() != pytest.approx(arms[0].loss(swapped).item(), abs=1e-4)


def test_published_models_learn_and_answer_as_the_papers_language_models():
    for name in ("google/gemma-3-4b-it", "Qwen/Qwen3-VL-4B-Instruct"):
        run = config.resolve({"task": "maze/7x7", "n": 30, "family": "vlm", "flavour": name})
        llm = config.resolve({"task": "maze/7x7", "n": 30, "family": "causal_lm", "flavour": "Qwen/Qwen3-8B"})
        assert (run.lora, run.optim) == (llm.lora, llm.optim)
        for key in ("temperature", "top_p", "top_k", "max_new_tokens"):
            assert getattr(run.arm_options(), key) == getattr(llm.arm_options(), key)


def test_the_tiny_model_is_as_large_as_it_says():
    assert sum(p.numel() for p in tiny(lora=False).model.parameters()) == TINY.parameters


def test_published_parameter_counts():
    """At the published numbers, on the meta device."""
    assert set(vlm.PUBLISHED) == {name for name, found in vlm.FLAVOURS.items() if found.published}
    for name in vlm.PUBLISHED:
        arm = vlm.sketch(vlm.FLAVOURS[name], Options(), "bfloat16")
        assert sum(p.numel() for p in arm.model.parameters()) == vlm.FLAVOURS[name].parameters


def test_a_stand_in_gives_a_picture_as_many_tokens():
    """Gemma: 256 whatever the picture; Qwen: one for 32 x 32 pixels."""
    picture = np.zeros((320, 448, 3), np.uint8)
    for name, tokens in (("google/gemma-3-4b-it", 256), ("Qwen/Qwen3-VL-4B-Instruct", 10 * 14)):
        arm = vlm.sketch(vlm.FLAVOURS[name], Options(shown="image"), "bfloat16")
        shown = arm.seen(vlm.Question("", picture, (7, 7)))["input_ids"][0].tolist()
        assert shown.count(arm.tokenizer.image_token_id) == tokens


@pytest.mark.parametrize("side", [4, 7])
def test_a_cell_is_a_token_also_in_a_small_puzzle(tmp_path, side):
    """With Qwen3-VL's published settings, which would enlarge it to 8 x 8 tokens, and with the stand-in."""
    name = "Qwen/Qwen3-VL-4B-Instruct"
    own, _ = qwen(patch=16, least=256 * 256)
    own.save_pretrained(tmp_path)
    loaded = vlm.processor_of(str(tmp_path), vlm.known_config(name, vlm.PUBLISHED))
    assert loaded.image_processor.size["longest_edge"] == own.image_processor.size["longest_edge"]
    example = replace(examples(1)[0], question=np.ones((side, side), np.int8), canvas=(side, side))
    options = Options(shown="image", style=vlm.FLAVOURS[name].defaults["options.style"])
    picture = vlm.frame(example, options).given.picture
    for processor, tokens in ((loaded, side), (vlm.qwen_processor(16, 2), side), (own, 8)):
        seen = processor(text=["<|image_pad|>"], images=[picture], return_tensors="np")
        assert (seen["image_grid_thw"][0] // [1, 2, 2]).tolist() == [1, tokens, tokens]
        assert (seen["input_ids"] == processor.tokenizer.image_token_id).sum() == tokens**2


def test_the_prompt_is_the_same_on_every_day():
    arm = tiny(lora=False)
    given, plain = Question("[[1]]", None, (1, 1)), arm.template
    arm.processor.chat_template = "{{ strftime_now('%d %B %Y') }}\n" + plain
    dated = vlm.VLM(arm.model, arm.processor, arm.options)
    assert dated.prompt(given) == "26 July 2024\n" + arm.prompt(given)


# What a person can mend


def test_a_hub_id_without_network_is_one_line(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("google/gemma-3-4b-it", "Qwen/Qwen3-VL-4B-Instruct"):
        with pytest.raises(UserError, match="hf download") as error:
            vlm.load(flavour(vlm, name), Options())
        assert "\n" not in str(error.value)


def test_truncated_weights_are_one_line(tmp_path):
    found, _ = published(tmp_path, "gemma3")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged or cut off") as error:
        vlm.load(found, Options())
    assert "\n" not in str(error.value)


def test_a_model_that_cannot_see_or_has_no_template_is_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        vlm.load(Flavour("text", str(vlm.ZOO), "", published=True), Options())
    assert "\n" not in str(error.value)
    found, _ = published(tmp_path, "gemma3")
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="chat template") as error:
        vlm.load(found, Options())
    assert "\n" not in str(error.value)


def test_wrong_options_are_refused_with_a_suggestion():
    with pytest.raises(UserError, match="Did you mean 'image'"):
        Options(shown="imgae")
    with pytest.raises(UserError, match="Did you mean 'video-16'"):
        Options(style="vidoe-16")
    with pytest.raises(UserError, match="top_p"):
        Options(top_p=2.0)
    with pytest.raises(UserError, match="Did you mean"):
        flavour(vlm, "tinny")
