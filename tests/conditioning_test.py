"""Conditions: all of them, hidden from some images, hidden from all, and the same to teachers and guidance."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import conditioning, precond, rng
from fastdiff_jax.losses import matching
from fastdiff_jax.methods import teacher
from fastdiff_jax.networks.module import conditions as checked
from fastdiff_jax.runtime import optimizers
from fastdiff_jax.solvers import sampling, schedules
from fastdiff_jax.types import Model, Network, Parts, Task

SHARES = np.full(3, 1 / 3)
BATCH = {"image": jnp.arange(12.0).reshape(4, 3), "label": jnp.array([0, 1, 2, 1])}


def means() -> Task:
    """Tells an image its mean, scaled by a frozen number and moved by a draw, as part of a tree too."""

    def draw(key, batch):
        return {"shift": jax.random.uniform(key, batch["image"].shape[:1])}

    def cond(batch, draws, frozen):
        mean = frozen["net"] * batch["image"].mean(1, keepdims=True) + draws["shift"][:, None]
        return {"mean": mean, "tree": {"twice": 2 * mean}}

    return Task(draw, cond, guided=("label", "mean"))


def additive() -> Network:
    """F = w (x + mean + label's first entry); a missing condition counts as zero, another key is refused."""

    def init(key, x, cond):
        return {"w": 1 + 0 * checked(cond, ("label", "mean", "tree"))["mean"].sum()}

    def apply(params, x, c_noise, cond=None, *, dropout=None, taps=()):
        told = checked(cond, ("label", "mean", "tree"))
        label = told.get("label", jnp.zeros((1, 3)))[:, :1]
        return params["w"] * (x + told.get("mean", 0.0) + label)

    return Network(init, apply)


def test_labels_are_one_hot_and_the_task_adds_its_own():
    made = conditioning.conditions(SHARES, None, BATCH, None, {})
    chex.assert_trees_all_equal(made, {"label": jax.nn.one_hot(BATCH["label"], 3)})
    assert conditioning.conditions(None, None, BATCH, None, {}) == {}
    both = conditioning.conditions(SHARES, means(), BATCH, {"shift": jnp.zeros(4)}, {"net": 2.0})
    assert set(both) == {"label", "mean", "tree"}
    chex.assert_trees_all_close(both["mean"][:, 0], jnp.array([2.0, 8.0, 14.0, 20.0]))


def test_hidden_from_some_or_from_all():
    cond = {"label": jnp.ones((2, 3)), "mean": jnp.ones((2, 1)), "tree": {"twice": jnp.ones((2, 1))}}
    some = conditioning.kept(cond, jnp.array([True, False]), ("label", "tree", "absent"))
    np.testing.assert_array_equal(some["label"], [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(some["tree"]["twice"], [[1], [0]])
    assert some["mean"] is cond["mean"]
    assert set(conditioning.without(cond, ("label", "absent"))) == {"mean", "tree"}


def test_what_is_guided():
    assert conditioning.guided(SHARES, None) == ("label",)
    assert conditioning.guided(None, None) == ()
    assert conditioning.guided(SHARES, means()) == ("label", "mean")
    assert conditioning.guided(None, means()) == ("mean",)


def test_blank_has_the_form_and_is_zero():
    blank = conditioning.blank(SHARES, means(), (3,), {"net": jnp.ones(())}, size=4)
    made = conditioning.conditions(SHARES, means(), BATCH, {"shift": jnp.zeros(4)}, {"net": jnp.ones(())})
    chex.assert_trees_all_equal_shapes_and_dtypes(blank, made)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(blank))
    assert conditioning.blank(None, None, (3,), {}) == {}


def method_of(labels=SHARES, **settings):
    parts = Parts(
        {"student": Model(additive(), precond.edm())},
        {"student": optimizers.build(dict(name="adam", learning_rate=1e-3), 4, 400.0)},
        (3,), labels, schedules.build(dict(name="polynomial")), matching.edm(), task=means(),
    )  # fmt: skip
    return teacher.build(settings, parts)


def loss_of(method, batch, hidden=(), frozen=2.0):
    frozen = {"net": jnp.asarray(frozen)}
    state = method.init(jax.random.key(0), frozen)
    draws = method.draw(jax.random.key(1), batch, None)
    draws["label_kept"] = draws["label_kept"] & ~jnp.isin(jnp.arange(4), jnp.array(hidden, jnp.int32))
    return float(method.update(state, frozen, batch, draws, None)[1]["loss"])


def test_a_teacher_is_told_and_hides_label_and_condition_together():
    method, other = method_of(), BATCH | {"label": (BATCH["label"] + 1) % 3}
    assert loss_of(method, BATCH) != loss_of(method, BATCH, frozen=3.0)
    everyone = tuple(range(4))
    assert loss_of(method, BATCH, everyone) == loss_of(method, other, everyone)
    assert loss_of(method, BATCH, everyone) == loss_of(method, BATCH, everyone, frozen=3.0)
    assert loss_of(method, BATCH) != loss_of(method, other)
    draws = method_of(label_dropout=0.3).draw(jax.random.key(0), {"image": jnp.ones((4000, 3))}, None)
    np.testing.assert_allclose(1 - draws["label_kept"].mean(), 0.3, atol=0.03)
    assert set(draws["task"]) == {"shift"}
    unlabelled = method_of(labels=None).draw(jax.random.key(0), BATCH, None)
    assert "label_kept" in unlabelled  # the mean can still be hidden


def test_guidance_hides_what_the_task_says():
    """F is linear in its conditions, so guidance is the same as `scale` times what it hides."""
    model, params, scale = Model(additive(), precond.edm()), {"w": jnp.ones(())}, 2.5
    keys = rng.image_keys(jax.random.key(0), jnp.arange(2))
    schedule = schedules.build(dict(name="polynomial"))

    def images(cond, hides, **guidance):
        request = {"one": {"name": "euler", "nfe": 8, **guidance}}
        if not guidance:
            request["one"]["nfe"] = 4
        (made,) = sampling.samplers(request, model, schedule, (3,), hides=hides).values()
        return made.generate(params, {}, keys, cond)

    cond = {"label": jnp.ones((2, 3)), "mean": jnp.ones((2, 1))}
    guidance = dict(guidance=dict(scale=scale))
    times = lambda *names: {k: scale * v if k in names else v for k, v in cond.items()}
    both = images(cond, ("label", "mean"), **guidance)
    chex.assert_trees_all_close(both, images(times("label", "mean"), ()), rtol=1e-4)
    chex.assert_trees_all_close(images(cond, ("mean",), **guidance), images(times("mean"), ()), rtol=1e-4)
    with pytest.raises(ValueError, match="guidance needs a model with labels, or other conditions"):
        images(cond, (), **guidance)
    with pytest.raises(ValueError, match="guidance needs a model with labels"):
        images({"mean": cond["mean"]}, ("label",), **guidance)
