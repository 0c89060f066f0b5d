"""From named solvers to the `Sampler`s that a report evaluates."""

from collections.abc import Mapping

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
      requests: {report name: {"name": solver, "nfe": network calls, ...options of `named.sampler`}}.
      schedule: N -> (N+1,) noise levels.
      weights: name of the frozen tree to sample (a student's teacher); None for the params.
    Raises: ValueError for unknown solvers, and calls that a solver cannot make.
    """

    def one(request):
        settings = dict(request)
        solver = named.sampler(
            settings.pop("name"),
            settings.pop("nfe"),
            schedule=schedule,
            precond=model.precond,
            **settings,
        )

        def generate(params, frozen, keys, cond):
            denoise = denoiser(model, params if weights is None else frozen[weights], cond)
            noise = driver.per_image(keys, shape)
            return named.generate(denoise, solver, normal_per_image(keys, shape), noise=noise)

        return Sampler(request["nfe"], generate)

    return {name: one(request) for name, request in requests.items()}
