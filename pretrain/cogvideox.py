"""Pretrains the small CogVideoX: first the video VAE, then the image-to-video transformer.

Both are the published classes of diffusers with small numbers, saved in the published folder layout, so whatever loads
CogVideoX1.5-5B-I2V loads this. It learns from `pretrain.data` alone and has never seen a puzzle.

    vdmreason pretrain cogvideox --budget 2h --out my-backbone
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from pretrain.data import clip
from pretrain.loop import Share, begun, check_settings, ended, fit, processes, trapezoid
from pretrain.recipe import is_main
from pretrain.stored import sum_of

FRAMES = 9  # 8N + 1 with N = 1: three latent frames
SHIFT = 4.0  # timesteps are drawn towards noise, see `shifted`
TEXT_TOKENS = 4  # the small model has no text encoder: one fixed embedding stands for the neutral prompt

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"vae": (4, 8, 8), "layers": 2, "heads": 2, "head_dim": 16, "time_dim": 16, "latent": 4},
    "small": {"vae": (16, 32, 32), "layers": 6, "heads": 6, "head_dim": 32, "time_dim": 64, "latent": 8},
    "medium": {"vae": (32, 64, 64), "layers": 12, "heads": 8, "head_dim": 64, "time_dim": 256, "latent": 8},
}

# Pictures in blocks of 8 px, (rows, columns): about 64 tokens a frame each, so that every batch costs the same.
# Long thin pictures teach distances of up to 16 blocks for the price of 8 x 8.
SHAPES = ((8, 8),) * 6 + ((7, 7),) * 2 + ((4, 16), (16, 4), (6, 10), (10, 6), (5, 5), (12, 12))


def build_vae(size: str) -> AutoencoderKLCogVideoX:
    """Random weights. 4x spatial and 4x temporal compression: three levels instead of the published four."""
    s = SIZES[size]
    levels = len(s["vae"])
    vae = AutoencoderKLCogVideoX(
        block_out_channels=s["vae"],
        down_block_types=("CogVideoXDownBlock3D",) * levels,
        up_block_types=("CogVideoXUpBlock3D",) * levels,
        layers_per_block=1,
        latent_channels=s["latent"],
        norm_num_groups=2,  # few groups: group norm hides a flat colour's level, which is what we need to keep
        temporal_compression_ratio=4,
        sample_height=4096,  # tiling, which would change the latents, never switches on
        sample_width=4096,
        scaling_factor=1.0,
        invert_scale_latents=False,
    )
    with torch.no_grad():  # start with a sharp posterior: at unit noise the first thousand updates learn nothing
        vae.encoder.conv_out.conv.bias[s["latent"] :] = -6.0
    return vae


def build_transformer(size: str) -> CogVideoXTransformer3DModel:
    """Random weights, with every switch of CogVideoX1.5 image-to-video: temporal patch 2, ofs, rotary positions."""
    s = SIZES[size]
    return CogVideoXTransformer3DModel(
        num_attention_heads=s["heads"],
        attention_head_dim=s["head_dim"],
        in_channels=2 * s["latent"],  # noisy video beside the conditioning image
        out_channels=s["latent"],
        time_embed_dim=s["time_dim"],
        ofs_embed_dim=s["time_dim"],
        text_embed_dim=32,
        num_layers=s["layers"],
        sample_width=128,
        sample_height=128,
        sample_frames=FRAMES,
        patch_size=2,
        patch_size_t=2,
        patch_bias=False,
        temporal_compression_ratio=4,
        max_text_seq_length=TEXT_TOKENS,
        use_rotary_positional_embeddings=True,
    )


def build_scheduler() -> CogVideoXDDIMScheduler:
    """The published schedule of CogVideoX1.5: v-prediction, zero terminal SNR, trailing steps."""
    return CogVideoXDDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=1.0,
        clip_sample=False,
        set_alpha_to_one=True,
    )


def neutral_prompt() -> Tensor:
    """The fixed embedding (1, 4, 32) that stands where the published models read text."""
    return torch.randn(1, TEXT_TOKENS, 32, generator=torch.Generator().manual_seed(0))


# Stage 1: the VAE


class VAELoss(nn.Module):
    """L1 + MSE reconstruction and a small KL term, on clips and on single frames (which the condition is encoded from)."""

    def __init__(self, vae: AutoencoderKLCogVideoX) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """`pixels` (B, 3, F, H, W) in -1..1, `noise` (B, C, f, h, w) standard normal."""
        posterior = self.vae.encode(pixels).latent_dist
        z = posterior.mean + posterior.std * noise
        error = self.vae.decode(z).sample - pixels
        reconstruction = error.abs().mean() + error.square().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return {"loss": reconstruction + 1e-5 * kl, "l1": error.abs().mean(), "kl": kl}


def _vae_batch(step: int, share: Share, seed: int, latent: int, still: bool) -> dict[str, Tensor]:
    """Crops of 32 x 32 px: 8 clips, or 32 single frames where `still` and in every third batch."""
    rng = np.random.default_rng([seed, step])
    frames, batch = (1, 32) if still or step % 3 == 2 else (FRAMES, 8)
    crops = []
    for b in range(batch):
        video = clip(step * batch + b, seed, FRAMES, (48, 48)).frames
        y, x = rng.integers(0, 17, 2) if rng.random() < 0.5 else rng.integers(0, 3, 2) * 8
        crops.append(video[(0 if rng.random() < 0.5 else -1) :][:1] if frames == 1 else video)
        crops[-1] = crops[-1][:, y : y + 32, x : x + 32]
    pixels = to_tensor(np.stack(crops))
    noise = torch.randn(batch, latent, (frames + 3) // 4, 8, 8, generator=torch.Generator().manual_seed(step))
    return share.cut({"pixels": pixels, "noise": noise})


def to_tensor(frames: np.ndarray) -> Tensor:
    """uint8 (B, F, H, W, 3) -> float (B, 3, F, H, W) in -1..1."""
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


# Stage 2: the transformer


class TransformerLoss(nn.Module):
    """MSE on v, with the clean first frame as the condition."""

    def __init__(self, transformer: CogVideoXTransformer3DModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.register_buffer("alphas", build_scheduler().alphas_cumprod.float(), persistent=False)
        self.register_buffer("prompt", neutral_prompt(), persistent=False)

    def forward(self, z: Tensor, image: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """`z`, `noise` (B, 4, C, h, w): the clip's latents, the first one repeated; `image` (B, C, h, w); `t` (B,)."""
        alpha = self.alphas[t][:, None, None, None, None]
        noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
        v = alpha.sqrt() * noise - (1 - alpha).sqrt() * z
        condition = torch.zeros_like(z)
        condition[:, 0] = image
        config = self.transformer.config
        rotary = get_3d_rotary_pos_embed(
            config.attention_head_dim,
            None,
            (z.shape[3] // 2, z.shape[4] // 2),
            z.shape[1] // 2,
            grid_type="slice",
            max_size=(config.sample_height // 2, config.sample_width // 2),
        )
        predicted = self.transformer(
            torch.cat([noisy, condition], 2),
            self.prompt.expand(len(z), -1, -1),
            t,
            ofs=z.new_full((len(z),), 2.0),
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]
        return (predicted - v).square().mean()


def encode_corpus(vae: AutoencoderKLCogVideoX, folder: Path, clips: int, seed: int, batch: int = 16) -> list[Path]:
    """Encode `clips` clips once, in shards of one shape each: `z` (N, 3, C, h, w) of the clip, `image` (N, C, h, w) of its
    first frame alone. Shards that exist are kept, so this resumes: a folder is one VAE's and one seed's. Returns the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    shard = 512
    shards = [folder / f"{s:05d}.safetensors" for s in range(-(-clips // shard))]
    for s, path in enumerate(tqdm(shards, desc="encode clips", mininterval=2.0)):
        if path.exists():
            continue
        rows, columns = SHAPES[s % len(SHAPES)]
        count = shard * 64 // max(64, rows * columns)
        latents, images = [], []
        for start in range(0, count, batch):
            ids = range(s * shard + start, s * shard + min(start + batch, count))
            pixels = to_tensor(np.stack([clip(i, seed, FRAMES, (8 * rows, 8 * columns)).frames for i in ids]))
            pixels = pixels.to(vae.device)
            with torch.no_grad():
                latents.append(vae.encode(pixels).latent_dist.mode().permute(0, 2, 1, 3, 4).half().cpu())
                images.append(vae.encode(pixels[:, :, :1]).latent_dist.mode()[:, :, 0].half().cpu())
        temporary = path.with_suffix(f".{os.getpid()}.tmp")  # every process of several makes them
        save_file({"z": torch.cat(latents).contiguous(), "image": torch.cat(images).contiguous()}, temporary)
        temporary.rename(path)
    return shards


def shifted(u: np.ndarray, shift: float) -> np.ndarray:
    """Uniform times u in 0..1 drawn towards noise (Esser et al., Scaling Rectified Flow Transformers, eq. 23).

    A flat block can be read through a lot of noise: at t = 500 of 1000 the clip is as good as given away, and only the
    last third asks what happens next. Uniform times would spend two thirds of the updates on removing noise.
    """
    return shift * u / (1 + (shift - 1) * u)


class Latents:
    """Batches of cached latents; which clips a step sees is a pure function of the step."""

    def __init__(self, shards: Sequence[Path], scale: float, batch: int, seed: int) -> None:
        self.shards = [load_file(path) for path in shards]
        self.scale, self.batch, self.seed = scale, batch, seed
        weights = np.array([len(s["z"]) for s in self.shards], float)
        self.weights = weights / weights.sum()

    def __call__(self, step: int, share: Share) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, step])
        shard = self.shards[rng.choice(len(self.shards), p=self.weights)]
        pixels = shard["z"].shape[-1] * shard["z"].shape[-2]
        count = max(1, round(self.batch * 256 / max(256, pixels)))
        picked = torch.from_numpy(rng.integers(0, len(shard["z"]), count))
        z = shard["z"][picked].float() * self.scale
        z = torch.cat([z[:, :1], z], 1)  # front padding to the temporal patch: 3 -> 4 latent frames
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
        # stratified over the batch: the same distribution, less noise in the gradient
        u = shifted((np.arange(count) + rng.random(count)) / count, SHIFT)
        t = torch.from_numpy((u * 1000).astype(np.int64).clip(0, 999))
        return share.cut({"z": z, "image": shard["image"][picked].float() * self.scale, "noise": noise, "t": t})


def pretrain(
    out: Path | str,
    *,
    minutes: float | None = None,
    updates: int | None = None,
    size: str = "small",
    seed: int = 0,
    clips: int | None = None,
    batch: int = 16,
) -> dict[str, Any]:
    """Train the VAE (a quarter of the budget), encode the corpus, train the transformer; write the published layout to `out`.

    `minutes` or `updates` is the whole budget. Everything resumes after a kill: the work lies in `out/work`. Raises ValueError
    where it is another training's, or where a larger budget would train the VAE on beneath a transformer that has begun.
    """
    out = Path(out)
    work = out / "work"
    s = SIZES[size]
    settings = {"size": size, "seed": seed, "clips": clips, "batch": batch}

    def budget_of(part: float) -> dict[str, Any]:
        return {
            "minutes": minutes * part if minutes else None,
            "updates": None if minutes else max(1, int((updates or 4000) * part)),
        }

    # Stills first: a still costs a fifth of a clip, and colours are learnt five times sooner from them.
    stages = (("vae-stills", 0.08, 3e-3), ("vae-clips", 0.17, 2e-3))
    if is_main():  # before another's weights and latents are gone on from
        for stage in ("vae-stills", "vae-clips", "transformer"):
            check_settings(work / stage, settings)
    if begun(work / "transformer") and not all(ended(work / stage, **budget_of(part)) for stage, part, _ in stages):
        raise ValueError(
            f"{out} has begun its transformer, and with a larger budget the VAE would go on beneath it. Name another --out, or "
            "give the budget that it was begun with"
        )
    torch.manual_seed(seed)
    vae = build_vae(size)
    for stage, part, lr in stages:
        vae_log = fit(
            VAELoss(vae),
            functools.partial(_vae_batch, seed=seed, latent=s["latent"], still=stage == "vae-stills"),
            work / stage,
            schedule=trapezoid(lr),
            settings=settings,
            title=stage,
            **budget_of(part),
        )
    vae.eval().requires_grad_(False).to(processes().device)

    if clips is None:
        clips = max(512, min(40_000, int((minutes or (updates or 4000) / 40) * 150)))
    shards = encode_corpus(vae, work / "latents" / sum_of(vae)[:16], clips, seed)
    for old in (work / "latents").glob("*.safetensors"):  # of a training before shards were kept by their VAE
        old.unlink(missing_ok=True)
    scale = _latent_scale(shards)
    vae.register_to_config(scaling_factor=scale)

    torch.manual_seed(seed + 1)
    transformer = build_transformer(size)
    share = {"minutes": minutes * 0.65} if minutes else {"updates": max(1, (updates or 4000) * 3 // 4)}
    log = fit(
        TransformerLoss(transformer),
        Latents(shards, scale, batch, seed),
        work / "transformer",
        settings=settings,
        schedule=trapezoid(1.5e-3 if size != "medium" else 5e-4),
        title="transformer",
        on_checkpoint=lambda step: save(out, vae, transformer),
        **share,
    )
    save(out, vae, transformer)
    budget = f"{minutes:g}m" if minutes else f"{updates or 4000}u"
    record = {
        "command": f"vdmreason pretrain cogvideox --budget {budget} --size {size} --seed {seed}",
        "machine": f"{torch.get_num_threads()} CPU threads"
        if not torch.cuda.is_available()
        else torch.cuda.get_device_name(),
        **{"size": size, "seed": seed, "clips": clips, "batch": batch, "vae": vae_log, "transformer": log},
    }
    record["weights"] = weights_hash(out)
    (out / "pretrain.json").write_text(json.dumps(record, indent=1))
    (out / "README.md").write_text(card(record, transformer, vae))
    return record


def card(record: dict[str, Any], transformer: CogVideoXTransformer3DModel, vae: AutoencoderKLCogVideoX) -> str:
    """The model card, from the record of the run and the models themselves."""
    t, v = record["transformer"], record["vae"]
    minutes = {"t": t["seconds"] / 60, "v": v["seconds"] / 60}
    millions = {name: sum(p.numel() for p in m.parameters()) / 1e6 for name, m in (("t", transformer), ("v", vae))}
    return f"""# A small CogVideoX, pretrained by us on procedural video

**This is not CogVideoX.** It has the published classes, switches (version 1.5, image to video: temporal patch, ofs, rotary
positions) and folder layout, {millions["t"]:.1f} M parameters in the transformer and {millions["v"]:.2f} M in the VAE, and was
trained by this project in minutes on a CPU. It exists so that the comparison runs on a laptop without a download.

- **Learnt from**: {record["clips"]:,} procedural clips (`pretrain/data.py`, seed {record["seed"]}): shapes that move, bounce,
  rotate, grow, fall, occlude and leave trails; mosaics of coloured blocks whose neighbours influence each other; scenes that
  the camera rolls or zooms. No task of the exam is drawn on purpose, and no puzzle; what comes near to one by chance is
  counted in `pretrain/data.py`. No text. The neutral prompt is one fixed random embedding; there is no text encoder.
- **VAE**: {v["updates"]:,} updates on 32 px crops after a stage on stills, {minutes["v"]:.0f} minutes; last L1 {v["l1"]:.3f}
  (pixels in -1..1).
- **Transformer**: {t["updates"]:,} updates of {record["batch"]} clips, {minutes["t"]:.0f} minutes; timesteps drawn
  towards noise (shift {SHIFT:g}); last MSE on v {t["loss"]:.3f}.
- **Machine**: {record["machine"]}. fp32, saved in fp16.
- **Command**: `{record["command"]}`
- **Weights**: sha256 over all files {record["weights"][:16]}
- **Limits**: pictures of a few hundred pixels in blocks of 8, clips of 9 frames. Colours and edges survive the VAE, fine
  texture does not. It has seen distances of up to 16 blocks.
"""


def _latent_scale(shards: Sequence[Path]) -> float:
    """1 / standard deviation of the latents, as a plain number of four digits (the published models have 0.7)."""
    z = torch.cat([load_file(p)["z"].float().flatten() for p in shards[:8]])
    return round(1 / z.std().item(), 4)


def save(out: Path, vae: AutoencoderKLCogVideoX, transformer: CogVideoXTransformer3DModel) -> None:
    """The published folder layout (model_index.json, vae/, transformer/, scheduler/) in fp16, and the neutral prompt."""
    copy_vae, copy_transformer = build_like(vae), build_like(transformer)
    copy_vae.half().save_pretrained(out / "vae")
    copy_transformer.half().save_pretrained(out / "transformer")
    build_scheduler().save_pretrained(out / "scheduler")
    save_file({"prompt_embeds": neutral_prompt().half()}, out / "neutral_prompt.safetensors")
    index = {
        "_class_name": "CogVideoXImageToVideoPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2))


def build_like(model: Any) -> Any:
    """A copy with the same config and weights."""
    copy = type(model).from_config(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


def weights_hash(folder: Path) -> str:
    """sha256 over the folder's safetensors, for cards and cache keys."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
