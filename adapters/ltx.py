"""LTX-Video 2B and 13B, image to video: the picture is the clip's first latent, clean and at time 0.

Two stock pipelines ask this transformer differently, and a checkpoint's model_index.json says which of them is its own (the
option `pipeline` says it against that):

- image     LTX-Video 0.9.0 and 0.9.1 (2B): the latent of number k stands at frame 8 k, times are shifted by the number of
            tokens, the text has 128 tokens;
- condition LTX-Video 0.9.5 and later (13B): the latent stands where its frames begin (0, 1, 9, ...), times fall linearly, then
            quadratically, the text has 256 tokens and T5 does not read the empty ones.

What goes wrong easily, and is right here:

- clips have 8N + 1 frames, sides are multiples of 32 pixels: one latent is 32 x 32 pixels and eight frames;
- the clean first latent is no part of the loss;
- the text's mask goes with its embedding: without it the padding is read as text;
- positions are seconds and pixels, so pipeline and frame rate are conventions, kept in the adapter's metadata;
- VAEs from 0.9.1 on decode with a little noise and are told how much: here it comes from the sample's seed;
- the stock pipelines draw the picture's latents from their posterior, and `condition` blurs them with noise at each step:
  neither is done here, so the picture that is shown is the picture that is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adapters import clips
from adapters.base import Flavour, Lazy, load_errors, sample_generator
from adapters.clips import FlowArm, drawn_anew, known_config, one_of, prompt_values, sketched
from adapters.kept import Values
from tasks.base import UserError

if TYPE_CHECKING:
    import diffusers
    import torch
    from torch import Tensor
else:
    diffusers, torch = Lazy("diffusers"), Lazy("torch")

ARM = "video"
frame = clips.frame
TOKENS = {"image": 128, "condition": 256}  # of the text, by pipeline

_PUBLISHED = {
    "lora.rank": 64,
    "lora.alpha": 64,
    "optim.lr": 2e-4,
    "optim.schedule": "linear",
    "optim.warmup": 0,
    "optim.batch": 4,
    "options.pixels": 480,
    "options.steps": 50,
    "options.shift": 2.1,  # the scheduler's own at 450 tokens: nine frames of 480 x 480
}
FLAVOURS = {
    "tiny": Flavour("tiny", "", "the real class with random weights, for tests", 52_000, False, {"options.steps": 4}),
    "Lightricks/LTX-Video": Flavour(
        "Lightricks/LTX-Video",
        "Lightricks/LTX-Video",
        "the paper's LTX-2B, with its settings",
        1_923_385_472,
        True,
        _PUBLISHED,
    ),
    "Lightricks/LTX-Video-0.9.7-dev": Flavour(
        "Lightricks/LTX-Video-0.9.7-dev",
        "Lightricks/LTX-Video-0.9.7-dev",
        "the paper's LTX-13B, with its settings",
        13_042_569_344,
        True,
        _PUBLISHED,
    ),
}
# The published configs, as far as they differ from the classes' defaults, for a sketch where they were not downloaded. 2B: the
# numbers of diffusers' scripts/convert_ltx_to_diffusers.py. 13B: the transformer's in maxdiffusion's
# models/ltx_video/xora_v1.2-13B-balanced-128.json; its VAE has other layers, and latents of the same shape. "index" is
# model_index.json.
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "Lightricks/LTX-Video": {"index": {"_class_name": "LTXPipeline"}, "transformer": {}, "vae": {}},
    "Lightricks/LTX-Video-0.9.7-dev": {
        "index": {"_class_name": "LTXConditionPipeline"},
        "transformer": {
            "num_attention_heads": 32,
            "attention_head_dim": 128,
            "cross_attention_dim": 4096,
            "num_layers": 48,
        },
        "vae": {},
    },
}
_TINY_VAE: dict[str, Any] = {
    "latent_channels": 8,
    "block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8),
    "layers_per_block": (1,) * 5,
    "decoder_layers_per_block": (1,) * 5,
}
_TINY = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "num_layers": 2,
    "caption_channels": 16,
}
_TINY_TEXT = (1, 4, 16)


@dataclass(frozen=True)
class Options(clips.Options):
    """How the puzzle becomes a clip and a clip becomes an answer. Frames: 8N + 1."""

    style: str = "video-32"  # how a grid is drawn; one cell on one token
    pipeline: str = ""  # how the model is asked: image | condition; "": as the checkpoint's model_index.json says
    frame_rate: int = 25  # frames a second, for the positions
    decode_time: float = 0.05  # how noisy a VAE that wants it is told its latents are
    decode_noise: float = 0.025  # how much noise they get

    every: ClassVar[int] = 8
    model: ClassVar[str] = "LTX-Video"
    stock: ClassVar[str] = (
        "It learned with the picture clean: where the pipeline is LTXConditionPipeline, call it with image_cond_noise_scale=0.0."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.pipeline, ("", *TOKENS))
        if self.frame_rate < 1:
            raise UserError(f"frame_rate = {self.frame_rate}: give at least 1 frame a second.")
        if not (0 <= self.decode_time <= 1 and 0 <= self.decode_noise <= 1):
            raise UserError("decode_time and decode_noise must lie in 0..1.")


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
) -> LTX:
    """Load VAE, transformer and the stored text embedding. `init="random"` draws the transformer anew from `seed` (`draw`) and
    keeps the rest. The VAE stays in fp32."""
    kind = getattr(torch, dtype)
    if not flavour.base:
        return _tiny(options, seed, device, kind)
    base = flavour.base
    with load_errors(base):
        index = diffusers.DiffusionPipeline.load_config(base)
        pipeline = options.pipeline or ("condition" if "Condition" in index["_class_name"] else "image")
        # first, and let go of: the text encoder is larger than the 2B transformer
        prompt = embedding(base, options.prompt, pipeline, dtype, device)
        vae = diffusers.AutoencoderKLLTXVideo.from_pretrained(base, subfolder="vae", use_safetensors=True)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(base, subfolder="scheduler")
        classes = diffusers.LTXVideoTransformer3DModel
        if init == "pretrained":
            transformer = classes.from_pretrained(base, subfolder="transformer", use_safetensors=True, torch_dtype=kind)
        else:
            transformer = _drawn(dict(classes.load_config(base, subfolder="transformer")), seed, kind)
    return LTX(vae.to(device), transformer.to(device), scheduler, prompt, options, pipeline)


def _fitted(scheduler: Any, pipeline: str, steps: int) -> Any:
    """The `condition` pipeline has times of its own and stops at a scheduler that shifts them by the number of tokens: there it
    is taken without a shift. A single step goes from noise to the clip: stretching it to a last time would divide 0 by 0."""
    other: dict[str, Any] = {"shift_terminal": None} if steps == 1 else {}
    if pipeline == "condition" and scheduler.config.use_dynamic_shifting:
        other = {"use_dynamic_shifting": False, "shift_terminal": None}
    return type(scheduler).from_config(scheduler.config, **other) if other else scheduler


def _drawn(config: dict[str, Any], seed: int, kind: torch.dtype) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = draw(diffusers.LTXVideoTransformer3DModel.from_config(config))
    for weight in model.parameters():
        weight.data = weight.data.to(kind)
    return model


def draw(transformer: Any) -> Any:
    """Random weights that a LoRA can work with: every layer keeps the scale of what goes in, every gate is open."""
    drawn_anew(transformer)
    for block in transformer.transformer_blocks:
        block.scale_shift_table.data.zero_()  # (6, D): shift, scale, gate of the attention, then of the mlp
        block.scale_shift_table.data[[2, 5]] = 1.0
    transformer.scale_shift_table.data.zero_()
    return transformer


def embedding(base: str, prompt: str, pipeline: str, dtype: str, device: str) -> Values:
    """The neutral text: `prompt_embeds` (1, tokens, D) and `prompt_mask` (1, tokens), 1 where there is text. In the older
    pipeline T5 itself sees the padding; the transformer never does."""
    tokens = TOKENS[pipeline]

    def computed() -> Values:
        from transformers import AutoTokenizer, T5EncoderModel

        tokenizer = AutoTokenizer.from_pretrained(base, subfolder="tokenizer", trust_remote_code=False)
        encoder = T5EncoderModel.from_pretrained(
            base, subfolder="text_encoder", use_safetensors=True, dtype=getattr(torch, dtype)
        ).to(device)
        asked = tokenizer(prompt, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
        ids, mask = asked.input_ids.to(device), asked.attention_mask.to(device)
        with torch.no_grad():
            found = encoder(ids, attention_mask=mask if pipeline == "condition" else None)[0]
        return {"prompt_embeds": found, "prompt_mask": mask}

    return prompt_values(base, prompt, dtype, device, computed, pipeline, tokens)


def _tiny(options: Options, seed: int, device: str, kind: torch.dtype) -> LTX:
    """The classes of LTX-Video, random, in memory; a fixed random text."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKLLTXVideo(**_TINY_VAE)
        text = {
            "prompt_embeds": torch.randn(*_TINY_TEXT).to(device, kind),
            "prompt_mask": torch.ones(*_TINY_TEXT[:2], dtype=torch.long, device=device),
        }
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
    )
    return LTX(
        vae.to(device), _drawn(_TINY, seed, kind).to(device), scheduler, text, options, options.pipeline or "image"
    )


