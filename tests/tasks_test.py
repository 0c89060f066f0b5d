"""Tasks: their conditions, their measures, the networks that take them, and where evaluations get them from."""

from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from fastdiff_jax import precond, registry
from fastdiff_jax.losses import matching
from fastdiff_jax.methods import teacher
from fastdiff_jax.metrics import paired, panels
from fastdiff_jax.networks import adapter, adm, song
from fastdiff_jax.runtime import (
    assemble,
    commands,
    evaluate,
    experiment,
    generate,
    given,
    optimizers,
    pictures,
    protocols,
)
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.tasks import edges, inpainting, reference, superres
from fastdiff_jax.types import Data, Model, Network, Parts, Sampler

SHAPE = (8, 8, 1)
IMAGES = jax.random.uniform(jax.random.key(3), (6, *SHAPE), minval=-1, maxval=1)
BATCH = {"image": IMAGES, "label": jnp.array([0, 1, 0, 1, 2, 0])}
TINY = dict(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=())


def net(width=4):
    """Features that are fixed means of the image, of a frozen scale."""

    def apply(params, x, c_noise, cond, *, dropout=None, taps=()):
        rows = x.mean((2, 3))[:, :width] * params["scale"]
        return rows, dict.fromkeys(taps, rows)

    return {"features": Model(Network(None, apply), None)}


class TestInpainting:
    task = inpainting.build({}, {}, SHAPE)

    def test_the_condition_is_the_mask_and_what_is_known(self):
        draws = jax.jit(self.task.draw)(jax.random.key(0), BATCH)
        chex.assert_shape(draws["mask"], (6, 8, 8, 1))
        concat = self.task.cond(BATCH, draws, {})["concat"]
        np.testing.assert_array_equal(concat[..., :1], draws["mask"])
        np.testing.assert_array_equal(concat[..., 1:], np.where(draws["mask"], 0, IMAGES))
        np.testing.assert_array_equal(self.task.shown(BATCH, draws), concat[..., 1:])

    def test_known_pixels_are_pasted_for_pictures_only(self):
        draws = self.task.draw(jax.random.key(0), BATCH)
        mask, made = np.asarray(draws["mask"]), np.asarray(IMAGES) + 0.1 * np.asarray(draws["mask"]) + 0.2
        pasted = self.task.pasted(made, BATCH, draws)
        np.testing.assert_array_equal(pasted, np.where(mask, made, IMAGES))
        row = self.task.measure(made, BATCH, draws, None)
        np.testing.assert_allclose(row["psnr_masked"], 10 * np.log10(4 / 0.09), rtol=1e-5)
        np.testing.assert_allclose(row["psnr_known"], 10 * np.log10(4 / 0.04), rtol=1e-5)
        moved = self.task.measure(made, BATCH, draws, lambda x: np.asarray(x).reshape(6, -1))
        direct = np.linalg.norm((made - IMAGES).reshape(6, -1), axis=1).mean()
        np.testing.assert_allclose(moved["feature_distance"], direct, rtol=1e-6)

    @settings(max_examples=10, deadline=None)
    @sampled(st.integers(0, 2**31 - 1), st.sampled_from([(8, 8), (5, 16)]))
    def test_boxes_are_filled_rectangles_of_the_asked_sides(self, seed, size):
        choice = inpainting.Settings(smallest=0.3, largest=0.6)
        mask = np.asarray(inpainting.box(jax.random.key(seed), size, choice))
        for axis in range(2):
            (at,) = np.nonzero(mask.any(1 - axis))
            assert np.round(0.3 * size[axis]) <= len(at) <= np.round(0.6 * size[axis])
            assert at[-1] - at[0] == len(at) - 1
        assert mask.sum() == mask.any(0).sum() * mask.any(1).sum()

    @settings(max_examples=10, deadline=None)
    @sampled(st.integers(0, 2**31 - 1), st.floats(0.01, 0.4))
    def test_strokes_are_what_is_near_their_lines(self, seed, thickness):
        choice = inpainting.Settings(strokes=1, thickness=thickness)
        mask = np.asarray(inpainting.strokes(jax.random.key(seed), (8, 8), choice))
        begin, end = np.asarray(jax.random.uniform(jax.random.key(seed), (2, 1, 2)) * 8)[:, 0]
        points = begin + np.linspace(0, 1, 400)[:, None] * (end - begin)
        centres = np.stack(np.meshgrid(np.arange(8) + 0.5, np.arange(8) + 0.5, indexing="ij"), -1)
        distance = np.linalg.norm(centres[:, :, None] - points, axis=-1).min(-1)
        radius, started = thickness * 4, (np.floor(begin) == np.floor(centres)).all(-1)
        assert mask[started | (distance < radius - 0.02)].all()
        assert not (mask & (distance > radius + 0.02) & ~started).any()

    def test_masks_differ_and_have_the_asked_share_of_boxes(self):
        keys = jax.random.split(jax.random.key(0), 400)
        draw = jax.vmap(lambda key: inpainting.mask(key, (8, 8), inpainting.Settings(boxes=0.25)))
        masks = np.asarray(draw(keys))
        assert set(np.unique(masks)) == {0.0, 1.0} and masks.any((1, 2)).all()
        boxes = [m.sum() == m.any(0).sum() * m.any(1).sum() for m in masks]
        assert 0.2 < np.mean(boxes) < 0.4  # a stroke along an axis looks like one
        assert len(np.unique(masks, axis=0)) > 300

    @pytest.mark.parametrize(
        "bad, words",
        [
            (dict(boxes=1.5), "boxes is a share"), (dict(smallest=0.8), "smallest <= largest"),
            (dict(strokes=0), "strokes is a number from 1"), (dict(holes=2), "no setting holes; known: boxes"),
        ],
    )  # fmt: skip
    def test_impossible_settings_are_refused(self, bad, words):
        with pytest.raises(ValueError, match=words):
            inpainting.build(bad, {}, SHAPE)


