"""DDPM++ and NCSN++ as in the EDM code: U-Nets over noise, class and augmentation embeddings.

Module names are those of the released checkpoints (`enc/8x8_block0/conv0/kernel`), so that
`interop.names` converts weights without a table.
"""

import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdiff_jax.networks import adapter
from fastdiff_jax.networks.block import SONG, Block, Style
from fastdiff_jax.networks.embeddings import Fourier, positional, swap_halves
from fastdiff_jax.networks.layers import Conv, Dense, GroupNorm, Init, downsample, upsample
from fastdiff_jax.networks.module import (
    check_choices,
    check_halves,
    network,
    options,
    reference,
    step_condition,
    widened,
)
from fastdiff_jax.types import Array, Network

ARCHITECTURES = {
    "ddpmpp": dict(
        embedding_type="positional",
        encoder_type="standard",
        decoder_type="standard",
        channel_mult_noise=1,
        resample_filter=(1, 1),
    ),
    "ncsnpp": dict(
        embedding_type="fourier",
        encoder_type="residual",
        decoder_type="standard",
        channel_mult_noise=2,
        resample_filter=(1, 3, 3, 1),
    ),
}
DEFAULTS = dict(
    model_channels=128,
    channel_mult=(2, 2, 2),
    channel_mult_emb=4,
    num_blocks=4,
    attn_resolutions=(16,),
    dropout=0.0,
    augment_dim=0,
    out_channels=None,  # as many as the input has
    concat=0,  # channels of the condition "concat", which follow those of the image
    adapter=0,  # channels of the condition "adapter", a map that an adapter beside the encoder reads
    reference=0,  # K of the condition "reference" (B,K), features of another image
    stamps=None,  # whether it is told the number of noise levels, see `module.STAMPS`
    dtype="float32",
)
CHOICES = dict(
    embedding_type=("positional", "fourier"),
    encoder_type=("standard", "skip", "residual"),
    decoder_type=("standard", "skip"),
    dtype=("float32", "bfloat16"),
)


class Encoder(nn.Module):
    """From fine to coarse: (image, emb) -> (coarsest features, skips for the decoder, all by name).

    What is `added`, an array a level, joins the features of the level's last block, and so its skip.

    Args:
      stem: channels of the first convolution.
      attention: sizes with attention, of `Style.heads` heads, in every block.
    """

    widths: tuple[int, ...]
    stem: int
    blocks: int
    attention: tuple[int, ...]
    kind: str
    style: Style

    @nn.compact
    def __call__(
        self, image: Array, embeddings: dict[str, Array], train: bool, added: Sequence[Array] = ()
    ):
        x, pyramid, skips, features = image, image, [], {}
        style, initial = self.style, self.style.initial
        for level, width in enumerate(self.widths):
            size = image.shape[1] >> level
            at = f"{size}x{size}"
            if level == 0:
                x = Conv(self.stem, initial=initial, name=f"{at}_conv")(x)
            else:
                block = Block(x.shape[-1], down=True, style=style, name=f"{at}_down")
                x = block(x, train=train, **embeddings)
            if level and self.kind == "skip":
                pyramid = downsample(pyramid, style.taps)
                x = x + Conv(x.shape[-1], 1, initial=initial, name=f"{at}_aux_skip")(pyramid)
            elif level and self.kind == "residual":
                project = Conv(x.shape[-1], down=True, taps=style.taps, fused=True, initial=initial,
                               name=f"{at}_aux_residual")  # fmt: skip
                x = pyramid = (x + project(pyramid)) / math.sqrt(2)
            features[f"enc/{at}_down" if level else f"enc/{at}_conv"] = x
            skips.append(x)
            for index in range(self.blocks):
                heads, name = style.heads(width) * (size in self.attention), f"{at}_block{index}"
                x = Block(width, heads, style=style, name=name)(x, train=train, **embeddings)
                if added and index == self.blocks - 1:
                    x = x + added[level].astype(x.dtype)
                features[f"enc/{name}"] = x
                skips.append(x)
        return x, skips, features


