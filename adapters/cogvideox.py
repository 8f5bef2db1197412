"""CogVideoX 1.5 and 1.0, image to video: the puzzle is a picture, the answer is the last frame of a short video.

Training and sampling share one function each for padding, the condition's scale, the ofs input and the rotary positions,
and both read the model's own config, so 1.0 and 1.5 are one file. What has gone wrong elsewhere, and is right here:

- clips have 8N + 1 frames: others decode to another length than they were encoded from;
- latents are padded to the temporal patch at the front, by repeating the first, and the padding is dropped after sampling;
- the condition is encoded from the single frame: in the clip's own latents the first frame has already seen the answer;
- the scale of the condition is one function with a named convention, kept in the adapter's metadata;
- noise, target and loss are fp32: in bf16 the first timesteps add no noise at all;
- the text embedding is computed once and stored; T5 is never in memory while training.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adapters.base import (
    Answer,
    Arm,
    Cancelled,
    Flavour,
    Lazy,
    Sample,
    Watch,
    load_errors,
    read_safetensors,
    sample_generator,
    sampled_answers,
)
from adapters.pictures import Question, answer_picture, question, style_of
from tasks.base import Example, UserError, suggest
from tasks.render import STYLES, NotAPuzzle, Reading, Style, paint, read
from tasks.transition import MODES, answer_frames, clip

if TYPE_CHECKING:
    import diffusers
    import torch
    from torch import Tensor
else:
    diffusers, torch = Lazy("diffusers"), Lazy("torch")

ARM = "video"
ZOO = Path(__file__).resolve().parents[1] / "pretrain" / "zoo" / "cogvideox"

_SMALL = {"optim.lr": 6e-3, "optim.schedule": "cosine", "options.steps": 4, "options.shift": 8.0}
_PUBLISHED = {
    "optim.lr": 1e-4,
    "optim.schedule": "constant",
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


@dataclass(frozen=True)
class Options:
    """How the puzzle becomes a clip and a clip becomes an answer."""

    transition: str = "discrete"  # discrete | linear | trajectory | image (one frame to one frame, no video)
    frames: int = 9  # 8N + 1
    style: str = "video-8"  # how a grid is drawn; video-8 puts one cell on one token of the small backbone
    pixels: int = 0  # >0: enlarge cells in whole tokens until the longer side comes nearest to this
    canvas: tuple[int, int] | None = None  # a fixed picture size in cells, for models that take one size only
    condition: str = "diffusers"  # the condition's latent scale: diffusers | sat | scaled (see `condition_latents`)
    shift: float = 1.0  # training timesteps: 1 uniform, above 1 drawn towards noise (see `training_times`)
    steps: int = 10  # denoising steps; a divisor of 1000
    readout: str = "last"  # last | best (surest answer frame) | mean (of them) | calibrated (last, by the first one)
    batch: int = 16  # answers sampled at once
    prompt: str = ""  # the neutral text; the small backbone has no text encoder and ignores it

    def __post_init__(self) -> None:
        for value, known in (
            (self.transition, MODES),
            (self.style, tuple(STYLES)),
            (self.condition, ("diffusers", "sat", "scaled")),
            (self.readout, ("last", "best", "mean", "calibrated")),
        ):
            if value not in known:
                raise UserError(f"Unknown choice '{value}'.{suggest(value, known)} One of: {', '.join(known)}.")
        if self.frames % 8 != 1 or self.frames < 9:
            raise UserError(
                f"frames = {self.frames}: CogVideoX encodes and decodes 8N + 1 frames only: 9, 17, 25, 33, ..."
            )
        if self.readout == "calibrated" and self.transition == "image":
            raise UserError("readout = calibrated: the image control has no first frame to calibrate on.")
        if self.shift <= 0:
            raise UserError(f"shift = {self.shift}: give a number above 0; 1 draws timesteps uniformly.")
        if self.steps < 1 or 1000 % self.steps:
            raise UserError(f"steps = {self.steps}: give a divisor of 1000, such as 4, 8, 10, 20, 25, 50.")


def frame(example: Example, options: Options) -> Sample:
    """`given`: the question's picture. `wanted`: the transition clip uint8 (F, H, W, 3), or None where the answer is larger
    than the picture."""
    given = question(example, options)
    last = answer_picture(example, given, options)
    if last is None:
        return Sample(given, None, example.key)
    style = style_of(options, given.canvas)
    states = example.frames[1:-1] if options.transition == "trajectory" else ()
    middle = [paint(grid, style, given.canvas) for grid in states]
    return Sample(given, clip(given.picture, last, options.frames, options.transition, middle), example.key)


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
    with load_errors(base):
        vae = diffusers.AutoencoderKLCogVideoX.from_pretrained(
            base, subfolder="vae", use_safetensors=True, torch_dtype=kind
        )
        scheduler = diffusers.CogVideoXDDIMScheduler.from_pretrained(base, subfolder="scheduler")
        classes = diffusers.CogVideoXTransformer3DModel
        if flavour.base and init == "pretrained":
            transformer = classes.from_pretrained(base, subfolder="transformer", use_safetensors=True, torch_dtype=kind)
        else:
            config = dict(classes.load_config(base, subfolder="transformer"))
            if not flavour.base:
                config.update(
                    num_layers=2, num_attention_heads=2, attention_head_dim=16, time_embed_dim=16, ofs_embed_dim=16
                )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                transformer = draw(classes.from_config(config)).to(kind)
        prompt = prompt_embedding(base, options.prompt, transformer.config.max_text_seq_length, dtype, device)
    return CogVideoX(vae.to(device), transformer.to(device), scheduler, prompt, options)


def draw(transformer: Any) -> Any:
    """Random weights that a LoRA can work with: every layer keeps the scale of what goes in, every gate is open.

    torch's own draw is sqrt(3) too small in each layer and leaves the adaLN gates near 0, where from-scratch training
    opens them and a LoRA on attention and mlp can't. The control would fail by scale and draw no readable picture.
    """
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm2):
            parts = norm.linear.bias.data.chunk(6)  # shift, scale, gate of the video's tokens, then of the text's
            parts[2].fill_(1.0)
            parts[5].fill_(1.0)
    return transformer


def prompt_embedding(base: str, prompt: str, tokens: int, dtype: str, device: str) -> Tensor:
    """The neutral text's embedding (1, tokens, D): shipped with the backbone, or computed once by T5, which is then let go."""
    kind = getattr(torch, dtype)
    shipped = Path(base) / "neutral_prompt.safetensors"
    if shipped.exists():
        return read_safetensors(shipped)["prompt_embeds"].to(device, kind)
    name = hashlib.sha256(f"{prompt}|{base}|{tokens}|{dtype}".encode()).hexdigest()[:24]
    path = cache_folder() / "prompts" / f"{name}.safetensors"
    if not path.exists():
        from safetensors.torch import save_file
        from transformers import AutoTokenizer, T5EncoderModel

        tokenizer = AutoTokenizer.from_pretrained(base, subfolder="tokenizer", trust_remote_code=False)
        encoder = T5EncoderModel.from_pretrained(base, subfolder="text_encoder", use_safetensors=True, dtype=kind).to(
            device
        )
        ids = tokenizer(prompt, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():  # no attention mask: CogVideoX reads the padding too
            embedding = encoder(ids.to(device))[0].to(kind).cpu().contiguous()
        del encoder
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        save_file({"prompt_embeds": embedding}, temporary)
        os.replace(temporary, path)
    return read_safetensors(path)["prompt_embeds"].to(device)


def cache_folder() -> Path:
    """Where latents and text embeddings are kept between runs: $VDMREASON_CACHE, else ~/.cache/vdmreason."""
    return Path(os.environ.get("VDMREASON_CACHE", Path.home() / ".cache" / "vdmreason"))


class CogVideoX(Arm):
    layout = "diffusers"
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
        self.alphas = scheduler.alphas_cumprod.float()  # (1000,)
        self._latents: dict[str, tuple[Tensor, Tensor]] = {}
        # the pipeline is built only to borrow its rotary positions, which differ between 1.0 and 1.5
        self._pipeline = diffusers.CogVideoXImageToVideoPipeline(
            tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler
        )

    @property
    def device(self) -> torch.device:
        device: torch.device = self.vae.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.vae.dtype
        return dtype

    def conventions(self) -> dict[str, Any]:
        o = self.options
        return {"condition": o.condition, "transition": o.transition, "frames": o.frames, "style": o.style}

    def frame(self, example: Example) -> Sample:
        return frame(example, self.options)

    # Pixels and latents

    def encode(self, frames: np.ndarray) -> Tensor:
        """uint8 (B, F, H, W, 3) -> the VAE's latents (B, f, C, h, w), unscaled: the posterior's mode, fp32."""
        pixels = torch.from_numpy(frames).to(self.device).permute(0, 4, 1, 2, 3).to(self.dtype) / 127.5 - 1
        with torch.no_grad(), _two_at_least(pixels) as padded:
            z = self.vae.encode(padded).latent_dist.mode()[: len(pixels)]
        return z.permute(0, 2, 1, 3, 4).float()

    def decode(self, z: Tensor) -> np.ndarray:
        """Unscaled latents (B, f, C, h, w) -> uint8 (B, F, H, W, 3). The causal decoder needs all earlier latents, so a
        clip is decoded whole; its padding never is."""
        z = z.permute(0, 2, 1, 3, 4).to(self.device, self.dtype)
        with torch.no_grad(), _two_at_least(z) as padded:
            pixels = self.vae.decode(padded).sample[: len(z)]
        return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1).cpu().numpy()

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
        """The clip's scaled latents (f, C, h, w) and the condition's raw latent (C, h, w), encoded once, kept by content."""
        if sample.wanted is None:
            raise UserError("An example's answer is larger than the picture: this arm cannot be trained on it.")
        # In the image control the clip is the answer alone: one frame, of one latent.
        target = sample.wanted[-1:] if self.options.transition == "image" else sample.wanted
        content = hashlib.sha256(sample.given.picture.tobytes() + target.tobytes() + str(target.shape).encode())
        key = content.hexdigest()[:32]
        if key not in self._latents:
            path = cache_folder() / "latents" / self._vae_hash / f"{key}.safetensors"
            if path.exists():
                stored = read_safetensors(path)
            else:
                stored = {
                    "clip": self.encode(target[None])[0].cpu().contiguous(),
                    "image": self.encode(sample.given.picture[None, None])[0, 0].cpu().contiguous(),
                }
                _store(stored, path)
            self._latents[key] = (stored["clip"] * self.vae.config.scaling_factor, stored["image"])
        return self._latents[key]

    @functools.cached_property
    def _vae_hash(self) -> str:
        digest = hashlib.sha256(f"{self.dtype}".encode())
        for _, weight in sorted(self.vae.state_dict().items()):
            digest.update(weight.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    # The five verbs

    def collate(self, samples: Sequence[Sample], seeds: Sequence[int]) -> dict[str, Tensor]:
        """z, noise (B, T, C, h, w) fp32, padded; image (B, C, h, w); t (B,)."""
        pairs = [self.latents(sample) for sample in samples]
        z = self.pad(torch.stack([clip_ for clip_, _ in pairs]))
        generators = [sample_generator(seed) for seed in seeds]
        t = torch.cat([self.training_times(torch.rand(1, generator=g)) for g in generators])
        noise = torch.stack([torch.randn(z.shape[1:], generator=g) for g in generators])
        image = self.condition_latents(torch.stack([image for _, image in pairs]))
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
            encoder_hidden_states=self.prompt.expand(batch, -1, -1).to(dtype),
            timestep=t,
            ofs=None if self.model.config.ofs_embed_dim is None else noisy.new_full((1,), 2.0, dtype=dtype),
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]
        return predicted.float()

    def predict(self, givens: Sequence[Question], seeds: Sequence[int], watch: Watch | None = None) -> list[Answer]:
        """Sample a clip for each picture (deterministic DDIM, noise from `seeds`) and read its answer. `watch` may decode
        the estimate of the clean clip at every step."""
        return sampled_answers(self, givens, seeds, self.options.batch, watch)

    def sample(self, images: np.ndarray, seeds: Sequence[int], watch: Watch | None = None) -> np.ndarray:
        """uint8 pictures (B, H, W, 3) -> uint8 clips (B, F, H, W, 3)."""
        raw = self.encode(images[:, None])[:, 0]  # (B, C, h, w)
        image = self.condition_latents(raw)
        frames = 1 if self.options.transition == "image" else self.options.frames
        count = (frames - 1) // self.vae.config.temporal_compression_ratio + 1
        padding = self.padding(count)
        shape = (padding + count, *raw.shape[1:])
        x = torch.stack([torch.randn(shape, generator=sample_generator(s)) for s in seeds]).to(self.device)
        scale = self.vae.config.scaling_factor
        self.scheduler.set_timesteps(self.options.steps)
        for step, t in enumerate(self.scheduler.timesteps):
            with torch.no_grad():
                v = self.velocity(x, image, t.expand(len(x)).to(self.device))
            out = self.scheduler.step(v, t, x, eta=0.0)
            x = out.prev_sample
            if watch:
                partial = functools.partial(self.decode, out.pred_original_sample[:, padding:] / scale)
                if watch(step + 1, self.options.steps, partial) is False:
                    raise Cancelled("Cancelled.")
        return self.decode(x[:, padding:] / scale)

    def answer(self, frames: np.ndarray, asked: Question) -> Answer:
        """Read the answer grid from a clip uint8 (F, H, W, 3)."""
        style = style_of(self.options, asked.canvas)
        shown = frames if len(frames) == 1 else frames[list(answer_frames(len(frames), self.options.transition))]
        try:
            if self.options.readout == "last":
                reading = read(frames[-1], style)
            elif self.options.readout == "mean":
                reading = read(shown.mean(0).round().astype(np.uint8), style)
            elif self.options.readout == "calibrated":  # the first frame shows the question as this clip draws it
                reading = read(frames[-1], style, reference=(frames[0], read(asked.picture, style).grid))
            else:
                reading = _surest(shown, style)
        except NotAPuzzle as error:
            return Answer(None, frames, problem=str(error))
        return Answer(reading.grid, frames, reading.certainty)

    def codec(self, samples: Sequence[Sample]) -> list[Answer]:
        """Encode the true clip, decode it, read it."""
        answers = []
        for start in range(0, len(samples), self.options.batch):
            part = samples[start : start + self.options.batch]
            fitting = [s for s in part if s.wanted is not None]
            z = [self.latents(s)[0] / self.vae.config.scaling_factor for s in fitting]
            clips = iter(self.decode(torch.stack(z)) if z else ())
            for sample in part:
                if sample.wanted is None:
                    answers.append(
                        Answer(None, sample.given.picture[None], problem="the answer is larger than the picture")
                    )
                else:
                    answers.append(self.answer(next(clips), sample.given))
        return answers


def _surest(frames: np.ndarray, style: Style) -> Reading:
    """The reading of the frame whose cells are surest on average."""
    readings = []
    for image in frames:
        try:
            readings.append(read(image, style))
        except NotAPuzzle as error:
            problem = error
    if not readings:
        raise problem
    return max(readings, key=lambda r: float(r.certainty.mean()))


class _two_at_least:
    """A batch of one is doubled: with one thread, torch runs 3-D convolutions of a single sample on a path that took
    twice as long as for two samples (measured with torch 2.13 on CPU)."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __enter__(self) -> Tensor:
        single = len(self.x) == 1 and self.x.device.type == "cpu" and torch.get_num_threads() == 1
        return self.x.repeat(2, *[1] * (self.x.ndim - 1)) if single else self.x

    def __exit__(self, *_: object) -> None: ...


def _store(tensors: dict[str, Tensor], path: Path) -> None:
    """Keep latents for later runs. A cache that cannot be written (full disk, read-only home) costs time, not the run."""
    from safetensors.torch import save_file

    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
