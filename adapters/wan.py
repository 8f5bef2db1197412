"""Wan 2.1 and 2.2, image to video: three ways to tell one kind of transformer what the picture is, read from its own config.

- Wan2.1-I2V-14B: the input is noise (16 channels), a mask of what is given (4) and the latents of the picture followed by
  grey frames (16); the picture's CLIP embedding joins the text in each cross attention;
- Wan2.2-I2V-A14B: the same without CLIP, and two transformers: one for the noisy times, one for those below `boundary_ratio`;
- Wan2.2-TI2V-5B: the picture is the clip's first latent, clean and at time 0, while the others are at theirs.

What goes wrong easily, and is right here:

- clips have 4N + 1 frames: the stock pipeline rounds others with a warning;
- the frames after the picture are grey (0 in -1..1), not black;
- latents are normalised channel by channel; the transformer is told times in 0..1000, as floats in training too;
- the model with a clean first latent learns nothing from that latent;
- each expert has a part in every loss, also where no sample falls to it: processes that share a batch wait for all gradients;
- the LoRA of the second expert lies in its own folder, for `load_lora_weights` reads one file for one transformer.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adapters import clips
from adapters.base import Flavour, Lazy, load_errors
from adapters.clips import FlowArm, drawn_anew, known_config, prompt_embedding, sketched
from adapters.kept import Values, content_of
from tasks.base import UserError

if TYPE_CHECKING:
    import diffusers
    import torch
    from torch import Tensor
else:
    diffusers, torch = Lazy("diffusers"), Lazy("torch")

ARM = "video"
frame = clips.frame
TOKENS = 512  # of the text; where CLIP tokens stand before them, the model takes the last 512 for text
SCHEDULERS = ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler")

_PUBLISHED = {
    "lora.rank": 64,
    "lora.alpha": 32,
    "optim.lr": 1e-4,
    "optim.schedule": "constant",
    "optim.warmup": 0,
    "optim.batch": 1,
    "optim.clip": 0.05,
    "options.pixels": 480,
    "options.steps": 50,
    "options.shift": 3.0,  # the scheduler's
}
FLAVOURS = {
    "tiny": Flavour("tiny", "", "the real class with random weights, for tests", 38_000, False, {"options.steps": 4}),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": Flavour(
        "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        "the paper's Wan, with its settings",
        16_394_878_784,
        True,
        _PUBLISHED,
    ),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": Flavour(
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        "two transformers, for noisy and for clear times",
        2 * 14_288_901_184,
        True,
        _PUBLISHED,
    ),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": Flavour(
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        "the small one, with a VAE of 4 x 16 x 16",
        4_999_787_712,
        True,
        {**_PUBLISHED, "options.style": "video-32", "options.shift": 5.0},
    ),
}
# The published configs, as far as they differ from the classes' defaults, for a sketch where they were not downloaded: the
# numbers of diffusers' scripts/convert_wan_to_diffusers.py. "index" is model_index.json.
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": {
        "index": {},
        "transformer": {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
        "vae": {},
        "image_encoder": {  # ViT-H/14
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "patch_size": 14,
            "image_size": 224,
        },
    },
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": {
        "index": {"boundary_ratio": 0.9},
        "transformer": {"in_channels": 36},
        "transformer_2": {"in_channels": 36},
        "vae": {},
    },
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": {
        "index": {"expand_timesteps": True},
        "transformer": {
            "in_channels": 48,
            "out_channels": 48,
            "num_attention_heads": 24,
            "ffn_dim": 14336,
            "num_layers": 30,
        },
        "vae": {
            "base_dim": 160,
            "decoder_base_dim": 256,
            "z_dim": 48,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
            "latents_mean": [0.0] * 48,  # not the true ones: a sketch has no values
            "latents_std": [1.0] * 48,
        },
    },
}
_TINY_VAE: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
_TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 12,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 64,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}
_TINY_TEXT = (1, 4, 16)


@dataclass(frozen=True)
class Options(clips.Options):
    """How the puzzle becomes a clip and a clip becomes an answer. Frames: 4N + 1."""

    style: str = "video-16"  # how a grid is drawn; one cell on one token (video-32 for TI2V-5B)

    every: ClassVar[int] = 4
    model: ClassVar[str] = "Wan"


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def load(
    flavour: Flavour,
    options: Options,
    *,
    init: str = "pretrained",
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Wan:
    """Load VAE, transformer(s), the CLIP encoder where there is one, and the stored text embedding. `init="random"` draws the
    transformers anew from `seed` (`draw`) and keeps the rest. VAE and CLIP stay in fp32, as the model's card has it."""
    kind = getattr(torch, dtype)
    if not flavour.base:
        return _tiny(options, seed, device, kind)
    base = flavour.base
    with load_errors(base):
        index = diffusers.DiffusionPipeline.load_config(base)
        prompt = embedding(base, options.prompt, dtype, device)  # first: the text encoder is large, and goes again
        vae = diffusers.AutoencoderKLWan.from_pretrained(base, subfolder="vae", use_safetensors=True).to(device)
        names = ["transformer"] + ["transformer_2"] * (index.get("boundary_ratio") is not None)
        models = [_transformer(base, name, init, _seed_of(name, seed), kind).to(device) for name in names]
        scheduler = _scheduler(base)
        clip = _image_encoder(base) if models[0].config.image_dim is not None else None
    expanded = bool(index.get("expand_timesteps", False))
    if models[0].config.in_channels == vae.config.z_dim and not expanded:
        raise UserError(f"'{base}' makes videos from text alone; take an image-to-video checkpoint of Wan.")
    if len(models) == 1:
        return Wan(vae, models[0], scheduler, prompt, options, clip, expanded)
    boundary = index["boundary_ratio"] * scheduler.config.num_train_timesteps
    return WanExperts(vae, models, scheduler, prompt, options, boundary)