class Decoder(nn.Module):
    """From coarse to fine: (features, emb, skips) -> (raw output, features by name).

    Args:
      outputs: channels; 0 returns the finest features instead.
      everywhere: attention in all blocks of a size, not only in its last.
    """

    widths: tuple[int, ...]
    outputs: int
    blocks: int
    attention: tuple[int, ...]
    kind: str
    style: Style
    everywhere: bool = False

    @nn.compact
    def __call__(self, x: Array, embeddings: dict[str, Array], skips: list[Array], train: bool):
        skips, features, output, style = list(skips), {}, None, self.style

        def block(name, x, channels, heads=0, up=False):
            one = Block(channels, heads, up=up, style=style, name=name)
            x = one(x, train=train, **embeddings)
            features[f"dec/{name}"] = x
            return x

        for step, width in enumerate(reversed(self.widths)):
            size = x.shape[1] * 2 if step else x.shape[1]
            at = f"{size}x{size}"
            if step == 0:
                x = block(f"{at}_in0", x, width, style.heads(width))  # whatever `attention` says
                x = block(f"{at}_in1", x, width)
            else:
                x = block(f"{at}_up", x, x.shape[-1], up=True)
            for index in range(self.blocks + 1):
                attends = size in self.attention and (self.everywhere or index == self.blocks)
                joined = jnp.concatenate([x, skips.pop()], axis=-1)
                x = block(f"{at}_block{index}", joined, width, style.heads(width) * attends)
            if self.outputs and (self.kind == "skip" or step == len(self.widths) - 1):
                h = jax.nn.silu(GroupNorm(style.eps, name=f"{at}_aux_norm")(x))
                h = Conv(self.outputs, initial=style.last, name=f"{at}_aux_conv")(h)
                output = h if output is None else upsample(output, style.taps) + h
        return x if output is None else output, features