class TestSuperres:
    task = superres.build({"factor": 4}, {}, SHAPE)

    def test_means_over_blocks_upsampled(self):
        cond = self.task.cond(BATCH, {}, {})["concat"]
        chex.assert_shape(cond, IMAGES.shape)
        low = np.asarray(IMAGES).reshape(6, 2, 4, 2, 4, 1).mean((2, 4))
        chex.assert_trees_all_close(self.task.shown(BATCH, {})[:, ::4, ::4], low, rtol=1e-5)
        expected = np.clip(jax.image.resize(low, IMAGES.shape, "cubic"), -1, 1)
        chex.assert_trees_all_close(cond, expected, rtol=1e-4, atol=1e-6)
        flat = {"image": jnp.full((1, *SHAPE), 0.3)}
        chex.assert_trees_all_close(self.task.cond(flat, {}, {})["concat"], flat["image"], rtol=1e-5)

    def test_columns_and_the_bicubic_row(self):
        made = IMAGES + 0.1 * jnp.array([1, -1] * 4)[:, None]  # columns alternate: the means stay
        row = self.task.measure(made, BATCH, {}, None)
        np.testing.assert_allclose(row["psnr"], 10 * np.log10(4 / 0.01), rtol=1e-5)
        assert row["psnr_low"] == 100  # as equal as PSNR is told
        (name,) = baselines = self.task.baselines(BATCH, {})
        assert name == "bicubic"
        chex.assert_trees_all_equal(baselines[name], self.task.cond(BATCH, {}, {})["concat"])

    @pytest.mark.parametrize("factor", [1, 3, 16, 2.0])
    def test_blocks_that_do_not_tile_are_refused(self, factor):
        with pytest.raises(ValueError, match="do not tile"):
            superres.build({"factor": factor}, {}, SHAPE)


