"""Distribution matching and adversarial score identity: DMD2, Diff-Instruct and SiDA as one method.

All train a one-step generator against a teacher and a fake score, as SiD does, and differ in settings: loss,
noise levels, order and ratio of updates, and a discriminator on a network's features; configs/dmd_digits.py has
the three.

Sources: Yin et al. 2024 (arXiv:2405.14867), Luo et al. 2023 (arXiv:2305.18455), Zhou et al. 2024
(arXiv:2410.14919).
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdiff_jax import registry, trees
from fastdiff_jax.losses import adversarial, generation, identity, levels
from fastdiff_jax.precond import denoiser, tapped
from fastdiff_jax.rng import normal_per_image, stream
from fastdiff_jax.types import Array, Method, Params, Parts, Sampler, expand

CHOICES = dict(
    loss=("dmd", "sid"), form=tuple(identity.FORMS), reduction=("mean", "sum"),
    order=("generator_first", "fake_first"), fake_start=("initial", "teacher"),
)  # fmt: skip
RIVAL_CHOICES = dict(features=("fake", "teacher"), weighting=("mean", "score"))
SHARED = ("latents", "label")


class Options(NamedTuple):
    """Settings of the family; defaults are DMD2's (arXiv:2405.14867) before its discriminator."""

    loss: str = "dmd"  # the generator's: "dmd" `identity.direction`, "sid" `identity.elements`
    weighted: bool = True  # dmd: each image by its teacher's error; Diff-Instruct: not
    form: str = "squared"  # dmd: how a value is given to the gradient, see `identity.FORMS`
    alpha: float = 1.0  # sid
    floor: float = 0.0  # of the weight's denominator; SiDA: 1e-5
    reduction: str = "mean"  # over an image of both score losses, or "sum"; over images the mean
    sigma_init: float = 80.0  # input scale and noise level of the generator
    levels: Mapping = {"name": "karras_grid", "first": 20, "last": 980}  # the generator's noise law
    order: str = "generator_first"  # or "fake_first": the generator then meets the updated critic
    shared: tuple[str, ...] = SHARED  # draws that both updates of an iteration have in common
    ratio: int = 5  # critic updates for one of the generator, in the last of so many iterations
    warmup: int = 0  # iterations of the critic alone at the start
    score_dropout: bool = False  # teacher and fake score drop out alike in the generator's update
    fake_start: str = "initial"  # what the fake score begins as: as the generator, or "teacher"
    fake_scale: float = 1.0
    generator_scale: float = 1.0
    adversarial: Mapping | None = None  # settings of a `Rival`
    ema_half_life: float = 500e3  # images
    ema_ramp: float | None = 0.05  # share of the images seen that caps the half-life
    start_images: float = 0.0  # images that the initial weights have seen
    accumulation: int = 1  # rounds a batch is split into


class Rival(NamedTuple):
    """Settings of the discriminator: the model of that name on features, or without it their channels' mean."""

    tap: str  # the features that it reads, by the network's name for them
    features: str = "fake"  # whose: "fake", whose encoder learns with it, or the frozen "teacher"
    loss: Mapping = {"name": "vanilla"}  # out of losses.adversarial
    levels: Mapping | None = {"name": "karras_grid"}  # noise law; None: at the x_t of the score losses
    generator_weight: float = 3e-3
    discriminator_weight: float = 1e-2
    clip: float | None = None  # of the logits in the generator's term
    share: float | None = None  # None: the generator's losses are added; else (1 - share), share of them
    begin: int = 0  # iterations before its term enters the generator's loss
    weighting: str = "mean"  # over images; "score": by the score losses' weights, SiDA
    groups: int = 1  # score: images whose mean is shared, see `adversarial.shared`; 1 is the whole batch


class State(NamedTuple):
    """What the family trains, and the average that it makes."""

    step: Array  # () int32, iterations done: each is an update of the critic
    generator: Params
    ema: Params
    generator_opt: optax.OptState
    critic: Params  # {"score": fake score, "head": discriminator, if it has weights}
    critic_opt: optax.OptState


class Turn(NamedTuple):
    """What an iteration consists of besides the critic's update."""

    generator: bool
    adversarial: bool  # whether the generator's loss has the adversarial term