def _seed_of(name: str, seed: int) -> int:
    """Which seed an expert is drawn from. The second's has a name in it: a number next to the run's own would be the first's of
    another run."""
    if name == "transformer":
        return seed
    return int.from_bytes(hashlib.sha256(f"wan/{name}/{seed}".encode()).digest()[:7], "big")


def _transformer(base: str, name: str, init: str, seed: int, kind: torch.dtype) -> Any:
    classes = diffusers.WanTransformer3DModel
    if init == "pretrained":
        return classes.from_pretrained(base, subfolder=name, use_safetensors=True, torch_dtype=kind)
    return _drawn(dict(classes.load_config(base, subfolder=name)), seed, kind)


def _drawn(config: dict[str, Any], seed: int, kind: torch.dtype) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = draw(diffusers.WanTransformer3DModel.from_config(config))
    for name, weight in model.named_parameters():
        if not any(part in name for part in model._keep_in_fp32_modules):  # as `from_pretrained` has it
            weight.data = weight.data.to(kind)
    return model


def draw(transformer: Any) -> Any:
    """Random weights that a LoRA can work with: every layer keeps the scale of what goes in, every gate is open."""
    drawn_anew(transformer)
    for block in transformer.blocks:
        block.scale_shift_table.data.zero_()  # (1, 6, D): shift, scale, gate of the attention, then of the mlp
        block.scale_shift_table.data[:, [2, 5]] = 1.0
    transformer.scale_shift_table.data.zero_()
    return transformer


def _scheduler(base: str) -> Any:
    """The checkpoint's own scheduler, of the two kinds that Wan comes with."""
    name = diffusers.UniPCMultistepScheduler.load_config(base, subfolder="scheduler").get("_class_name")
    if name not in SCHEDULERS:
        raise UserError(f"'{base}' has a scheduler of kind {name}; known here: {', '.join(SCHEDULERS)}.")
    return getattr(diffusers, name).from_pretrained(base, subfolder="scheduler")