class TestEdges:
    task = edges.build({"threshold": 0.25}, {}, SHAPE)

    def test_sobel_has_a_slope_and_half_a_step(self):
        ramp = jnp.broadcast_to(0.1 * jnp.arange(8.0)[None, :, None, None], (1, 8, 8, 3))
        found = edges.sobel(ramp)
        chex.assert_shape(found, (1, 8, 8, 1))
        chex.assert_trees_all_close(found[:, 1:-1], jnp.full((1, 6, 8, 1), 0.1), rtol=1e-4)
        chex.assert_trees_all_close(edges.sobel(ramp.swapaxes(1, 2)), found.swapaxes(1, 2), rtol=1e-5)
        step = jnp.where(jnp.arange(8) < 4, 0.0, 1.0)[None, None, :, None] * jnp.ones((1, 8, 1, 1))
        expected = np.where(np.isin(np.arange(8), (3, 4)), 0.5, 0.0)
        chex.assert_trees_all_close(edges.sobel(step)[0, :, :, 0], np.tile(expected, (8, 1)), atol=1e-6)

    def test_edges_are_the_condition_and_what_is_compared(self):
        cond = self.task.cond(BATCH, {}, {})["adapter"]
        np.testing.assert_array_equal(cond, edges.sobel(IMAGES) > 0.25)
        np.testing.assert_array_equal(self.task.shown(BATCH, {}), 2 * cond - 1)
        assert self.task.measure(IMAGES, BATCH, {}, None) == {"edge_f1": 1.0}
        assert self.task.measure(0 * IMAGES, BATCH, {}, None) == {"edge_f1": 0.0}
        assert 0 < self.task.measure(IMAGES[::-1], BATCH, {}, None)["edge_f1"] < 1
        assert self.task.guided == ("label",)
        (other,) = self.task.baselines(BATCH, {}).values()
        np.testing.assert_array_equal(other, IMAGES[jnp.array([2, 3, 5, 1, 4, 0])])

    def test_a_threshold_of_zero_is_refused(self):
        with pytest.raises(ValueError, match="the threshold is positive; got 0"):
            edges.build({"threshold": 0}, {}, SHAPE)


class TestAdapter:
    """An adapter beside an encoder: nothing at first, trained alone, none without its map."""

    bare, network = (song.build(TINY | dict(adapter=channels), SHAPE, 3) for channels in (0, 1))
    told = {"label": jax.nn.one_hot(jnp.array([0, 2]), 3)}
    edge = {"adapter": (IMAGES[:2] > 0).astype(jnp.float32)}

    def method(self, **changes):
        models = {"student": Model(self.network, precond.edm())}
        tx = optimizers.build(dict(name="adam", learning_rate=1e-2), 6, 600.0)
        task = edges.build({}, {}, SHAPE)
        parts = Parts(models, {"student": tx}, SHAPE, np.full(3, 1 / 3), objective=matching.edm(), task=task)
        return teacher.build({"trains": ("adapter",)} | changes, parts)

    def test_it_has_features_for_each_level(self):
        made = adapter.Adapter((8, 16, 16))
        outline = jax.eval_shape(made.init_with_output, jax.random.key(0), IMAGES)[0]
        assert [leaf.shape for leaf in outline] == [(6, 8, 8, 8), (6, 4, 4, 16), (6, 2, 2, 16)]

    def test_it_adds_them_in_the_encoder(self):
        params = jax.jit(self.network.init)(jax.random.key(0), IMAGES[:2], self.told | self.edge)
        base = {name: part for name, part in params.items() if name != "adapter"}
        bare = jax.eval_shape(self.bare.init, jax.random.key(0), IMAGES[:2], self.told)
        chex.assert_trees_all_equal_shapes(base, bare)  # weights of a network without adapter fit
        levels, taps = jnp.zeros(2), ("enc/8x8_block0",)
        apply = jax.jit(partial(self.network.apply, taps=taps))
        at = lambda params, cond: apply(params, IMAGES[:2], levels, cond)[1]
        plain, same = at(base, self.told), at(params, self.told | self.edge)
        chex.assert_trees_all_close(plain, same, rtol=1e-6)  # zeros at first
        out = params["adapter"]["level0_out"]
        moved = params | {"adapter": params["adapter"] | {"level0_out": out | {"bias": out["bias"] + 1}}}
        chex.assert_trees_all_close(at(moved, self.told | self.edge)[taps[0]], plain[taps[0]] + 1, rtol=1e-5)
        with pytest.raises(ValueError, match=r"'adapter' is \(2, 8, 8, 1\) here; got \(2, 8, 8, 3\)"):
            at(params, {"adapter": jnp.zeros((2, 8, 8, 3))})

    def test_a_teacher_trains_it_alone_on_another_ones_weights(self):
        method = self.method()
        base = jax.jit(self.bare.init)(jax.random.key(5), IMAGES[:2], self.told)
        base = jax.tree.map(lambda leaf: leaf + 0.05, base)  # the last layers start at almost zero
        state = jax.jit(method.init)(jax.random.key(0), {"initial": base})
        draws, update = method.draw(jax.random.key(1), BATCH, None), jax.jit(method.update, static_argnums=4)
        for _ in range(2):
            state, _ = update(state, {}, BATCH, draws, None)
        weights = method.weights(state)
        assert set(weights) - set(base) == {"adapter"}
        chex.assert_trees_all_equal({name: weights[name] for name in base}, base)
        chex.assert_trees_all_equal({name: state.params[name] for name in base}, base)
        assert all(np.any(out) for out in jax.tree.leaves(state.params["adapter"]["level0_out"]))
        again = jax.eval_shape(method.init, jax.random.key(0), {"initial": weights})  # with its adapter
        chex.assert_trees_all_equal_shapes(again.params, weights)

    def test_what_is_not_there_cannot_be_trained(self):
        with pytest.raises(ValueError, match="trains 'adaptor', and the weights are map_label"):
            jax.eval_shape(self.method(trains=("adaptor",)).init, jax.random.key(0), {})


