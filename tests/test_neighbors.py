"""Nearest neighbors against all distances in float64, and `python -m replica.neighbors`."""

import json
import weakref

import numpy as np
import oracles
import pytest
import torch
from conftest import assert_user_error, run_here
from PIL import Image
from runs import CROP_SIZE

from data_prep.shards import open_data_set
from replica.results import nearest_images
from replica.results.neighbors import NeighborSearch


def brute_force(queries, vectors, k):
    """Rows and distances by float64 loops over queries; of equal ones the lower row first."""
    rows, distances = [], []
    for query in queries.astype(np.float64):
        squares = ((vectors.astype(np.float64) - query) ** 2).sum(axis=1)
        rows.append(np.argsort(squares, kind="stable")[:k])
        distances.append(np.sqrt(squares[rows[-1]]))
    return np.array(rows), np.array(distances)


def searched(queries, vectors, k, *, length):
    search = NeighborSearch(torch.from_numpy(queries), k=k)
    for chunk in torch.from_numpy(vectors).split(length):
        search.add(chunk)
    return search.result()


def far_and_close(rng):
    """Vectors so far from zero that products in float32 cannot tell their distances apart."""
    base = rng.normal(0, 1000, 256)
    return base + rng.normal(0, 0.1, (40, 256)), base + rng.normal(0, 0.1, (500, 256))


CASES = {
    "rectified": lambda rng: (
        rng.normal(0, 1, (40, 256)).clip(0),
        rng.normal(0, 1, (500, 256)).clip(0),
    ),
    "far from zero": far_and_close,
    "many that are equal": lambda rng: (rng.integers(0, 2, (9, 4)), rng.integers(0, 2, (500, 4))),
    "all the same": lambda _: (np.ones((3, 8)), np.ones((300, 8))),
    "of very different norms": lambda rng: (
        rng.normal(0, 1, (20, 32)),
        rng.normal(0, 1, (400, 32)) * 10.0 ** rng.integers(-4, 5, (400, 1)),
    ),
    "fewer than asked for": lambda rng: (rng.normal(0, 1, (5, 16)), rng.normal(0, 1, (4, 16))),
}


@pytest.mark.parametrize("length", [1, 7, 100, 1000])
@pytest.mark.parametrize("case", CASES)
def test_neighbors_are_those_of_all_distances_in_float64(case, length):
    queries, vectors = (x.astype(np.float32) for x in CASES[case](np.random.default_rng(1)))
    expected_rows, expected = brute_force(queries, vectors, 6)
    got = searched(queries, vectors, 6, length=length)
    np.testing.assert_array_equal(got.rows, expected_rows)
    np.testing.assert_allclose(got.distances, expected, rtol=1e-12)


def test_float32_alone_would_find_others():
    """Else the case above would not tell that the distances are exact."""
    queries, vectors = (x.astype(np.float32) for x in far_and_close(np.random.default_rng(1)))
    products = (vectors**2).sum(axis=1) - 2 * queries @ vectors.T
    rows = np.argsort(products, axis=1, kind="stable")[:, :6]
    assert (rows != brute_force(queries, vectors, 6)[0]).mean() > 0.5


def test_a_search_over_the_pairs_at_once_is_the_same(monkeypatch):
    from replica.results import neighbors

    queries, vectors = (x.astype(np.float32) for x in CASES["rectified"](np.random.default_rng(2)))
    monkeypatch.setattr(neighbors, "PAIRS_AT_ONCE", 300)
    monkeypatch.setattr(neighbors, "NUMBERS_AT_ONCE", 700)
    got = searched(queries, vectors, 3, length=500)
    np.testing.assert_array_equal(got.rows, brute_force(queries, vectors, 3)[0])


def test_no_chunk_is_kept():
    search = NeighborSearch(torch.ones(3, 8), k=2)
    alive = []
    for _ in range(5):
        chunk = torch.rand(10, 8)
        alive.append(weakref.ref(chunk))
        search.add(chunk)
        del chunk
        assert alive[-1]() is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_is_refused(number):
    with pytest.raises(ValueError, match="expected vectors of finite numbers"):
        NeighborSearch(torch.ones(3, 8), k=2).add(torch.full((1, 8), number))
    if number != 1e30:
        with pytest.raises(ValueError, match="expected queries of finite numbers"):
            NeighborSearch(torch.full((1, 8), number), k=2)


# --- The command


@pytest.fixture(scope="module")
def oracle(weights, tiny_shards):
    """fc7 after ReLU, of the central crops: (val features, train features), float64."""
    raw = oracles.read_data(tiny_shards)
    found = []
    for part in ("val", "train"):
        crops = oracles.views_of(raw, raw[part][0], crop_size=CROP_SIZE)
        found.append(fc7_of(weights, crops.reshape(-1, *crops.shape[-3:])))
    return found


