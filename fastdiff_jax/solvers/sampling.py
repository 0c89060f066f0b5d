"""From named solvers to the `Sampler`s that a report evaluates."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from fastdiff_jax import conditioning, guidance, registry
from fastdiff_jax.conditioning import LABEL
from fastdiff_jax.precond import denoiser
from fastdiff_jax.rng import normal_per_image
from fastdiff_jax.solvers import driver, named, sscs
from fastdiff_jax.types import Cond, Denoiser, Model, Params, PhasePrecond, Sampler, Schedule

UNGUIDED = (
    "guidance needs a model with labels, or other conditions, that training has hidden now and then "
    "(method.label_dropout); this one has none: drop the guidance, or train it so."
)


def samplers(
    requests: Mapping[str, Mapping],
    model: Model,
    schedule: Schedule,
    shape: tuple[int, ...],
    weights: str | None = None,
    hides: Sequence[str] = (LABEL,),
) -> dict[str, Sampler]:
    """Samplers of one model by their names in the report.

    Args:
      requests: {report name: {"name": solver, "nfe": network calls, ...options of `named.sampler`}}; one
        may have a `schedule` of its own, and `guidance`, the settings of `Guidance`.
      schedule: N -> (N+1,) noise levels of the others.
      weights: name of the frozen tree to sample (a student's teacher); None for the params.
      hides: conditions that guidance amplifies, see `conditioning.guided`.
    A model of CLD has solvers, options and times of its own, see `sscs.samplers`.
    Raises: ValueError for unknown solvers, calls that a solver cannot make, and guidance with nothing to hide.
    """
    if isinstance(model.precond, PhasePrecond):
        return sscs.samplers(requests, model, shape, weights)

    @functools.cache  # samplers that differ in a solver's numbers only share their programs
    def generator(guide):
        def generate(prepared, params, frozen, keys, cond):
            params = params if weights is None else frozen[weights]
            bind = denoiser if guide is None else functools.partial(guide.denoiser, hides=hides)
            denoise = bind(model, params, cond)
            noise = driver.per_image(keys, shape)
            return named.generate(denoise, prepared, normal_per_image(keys, shape), noise=noise)

        return generate

    def one(request):
        settings = {"schedule": schedule, **request}
        name, nfe, guide = settings.pop("name"), settings.pop("nfe"), settings.pop("guidance", None)
        guide = guided(guide) if guide else None
        if guide and not hides:
            raise ValueError(UNGUIDED)
        if guide and nfe % guide.calls():
            raise ValueError(f"guidance calls the network twice a step; use an even nfe, not {nfe}.")
        calls = nfe // guide.calls() if guide else nfe
        found = named.sampler(name, calls, precond=model.precond, **settings)
        return Sampler(nfe, jax.tree_util.Partial(generator(guide), named.prepare(found)))

    return {name: one(request) for name, request in requests.items()}


class Guidance(NamedTuple):
    """Classifier-free guidance of a model that was trained with conditions hidden now and then."""

    scale: float  # 1 is the conditional model
    low: float = 0.0  # acts where low < sigma <= high
    high: float = float("inf")

    def calls(self) -> int:
        """Network calls for one prediction."""
        return 1 if self.scale == 1 or (self.scale == 0 and not self.bounded) else 2

    @property
    def bounded(self) -> bool:
        """Whether there are levels that it does not act at."""
        return (self.low, self.high) != (0.0, float("inf"))

    def denoiser(self, model: Model, params: Params, cond: Cond, hides: Sequence[str] = (LABEL,)) -> Denoiser:
        """`precond.denoiser`, guided away from what it says when the conditions `hides` are missing.

        Raises: ValueError if `cond` has none of them.
        """
        if not set(hides) & set(cond):
            raise ValueError(UNGUIDED)
        conditional = denoiser(model, params, cond)
        unconditional = denoiser(model, params, conditioning.without(cond, hides))
        if self.calls() == 1 or not self.bounded:
            return guidance.guided(conditional, unconditional, self.scale)
        return guidance.interval(conditional, unconditional, self.scale, self.low, self.high)


def guided(settings: Mapping) -> Guidance:
    """Guidance by its settings. Raises: ValueError for unknown ones, or a scale or an interval that is none."""
    found = registry.options(Guidance, settings, "guidance")
    guidance.interval(None, None, *found)  # binds nothing yet, only refuses
    return found