def sketch(flavour: Flavour, options: Options, dtype: str = "float32") -> LTX:
    """The arm on the meta device: the real classes at true size, no weights, no download."""
    kind, base = getattr(torch, dtype), flavour.base
    classes, codec = diffusers.LTXVideoTransformer3DModel, diffusers.AutoencoderKLLTXVideo
    if base:
        index = known_config(diffusers.DiffusionPipeline, base, "index", PUBLISHED)
        pipeline = options.pipeline or ("condition" if "Condition" in index["_class_name"] else "image")
        transformer = sketched(classes, known_config(classes, base, "transformer", PUBLISHED), kind)
        vae = sketched(codec, known_config(codec, base, "vae", PUBLISHED), torch.float32)
        text = (1, TOKENS[pipeline], transformer.config.caption_channels)
    else:
        pipeline, text = options.pipeline or "image", _TINY_TEXT
        transformer, vae = sketched(classes, _TINY, kind), sketched(codec, _TINY_VAE, torch.float32)
    prompt = {
        "prompt_embeds": torch.empty(*text, dtype=kind, device="meta"),
        "prompt_mask": torch.ones(*text[:2], dtype=torch.long, device="meta"),
    }
    return LTX(vae, transformer, diffusers.FlowMatchEulerDiscreteScheduler(), prompt, options, pipeline)


