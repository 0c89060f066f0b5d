"""SFD from recorded trajectories is SFD with its teacher; a guided student is Euler's method, guided."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from fastdiff_jax import guidance, precond, rng
from fastdiff_jax.data import pairs, pipeline
from fastdiff_jax.methods import sfd
from fastdiff_jax.networks import gmm, mlp
from fastdiff_jax.runtime import (
    assemble,
    checkpoint,
    command_line,
    commands,
    evaluate,
    experiment,
    record,
    recorded,
    settings,
    students,
)
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.solvers import driver, multistep, nested, sampling, schedules
from fastdiff_jax.types import Model, Parts

SCHEDULE = dict(name="polynomial", sigma_min=0.01, sigma_max=20.0, zero=False)
METHOD = dict(schedule=SCHEDULE, teacher=dict(name="dpmpp_2m"), extra=2, afs=True)
TEACHER = Model(gmm.build({}, (2,)), precond.identity())
STUDENT = Model(mlp.build(dict(hidden=(8,)), (2,), 3), precond.edm())
WEIGHTS = TEACHER.network.init(jax.random.key(0), jnp.zeros((1, 2)))


def labelled(teacher=TEACHER):
    """Parts of a student with three classes."""
    models = {"student": STUDENT, "teacher": teacher}
    return Parts(models, {"student": optax.adam(1e-2)}, (2,), np.array([0.5, 0.25, 0.25]))


def student_weights():
    return STUDENT.network.init(jax.random.key(1), jnp.zeros((1, 2)), {"label": jnp.zeros((1, 3))})


@pytest.mark.parametrize("stamps, order", [(4, (4, 4, 4)), ((3, 5), (5, 3, 5, 5))])
def test_training_on_a_recording_is_training_with_the_teacher(stamps, order, x64):
    """A recording of 64 in one batch, met in batches of 16; of SFD-v it holds the states of all its levels."""
    weights = student_weights()
    teacher, above = STUDENT, jax.tree.map(lambda leaf: 0.9 * leaf, weights)  # it sees labels, too
    config, parts = METHOD | {"stamps": stamps}, labelled(teacher)
    method, recording = sfd.build(config, parts), sfd.recording(config, parts)
    frozen = {"teacher": above}
    latents = jax.random.normal(jax.random.key(2), (64, 2))
    label = jnp.arange(64) % 3
    states = jax.jit(recording.states)(frozen, latents, {"label": jax.nn.one_hot(label, 3)})
    # Levels but the first of each number n, with extra = 2: 3 (n - 1) steps of one call.
    steps = [n - 1 for n in np.atleast_1d(stamps)]
    assert states.shape == (64, sum(steps), 2) and recording.calls == 3 * sum(steps)
    update = jax.jit(method.update, static_argnums=4)
    first = method.init(jax.random.key(0), frozen | {"initial": weights})
    online, cached = first, first
    for number, variant in enumerate(order):
        rows = np.random.default_rng(number).permutation(64)[:16]
        image, key = {"image": jnp.zeros((16, 2))}, jax.random.key(number)
        draws = method.draw(key, image, variant) | {"latents": latents[rows], "label": label[rows]}
        batch = {"latents": latents[rows], "states": states[rows], "label": label[rows]}
        online, metrics = update(online, frozen, image, draws, variant)
        drawn = method.draw(key, batch, variant)
        assert set(drawn) == {"dropout"} and drawn["dropout"] == draws["dropout"]
        cached, again = update(cached, {}, batch, drawn, variant)  # there is no teacher
        assert len(metrics) == variant - 1
        chex.assert_trees_all_close(again, metrics, rtol=1e-10)
    chex.assert_trees_all_close(cached, online, rtol=1e-10, atol=1e-13)
    assert not np.allclose(online.params["W1"], first.params["W1"], rtol=1e-3)
    with pytest.raises(ValueError, match=r"batches have 1 recorded states an image, stamps .* need"):
        method.update(first, {}, batch | {"states": states[rows][:, :1]}, drawn, order[0])


def lab(folder, **method) -> experiment.Experiment:
    """A student of the lab that is a mixture as its teacher is, trained on the recording in `folder`/pairs."""
    config = experiment.load("lab_sfd:smoke")
    config.init_from, config.evaluation.batch_size = "", 48
    config.models.student = ConfigDict(config.models.teacher.to_dict())
    config.data = ConfigDict(
        dict(name="pairs", source=dict(name="toys", num=256), folder=str(folder / "pairs"))
    )
    config.method.update(extra=1, **method)
    return experiment.Experiment("lab", config, folder / "lab")


def test_a_recorded_run_is_a_run_with_the_teacher_on_the_same_latents(tmp_path, capsys):
    run = lab(tmp_path)
    with pytest.raises(ValueError, match="no finished recording in .* make it with launch/record.py"):
        commands.check(run)
    record.work(run, 80)
    assert "80 trajectories (6 calls of the teacher each; 2 shards" in capsys.readouterr().out
    commands.check(run)
    assert commands.fit(run)
    job = assemble.assemble(run.config)
    product = checkpoint.load_product(run.workdir, commands.weight_shapes(job), run.config.to_dict())
    # The same latents in the same order, with a teacher.
    frozen = {"teacher": jax.tree.map(jnp.float32, job.data.exact)}
    state = job.method.init(jax.random.key(0), frozen)
    train, update = run.config.train, jax.jit(job.method.update, static_argnums=4)
    batches = pipeline.batches(job.data, train.batch_size, run.config.seed)
    for step in range(train.steps):
        batch = next(batches)
        assert set(batch) == {"latents", "states", "label"} and batch["label"].dtype == np.int32
        image = {"image": jnp.zeros_like(batch["latents"])}
        draws = job.method.draw(jax.random.key(step), image, 4) | {"latents": batch["latents"]}
        state, _ = update(state, frozen, image, draws, 4)
    chex.assert_trees_all_close(product, state.params, rtol=1e-5, atol=1e-6)
    assert not np.allclose(product["means"], frozen["teacher"]["means"], rtol=1e-3)
    # What it cost: the recording, and the student's own passes.
    own = job.method.cost(4, True)
    assert own == job.method.cost(4, False) - 6
    assert students._evaluations(run) == 80 * 6 + train.steps * train.batch_size * own
    # What has been trained is sampled without the recording.
    (tmp_path / "pairs" / pairs.INDEX).unlink()
    commands.sample(run, 4, tmp_path / "four.npz", None, None, None)
    assert np.load(tmp_path / "four.npz")["images"].shape == (4, 2)


def test_rows_are_the_trajectories_of_their_latents(tmp_path):
    run = lab(tmp_path)
    source = pairs.Recorded(record.work(run, 60, seed=3))
    assert len(source) == 60
    arrays, header = source.arrays, source.header
    keys = rng.image_keys(rng.root(header["seed"], "sample"), arrays["index"])
    np.testing.assert_allclose(arrays["latents"], rng.normal_per_image(keys, (2,)), rtol=1e-6)
    assert len(np.unique(arrays["index"])) == 60
    job = assemble.assemble(run.config)
    walker = precond.denoiser(job.parts.models["teacher"], job.data.exact)
    config = run.config.method
    path = nested.path_of(schedules.build(config.schedule.to_dict()), config.stamps, config.extra)
    teacher = nested.teacher_of(config.teacher.to_dict())
    passed = nested.targets(walker, teacher, path.student[0] * jnp.asarray(arrays["latents"]), path)
    np.testing.assert_allclose(np.moveaxis(arrays["states"], 1, 0), passed, rtol=1e-4, atol=1e-5)
    rows = source.rows(np.array([7, 7, 2]))
    assert "index" not in rows
    np.testing.assert_array_equal(rows["states"], arrays["states"][[7, 7, 2]])


def test_a_recording_goes_on_where_it_stopped_and_can_be_added_to(tmp_path):
    run = lab(tmp_path)
    folder = record.work(run, 60)
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["00000.safetensors", "00001.safetensors", pairs.INDEX]
    whole = {name: (folder / name).read_bytes() for name in files}
    before = pairs.Recorded(folder).arrays
    (folder / pairs.INDEX).unlink()  # as if killed in the second shard
    (folder / "00001.safetensors").unlink()
    kept = (folder / "00000.safetensors").stat().st_mtime_ns
    record.work(run, 60)
    assert {name: (folder / name).read_bytes() for name in files} == whole
    record.work(run, 100)
    after = pairs.Recorded(folder).arrays
    assert len(after["label"]) == 100
    chex.assert_trees_all_equal({key: value[:60] for key, value in after.items()}, before)
    assert (folder / "00000.safetensors").stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="has seed 0, this run 1; delete it or choose another folder"):
        record.work(run, 100, seed=1)


def test_a_recording_that_does_not_fit_is_refused(tmp_path):
    folder = record.work(lab(tmp_path), 50)
    commands.check(lab(tmp_path))
    for changes, words in [
        (dict(stamps=3), "has recipe/stamps/0 4, this run 3"),
        (dict(schedule=dict(sigma_max=60.0)), r"has recipe/schedule/sigma_max 80.0, this run 60.0"),
        (dict(teacher=dict(name="heun")), "has recipe/teacher/name dpmpp_3m, this run heun"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            commands.check(lab(tmp_path, **changes))
        assert "launch/record.py" in str(caught.value) and "\n" not in str(caught.value)
    run = lab(tmp_path)
    run.config.data.source.radius = 2.0  # another mixture is another teacher
    with pytest.raises(ValueError, match="has (data|teacher) [0-9a-f]{64}, this run [0-9a-f]{64}"):
        commands.fit(run)
    shard = folder / "00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="00000.safetensors is missing or not the file that pairs.json"):
        commands.fit(lab(tmp_path))
    shard.write_bytes(content[:40])
    with pytest.raises(ValueError, match="is no shard of a recording; delete it"):
        record.work(lab(tmp_path), 50)
    (folder / pairs.INDEX).write_text("{")
    with pytest.raises(ValueError, match="pairs.json is damaged: it is not JSON"):
        commands.check(lab(tmp_path))


def test_the_command_refuses_what_it_cannot_record(tmp_path, capsys):
    def refused(*arguments):
        assert record.main(["launch/record.py", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "methods has no 'teacher'; known: sfd." in refused("--config", "edm_digits:smoke")
    workdir = tmp_path / "student"
    line = refused("--config", "sfd_digits:smoke", "--workdir", str(workdir))
    assert "edm_digits_smoke has no finished weights: train it first" in line
    assert "num" in refused("--config", "sfd_digits", "--num", "0")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_needs_no_recording(tmp_path, capsys):
    run = lab(tmp_path)
    commands.dry_run(run)
    assert "FLOPs per step" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    job = assemble.assemble(run.config, outline=True)
    shapes = recorded.batch_shapes(job, commands.basis_shapes(job)[0], 16)
    assert {name: leaf.shape for name, leaf in shapes.items()} == {
        "latents": (16, 2), "states": (16, 3, 2), "label": (16,)
    }  # fmt: skip


def guided_method(model=STUDENT, **guide):
    parts = labelled()._replace(models={"student": model, "teacher": TEACHER})
    return sfd.build(METHOD | {"stamps": (3, 5), "guidance": guide}, parts)


def test_a_guided_student_is_euler_s_method_with_the_guided_denoiser():
    method, weights = guided_method(scale=(1.0, 2.5)), student_weights()
    plain = sfd.build(METHOD | {"stamps": (3, 5)}, labelled())
    names = ["student 1", "student 3", "student 2 w 2.5", "student 6 w 2.5"]
    assert list(method.samplers) == names
    keys = rng.image_keys(rng.root(0, "sample"), jnp.arange(4))
    cond = {"label": jax.nn.one_hot(jnp.array([0, 1, 2, 0]), 3)}
    aimed, base = (precond.denoiser(STUDENT, weights, given) for given in (cond, {}))
    guided = guidance.guided(aimed, base, 2.5)
    for n, name, same in [(3, "student 2 w 2.5", "student 1"), (5, "student 6 w 2.5", "student 3")]:
        levels = schedules.build(SCHEDULE)(n - 1)
        x = levels[0] * rng.normal_per_image(keys, (2,))
        known = guidance.gaussian_guess(x, levels[0])
        expected = driver.sample(guided, multistep.euler(), x, levels, known=known)
        images = method.samplers[name].generate(weights, {}, keys, cond)
        chex.assert_trees_all_close(images, expected, rtol=1e-4, atol=1e-5)
        unguided = method.samplers[same].generate(weights, {}, keys, cond)
        chex.assert_trees_all_equal(
            unguided, plain.samplers[same].generate(weights, {}, keys, cond)
        )
        assert jnp.abs(images - unguided).max() > 1e-3


@pytest.mark.parametrize("guide, name, nfe", [
    (dict(scale=2.0), "student 6 w 2", 6), (dict(scale=2.0, low=0.1, high=5.0), "student 6 w 2", 6),
    (dict(scale=0.0), "student 3 w 0", 3), (dict(scale=1.0), "student 3", 3),
])  # fmt: skip
def test_its_cost_is_exact(guide, name, nfe):
    calls = []

    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        calls.append("label" in (cond or {}))
        return STUDENT.network.apply(params, x, sigma, cond)

    model = STUDENT._replace(network=STUDENT.network._replace(apply=apply))
    sampler = guided_method(model, **guide).samplers[name]
    keys, cond = rng.image_keys(rng.root(0, "sample"), jnp.arange(2)), {"label": jnp.eye(3)[:2]}
    with jax.disable_jit():  # loops run in Python then
        sampler.generate(student_weights(), {}, keys, cond)
    assert len(calls) == sampler.nfe == nfe
    assert sum(calls) == {6: 3, 3: 3 * (guide["scale"] == 1)}[nfe]


def test_guidance_that_cannot_be_is_refused():
    for guide, words in [
        (dict(scale=-1.0), "a guidance scale is not negative; got -1.0"),
        (dict(scale=(1.0, 2.0), low=3.0, high=2.0), "acts where low < sigma <= high; got low 3.0"),
        (dict(scales=2.0), "guidance has no setting scales"),
        (dict(low=1.0), "guidance needs the setting scale"),
    ]:
        with pytest.raises(ValueError, match=words):
            guided_method(**guide)
    with pytest.raises(ValueError, match="guidance needs a model with labels"):
        sfd.build(METHOD | {"guidance": dict(scale=2.0)}, labelled()._replace(labels=None))
    with pytest.raises(ValueError, match="a guidance scale is not negative"):
        request = {"one": {"name": "euler", "nfe": 2, "guidance": {"scale": -2.0}}}
        sampling.samplers(request, STUDENT, lambda n: np.linspace(10.0, 0.1, n + 1), (2,))


@pytest.mark.parametrize("words", ["cached", "guided", "3,guided,cached"])
def test_configs_of_both(words):
    """They can be assembled without files, and build on what they should."""
    for arguments in (words, words + ",smoke"):
        config = experiment.load(f"sfd_digits:{arguments}")
        settings.check(config)
        job = assemble.assemble(config, outline=True)
        evaluate.check(job, meshes.make(config.mesh))
        above = experiment.load(config.teacher)
        assert above.method.label_dropout == (0.1 if "guided" in words else 0.0)
        assert ("smoke" in config.teacher) == ("smoke" in arguments)
        assert isinstance(job.data.train, pairs.Recorded) == ("cached" in words)
        if "cached" in words:  # where the same experiment without the word has its pairs
            run = arguments.replace(",cached", "").replace("cached,", "").replace("cached", "")
            name = experiment.name_of(f"sfd_digits:{run}" if run else "sfd_digits")
            assert config.data.folder == f"runs/{name}/pairs"
            assert config.data.source.name == "digits"
    values, config, _ = command_line.parse(
        ["launch/record.py", "--config=sfd_digits:cached", "--config.data.folder=x"], record.define
    )
    assert config.data.folder == "x" and values.num == 4096