class SongUNet(nn.Module):
    """Raw network F: embeddings in at least float32, the image path in `dtype`.

        e = swap(embedding(c_noise)) + map_label(sqrt(K) label) + map_augment(augment)
            + map_reference(reference)
        emb = silu(map_layer1(silu(map_layer0(e))))
        step = silu(map_step1(silu(map_step0(swap(positional(stamps))))))

    A missing label, augmentation or reference counts as zeros, which for a label leaves the bias of
    `map_label`. Without "stamps" the step's branch is left out, without "adapter" the adapter, and `init` makes
    no weights for it.
    Source: Karras et al. 2022 (arXiv:2206.00364), App. F; Song et al. 2021 (arXiv:2011.13456); the step's
    branch is that of Zhou et al. 2024 (arXiv:2409.19681).
    """

    widths: tuple[int, ...]
    outputs: int
    classes: int
    settings: Mapping  # DEFAULTS and an entry of ARCHITECTURES

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Mapping[str, Array], train: bool):
        settings = self.settings
        wide = jnp.promote_types(x.dtype, jnp.float32)
        style = SONG._replace(
            dropout=settings["dropout"],
            taps=settings["resample_filter"],
            step=SONG.initial if settings["stamps"] == "random" else Init(kernel=0.0),
        )
        embeddings = {"emb": self._embedding(c_noise.astype(wide), cond, style)}
        if "stamps" in cond:
            embeddings["step"] = self._step_embedding(cond["stamps"].astype(wide), style)
        common = dict(
            blocks=settings["num_blocks"], attention=settings["attn_resolutions"], style=style
        )
        image = x.astype(jnp.bfloat16 if settings["dtype"] == "bfloat16" else wide)
        encoder = Encoder(self.widths, settings["model_channels"], kind=settings["encoder_type"],
                          name="enc", **common)  # fmt: skip
        decoder = Decoder(
            self.widths, self.outputs, kind=settings["decoder_type"], name="dec", **common
        )
        added = adapter.added(image, cond, settings["adapter"], self.widths)
        image = widened(image, cond, settings["concat"])
        h, skips, fine_to_coarse = encoder(image, embeddings, train, added)
        output, coarse_to_fine = decoder(h, embeddings, skips, train)
        return output.astype(wide), {**fine_to_coarse, **coarse_to_fine}

    def _embedding(self, c_noise, cond, style):
        settings, channels = self.settings, self.settings["model_channels"]
        noise_channels = channels * settings["channel_mult_noise"]
        if settings["embedding_type"] == "fourier":
            e = Fourier(noise_channels, name="map_noise")(c_noise)
        else:
            e = positional(c_noise, noise_channels, endpoint=True)
        e = swap_halves(e)
        if self.classes:
            label = cond.get("label", jnp.zeros((1, self.classes))).astype(e.dtype)
            scaled = label * math.sqrt(self.classes)
            e = e + Dense(noise_channels, initial=style.initial, name="map_label")(scaled)
        if settings["augment_dim"]:
            augment = cond.get("augment", jnp.zeros((1, settings["augment_dim"]))).astype(e.dtype)
            e = e + Dense(noise_channels, bias=False, initial=style.initial, name="map_augment")(
                augment
            )
        if settings["reference"]:
            told = reference(cond, settings["reference"]).astype(e.dtype)
            layer = Dense(noise_channels, bias=False, initial=style.initial, name="map_reference")
            e = e + layer(told)
        return self._mapped(e, ("map_layer0", "map_layer1"), style)

    def _step_embedding(self, stamps, style):
        channels = self.settings["model_channels"] * self.settings["channel_mult_noise"]
        e = swap_halves(positional(stamps, channels, endpoint=True))
        return self._mapped(e, ("map_step0", "map_step1"), style)

    def _mapped(self, e, names, style):
        width = self.settings["model_channels"] * self.settings["channel_mult_emb"]
        for name in names:
            e = jax.nn.silu(Dense(width, initial=style.initial, name=name)(e))
        return e


def build(config: Mapping, shape: tuple[int, int, int], classes: int = 0) -> Network:
    """DDPM++ (`architecture="ddpmpp"`, the default) or NCSN++ ("ncsnpp") for images of `shape` (H,W,C).

    Args:
      config: options of DEFAULTS and ARCHITECTURES, named as in the EDM code: `model_channels`,
        `channel_mult`, `num_blocks` (per level), `attn_resolutions` (sizes with attention), ...
      classes: K of the condition "label" (B,K); 0 for an unconditional network. With `augment_dim` A
        the condition "augment" (B,A) is known as well, with `stamps` the condition "stamps" (B,), with
        `concat` "concat" (B,H,W,concat), unscaled and never missing, with `adapter` "adapter"
        (B,H,W,adapter), with `reference` K "reference" (B,K).
    Returns: a network with taps "enc/<block>" and "dec/<block>", such as "enc/8x8_block0".
    Raises: ValueError for unknown options, choices or shapes.
    """
    named = dict(config)
    architecture = named.pop("architecture", "ddpmpp")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"network song has no architecture {architecture!r}; known: {known}.")
    settings = options(named, DEFAULTS | ARCHITECTURES[architecture], "song")
    check_choices(settings, CHOICES, "song")
    step_condition(settings["stamps"], "song")
    check_halves(shape, len(settings["channel_mult"]), "song")
    reads = {"label": classes, "augment": settings["augment_dim"]}
    reads |= {name: settings[name] for name in ("stamps", "concat", "adapter", "reference")}
    known = [name for name, given in reads.items() if given]
    widths = tuple(settings["model_channels"] * mult for mult in settings["channel_mult"])
    outputs = settings["out_channels"] or shape[-1]
    return network(SongUNet(widths, outputs, classes, settings), known)
