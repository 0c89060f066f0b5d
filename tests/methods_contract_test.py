"""What every method under methods/ must do: pure updates, states of one form, draws from the key."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import registry, rng
from fastdiff_jax.runtime import commands, compile, experiment
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.assemble import Job, assemble


def smoke_configs() -> dict[str, str]:
    """The smoke config of every method, on embedded data; a lab only if there is nothing else."""
    found = {}
    for stem in sorted(experiment.known(), key=lambda stem: (stem.startswith("lab_"), stem)):
        config = experiment.load(f"{stem}:smoke")
        if "method" in config and config.data.name not in ("tfds", "edm_zip"):  # else a study
            found.setdefault(config.method.name, f"{stem}:smoke")
    return found


CONFIGS = smoke_configs()


class Case(NamedTuple):
    """A method at work: fresh weights for what it takes as given, and the arguments of a step."""

    job: Job
    frozen: Any
    initial: Any
    state: Any
    batch: Any
    draws: Any
    variant: Any


def weights_like(shapes):
    """Small random weights; those that come as arrays, a mixture's, stay."""

    def leaf(shape):
        exact = isinstance(shape, np.ndarray)
        return jnp.asarray(shape) if exact else 0.02 * jax.random.normal(jax.random.key(0), shape.shape)

    return jax.tree.map(leaf, shapes)


CASES = [(method, False) for method in registry.known("methods")] + [("flash", True)]  # its stages differ


@pytest.fixture(scope="module", params=CASES, ids=lambda one: one[0] + ", at its end" * one[1])
def case(request):
    method, last = request.param
    assert method in CONFIGS, "no config on embedded data trains this method"
    job = assemble(experiment.load(CONFIGS[method]))
    frozen, initial = map(weights_like, commands.basis_shapes(job))
    state = jax.jit(job.method.init)(rng.root(0, "init"), frozen | initial)
    batch = {"image": 0.5 * jnp.ones((4, *job.parts.shape)), "label": jnp.arange(4, dtype=jnp.int32)}
    variant = job.method.variant(job.config.train.steps - 1 if last else 0, 0)
    assert not last or variant != job.method.variant(0, 0)
    draws = jax.jit(job.method.draw, static_argnums=2)(rng.root(0, "train"), batch, variant)
    return Case(job, frozen, initial, state, batch, draws, variant)


def data(tree):
    """Leaves as plain arrays: keys as their bits."""
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return [np.asarray(jax.random.key_data(a) if is_key(a) else a) for a in jax.tree.leaves(tree)]


def test_updates_are_pure_and_keep_the_form_of_the_state(case):
    inputs = (case.state, case.frozen, case.batch, case.draws)
    before = [leaf.copy() for leaf in data(inputs)]
    update = jax.jit(case.job.method.update, static_argnums=4)
    with jax.checking_leaks():  # nor does anything stay behind in a closure
        first, metrics = update(*inputs, case.variant)
        again = update(*inputs, case.variant)
    chex.assert_trees_all_equal(data(inputs), before)
    chex.assert_trees_all_equal((first, metrics), again)
    chex.assert_trees_all_equal_shapes_and_dtypes(first, case.state)  # donated buffers are taken over
    chex.assert_tree_all_finite((first, metrics))
    chex.assert_shape(list(metrics.values()), ())
    assert any(name.startswith("loss") for name in metrics)
    assert first.step == case.state.step + 1
    chex.assert_tree_all_finite(case.job.method.weights(first))


def test_draws_depend_on_the_key_only(case):
    draw = jax.jit(case.job.method.draw, static_argnums=2)
    again = draw(rng.root(0, "train"), {k: v + 1 for k, v in case.batch.items()}, case.variant)
    other = draw(rng.root(1, "train"), case.batch, case.variant)
    chex.assert_trees_all_equal(data(case.draws), data(again))
    chex.assert_tree_all_finite([leaf for leaf in data(again) if leaf.dtype.kind == "f"])
    normal = [(a, b) for a, b in zip(data(case.draws), data(other)) if a.dtype.kind == "f"]
    assert normal and not any(np.array_equal(a, b) for a, b in normal)


def test_states_start_the_same_from_the_same_key_and_in_their_own_buffers(case):
    mesh = meshes.make({"data": -1, "fsdp": 1})
    given = case.frozen | case.initial
    layout, given_layout = (meshes.shardings(t, meshes.DEFAULT, mesh) for t in (case.state, given))
    state = compile.initial_state(case.job.method, layout, given_layout, mesh)(rng.root(0, "init"), given)
    chex.assert_trees_all_equal(state, case.state)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state, given))]
    assert len(set(buffers)) == len(buffers)


def test_samplers_run_under_jit_and_pmap_an_image_a_key(case):
    weights, classes = case.job.method.weights(case.state), case.job.classes
    for sampler in list(case.job.method.samplers.values())[:1]:
        keys = rng.image_keys(rng.root(0, "sample"), jnp.arange(2))
        cond = {"label": jax.nn.one_hot(jnp.array([1, 2]), classes)} if classes else {}
        images = jax.jit(sampler.generate)(weights, case.frozen, keys, cond)
        chex.assert_shape(images, (2, *case.job.parts.shape))
        chex.assert_tree_all_finite(images)
        assert not np.allclose(images[0], images[1])
        mapped = jax.pmap(sampler.generate, in_axes=(None, None, 0, 0))
        turned = jax.tree.map(lambda a: a[::-1][None], (keys, cond))
        parallel = mapped(weights, case.frozen, *turned)
        chex.assert_trees_all_close(parallel[0], images[::-1], rtol=1e-4, atol=1e-4)


def test_without_stages_advance_changes_nothing(case):
    assert case.job.method.advance(case.state, 3) is case.state


def test_variants_are_hashable_and_repeat(case):
    places = [(step, seed) for seed in (0, 1) for step in range(4)]
    variants = [case.job.method.variant(*place) for place in places]
    assert list(map(hash, variants)) == [hash(case.job.method.variant(*place)) for place in places]
