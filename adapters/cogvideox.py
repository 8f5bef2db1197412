"""CogVideoX 1.5 and 1.0, image to video: the puzzle is a picture, the answer is the last frame of a short video.

Training and sampling share one function each for padding, the condition's scale, the ofs input and the rotary positions,
and both read the model's own config, so 1.0 and 1.5 are one file. What has gone wrong elsewhere, and is right here:

- clips have 8N + 1 frames: others decode to another length than they were encoded from;
- latents are padded to the temporal patch at the front, by repeating the first, and the padding is dropped after sampling;
- the condition is encoded from the single frame: in the clip's own latents the first frame has already seen the answer;
- the scale of the condition is one function with a named convention, kept in the adapter's metadata;
- noise, target and loss are fp32: in bf16 the first timesteps add no noise at all;
- the text embedding is computed once and stored; T5 is never in memory while training;
- version 1.0 has the positions that it learned, also in clips shorter than its 49 frames, where diffusers puts sines.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adapters import clips
from adapters.base import Cancelled, Flavour, Lazy, Sample, Watch, load_errors, sample_generator
from adapters.clips import ClipArm, drawn_anew, known_config, one_of, prompt_embedding, sketched
from tasks.base import UserError
from tasks.render import STYLES

if TYPE_CHECKING:
    import diffusers
    import torch
    from torch import Tensor
else:
    diffusers, torch = Lazy("diffusers"), Lazy("torch")

ARM = "video"
frame = clips.frame
ZOO = Path(__file__).resolve().parents[1] / "pretrain" / "zoo" / "cogvideox"
LEARNED = 49  # frames that version 1.0 has learned positions for

_SMALL = {"optim.lr": 6e-3, "optim.schedule": "cosine", "options.steps": 4, "options.shift": 8.0}
# The paper's protocol (Table 5), with the layers that it names. What it does not say, such as steps, is the model card's.
_PUBLISHED = {
    "lora.rank": 64,
    "lora.alpha": 32,
    "lora.targets": ("attention",),
    "optim.lr": 1e-4,
    "optim.schedule": "constant",
    "optim.warmup": 0,
    "optim.batch": 2,
    "options.style": "video-16",
    "options.pixels": 480,
    "options.steps": 50,
    "options.condition": "sat",
}
FLAVOURS = {
    "small": Flavour(
        "small", str(ZOO), "ships with the project; pretrained by us on procedural video", 3_700_000, False, _SMALL
    ),
    "tiny": Flavour("tiny", "", "the real class with random weights, for tests", 60_000, False, _SMALL),
    "THUDM/CogVideoX1.5-5B-I2V": Flavour(
        "THUDM/CogVideoX1.5-5B-I2V",
        "THUDM/CogVideoX1.5-5B-I2V",
        "the paper's video model",
        5_571_600_000,
        True,
        _PUBLISHED,
    ),
    "THUDM/CogVideoX-5B-I2V": Flavour(
        "THUDM/CogVideoX-5B-I2V",
        "THUDM/CogVideoX-5B-I2V",
        "version 1.0; its learned positions take pictures of 480 x 720 only",
        5_570_000_000,
        True,
        {**_PUBLISHED, "options.pixels": 0, "options.canvas": (30, 45), "options.condition": "diffusers"},
    ),
}
# The published configs, as far as they differ from the class's defaults, for a sketch where they were not downloaded.
_5B = {
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "in_channels": 32,
    "out_channels": 16,
    "num_layers": 42,
    "use_rotary_positional_embeddings": True,
}
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "THUDM/CogVideoX1.5-5B-I2V": {
        "transformer": {
            **_5B,
            "ofs_embed_dim": 512,
            "sample_width": 300,
            "sample_height": 300,
            "sample_frames": 81,
            "patch_size_t": 2,
            "patch_bias": False,
        },
        "vae": {"scaling_factor": 0.7, "invert_scale_latents": True},
    },
    "THUDM/CogVideoX-5B-I2V": {
        "transformer": {**_5B, "use_learned_positional_embeddings": True},
        "vae": {"scaling_factor": 0.7},
    },
}
_TINY = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "time_embed_dim": 16,
    "ofs_embed_dim": 16,
}


@dataclass(frozen=True)
class Options(clips.Options):
    """How the puzzle becomes a clip and a clip becomes an answer. Frames: 8N + 1; steps: a divisor of 1000."""

    condition: str = "diffusers"  # the condition's latent scale: diffusers | sat | scaled (see `condition_latents`)

    model: ClassVar[str] = "CogVideoX"

    @property
    def stock(self) -> str:  # type: ignore[override]
        said = []
        if self.condition != "diffusers":
            said.append(
                f"It learned with the picture's latents scaled as `options.condition={self.condition}` says, a stock pipeline "
                "scales them as `diffusers` does, and so asks it off-condition. For a stock pipeline train with "
                "options.condition=diffusers."
            )
        pixels = [side * STYLES[self.style].cell for side in self.canvas or ()]
        old = pixels == [480, 720]  # the one size of version 1.0
        if old and (self.frames < LEARNED or self.transition == "image"):
            said.append(
                f"It learned with the backbone's own positions of the first frames; at any number of frames but {LEARNED} a "
                "stock pipeline puts sines in the place of positions that a backbone learned, as those of version 1.0 are."
            )
        return " ".join(said)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.condition, ("diffusers", "sat", "scaled"))
        if 1000 % self.steps:
            raise UserError(f"steps = {self.steps}: give a divisor of 1000, such as 4, 8, 10, 20, 25, 50.")


def load(
    flavour: Flavour,
    options: Options,
    *,
    init: str = "pretrained",
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> CogVideoX:
    """Load VAE, transformer and the stored text embedding. `init="random"` draws the transformer anew from `seed`
    (`draw`) and keeps the VAE, as the language arm keeps its tokenizer: the codec is not what is compared."""
    kind = getattr(torch, dtype)
    base = flavour.base or str(ZOO)
    classes = diffusers.CogVideoXTransformer3DModel
    with load_errors(base):
        config = dict(classes.load_config(base, subfolder="transformer"))
        if config["in_channels"] != 2 * config["out_channels"]:  # the picture's latents come beside the noisy ones
            raise UserError(
                f"'{base}' draws from text alone and is shown no picture. Take one of its kind that continues a picture (I2V)."
            )
        # first, and let go of, before anything else is in memory: the text encoder is as large as the transformer
        prompt = embedding(base, options.prompt, config["max_text_seq_length"], dtype, device)
        vae = diffusers.AutoencoderKLCogVideoX.from_pretrained(
            base, subfolder="vae", use_safetensors=True, torch_dtype=kind
        )
        scheduler = diffusers.CogVideoXDDIMScheduler.from_pretrained(base, subfolder="scheduler")
        if flavour.base and init == "pretrained":
            transformer = classes.from_pretrained(base, subfolder="transformer", use_safetensors=True, torch_dtype=kind)
        else:
            if not flavour.base:
                config.update(_TINY)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                transformer = draw(classes.from_config(config)).to(kind)
    return CogVideoX(vae.to(device), transformer.to(device), scheduler, prompt, options)


def sketch(flavour: Flavour, options: Options, dtype: str = "float32") -> CogVideoX:
    """The arm on the meta device: the real classes at true size, no weights, no download."""
    kind, base = getattr(torch, dtype), flavour.base or str(ZOO)
    config = known_config(diffusers.CogVideoXTransformer3DModel, base, "transformer", PUBLISHED)
    config |= {} if flavour.base else _TINY
    transformer = sketched(diffusers.CogVideoXTransformer3DModel, config, kind)
    found = known_config(diffusers.AutoencoderKLCogVideoX, base, "vae", PUBLISHED)
    vae = sketched(diffusers.AutoencoderKLCogVideoX, found, kind)
    text = transformer.config.max_text_seq_length, transformer.config.text_embed_dim
    prompt = torch.empty(1, *text, dtype=kind, device="meta")
    return CogVideoX(vae, transformer, diffusers.CogVideoXDDIMScheduler(), prompt, options)


def draw(transformer: Any) -> Any:
    """Random weights that a LoRA can work with: every layer keeps the scale of what goes in, every gate is open.

    torch's own draw is sqrt(3) too small in each layer and leaves the adaLN gates near 0, where from-scratch training
    opens them and a LoRA on attention and mlp can't. The control would fail by scale and draw no readable picture.
    """
    drawn_anew(transformer)
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm2):
            parts = norm.linear.bias.data.chunk(6)  # shift, scale, gate of the video's tokens, then of the text's
            parts[2].fill_(1.0)
            parts[5].fill_(1.0)
    return transformer


def embedding(base: str, prompt: str, tokens: int, dtype: str, device: str) -> Tensor:
    """The neutral text's embedding (1, tokens, D). No attention mask: CogVideoX reads the padding too."""

    def computed() -> Tensor:
        from transformers import AutoTokenizer, T5EncoderModel

        tokenizer = AutoTokenizer.from_pretrained(base, subfolder="tokenizer", trust_remote_code=False)
        encoder = T5EncoderModel.from_pretrained(
            base, subfolder="text_encoder", use_safetensors=True, dtype=getattr(torch, dtype)
        ).to(device)
        ids = tokenizer(prompt, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            found: Tensor = encoder(ids.to(device))[0]
        return found

    return prompt_embedding(base, prompt, dtype, device, computed, tokens)


def learned_positions(embed: Any, height: int, width: int, frames: int, device: object = None) -> Tensor:
    """Those of the text and of a clip's first frames (1, tokens, D), cut from the learned table as in the authors' code.
    Takes the place of the sines that diffusers' patch embedding makes for every clip that has not just the table's frames."""
    count = (frames - 1) // embed.temporal_compression_ratio + 1
    tokens = count * (height // embed.patch_size) * (width // embed.patch_size)
    table: Tensor = embed.pos_embedding
    return table[:, : embed.max_text_seq_length + tokens]


class CogVideoX(ClipArm):
    options: Options
    targets: Mapping[str, Sequence[str]] = {
        "attention": ("to_q", "to_k", "to_v", "to_out.0"),
        "mlp": ("ff.net.0.proj", "ff.net.2"),
    }

    def __init__(self, vae: Any, transformer: Any, scheduler: Any, prompt: Tensor, options: Options) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.model = transformer
        self.scheduler = scheduler
        self.prompt = prompt
        self.options = options
        self.multiple = 2 ** (len(vae.config.block_out_channels) - 1) * transformer.config.patch_size
        self.alphas = scheduler.alphas_cumprod.float()  # (1000,)
        if transformer.config.use_learned_positional_embeddings:
            if options.frames > (most := transformer.config.sample_frames):
                raise UserError(
                    f"frames = {options.frames}: this backbone has learned positions for {most}. Set options.frames to {most} "
                    "or fewer."
                )
            embed = transformer.patch_embed
            embed._get_positional_embeddings = functools.partial(learned_positions, embed)
        # the pipeline is built only to borrow its rotary positions, which differ between 1.0 and 1.5
        self._pipeline = diffusers.CogVideoXImageToVideoPipeline(
            tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler
        )

    unsaid: Mapping[str, Any] = MappingProxyType({"positions": "sines"})

    def conventions(self) -> dict[str, Any]:
        config = self.model.config
        cut = config.use_learned_positional_embeddings and self.options.frames < config.sample_frames
        return {
            "condition": self.options.condition,
            **super().conventions(),
            **({"positions": "learned"} if cut else {}),
        }

    def scaled(self, z: Tensor) -> Tensor:
        scaled: Tensor = z * self.vae.config.scaling_factor
        return scaled

    def unscaled(self, z: Tensor) -> Tensor:
        unscaled: Tensor = z / self.vae.config.scaling_factor
        return unscaled

    def pad(self, z: Tensor) -> Tensor:
        """Repeat the first latent at the front until the count divides by the temporal patch; `unpad` drops it again."""
        return torch.cat([z[:, :1]] * self.padding(z.shape[1]) + [z], 1)

    def padding(self, latents: int) -> int:
        return -latents % (self.model.config.patch_size_t or 1)

    def condition_latents(self, z: Tensor) -> Tensor:
        """Scale the single frame's latents (B, C, h, w) as the model's first frame. One function for training and sampling.

        diffusers   what a stock pipeline does: z / s where the VAE says `invert_scale_latents` (1.5), else z * s
        sat         z itself: what CogVideoX1.5 was pretrained with, by the authors' reference code
        scaled      z * s: what the official fine-tuning code does
        """
        scale, convention = self.vae.config.scaling_factor, self.options.condition
        if convention == "sat":
            return z
        if convention == "diffusers" and self.vae.config.invert_scale_latents:
            return z / scale
        return z * scale

    def latents(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """The clip's scaled latents (f, C, h, w) and the condition's raw latent (C, h, w)."""
        (values,) = self.latents_of([sample])
        return self.scaled(values["mean"]), values["image"]

    # The five verbs

    def collate(self, samples: Sequence[Sample], seeds: Sequence[int]) -> dict[str, Tensor]:
        """z, noise (B, T, C, h, w) fp32, padded; image (B, C, h, w); t (B,)."""
        values = self.latents_of(samples)
        generators = [sample_generator(seed) for seed in seeds]
        t = torch.cat([self.training_times(torch.rand(1, generator=g)) for g in generators])
        frames, *rest = values[0]["mean"].shape
        shape = (self.padding(frames) + frames, *rest)
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        z = self.pad(self.clean(values, generators))
        image = self.condition_latents(torch.stack([v["image"] for v in values]))
        return {k: v.to(self.device) for k, v in {"z": z, "image": image, "noise": noise, "t": t}.items()}

    def training_times(self, u: Tensor) -> Tensor:
        """Uniform u in 0..1 -> timesteps, shifted (Esser et al. 2024, eq. 23). A puzzle's answer can be read through a
        lot of noise, so the small backbone, which gets few updates, spends them where it has to be thought of."""
        shift = self.options.shift
        return (shift * u / (1 + (shift - 1) * u) * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """MSE on v, in fp32. It equals the official 1 / (1 - alpha) weighted MSE on the clean clip."""
        z, noise, t = batch["z"], batch["noise"], batch["t"]
        alpha = self.alphas.to(z.device)[t][:, None, None, None, None]
        noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
        v = alpha.sqrt() * noise - (1 - alpha).sqrt() * z
        return (self.velocity(noisy, batch["image"], t) - v).square().mean()

    def velocity(self, noisy: Tensor, image: Tensor, t: Tensor) -> Tensor:
        """The model's v at (B, T, C, h, w), conditioned on the image latent in the first slot, zeros behind it."""
        condition = torch.zeros_like(noisy)
        condition[:, 0] = image
        batch, frames, _, h, w = noisy.shape
        stride = 2 ** (len(self.vae.config.block_out_channels) - 1)
        rotary = None
        if self.model.config.use_rotary_positional_embeddings:
            rotary = self._pipeline._prepare_rotary_positional_embeddings(h * stride, w * stride, frames, noisy.device)
        dtype = self.model.dtype
        predicted = self.model(
            hidden_states=torch.cat([noisy, condition], 2).to(dtype),
            encoder_hidden_states=self.prompt.expand(batch, -1, -1).to(noisy.device, dtype),
            timestep=t,
            ofs=None if self.model.config.ofs_embed_dim is None else noisy.new_full((1,), 2.0, dtype=dtype),
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]
        return predicted.float()

    def sample(self, images: np.ndarray, seeds: Sequence[int], watch: Watch | None = None) -> np.ndarray:
        """uint8 pictures (B, H, W, 3) -> uint8 clips (B, F, H, W, 3)."""
        raw = self.encode(images[:, None])[:, 0]  # (B, C, h, w)
        image = self.condition_latents(raw)
        frames = 1 if self.options.transition == "image" else self.options.frames
        count = (frames - 1) // self.vae.config.temporal_compression_ratio + 1
        padding = self.padding(count)
        shape = (padding + count, *raw.shape[1:])
        x = torch.stack([torch.randn(shape, generator=sample_generator(s)) for s in seeds]).to(self.device)
        self.scheduler.set_timesteps(self.options.steps)
        for step, t in enumerate(self.scheduler.timesteps):
            with torch.no_grad():
                v = self.velocity(x, image, t.expand(len(x)).to(self.device))
            out = self.scheduler.step(v, t, x, eta=0.0)
            x = out.prev_sample
            if watch:
                partial = functools.partial(self.decode, self.unscaled(out.pred_original_sample[:, padding:]))
                if watch(step + 1, self.options.steps, partial) is False:
                    raise Cancelled("Cancelled.")
        return self.decode(self.end(self.unscaled(x[:, padding:])))