def fc7_of(weights, crops):
    """By a last layer that hands on what it reads: fc7 times the 0.5 that stands for dropout."""
    units = weights["fc7.bias"].size
    copied = {**weights, "fc8.weight": np.eye(units), "fc8.bias": np.zeros(units)}
    return 2 * oracles.network(copied, crops)[0]


def neighbors_of(*words, checkpoint, data):
    command = ("-m", "replica.neighbors", "--checkpoint", str(checkpoint), "--data", str(data))
    return run_here(*command, *words)


def test_the_command_finds_what_the_oracles_features_find(checkpoint, oracle, tiny_shards):
    result = neighbors_of(
        "--json", "--queries", "4", "--neighbors", "3", checkpoint=checkpoint, data=tiny_shards
    )
    assert result.returncode == 0, result.stderr
    got = json.loads(result.stdout)
    data = open_data_set(tiny_shards)
    rows = [2, 7, 12, 17]  # of 20, in the middle of each fourth
    assert [one["query"] for one in got] == [f"val {row}" for row in rows]
    expected_rows, expected = brute_force(oracle[0][rows], oracle[1], 3)
    for one, row, nearest, distances in zip(got, rows, expected_rows, expected, strict=True):
        assert one["class"] == data.class_names[data.val.labels[row]]
        assert [x["row"] for x in one["neighbors"]] == nearest.tolist()
        np.testing.assert_allclose([x["distance"] for x in one["neighbors"]], distances, rtol=1e-4)
        assert [x["picture"] for x in one["neighbors"]] == [data.train.picture(i) for i in nearest]
        names = [data.class_names[data.train.labels[i]] for i in nearest]
        assert [x["class"] for x in one["neighbors"]] == names


def test_pictures_are_queries_too_and_a_bad_one_is_listed(
    checkpoint, oracle, tiny_shards, tmp_path
):
    images = oracles.read_data(tiny_shards)["train"][0]
    Image.fromarray(images[5]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"x")
    words = (str(tmp_path), "--neighbors", "2", "--json")
    result = neighbors_of(*words, checkpoint=checkpoint, data=tiny_shards)
    assert result.returncode == 1
    assert f"{tmp_path / 'b.png'}: neither JPEG" in result.stderr
    (one,) = json.loads(result.stdout)
    assert (one["query"], one["class"]) == (str(tmp_path / "a.png"), None)
    assert one["neighbors"][0]["row"] == 5  # itself
    rows = brute_force(oracle[1][[5]], oracle[1], 2)[0]
    assert [x["row"] for x in one["neighbors"]] == rows[0].tolist()
    text = neighbors_of(str(tmp_path / "a.png"), checkpoint=checkpoint, data=tiny_shards)
    assert "fc7, 256 units: Euclidean distances, of all 10 training images" in text.stdout


def test_the_figure_shows_queries_and_their_neighbors(
    checkpoint, tiny_shards, tmp_path, monkeypatch
):
    pytest.importorskip("matplotlib")
    from replica import neighbors

    figures = []
    draw = nearest_images.neighbors_figure

    def keep(*images):
        figures.append(draw(*images))
        return figures[-1]

    monkeypatch.setattr(neighbors, "neighbors_figure", keep)
    picture = tmp_path / "x.png"
    words = ("--queries", "2", "--neighbors", "4", "--json", "--picture", str(picture))
    result = neighbors_of(*words, checkpoint=checkpoint, data=tiny_shards)
    assert f"wrote {picture} (2 of 2 queries)" in result.stderr
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 300
    (figure,) = figures
    panels = [axes for axes in figure.axes if axes.images]
    data = open_data_set(tiny_shards)
    shown = [axes.images[0].get_array() for axes in panels]
    expected = []
    for row, one in zip((5, 15), json.loads(result.stdout), strict=True):
        expected += [data.val.image(row)]
        expected += [data.train.image(x["row"]) for x in one["neighbors"]]
    assert len(shown) == len(expected) == 10
    for image, right in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(image, right)


def test_other_data_and_contradictions_are_one_line(checkpoint, tiny_shards, shards_dir, tmp_path):
    result = neighbors_of(checkpoint=checkpoint, data=shards_dir)
    assert_user_error(result, "has images of 256 pixels, but the network was trained on 104")
    result = neighbors_of("x.png", "--queries", "3", checkpoint=checkpoint, data=tiny_shards)
    assert_user_error(result, "--queries counts images of the data: leave it out, or the paths")
    result = neighbors_of("nowhere", checkpoint=checkpoint, data=tiny_shards)
    assert_user_error(result, "nowhere: expected a picture or a folder")
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["fc7.bias"][0] = float("nan")
    torch.save(content, tmp_path / "x.pt")
    result = neighbors_of(checkpoint=tmp_path / "x.pt", data=tiny_shards)
    assert_user_error(result, "features of fc7: expected queries of finite numbers")