class TestReference:
    def test_the_condition_is_the_direction_of_the_features(self):
        task = reference.build({"holes": {"boxes": 1.0}}, net(), SHAPE)
        draws = task.draw(jax.random.key(0), BATCH)
        cond = task.cond(BATCH, draws, {"features": {"scale": jnp.asarray(7.0)}})
        assert set(cond) == {"concat", "reference"}
        features = IMAGES.mean((2, 3))[:, :4]
        expected = features / jnp.sqrt((features**2).mean(-1, keepdims=True))  # the scale is not told
        chex.assert_trees_all_close(cond["reference"], expected, rtol=1e-5)
        assert task.guided == ("label", "reference")
        assert not np.isnan(reference.unit(jnp.zeros((2, 3)))).any()

    def test_similarity_is_compared_with_other_references(self):
        """What is made is the reference itself: one, and the cosines between different images."""
        task = reference.build({}, net(), SHAPE)
        draws, features = task.draw(jax.random.key(0), BATCH), lambda x: np.asarray(x).mean((2, 3))
        row = task.measure(IMAGES, BATCH, draws, features)
        wanted = features(IMAGES)
        cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        np.testing.assert_allclose(row["similarity"], 1, rtol=1e-6)
        pairs = [(i, (i + 1) % 6) for i in range(6)]
        np.testing.assert_allclose(
            row["similarity_shuffled"], np.mean([cosine(wanted[i], wanted[j]) for i, j in pairs]), rtol=1e-5
        )
        pairs = [(0, 2), (2, 5), (5, 0), (1, 3), (3, 1), (4, 4)]
        np.testing.assert_allclose(
            row["similarity_class"], np.mean([cosine(wanted[i], wanted[j]) for i, j in pairs]), rtol=1e-5
        )

    def test_it_needs_its_model(self):
        with pytest.raises(ValueError, match="no model 'face' to make features; known: features"):
            reference.build({"features": "face"}, net(), SHAPE)