def build(config, parts: Parts) -> Method:
    """The family as a method: updates of the critic, and with every `ratio`-th one of the generator.

        G(z) = D_G(sigma_init z; sigma_init)
        critic: objective on G(z) + discriminator_weight (adversary on real and generated images)
        generator: dmd or sid loss at G(z) + sigma n, + generator_weight (adversary)

    Args:
      config: see `Options` and `Rival`.
      parts: models and optimizers "generator" and "fake", models["teacher"], objective, shape, labels;
        optionally the model "discriminator", with an optimizer of that name or else by the one of "fake".
    Frozen: teacher; at `init` also "initial", weights to start from instead of the teacher's.
    Metrics: loss_fake, loss_discriminator, and in iterations that train the generator loss_generator,
      loss_adversarial and gap, the mean squared difference of teacher and fake score; ema_beta.
    Raises: ValueError for unknown or impossible settings, a tap that the network has not (naming those that it
      has), and a head that does not fit its features; in `init` for weights that do not fit.
    """
    config = registry.options(Options, config, "method dmd")
    rival = config.adversarial or None
    rival = rival and registry.options(Rival, rival, "method dmd, adversarial")
    _check(config, rival, parts)
    models, labels = parts.models, parts.labels
    tx = {role: optax.with_extra_args_support(one) for role, one in parts.optimizers.items()}
    law = registry.choose(levels.LEVELS, config.levels, "noise-level law")
    condition, pixels = partial(generation.condition, labels), math.prod(parts.shape)
    head = models.get("discriminator") if rival else None
    adversary = adversarial.build(rival.loss) if rival else None
    own = None  # the discriminator's noise law, if its images are noised apart
    if rival and rival.levels is not None:
        own = registry.choose(levels.LEVELS, rival.levels, "noise-level law")
    features = rival and adversarial.features(models[rival.features], rival.tap, parts.shape, labels)
    by_score = rival is not None and rival.weighting == "score"
    average = partial(adversarial.average, groups=rival.groups // config.accumulation if by_score else 1)
    critic_tx = tx["fake"]
    if head is not None:
        jax.eval_shape(head.network.init, jax.random.key(0), features)  # refuses what does not fit
        if "discriminator" in tx:
            kinds = {"score": "score", "head": "head"}
            critic_tx = optax.partition({"score": tx["fake"], "head": tx["discriminator"]}, kinds)

    def generate(params, latents, cond, dropout=None):
        return generation.generated(models["generator"], params, latents, config.sigma_init, cond, dropout)

    def init(key, frozen):
        roles = {"generator": "initial", "fake": config.fake_start}
        params, psi = generation.start(models, frozen, parts.shape, labels, key, roles).values()
        critic = {"score": psi}
        if head is not None:
            inputs = jnp.zeros(features.shape, features.dtype)
            drawn = head.network.init(stream(key, "discriminator"), inputs)
            critic["head"] = adversarial.bounded(drawn, adversary)
        step, opt = jnp.zeros((), jnp.int32), tx["generator"].init(params)
        return State(step, params, trees.copy(params), opt, critic, critic_tx.init(critic))

    def draw(key, batch, variant):
        shape = (len(jax.tree.leaves(batch)[0]), *parts.shape)

        def noised(key, name, law):
            noise = jax.random.normal(stream(key, f"{name} noise"), shape)
            return {f"{name}_level": law.draw(stream(key, f"{name} level"), shape[:1]), f"{name}_noise": noise}

        def for_critic(key):
            more = noised(key, "rival", own) | noised(key, "real", own) if own else {}
            return parts.objective.draw(key, shape) | more

        def for_generator(key):
            noise = jax.random.normal(stream(key, "noise"), shape)
            level = law.draw(stream(key, "level"), shape[:1])
            return {"level": level, "noise": noise} | (noised(key, "rival", own) if own else {})

        each = {"fake": for_critic, "generator": for_generator}
        return {
            name: generation.draws_of(stream(key, name), shape, more, labels)
            for name, more in each.items()
        }

    def scored(critic, x_t, sigma, cond, dropout=None):
        """The fake score's answer, with the features that it is asked for at the same point."""
        if rival and not own:
            return tapped(models["fake"], critic["score"], cond, (rival.tap,), dropout)(x_t, sigma)
        return denoiser(models["fake"], critic["score"], cond, dropout)(x_t, sigma), None

    def logits(critic, taken):
        if head is None:
            return taken[rival.tap].mean(-1)
        values = taken[rival.tap]
        return head.network.apply(critic["head"], values, jnp.zeros(len(values), values.dtype))

    def seen(critic, frozen, x, name, part, cond, dropout=None):
        """Logits of images x at a level and noise of their own."""
        sigma = own.sigma(part[f"{name}_level"])
        x_t = x + expand(sigma, x) * part[f"{name}_noise"]
        params, dropped = (critic["score"], dropout) if rival.features == "fake" else (frozen["teacher"], None)
        bound = tapped(models[rival.features], params, cond, (rival.tap,), dropped)
        return logits(critic, bound(x_t, sigma)[1])

    def critic_update(state, frozen, batch, draws, size, images):
        divisor = size * pixels if config.reduction == "mean" else size
        part = dict(draws["fake"])
        part |= {name: draws["generator"][name] for name in config.shared if name in part}
        if rival:
            part["real"] = batch["image"]
            if labels is not None:
                part["real_label"] = batch["label"]
                part["label"] = part["label"] if own else batch["label"]  # one x_t, one label: SiDA

        def on_critic(critic, part, dropout):
            cond, at = condition(part), {}
            x = generate(state.generator, part["latents"], cond)

            def score(x_t, sigma):
                answer, at["taken"] = scored(critic, x_t, sigma, cond, dropout)
                at["sigma"] = sigma
                return answer

            elements = generation.fake_loss(score, x, part, parts.objective)
            total = config.fake_scale * elements.sum() / divisor
            metrics = {"loss_fake": total}
            if rival:
                apart = jax.random.fold_in(dropout, 1)  # the real images' masks are their own
                real_cond = condition({"label": part.get("real_label")})
                if own:
                    fake = seen(critic, frozen, x, "rival", part, cond, dropout)
                    real = seen(critic, frozen, part["real"], "real", part, real_cond, apart)
                else:
                    x_t = part["real"] + expand(at["sigma"], x) * part["noise"]
                    fake = logits(critic, at["taken"])
                    real = logits(critic, scored(critic, x_t, at["sigma"], real_cond, apart)[1])
                weights = parts.objective.weight(at["sigma"]) if by_score else None
                value = average(adversary.real(real) + adversary.fake(fake), size, weights)
                metrics["loss_discriminator"] = rival.discriminator_weight * value
                total += metrics["loss_discriminator"]
            return total, metrics

        critic, opt, metrics = generation.descend(
            critic_tx, on_critic, state.critic, state.critic_opt, part, config.accumulation, images
        )
        if head is not None:
            critic = critic | {"head": adversarial.bounded(critic["head"], adversary)}
        return state._replace(critic=critic, critic_opt=opt), metrics

    def generator_update(state, frozen, draws, size, images, turn):
        divisor, critic = size * pixels if config.reduction == "mean" else size, state.critic

        def on_generator(params, part, dropout):
            cond, dropped = condition(part), dropout if config.score_dropout else None
            x, sigma = generate(params, part["latents"], cond, dropout), law.sigma(part["level"])
            x_t = x + expand(sigma, x) * part["noise"]
            if config.loss == "dmd":
                x_t = jax.lax.stop_gradient(x_t)
            real = denoiser(models["teacher"], frozen["teacher"], cond, dropped)(x_t, sigma)
            fake, taken = scored(critic, x_t, sigma, cond, dropped)
            if config.loss == "sid":
                elements = identity.elements(x, real, fake, config.alpha, config.floor)
            else:
                gradient = identity.direction(x, real, fake, config.floor if config.weighted else None)
                elements = identity.FORMS[config.form](x, gradient)
            total = config.generator_scale * elements.sum() / divisor
            metrics = {"loss_generator": total, "gap": ((real - fake) ** 2).mean() * len(x) / size}
            if turn.adversarial:
                values = seen(critic, frozen, x, "rival", part, cond) if own else logits(critic, taken)
                values = values if rival.clip is None else jnp.clip(values, -rival.clip, rival.clip)
                weights = pixels / identity.inverse_weight(x, real, config.floor) if by_score else None
                value = rival.generator_weight * average(adversary.generator(values), size, weights)
                metrics["loss_adversarial"] = value
                share = rival.share
                total = total + value if share is None else (1 - share) * total + share * value
            return total, metrics

        params, opt, metrics = generation.descend(
            tx["generator"], on_generator, state.generator, state.generator_opt, draws["generator"],
            config.accumulation, images,
        )  # fmt: skip
        return state._replace(generator=params, generator_opt=opt), metrics

    def update(state, frozen, batch, draws, variant):
        size, before = len(draws["generator"]["latents"]), state
        images = trees.images_seen(state.step, size, config.start_images)
        with_critic, metrics = critic_update(state, frozen, batch, draws, size, images)
        # Generator first: both updates start from the same state, so the order of the two calls is free.
        state = state if config.order == "generator_first" else with_critic
        if variant.generator:
            state, more = generator_update(state, frozen, draws, size, images, variant)
            metrics |= more
        beta = trees.half_life_beta(images, size, config.ema_half_life, config.ema_ramp)
        state = State(
            before.step + 1, state.generator, trees.ema(before.ema, state.generator, beta),
            state.generator_opt, with_critic.critic, with_critic.critic_opt,
        )  # fmt: skip
        return state, metrics | {"ema_beta": beta}

    def variant(step, seed):
        del seed
        generator = step >= config.warmup and (step + 1) % config.ratio == 0
        return Turn(generator, generator and rival is not None and step >= rival.begin)

    def cost(turn, recorded):
        # Passes up to a tap count as whole; a gradient of the input only counts 2.
        critic = 4 + (0 if rival is None else 6 if own else 3)
        scores = 4 if config.loss == "sid" else 2
        return critic + turn.generator * (3 + scores) + (2 if turn.adversarial and own else 0)

    def sample(params, frozen, keys, cond):
        return generate(params, normal_per_image(keys, parts.shape), cond)

    few = {"student": Sampler(1, sample)}
    return Method(
        init, draw, update, lambda state: state.ema, few, variant, cost=cost, raw=lambda state: state.generator
    )


def _check(config: Options, rival: Rival | None, parts: Parts) -> None:
    groups = [("", config, CHOICES)] + ([("adversarial.", rival, RIVAL_CHOICES)] if rival else [])
    for prefix, settings, choices in groups:
        for name, known in choices.items():
            if getattr(settings, name) not in known:
                raise ValueError(
                    f"method dmd: {prefix}{name} is {getattr(settings, name)!r}; known: {', '.join(known)}."
                )
    counts = [("ratio", config.ratio, 1), ("warmup", config.warmup, 0)]
    counts += [("adversarial.begin", rival.begin, 0), ("adversarial.groups", rival.groups, 1)] if rival else []
    for name, value, least in counts:
        if value < least:
            raise ValueError(f"method dmd: {name} is {least} or more; got {value}.")
    if unknown := sorted(set(config.shared) - set(SHARED)):
        raise ValueError(f"method dmd: shared names {', '.join(unknown)}; known: {', '.join(SHARED)}.")
    if rival is None:
        return
    if rival.levels is None and (config.loss, rival.features) != ("sid", "fake"):
        raise ValueError(
            "method dmd: without adversarial.levels the features are those of the score loss, whose input has "
            "a gradient with loss sid and features fake only; name a noise law."
        )
    if rival.weighting == "score" and (parts.objective.weight is None or rival.levels is not None):
        raise ValueError(
            "method dmd: adversarial.weighting score takes the weights of the score losses, so levels=None and "
            "an objective with weights; use weighting mean."
        )
    if rival.weighting == "score" and rival.groups % config.accumulation:
        raise ValueError(
            f"method dmd: {rival.groups} adversarial groups do not divide over {config.accumulation} "
            "accumulation rounds, which would change the result; use a multiple."
        )

