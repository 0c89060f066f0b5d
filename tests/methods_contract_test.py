"""What every method under methods/ must do: pure updates, states of one form, draws from the key."""

import chex
import jax
import jax.numpy as jnp
import pytest

from fastdiff_jax import registry, rng
from fastdiff_jax.runtime import commands, experiment
from fastdiff_jax.runtime.assemble import assemble

CONFIGS = {
    "teacher": "edm_digits:smoke",
    "sid": "sid_digits:smoke",
    "classifier": "classifier_digits:smoke",
}


@pytest.fixture(scope="module", params=registry.known("methods"))
def case(request):
    """(method, frozen, state, batch, draws) of a method's smoke config, with fresh weights for its teacher."""
    job = assemble(experiment.load(CONFIGS[request.param]))
    method = job.method
    frozen = {
        role: jax.tree.map(
            lambda leaf: 0.02 * jax.random.normal(jax.random.key(0), leaf.shape), tree
        )
        for role, tree in commands.basis_shapes(job)[0].items()
    }
    state = jax.jit(method.init)(rng.root(0, "init"), frozen)
    batch = {"image": jnp.zeros((4, *job.parts.shape)), "label": jnp.arange(4, dtype=jnp.int32)}
    variant = method.variant(0, 0)
    draws = jax.jit(method.draw, static_argnums=2)(rng.root(0, "train"), batch, variant)
    return job, frozen, state, batch, draws, variant


def test_every_method_is_covered():
    assert set(CONFIGS) == set(registry.known("methods"))


def test_updates_are_pure_and_keep_the_state_s_form(case):
    job, frozen, state, batch, draws, variant = case
    update = jax.jit(job.method.update, static_argnums=4)
    before = jax.tree.map(jnp.copy, state)
    first, metrics = update(state, frozen, batch, draws, variant)
    again, _ = update(state, frozen, batch, draws, variant)
    chex.assert_trees_all_equal(before, state)
    chex.assert_trees_all_equal(first, again)
    chex.assert_trees_all_equal_shapes_and_dtypes(first, state)
    chex.assert_tree_all_finite((first, metrics))
    chex.assert_shape(list(metrics.values()), ())
    assert any(name.startswith("loss") for name in metrics)
    assert first.step == state.step + 1


def test_draws_depend_on_the_key_only(case):
    job, _, _, batch, draws, variant = case
    draw = jax.jit(job.method.draw, static_argnums=2)
    again = draw(rng.root(0, "train"), {k: v + 1 for k, v in batch.items()}, variant)
    other = draw(rng.root(1, "train"), batch, variant)
    data = lambda tree: [jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
                         for a in jax.tree.leaves(tree)]  # fmt: skip
    chex.assert_trees_all_equal(data(draws), data(again))
    assert not all(jnp.array_equal(a, b) for a, b in zip(data(draws), data(other)))


def test_samplers_run_under_jit_and_pmap(case):
    job, frozen, state, *_ = case
    weights = job.method.weights(state)
    for sampler in list(job.method.samplers.values())[:1]:
        keys = rng.image_keys(rng.root(0, "sample"), jnp.arange(2))
        cond = {"label": jax.nn.one_hot(jnp.array([1, 2]), job.classes)}
        images = jax.jit(sampler.generate)(weights, frozen, keys, cond)
        chex.assert_shape(images, (2, *job.parts.shape))
        chex.assert_tree_all_finite(images)
        mapped = jax.pmap(sampler.generate, in_axes=(None, None, 0, 0))
        parallel = mapped(weights, frozen, keys[None], jax.tree.map(lambda a: a[None], cond))
        chex.assert_trees_all_close(parallel[0], images, rtol=1e-4, atol=1e-4)


def test_without_stages_advance_changes_nothing(case):
    job, _, state, *_ = case
    assert job.method.advance(state, 3) is state
