"""From named solvers to the `Sampler`s that a report evaluates."""

from collections.abc import Mapping

import jax

from fastdiff_jax.precond import denoiser
from fastdiff_jax.rng import normal_per_image
from fastdiff_jax.solvers import driver, named
from fastdiff_jax.types import Model, Sampler, Schedule


def samplers(
    requests: Mapping[str, Mapping],
    model: Model,
    schedule: Schedule,
    shape: tuple[int, ...],
    weights: str | None = None,
) -> dict[str, Sampler]:
    """Samplers of one model by their names in the report.

    Args:
      requests: {report name: {"name": solver, "nfe": network calls, ...options of `named.sampler`}}; one
        may have a `schedule` of its own.
      schedule: N -> (N+1,) noise levels of the others.
      weights: name of the frozen tree to sample (a student's teacher); None for the params.
    Raises: ValueError for unknown solvers, and calls that a solver cannot make.
    """

    def generate(prepared, params, frozen, keys, cond):
        denoise = denoiser(model, params if weights is None else frozen[weights], cond)
        noise = driver.per_image(keys, shape)
        return named.generate(denoise, prepared, normal_per_image(keys, shape), noise=noise)

    def one(request):
        settings = {"schedule": schedule, **request}
        found = named.sampler(settings.pop("name"), settings.pop("nfe"), precond=model.precond, **settings)
        # One function for all, with a solver's numbers as its argument: programs can be shared.
        return Sampler(request["nfe"], jax.tree_util.Partial(generate, named.prepare(found)))

    return {name: one(request) for name, request in requests.items()}