def embedding(base: str, prompt: str, dtype: str, device: str) -> Tensor:
    """The neutral text's embedding (1, 512, D): UMT5 sees the text alone, and zeros stand where there is none."""

    def computed() -> Tensor:
        from transformers import AutoTokenizer, UMT5EncoderModel

        tokenizer = AutoTokenizer.from_pretrained(base, subfolder="tokenizer", trust_remote_code=False)
        encoder = UMT5EncoderModel.from_pretrained(
            base, subfolder="text_encoder", use_safetensors=True, dtype=getattr(torch, dtype)
        ).to(device)
        asked = tokenizer(prompt, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        ids, mask = asked.input_ids.to(device), asked.attention_mask.to(device)
        with torch.no_grad():
            found: Tensor = encoder(ids, mask).last_hidden_state
        return found.masked_fill(mask[:, :, None] == 0, 0.0)

    return prompt_embedding(base, prompt, dtype, device, computed, TOKENS)


def _image_encoder(base: str) -> tuple[Any, Any]:
    """CLIP and what prepares its pictures."""
    from transformers import CLIPImageProcessor, CLIPVisionModel

    processor = CLIPImageProcessor.from_pretrained(base, subfolder="image_processor")
    # fp32, however it is stored
    encoder = CLIPVisionModel.from_pretrained(
        base, subfolder="image_encoder", use_safetensors=True, dtype=torch.float32
    )
    return processor, encoder.eval().requires_grad_(False)


def _tiny(options: Options, seed: int, device: str, kind: torch.dtype) -> Wan:
    """The classes of Wan2.2-I2V with one transformer, random, in memory; a fixed random text."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKLWan(**_TINY_VAE)
        prompt = torch.randn(*_TINY_TEXT).to(device, kind)
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return Wan(vae.to(device), _drawn(_TINY, seed, kind).to(device), scheduler, prompt, options)


def sketch(flavour: Flavour, options: Options, dtype: str = "float32") -> Wan:
    """The arm on the meta device: the real classes at true size, no weights, no download."""
    kind, base = getattr(torch, dtype), flavour.base
    classes, codec = diffusers.WanTransformer3DModel, diffusers.AutoencoderKLWan
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    if not base:
        prompt = torch.empty(*_TINY_TEXT, dtype=kind, device="meta")
        vae = sketched(codec, _TINY_VAE, torch.float32)
        return Wan(vae, sketched(classes, _TINY, kind), scheduler, prompt, options)
    index = known_config(diffusers.DiffusionPipeline, base, "index", PUBLISHED)
    names = ["transformer"] + ["transformer_2"] * (index.get("boundary_ratio") is not None)
    models = [sketched(classes, known_config(classes, base, name, PUBLISHED), kind) for name in names]
    vae = sketched(codec, known_config(codec, base, "vae", PUBLISHED), torch.float32)
    prompt = torch.empty(1, TOKENS, models[0].config.text_dim, dtype=kind, device="meta")
    if len(models) > 1:
        boundary = index["boundary_ratio"] * scheduler.config.num_train_timesteps
        return WanExperts(vae, models, scheduler, prompt, options, boundary)
    clip = _sketched_clip(base) if models[0].config.image_dim is not None else None
    return Wan(vae, models[0], scheduler, prompt, options, clip, bool(index.get("expand_timesteps", False)))


def _sketched_clip(base: str) -> tuple[Any, Any]:
    """CLIP on the meta device, and what prepares its pictures: these all come out at one size."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    try:
        config = CLIPVisionConfig.from_pretrained(base, subfolder="image_encoder", local_files_only=True)
    except (OSError, ValueError) as error:
        if base not in PUBLISHED:
            raise UserError(f"'{base}': get the config of its image_encoder first: hf download {base}") from error
        config = CLIPVisionConfig(**PUBLISHED[base]["image_encoder"])
    with torch.device("meta"):
        encoder = CLIPVisionModel(config)
    return CLIPImageProcessor(), encoder.eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------------
# Arms


class Wan(FlowArm):
    """`clip`: the processor and the encoder of the picture's CLIP embedding. `expanded`: each token has its own time, and the
    picture is the clip's first latent."""

    options: Options
    # a picture's CLIP tokens have keys and values of their own, which are attention as much as the text's
    targets: Mapping[str, Sequence[str]] = {
        "attention": ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"),
        "mlp": ("ffn.net.0.proj", "ffn.net.2"),
    }

    def __init__(
        self,
        vae: Any,
        transformer: Any,
        scheduler: Any,
        prompt: Tensor,
        options: Options,
        clip: tuple[Any, Any] | None = None,
        expanded: bool = False,
    ) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.model = transformer
        self.scheduler = scheduler
        self.prompt = prompt
        self.options = options
        self.clip = clip
        self.pinned = expanded
        self.multiple = vae.config.scale_factor_spatial * self.config.patch_size[1]
        self.voxels = vae.config.scale_factor_temporal * vae.config.scale_factor_spatial**2
        self.mean = torch.tensor(vae.config.latents_mean).view(-1, 1, 1)
        self.deviation = torch.tensor(vae.config.latents_std).view(-1, 1, 1)

    @property
    def config(self) -> Any:
        """The transformer's."""
        return self.model.config

    def condition(self, pictures: np.ndarray) -> Values:
        """From uint8 (B, H, W, 3): `image` (B, C, h, w), the picture's raw latents; where they are channels of the input also
        `after` (B, f - 1, C, h, w), of the grey frames behind it; with CLIP, `clip` (B, tokens, D)."""
        if self.pinned:
            return {"image": self.encode(pictures[:, None])[:, 0]}
        picture = self.as_video(pictures[:, None])
        frames = 1 if self.options.transition == "image" else self.options.frames
        grey = torch.zeros_like(picture).repeat(1, 1, frames - 1, 1, 1)
        z = self.encode_video(torch.cat([picture, grey], 2))[0]
        told = {"image": z[:, 0], "after": z[:, 1:]}
        return told if self.clip is None else {**told, "clip": self.seen(pictures)}

    def seen(self, pictures: np.ndarray) -> Tensor:
        """CLIP's embedding of uint8 (B, H, W, 3): the last layer but one (B, tokens, D), fp32."""
        from PIL import Image

        assert self.clip is not None
        processor, encoder = self.clip
        asked = processor(images=[Image.fromarray(p) for p in pictures], return_tensors="pt").to(self.device)
        with torch.no_grad():
            found: Tensor = encoder.to(self.device)(**asked, output_hidden_states=True).hidden_states[-2]
        return found

    def codec_key(self) -> object:
        return "" if self.clip is None else (content_of(self.clip[1].state_dict()), repr(self.clip[0]))

    def rest(self) -> None:
        if self.clip is not None and self.device.type == "cuda":
            self.clip[1].to("cpu")
        super().rest()  # which hands back the memory of both

    def velocity(self, noisy: Tensor, told: Mapping[str, Tensor], t: Tensor) -> Tensor:
        return self.asked(self.model, noisy, told, t)

    def asked(self, model: Any, noisy: Tensor, told: Mapping[str, Tensor], t: Tensor) -> Tensor:
        """A transformer's velocity (B, f, C, h, w) of the free latents at times t (B,), fp32."""
        picture = self.scaled(told["image"])[:, None]
        if self.pinned:
            inputs = torch.cat([picture, noisy], 1)
            _, p, q = model.config.patch_size
            frames, h, w = inputs.shape[1], inputs.shape[3] // p, inputs.shape[4] // q
            times = t[:, None].repeat(1, frames * h * w)
            times[:, : h * w] = 0.0  # the picture is clean
        else:
            mask = noisy.new_zeros(*noisy.shape[:2], self.vae.config.scale_factor_temporal, *noisy.shape[3:])
            mask[:, 0] = 1.0  # of a latent's frames, those that are given
            given = torch.cat([picture, self.scaled(told["after"])], 1)
            inputs, times = torch.cat([noisy, mask, given], 2), t
        kind = model.dtype
        predicted = model(
            hidden_states=inputs.permute(0, 2, 1, 3, 4).to(kind),
            timestep=times,
            encoder_hidden_states=self.prompt.expand(len(noisy), -1, -1).to(noisy.device, kind),
            encoder_hidden_states_image=told["clip"].to(kind) if self.clip is not None else None,
            return_dict=False,
        )[0]
        found: Tensor = predicted.float().permute(0, 2, 1, 3, 4)
        return found[:, 1:] if self.pinned else found


class WanExperts(Wan):
    """Two transformers, `transformer` for times from `boundary` up and `transformer_2` for those below, each with its LoRA."""

    idle_samples = 1  # see `idle`

    def __init__(
        self, vae: Any, models: Sequence[Any], scheduler: Any, prompt: Tensor, options: Options, boundary: float
    ) -> None:
        both = torch.nn.ModuleDict({"transformer": models[0], "transformer_2": models[1]})
        super().__init__(vae, both, scheduler, prompt, options)
        self.boundary = boundary

    @property
    def config(self) -> Any:
        return self.model["transformer"].config  # type: ignore[index]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def velocity(self, noisy: Tensor, told: Mapping[str, Tensor], t: Tensor) -> Tensor:
        if noisy.is_meta:  # a sketch has no times to look at; whichever of the two is asked, the work is the same
            return self.asked(self.model["transformer"], noisy, told, t)  # type: ignore[index]
        high = t >= self.boundary
        found = torch.zeros_like(noisy)
        for name, chosen in (("transformer", high), ("transformer_2", ~high)):
            model = self.model[name]  # type: ignore[index]
            if chosen.any():
                part = {key: value[chosen] for key, value in told.items() if key in ("image", "after")}
                found = found.index_put((chosen,), self.asked(model, noisy[chosen], part, t[chosen]))
            elif torch.is_grad_enabled():
                found = found + 0 * self.idle(model, noisy[:1], {key: v[:1] for key, v in told.items()}, t[:1])
        return found

    def idle(self, model: Any, noisy: Tensor, told: Mapping[str, Tensor], t: Tensor) -> Tensor:
        """A scalar that depends on all that learns in a transformer. Sharded weights are fetched block by block by all processes
        together, so there it has to do its work."""
        weights = [p for p in model.parameters() if p.requires_grad]
        if any(hasattr(p, "full_tensor") for p in weights):
            return self.asked(model, noisy, told, t).sum()
        return torch.stack([p.float().sum() for p in weights]).sum() if weights else noisy.new_zeros(())

    def save(
        self, folder: Path, metadata: Mapping[str, Any] | None = None, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """In the folder itself the first transformer's LoRA; in its `transformer_2` the second's, which a stock pipeline reads
        with `load_lora_weights(folder / "transformer_2", load_into_transformer_2=True)`."""
        whole = dict(weights or self.weights())
        for name, where in self.places(folder):
            own = {k.removeprefix(f"{name}."): v for k, v in whole.items() if k.startswith(f"{name}.")}
            super(WanExperts, self._alone(name)).save(where, metadata, own)

    def restore(self, folder: Path) -> None:
        for name, where in self.places(folder):
            super(WanExperts, self._alone(name)).restore(where)

    def places(self, folder: Path) -> list[tuple[str, Path]]:
        return [("transformer", folder), ("transformer_2", folder / "transformer_2")]

    def _alone(self, name: str) -> WanExperts:
        """This arm with one of its transformers, for what is said of a single model."""
        one = copy.copy(self)
        one.model = self.model[name]  # type: ignore[index]
        one.model.peft_config = self.model.peft_config  # type: ignore[assignment]
        return one
