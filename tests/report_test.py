"""Reports from plain data: numbers in the table, provenance in the card, pixels in the pictures."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from fastdiff_jax.data import toys
from fastdiff_jax.runtime import figures, report
from fastdiff_jax.runtime.results import REFERENCE, TEACHER, TRAINED, Provenance, Report, Row

RNG = np.random.default_rng(0)
FILES = {"report.md", "report.png", "card.json"}
SOURCE = Provenance(
    config="sid_planted:smoke",
    data="planted",
    fingerprint="f00d",
    features={"px": {"net": "pixels", "sha256": ""}, "ft": {"net": "small", "sha256": "ab" * 32}},
    num=64,
    seeds=(0, 1, 2),
    quantiser="Values are rounded to 17 levels.",
    steps={"edm_planted": 6, "sid_planted": 4},
    seconds={"training": 12.3, "evaluation": 4.5},
    more={"note": np.float32(1.5)},
)


def values(px, ft):
    return {"px": (px, 0.02), "ft": (ft, 0.3), "recall": (0.8, 0.0)}


def planted(shape=(64, 8, 8, 1), labels=True, **changes):
    """A report with a floor, a student and a teacher of two families."""
    made = {"labels": np.arange(shape[0]) % 10 if labels else None}
    made["samples"] = RNG.integers(0, 256, shape, np.uint8)
    rows = [
        Row("heun 35", values(0.104, 0.85), TEACHER, 35, 1.05, **made),
        Row("euler 1", values(7.7, 323.0), TEACHER, 1, 0.03, **made),
        Row("euler 5", values(1.5, 17.0), TEACHER, 5, 0.15, **made),
        Row("student", values(0.208, 1.7), TRAINED, 1, 0.03, **made),
        Row("real against real", {"px": (0.28, 0.05), "ft": (2.6, 1.2)}, REFERENCE),
    ]
    given = Report("Planted", rows, ("px", "ft"), SOURCE, made["samples"], made["labels"])
    return given._replace(**changes)


def picture(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_writes_three_whole_files(tmp_path):
    report.write(tmp_path, planted())
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert picture((tmp_path / "report.png").read_bytes()).shape[1] == 1650


def test_table_has_a_line_a_row_in_the_order_of_interest():
    lines = report.table(planted())
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:2] == ["sampler", "NFE"]
    assert cells[0][-2:] == ["recall", "ms/image"]
    assert {len(line) for line in cells} == {6}
    names = ["real against real", "**student**", "heun 35", "euler 1", "euler 5"]
    assert [line[0] for line in cells[2:]] == names
    assert cells[3] == ["**student**", "1", "0.208 ± 0.020", "1.70 ± 0.30", "0.800", "0.0300"]
    assert cells[2][4:] == ["", ""], "the floor has no recall and no speed"


def test_summary_states_ratios_to_the_best_teacher():
    (sentence,) = report.summary(planted())
    assert sentence.startswith("**student, 1 NFE**: FD of pixels (px) 0.208, 2.0 x that of heun at")
    rows = [row for row in planted().rows if row.kind != TRAINED]
    (sentence,) = report.summary(planted(rows=rows))
    assert sentence == "**heun, 35 NFE**: FD of pixels (px) 0.104; FD of features (ft) 0.850."


@pytest.mark.parametrize(
    "mean,deviation,text",
    [
        (0.104, 0.0031, "0.104 ± 0.003"),
        (323.4, 26.0, "323 ± 26"),
        (12345.0, 0.0, "12345"),
        (0.0, 0.0, "0"),
        (3.21e-6, 4.4e-7, "3.2e-06 ± 4e-07"),
        (-0.00123, 0.0005, "-0.00123 ± 0.00050"),
        (float("nan"), float("nan"), "nan"),
    ],
)
def test_numbers_are_legible(mean, deviation, text):
    assert report.spread(mean, deviation) == text


def test_card_says_where_the_numbers_come_from(tmp_path):
    broken = Row("broken 2", {"px": (float("nan"), float("inf"))}, TEACHER, 2)
    report.write(tmp_path, planted(rows=[*planted().rows, broken]))
    card = json.loads((tmp_path / "card.json").read_text(), parse_constant=pytest.fail)
    assert card["data"] == {"name": "planted", "fingerprint": "f00d"}
    assert card["features"]["ft"]["sha256"] == "ab" * 32
    assert card["evaluation"] == {"samples": 64, "seeds": [0, 1, 2]}
    assert card["steps"] == {"edm_planted": 6, "sid_planted": 4}
    assert card["seconds"]["training"] == 12.3
    assert card["versions"]["jax"] == jax.__version__
    assert set(card["versions"]) == {"python", *report.PACKAGES}
    assert card["device"]["count"] == jax.device_count()
    assert card["note"] == 1.5
    assert card["results"][3]["values"]["px"] == {"mean": 0.208, "std": 0.02}
    assert card["results"][5]["values"]["px"] == {"mean": None, "std": None}


def test_a_broken_figure_leaves_the_old_report(tmp_path):
    report.write(tmp_path, planted())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileNotFoundError):
        report.write(tmp_path, planted(title="Other", curves={"gone": tmp_path / "no.jsonl"}))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class TestMosaic:
    """Which image stands where."""

    def tiles(self, labels, side=4):
        """Values of the tiles that a mosaic of flat images numbered from 1 shows; 0 where white."""
        images = np.arange(1, len(labels) + 1, dtype=np.uint8)[:, None, None, None]
        images = np.broadcast_to(images, (len(labels), 2, 2, 1))
        made = figures.mosaic(images, labels, side)[::3, ::3]
        return np.where(made == 255, 0, made).tolist()

    def test_a_row_is_a_class(self):
        assert self.tiles(np.array([1, 0, 1, 0, 2, 3])) == [[2, 4], [1, 3], [5, 0], [6, 0]]

    def test_few_classes_share_the_rows(self):
        labels = np.array([0, 1] * 8)
        assert self.tiles(labels) == [[1, 3, 5, 7], [9, 11, 13, 15], [2, 4, 6, 8], [10, 12, 14, 16]]

    def test_of_many_classes_some_are_shown(self):
        assert self.tiles(np.arange(10)) == [[1], [4], [7], [10]]

    def test_without_labels_images_stand_in_order(self):
        images = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)
        made = figures.mosaic(images, None, 4)[::2, ::2]
        np.testing.assert_array_equal(made, np.arange(16).reshape(4, 4))

    def test_colours_stay(self):
        image = RNG.integers(0, 256, (1, 5, 7, 3), np.uint8)
        np.testing.assert_array_equal(figures.mosaic(image, None), image[0])


@pytest.mark.parametrize("shape,labels", [((64, 8, 8, 1), False), ((20, 32, 32, 3), True)])
def test_image_grids_are_drawn(tmp_path, shape, labels):
    made = planted(shape, labels)
    report.grid(tmp_path / "grid.png", made.real, made.real_labels)
    drawn = picture((tmp_path / "grid.png").read_bytes())
    assert drawn.shape == (660, 660, 3)
    assert drawn.std() > 30
    assert picture(figures.overview(made)).std() > 30


@pytest.mark.parametrize("dim", [2, 64])
def test_points_are_drawn_over_the_known_mixture(dim):
    mixture = toys.mixture(toys.Settings(dim=dim))
    real = toys.points(mixture, 500, RNG)[0].astype(np.float32)

    def row(name, kind, nfe, error, samples):
        found = {"mean_error": (error, 0.01), "mmd2_rbf": (error - 0.1, 1e-5)}  # may be negative
        return Row(name, found, kind, nfe, 0.1, samples)

    rows = [row("student", TRAINED, 1, 0.05, 1.1 * real), row("euler 5", TEACHER, 5, 0.2, 3 * real)]
    made = Report("Points", rows, ("mean_error", "mmd2_rbf"), SOURCE, real, mixture=mixture)
    drawn = picture(figures.overview(made))
    red = np.array([0xD1, 0x49, 0x5B])
    assert (np.abs(drawn - red.astype(float)).sum(-1) < 60).sum() > 500, "samples are red"
    assert picture(figures.samples(real, None, mixture)).std() > 10


def test_curves_leave_out_what_is_not_finite(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": 1 / step, "ema_beta": 0.5} for step in range(1, 40)]
    rows[7]["loss"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ((name, key, steps, losses),) = figures.logged({"edm_planted": path})
    assert (name, key) == ("edm_planted", "loss")
    assert 8 not in steps
    np.testing.assert_allclose(losses, 1 / steps)
    assert picture(figures.overview(planted(curves={"edm_planted": path}))).std() > 10


def test_at_most_a_dozen_panels_trained_first():
    row = planted().rows[1]
    rows = [row._replace(name=f"euler {n}", nfe=n) for n in range(1, 21)] + [planted().rows[3]]
    titles = [panel.title for panel in figures.panels(planted(rows=rows))]
    assert titles[:2] == ["Real data", "student, 1 NFE   px 0.208   ft 1.70"]
    assert titles[2] == "euler, 20 NFE   px 7.70   ft 323"
    assert len(titles) == figures.MOST_PANELS