def test_psnr_over_the_whole_set_and_other_measures():
    made, originals = np.zeros((2, 2, 2, 1)), np.zeros((2, 2, 2, 1))
    made[0, 0, 0] = 1.0
    np.testing.assert_allclose(paired.psnr(made, originals), 10 * np.log10(4 / (1 / 8)))
    where = np.zeros_like(made)
    with pytest.raises(ValueError, match="no pixel is marked"):
        paired.psnr(made, originals, where)
    where[1] = 1
    assert paired.psnr(made, originals, where) == 100  # no error: infinite, which is no JSON
    with pytest.raises(ValueError, match="do not pair"):
        paired.psnr(made, originals[:1])
    assert paired.distance(np.array([[3.0, 4.0], [0, 0]]), np.zeros((2, 2))) == 2.5
    vectors, others = np.array([[2.0, 0], [1, 1], [0, 0]]), np.array([[1.0, 0], [1, -1], [1, 1]])
    np.testing.assert_allclose(paired.similarity(vectors, others), 1 / 3)
    assert paired.f1(np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])) == 0.5
    assert paired.f1(np.zeros(3), np.zeros(3)) == 1


@pytest.fixture(scope="module", params=["song", "adm"])
def network(request):
    """A network with all conditions and random weights: the last layers start at (nearly) zero."""
    build = {"song": song, "adm": adm}[request.param].build
    made = build(TINY | dict(concat=2, reference=5, adapter=1), SHAPE, 3)
    cond = {"concat": jnp.zeros((2, 8, 8, 2)), "reference": jnp.zeros((2, 5)), "label": jnp.zeros((2, 3))}
    cond["adapter"] = jnp.zeros((2, 8, 8, 1))
    shapes = jax.eval_shape(made.init, jax.random.key(0), jnp.zeros((2, *SHAPE)), cond)
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(0.3 * generator.standard_normal(s.shape), s.dtype), shapes)
    return made._replace(apply=jax.jit(made.apply)), params


class TestNetworks:
    x, levels = IMAGES[:2], jnp.array([0.3, -0.4])

    def test_conditions_reach_the_output_and_a_hidden_reference_is_zero(self, network):
        made, params = network
        concat, ref = jnp.ones((2, 8, 8, 2)), jnp.ones((2, 5))
        apply = lambda **cond: made.apply(params, self.x, self.levels, cond)
        base = apply(concat=concat, reference=ref)
        chex.assert_shape(base, (2, *SHAPE))
        assert jnp.abs(base - apply(concat=0.5 * concat, reference=ref)).max() > 1e-3
        assert jnp.abs(base - apply(concat=concat)).max() > 1e-3
        assert jnp.abs(base - apply(concat=concat, reference=ref, adapter=self.x)).max() > 1e-3
        zero = apply(concat=concat, reference=0 * ref)
        chex.assert_trees_all_close(apply(concat=concat), zero, atol=1e-5)

    def test_a_missing_concat_is_refused_not_hidden(self, network):
        made, params = network
        with pytest.raises(ValueError, match="needs the condition 'concat', 2 more channels"):
            made.apply(params, self.x, self.levels, {})
        with pytest.raises(ValueError, match=r"'concat' is \(2, 8, 8, 2\) here; got \(2, 8, 8, 3\)"):
            made.apply(params, self.x, self.levels, {"concat": jnp.zeros((2, 8, 8, 3))})
        with pytest.raises(ValueError, match=r"'reference' is \(B, 5\) here; got \(2, 4\)"):
            cond = {"concat": jnp.zeros((2, 8, 8, 2)), "reference": jnp.zeros((2, 4))}
            made.apply(params, self.x, self.levels, cond)
        with pytest.raises(ValueError, match="no condition 'edges'; known: label, concat, adapter, reference"):
            made.apply(params, self.x, self.levels, {"edges": self.x})


