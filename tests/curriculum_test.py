"""The law of the levels drawn, and stages by both ways of counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdiff_jax.losses import curriculum


@given(st.sampled_from(sorted(curriculum.LAWS)), st.integers(4, 80),
       st.lists(st.floats(0.01, 1), min_size=1, max_size=4))  # fmt: skip
def test_laws_are_shares(law, count, weights):
    found = curriculum.LAWS[law](count, weights)
    assert found.shape == (count,) and (found >= 0).all()
    assert found.sum() == pytest.approx(1)


def test_modes_stand_where_few_step_samplers_call():
    found = curriculum.mixture(32, (0.1, 0.2, 0.3, 0.4))
    peaks = found[[0, 8, 16, 24]]
    assert set(np.argsort(found)[-4:]) == {0, 8, 16, 24}
    np.testing.assert_allclose(peaks / peaks[0], [1, 2, 3, 4], rtol=1e-6)
    np.testing.assert_allclose(found[[7, 9]] / found[8], np.exp(-1 / 0.5), rtol=1e-6)
    assert curriculum.mixture(32, (1.0,), width=1e-3)[0] == 1  # one step from noise


def test_gaussian_is_centred_on_the_middle():
    found = curriculum.gaussian(16)
    assert found.argmax() == 8
    assert found[8] / found[4] == pytest.approx(np.exp(1))


def test_stages_last_as_long_as_they_say_and_the_last_for_ever():
    assert [curriculum.by_steps(step, (2, 1, 3)) for step in range(8)] == [0, 0, 1, 2, 2, 2, 2, 2]


def test_the_reference_ends_stages_early_and_falls_back_once():
    """Iterations 1.. of lengths 3, 2: below 3 stage 0, below 5 stage 1, at 5 stage 0 again, then the last."""
    assert [curriculum.by_reference(i, (3, 2)) for i in range(1, 8)] == [0, 0, 1, 1, 0, 1, 1]


@pytest.mark.parametrize("call, words", [
    (lambda: curriculum.mixture(8, (0.5, -0.5)), "none negative"),
    (lambda: curriculum.mixture(2, (0.5, 0.5, 0.5)), "1 to 2 weights"),
    (lambda: curriculum.mixture(8, (1.0,), width=0.0), "width of a mode is positive"),
    (lambda: curriculum.mixture(8, (0.0, 0.0)), "some weight of a mode must be positive"),
    (lambda: curriculum.check_modes(30, (1,) * 4, "it"), "it: 4 modes do not divide a grid of 30 levels"),
    (lambda: curriculum.Stages(steps=(5,)).check("it"), "steps has 1 entries, stages.modes 4"),
    (lambda: curriculum.Stages(steps=(5, 5, 5, 0)).check("it"), "a step or more"),
    (lambda: curriculum.Stages(matching=(0, 0, 0, -1)).check("it"), "not negative"),
    (lambda: curriculum.Stages(distill=(0, 1, 1, 1)).check("it"), "in each stage one is positive"),
])  # fmt: skip
def test_bad_requests_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