# ---------------------------------------------------------------------------------------------------------------------
# The arm


class LTX(FlowArm):
    options: Options
    pinned = True
    targets: Mapping[str, Sequence[str]] = {
        "attention": ("to_q", "to_k", "to_v", "to_out.0"),
        "mlp": ("ff.net.0.proj", "ff.net.2"),
    }

    def __init__(
        self, vae: Any, transformer: Any, scheduler: Any, prompt: Values, options: Options, pipeline: str
    ) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.voxels = vae.temporal_compression_ratio * vae.spatial_compression_ratio**2
        self.model = transformer
        self.scheduler = _fitted(scheduler, pipeline, options.steps)
        self.prompt = prompt
        self.options = options
        self.pipeline = pipeline
        self.multiple = vae.spatial_compression_ratio * transformer.config.patch_size
        self.mean = vae.latents_mean.detach().float().view(-1, 1, 1)
        self.deviation = vae.latents_std.detach().float().view(-1, 1, 1) / vae.config.scaling_factor

    def conventions(self) -> dict[str, Any]:
        return {"pipeline": self.pipeline, "frame_rate": self.options.frame_rate, **super().conventions()}

    def velocity(self, noisy: Tensor, told: Mapping[str, Tensor], t: Tensor) -> Tensor:
        inputs = torch.cat([self.scaled(told["image"])[:, None], noisy], 1)
        batch, frames, _, height, width = inputs.shape
        stock, patch = diffusers.LTXConditionPipeline, self.model.config.patch_size
        tokens = stock._pack_latents(inputs.permute(0, 2, 1, 3, 4), patch)  # (B, N, C)
        times = t[:, None].repeat(1, tokens.shape[1])
        times[:, : tokens.shape[1] // frames] = 0.0  # the picture is clean
        kind = self.model.dtype
        predicted = self.model(
            hidden_states=tokens.to(kind),
            encoder_hidden_states=self.prompt["prompt_embeds"].expand(batch, -1, -1).to(self.device, kind),
            timestep=times,
            encoder_attention_mask=self.prompt["prompt_mask"].expand(batch, -1).to(self.device),
            **self.positions(batch, frames, height, width),
            return_dict=False,
        )[0]
        found: Tensor = stock._unpack_latents(predicted.float(), frames, height // patch, width // patch, patch)
        return found.permute(0, 2, 1, 3, 4)[:, 1:]

    def positions(self, batch: int, frames: int, height: int, width: int) -> dict[str, Any]:
        """How the transformer is told where and when each token is, for latents (B, f, C, h, w)."""
        stride, span, rate = self.vae.spatial_compression_ratio, self.options.every, self.options.frame_rate
        patch = self.model.config.patch_size
        if self.pipeline == "image":
            scale = (span / rate, stride, stride)
            sides = {"num_frames": frames, "height": height // patch, "width": width // patch}
            return {**sides, "rope_interpolation_scale": scale}
        stock = diffusers.LTXConditionPipeline
        ids = stock._prepare_video_ids(batch, frames, height, width, patch, 1, self.device)
        places = stock._scale_video_ids(ids, stride, span, 0, self.device).float()  # (B, 3, N): frame, row, column
        places[:, 0] *= 1.0 / rate
        return {"video_coords": places}

    def schedule(self, shape: Sequence[int]) -> None:
        steps = self.options.steps
        if self.pipeline == "condition":
            from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule

            sigmas = linear_quadratic_schedule(steps).numpy()
            # times as they are and sigmas shifted by the scheduler, which is what it makes of times alone, with a warning
            self.scheduler.set_timesteps(sigmas=sigmas, timesteps=sigmas * 1000, device=self.device)
            return
        from diffusers.pipelines.ltx.pipeline_ltx_image2video import calculate_shift

        config, (frames, _, height, width) = self.scheduler.config, shape
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        mu = calculate_shift(frames * height * width, *(config[name] for name in names))
        sigmas = np.linspace(1.0, 1 / steps, steps)
        self.scheduler.set_timesteps(steps, sigmas=sigmas, mu=mu, device=self.device)

    def step(self, velocity: Tensor, t: Tensor, x: Tensor) -> Tensor:
        if self.pipeline == "image":
            return super().step(velocity, t, x)
        flat, times = (len(x), 1, -1), t.expand(len(x), 1)  # to the largest sigma below the time
        out = self.scheduler.step(-velocity.reshape(flat), t, x.reshape(flat), per_token_timesteps=times)
        stepped: Tensor = out.prev_sample.reshape(x.shape)
        return stepped

    # A VAE that is told how noisy its latents are

    def shown(self, z: Tensor, seeds: Sequence[int]) -> np.ndarray:
        if self.vae.config.timestep_conditioning:
            share = self.options.decode_noise
            generators = [sample_generator(~seed) for seed in seeds]  # not the noise that the clip was drawn from
            shape = (z.shape[2], z.shape[1], *z.shape[3:])  # the decoder's order: channels, frames
            noise = torch.stack([torch.randn(shape, generator=g).transpose(0, 1) for g in generators])
            z = (1 - share) * z + share * noise.to(z.device)
        return super().decode(z)

    def decode(self, z: Tensor) -> np.ndarray:
        """As `shown`, for latents that nothing was sampled for: the same noise for all."""
        return self.shown(z, [0] * len(z))

    def drawn(self, z: Tensor) -> Tensor:
        time = z.new_full((len(z),), self.options.decode_time) if self.vae.config.timestep_conditioning else None
        with torch.random.fork_rng(devices=[z.device] if z.device.type == "cuda" else []):
            torch.manual_seed(0)  # some decoders add noise of their own between layers
            video: Tensor = self.vae.decode(z, time).sample
        return video