class TestEvaluations:
    """Conditions by image number."""

    task = inpainting.build({}, {}, SHAPE)
    images = np.arange(9)[:, None, None, None] * np.ones((1, *SHAPE))
    known = {"image": images, "label": np.arange(9) % 3, "split": (np.arange(9) > 2).astype(int)}
    data = Data("numbers", (), known, 3, np.asarray, lambda v: np.asarray(v, np.float32), "", SHAPE)
    config = experiment.load("inpainting_digits:smoke")

    def test_held_out_images_come_first_and_are_said(self):
        source = given.source(self.config, self.data)
        np.testing.assert_array_equal(source.images[:, 0, 0, 0], np.arange(3, 9))
        assert source.said == "the 6 held-out images"
        everything = self.data._replace(reference={**self.data.reference, "split": np.zeros(9, int)})
        assert given.held_out(self.config, everything) is None
        assert "trained on" in given.source(self.config, everything).said

    def test_a_number_has_one_image_and_one_mask_whatever_the_set(self):
        source = given.source(self.config, self.data)
        whole = given.given(self.task, source, self.data, 5, 10)
        part = given.given(self.task, source, self.data, 5, 4, first=3)
        chex.assert_trees_all_equal(part, jax.tree.map(lambda leaf: leaf[3:7], whole))
        chex.assert_trees_all_equal(whole.head(2), jax.tree.map(lambda leaf: leaf[:2], whole))
        assert set(whole.images[:6, 0, 0, 0]) == set(range(3, 9))
        np.testing.assert_array_equal(whole.images[:, 0, 0, 0] % 3, whole.labels)
        other = given.given(self.task, source, self.data, 6, 10)
        assert not np.array_equal(other.draws["mask"], whole.draws["mask"])

    def test_labels_choose_among_the_images(self):
        source = given.source(self.config, self.data)
        labels = np.array([2, 0, 2, 2, 1], np.int32)
        made = given.given(self.task, source, self.data, 0, 5, labels=labels)
        np.testing.assert_array_equal(made.labels, labels)
        np.testing.assert_array_equal(made.images[:, 0, 0, 0] % 3, labels)
        with pytest.raises(ValueError, match="have none of class 7"):
            given.given(self.task, source, self.data, 0, 1, labels=np.array([7]))

    @pytest.mark.parametrize("batch_size", [3, 4, 16])
    def test_samplers_see_the_same_conditions_in_any_batch(self, batch_size):
        """A sampler that returns its conditions: what the pictures and measures are told."""

        def generate_(params, frozen, keys, cond):
            assert set(cond) == {"label", "concat"}
            return cond["concat"] + cond["label"].argmax(-1)[:, None, None, None]

        source = given.source(self.config, self.data)
        at = given.given(self.task, source, self.data, 5, 7, first=2)
        mesh = meshes.make({"data": -1, "fsdp": 1})
        maker = generate.generator(
            Sampler(1, generate_), {}, {}, 3, batch_size, mesh, task=self.task, shape=SHAPE
        )
        stored, _ = generate.images(maker, 5, at.labels, self.data.encode, first=2, given=at.images)
        expected = inpainting.masked(at.images, at.draws["mask"]) + at.labels[:, None, None, None]
        np.testing.assert_array_equal(stored, expected)

    def test_pictures_have_input_original_and_what_was_made_with_the_known_pixels(self):
        at = given.given(self.task, given.source(self.config, self.data), self.data, 5, 6).head(4)
        made = np.full((4, *SHAPE), 50.0)
        shown = given.pictured(self.task, at, self.data, {"one": made})
        assert list(shown) == ["input", "original", "one"]
        mask = at.draws["mask"] > 0
        np.testing.assert_array_equal(shown["input"], np.where(mask, 0, at.images))
        np.testing.assert_array_equal(shown["original"], at.images)
        np.testing.assert_array_equal(shown["one"], np.where(mask, made, at.images))
        stored = {name: images.astype(np.uint8) for name, images in shown.items()}
        assert pictures.strips(stored).startswith(b"\x89PNG")

    def test_rows_have_the_columns_of_panel_and_task_and_baselines_are_rows(self):
        task = superres.build({"factor": 2}, {}, SHAPE)
        panel = panels.Panel(lambda stored, labels: {"px": float(labels.sum())}, None, {}, (), "")
        job = SimpleNamespace(parts=SimpleNamespace(task=task), data=self.data)
        source, repeats = given.source(self.config, self.data), [protocols.Repeat(seed, 0) for seed in (0, 1)]
        sets = {repeat: given.given(task, source, self.data, repeat.seed, 6) for repeat in repeats}
        bench = evaluate.Bench(job, panel, source, sets, None)
        at = sets[repeats[0]]
        row = bench.measure(at.images + 0.2, repeats[0])
        np.testing.assert_allclose(row["psnr"], 10 * np.log10(4 / 0.04), rtol=1e-4)
        assert row["px"] == at.labels.sum()
        (bicubic,) = bench.baselines()
        assert bicubic.name == "bicubic" and bicubic.nfe is None and bicubic.values["px"][1] == 0
        assert list(bench.pictures([bicubic])) == ["input", "original", "bicubic"]


