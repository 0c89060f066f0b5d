"""The ADM U-Net of Dhariwal and Nichol, as the EDM code trains it on ImageNet-64."""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdiff_jax.networks import adapter
from fastdiff_jax.networks.block import Style
from fastdiff_jax.networks.embeddings import positional
from fastdiff_jax.networks.layers import Conv, Dense, GroupNorm, Init
from fastdiff_jax.networks.module import (
    check_choices,
    check_halves,
    network,
    options,
    reference,
    step_condition,
    widened,
)
from fastdiff_jax.networks.song import Decoder, Encoder
from fastdiff_jax.types import Array, Network

DEFAULTS = dict(
    model_channels=192,
    channel_mult=(1, 2, 3, 4),
    channel_mult_emb=4,
    num_blocks=3,
    attn_resolutions=(32, 16, 8),
    channels_per_head=64,
    dropout=0.0,
    augment_dim=0,
    out_channels=None,  # as many as the input has; improved DDPM has twice as many
    concat=0,  # channels of the condition "concat", which follow those of the image
    adapter=0,  # channels of the condition "adapter", a map that an adapter beside the encoder reads
    reference=0,  # K of the condition "reference" (B,K), features of another image
    stamps=None,  # whether it is told the number of noise levels, see `module.STAMPS`
    dtype="float32",
)
CHOICES = dict(dtype=("float32", "bfloat16"))


class DhariwalUNet(nn.Module):
    """Raw network F: embeddings in at least float32, the image path in `dtype`.

        e = positional(c_noise) + map_augment(augment)
        emb = silu(map_layer1(silu(map_layer0(e))) + map_label(label) + map_reference(reference))
        step = silu(map_step1(silu(map_step0(positional(stamps)))))

    A missing label, augmentation or reference counts as zeros, which is as if there were none: their layers
    have no bias. Without "stamps" the step's branch is left out, without "adapter" the adapter, and `init`
    makes no weights for it.
    Source: Dhariwal and Nichol 2021 (arXiv:2105.05233), section 3; Karras et al. 2022 (arXiv:2206.00364),
    App. F; the step's branch is that of Zhou et al. 2024 (arXiv:2409.19681).
    """

    widths: tuple[int, ...]
    outputs: int
    classes: int
    settings: Mapping  # DEFAULTS

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Mapping[str, Array], train: bool):
        settings = self.settings
        wide = jnp.promote_types(x.dtype, jnp.float32)
        style = Style(
            dropout=settings["dropout"], channels_per_head=settings["channels_per_head"]
        )
        if settings["stamps"] == "zero":
            style = style._replace(step=Init(kernel=0.0))
        embeddings = {"emb": self._embedding(c_noise.astype(wide), cond, style)}
        if "stamps" in cond:
            embeddings["step"] = self._step_embedding(cond["stamps"].astype(wide), style)
        common = dict(
            blocks=settings["num_blocks"], attention=settings["attn_resolutions"], kind="standard",
            style=style,
        )  # fmt: skip
        image = x.astype(jnp.bfloat16 if settings["dtype"] == "bfloat16" else wide)
        encoder = Encoder(self.widths, self.widths[0], name="enc", **common)
        decoder = Decoder(self.widths, outputs=0, everywhere=True, name="dec", **common)
        added = adapter.added(image, cond, settings["adapter"], self.widths)
        image = widened(image, cond, settings["concat"])
        h, skips, fine_to_coarse = encoder(image, embeddings, train, added)
        h, coarse_to_fine = decoder(h, embeddings, skips, train)
        h = jax.nn.silu(GroupNorm(style.eps, name="out_norm")(h))
        output = Conv(self.outputs, initial=style.last, name="out_conv")(h)
        return output.astype(wide), {**fine_to_coarse, **coarse_to_fine}

    def _embedding(self, c_noise, cond, style):
        settings, channels = self.settings, self.settings["model_channels"]
        e = positional(c_noise, channels)
        if settings["augment_dim"]:
            augment = cond.get("augment", jnp.zeros((1, settings["augment_dim"]))).astype(e.dtype)
            e = e + Dense(channels, bias=False, initial=Init(kernel=0.0), name="map_augment")(augment)
        e = jax.nn.silu(self._dense("map_layer0", style)(e))
        e = self._dense("map_layer1", style)(e)
        if self.classes:
            label = cond.get("label", jnp.zeros((1, self.classes))).astype(e.dtype)
            unit = Init("kaiming_normal", math.sqrt(self.classes))  # N(0, 1), however many classes
            e = e + Dense(e.shape[-1], bias=False, initial=unit, name="map_label")(label)
        if settings["reference"]:
            told = reference(cond, settings["reference"]).astype(e.dtype)
            unit = Init("kaiming_normal")
            e = e + Dense(e.shape[-1], bias=False, initial=unit, name="map_reference")(told)
        return jax.nn.silu(e)

    def _step_embedding(self, stamps, style):
        e = positional(stamps, self.settings["model_channels"])
        for name in ("map_step0", "map_step1"):
            e = jax.nn.silu(self._dense(name, style)(e))
        return e

    def _dense(self, name, style):
        width = self.settings["model_channels"] * self.settings["channel_mult_emb"]
        return Dense(width, initial=style.initial, name=name)


def build(config: Mapping, shape: tuple[int, int, int], classes: int = 0) -> Network:
    """ADM for images of `shape` (H,W,C); the defaults are the 295,899,267 parameters of ImageNet-64.

    Args:
      config: options of DEFAULTS, named as in the EDM code: `num_blocks` (per level, one more on the way
        up), `attn_resolutions` (sizes with attention in every block), `channels_per_head` (features of
        fewer channels have no attention at all), `out_channels` (a denoiser takes the first C), ...
      classes: K of the condition "label" (B,K); 0 for an unconditional network. With `augment_dim` A
        the condition "augment" (B,A) is known as well, with `stamps` the condition "stamps" (B,), with
        `concat` "concat" (B,H,W,concat), unscaled and never missing, with `adapter` "adapter"
        (B,H,W,adapter), with `reference` K "reference" (B,K).
    Returns: a network with taps "enc/<block>" and "dec/<block>", such as "enc/8x8_block0".
    Raises: ValueError for unknown options, choices or shapes.
    """
    settings = options(config, DEFAULTS, "adm")
    check_choices(settings, CHOICES, "adm")
    step_condition(settings["stamps"], "adm")
    check_halves(shape, len(settings["channel_mult"]), "adm")
    if settings["channels_per_head"] < 1:
        raise ValueError(
            f"network adm: channels_per_head is positive; got {settings['channels_per_head']}."
        )
    reads = {"label": classes, "augment": settings["augment_dim"]}
    reads |= {name: settings[name] for name in ("stamps", "concat", "adapter", "reference")}
    known = [name for name, given in reads.items() if given]
    widths = tuple(settings["model_channels"] * mult for mult in settings["channel_mult"])
    outputs = settings["out_channels"] or shape[-1]
    return network(DhariwalUNet(widths, outputs, classes, settings), known)