class TestAssembly:
    def test_the_teacher_gets_its_task_and_inputs(self):
        job = assemble.assemble(experiment.load("reference_digits:smoke"), outline=True)
        assert job.parts.task is not None and job.parts.labels is None
        init = job.parts.models["features"].network.init
        frozen = {"features": jax.eval_shape(init, jax.random.key(0), IMAGES)}
        params = jax.eval_shape(job.method.init, jax.random.key(0), frozen).params
        assert params["enc"]["8x8_conv"]["kernel"].shape[2] == 3
        assert params["map_reference"]["kernel"].shape == (64, 16)

    def test_a_student_and_its_discriminator_are_told_what_the_teacher_is(self):
        """A Flash step of the reference task in outline: any network without its conditions would refuse."""
        job = assemble.assemble(experiment.load("flash_reference_digits:smoke"), outline=True)
        (frozen, _), state = commands.basis_shapes(job), commands.state_shapes(job)
        turn = job.method.variant(job.config.train.steps - 1, 0)
        draws = jax.eval_shape(lambda key: job.method.draw(key, BATCH, turn), jax.random.key(0))
        chex.assert_shape(draws["task"]["mask"], (6, 8, 8, 1))
        outline = lambda *given: job.method.update(*given, turn)
        found, metrics = jax.eval_shape(outline, state, frozen, BATCH, draws)
        chex.assert_trees_all_equal_shapes(found, state)
        assert {"loss_distill", "loss_matching", "loss_adversarial"} <= set(metrics)
        keys = jax.random.split(jax.random.key(0), 6)
        sample = job.method.samplers["student 2"].generate
        with pytest.raises(ValueError, match="needs the condition 'concat'"):
            jax.eval_shape(sample, job.method.weights(state), frozen, keys, {"reference": jnp.zeros((6, 64))})

    def test_what_does_not_go_together_is_refused(self):
        config = experiment.load("sid_digits:smoke")
        config.task = dict(name="inpainting")
        with pytest.raises(ValueError, match="was trained for the task none, this run has .*inpainting"):
            assemble.assemble(config, outline=True)
        config.teacher = "inpainting_digits:smoke"
        config.task = experiment.load(config.teacher).task
        with pytest.raises(ValueError, match="method sid knows no conditions but labels"):
            assemble.assemble(config, outline=True)
        config = experiment.load("inpainting_digits:smoke")
        config.task = dict(name="colouring")
        with pytest.raises(ValueError, match="tasks has no 'colouring'; known: "):
            assemble.assemble(config, outline=True)

    def test_commands_that_make_no_conditions_refuse_a_task(self, tmp_path):
        run = experiment.Experiment("one", experiment.load("inpainting_digits:smoke"), tmp_path)
        with pytest.raises(ValueError, match="has the task inpainting, and this command makes no conditions"):
            commands.teacher(run, outline=True)

    def test_every_task_builds_by_name(self):
        """With default settings, each makes conditions of a batch and finite columns of the originals."""
        frozen = {"features": {"scale": jnp.asarray(7.0)}}
        for name in registry.known("tasks"):
            task = registry.load("tasks", name)({}, net(), SHAPE)
            draws = task.draw(jax.random.key(0), BATCH)
            cond = task.cond(BATCH, draws, frozen)
            assert cond and {len(value) for value in cond.values()} == {len(IMAGES)}, name
            columns = task.measure(np.asarray(IMAGES), BATCH, draws, None)
            assert columns and np.isfinite(list(columns.values())).all(), name
