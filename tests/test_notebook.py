"""What a notebook imports from `replica`, against the oracle and by the rules of its users."""

import numpy as np
import oracles
import pytest
import torch
from conftest import run
from PIL import Image
from runs import CROP_SIZE, large_weights, mini_shapes_and_deviations, write_checkpoint
from torch.utils.data import DataLoader

import replica
from data_prep.errors import UserError
from data_prep.shards import open_data_set
from replica.recipes import MINI

UPDATE = {"momentum": 0.9, "weight_decay": 5e-4}


@pytest.fixture(scope="module")
def weights():
    return large_weights(mini_shapes_and_deviations()[0], seed=8)


@pytest.fixture(scope="module")
def raw(tiny_shards):
    """The data by h5py, with another mean image than the data's own: the checkpoint decides."""
    data = oracles.read_data(tiny_shards)
    mean = np.random.default_rng(1).uniform(0, 255, data["mean_image"].shape)
    return {**data, "mean_image": mean.astype(np.float32)}


@pytest.fixture(scope="module")
def checkpoint(weights, raw, tiny_shards, tmp_path_factory):
    path = tmp_path_factory.mktemp("a run") / "best.pt"
    data = open_data_set(tiny_shards)
    return write_checkpoint(path, weights, data, mean_image=raw["mean_image"])


def network_of(path):
    return replica.load(str(path), device="cpu")


def test_predictions_are_the_oracles_ten_crops(checkpoint, weights, raw, tiny_shards, tmp_path):
    network = network_of(checkpoint)
    names = open_data_set(tiny_shards).class_names
    scores, _ = oracles.evaluate(weights, raw, crop_size=CROP_SIZE, ten=True)
    for image, expected in zip(raw["val"][0][:4], scores, strict=False):
        path = tmp_path / "picture.png"
        Image.fromarray(image).save(path)
        for picture in (path, str(path), Image.open(path), image):
            best = network.predict(picture, top=3)
            assert [name for name, _ in best] == [names[i] for i in np.argsort(-expected)[:3]]
            np.testing.assert_allclose([p for _, p in best], np.sort(expected)[:-4:-1], rtol=1e-3)
        assert len(network.predict(image, top=99)) == len(names)


def test_a_network_of_the_central_mean_predicts_with_it(weights, raw, tiny_shards, tmp_path):
    data = open_data_set(tiny_shards)
    how = {"mean_image": raw["mean_image"], "changes": ["mean=center"]}
    network = network_of(write_checkpoint(tmp_path / "one.pt", weights, data, **how))
    scores, _ = oracles.evaluate(weights, raw, crop_size=CROP_SIZE, ten=True, mean="center")
    other, _ = oracles.evaluate(weights, raw, crop_size=CROP_SIZE, ten=True)
    for image, expected, wrong in zip(raw["val"][0][:4], scores, other, strict=False):
        best = [p for _, p in network.predict(image, top=3)]
        np.testing.assert_allclose(best, np.sort(expected)[:-4:-1], rtol=1e-3)
        assert not np.allclose(best, np.sort(wrong)[:-4:-1], rtol=1e-3)


def test_pictures_are_prepared_as_those_of_the_shards(checkpoint, tiny_shards):
    """The files are larger than the network's images: 256 pixels drawn, shards of 104."""
    network = network_of(checkpoint)
    train = open_data_set(tiny_shards).train
    path = next((tiny_shards.parent / "toy").rglob(train.picture(0).rsplit("/", 1)[-1]))
    expected = network.probabilities(train.image(0))
    np.testing.assert_array_equal(network.probabilities(path), expected)
    np.testing.assert_array_equal(network.probabilities(Image.open(path)), expected)
    gray = Image.open(path).convert("L")
    np.testing.assert_array_equal(
        network.probabilities(gray), network.probabilities(gray.convert("RGB"))
    )
    np.testing.assert_array_equal(
        network.probabilities(np.asarray(gray)), network.probabilities(gray)
    )


def test_features_are_what_leaves_the_activation(checkpoint, weights, raw):
    network = network_of(checkpoint)
    image = raw["val"][0][0]
    views = oracles.views_of(raw, image[None], crop_size=CROP_SIZE, ten=False)[0]
    logits, _ = oracles.network(weights, views)
    fc7 = network.features(image)
    assert fc7.dtype == np.float32
    assert fc7.shape == (256,)
    assert fc7.min() == 0
    # Half of the features is what fc8 reads (paper 4.2).
    halved = weights["fc8.weight"] @ (0.5 * fc7.astype(np.float64)) + weights["fc8.bias"]
    np.testing.assert_allclose(halved, logits[0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(
        network.features(image, layer="fc8"), logits[0], rtol=1e-4, atol=1e-3
    )
    conv1 = network.features(image, layer="conv1")
    padded = np.pad(views[0], ((0, 0), (0, 3), (0, 3)))
    sums = oracles.convolution(
        padded, weights["conv1.weight"], weights["conv1.bias"], stride=4, groups=1
    )
    np.testing.assert_allclose(conv1, np.maximum(sums, 0), rtol=1e-4, atol=1e-2)
    assert network.features(image, layer="conv5_pooling").shape == (32, 2, 2)


def test_wrong_pictures_and_layers_are_one_line(checkpoint, tmp_path):
    network = network_of(checkpoint)
    (tmp_path / "no.jpg").write_bytes(b"text")
    wrong = {
        "no such file.jpg": "expected a JPEG or PNG file: No such file or directory",
        str(tmp_path / "no.jpg"): "neither JPEG, PNG, WEBP",
    }
    for path, words in wrong.items():
        with pytest.raises(UserError, match=words):
            network.predict(path)
    for array in (np.zeros((8, 8, 3), np.float32), np.zeros((3, 8, 8), np.uint8)):
        with pytest.raises(UserError, match=r"expected a picture as uint8 \(height, width, 3\)"):
            network.predict(array)
    with pytest.raises(UserError, match="layer fc9: expected one of conv1, conv1_activation"):
        network.features(np.zeros((8, 8, 3), np.uint8), layer="fc9")
    with pytest.raises(UserError, match="found no file"):
        replica.load(tmp_path / "best.pt")


def test_a_runs_directory_means_its_best_checkpoint(checkpoint):
    network = network_of(checkpoint.parent)
    assert torch.equal(
        network.module.state_dict()["fc8.bias"],
        network_of(checkpoint).module.state_dict()["fc8.bias"],
    )
    assert not network.module.training


def test_build_gives_a_recipes_network_with_its_first_weights():
    net = replica.build("mini", num_classes=10, seed=3)
    assert net(torch.zeros(2, 3, 224, 224)).shape == (2, 10)
    assert torch.equal(net.fc8.weight, replica.build(MINI, seed=3).fc8.weight)
    assert not torch.equal(net.fc8.weight, replica.build(MINI, seed=4).fc8.weight)
    assert net.conv2.bias.eq(1).all()
    tanh = replica.with_changes(MINI, ["activation=tanh"])
    assert isinstance(replica.build(tanh).conv1_activation, torch.nn.Tanh)
    with pytest.raises(UserError, match=r"papers: expected one of .*mini, .*paper"):
        replica.build("papers")


# --- The shards as a data set, and the augmentation as transforms


def test_the_data_set_is_the_files(tiny_shards):
    raw = oracles.read_data(tiny_shards)
    for part in ("train", "val"):
        data = replica.ShardDataset(tiny_shards, part)
        images, labels = raw[part]
        assert len(data) == len(labels)
        for row in range(len(data)):
            image, label = data[row]
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), images[row])
            assert (label, type(label)) == (labels[row], int)
    np.testing.assert_array_equal(data.mean_image.permute(1, 2, 0).numpy(), raw["mean_image"])
    np.testing.assert_array_equal(data.eigenvectors.numpy(), raw["eigenvectors"])
    assert data.classes == open_data_set(tiny_shards).class_names
    with pytest.raises(UserError, match="part test: expected one of train, val"):
        replica.ShardDataset(tiny_shards, "test")
    with pytest.raises(IndexError):
        data[len(data)]


def test_workers_of_a_loader_read_the_data_set(tiny_shards):
    data = replica.ShardDataset(tiny_shards, "val", transform=replica.CenterCrop(CROP_SIZE))
    loader = DataLoader(data, batch_size=7, num_workers=1, multiprocessing_context="spawn")
    batches = list(loader)
    assert [len(images) for images, _ in batches] == [7, 7, 6]
    assert torch.equal(batches[-1][0][-1], data[len(data) - 1][0])


def test_crops_and_flips_are_equally_likely_everywhere():
    side, size = 7, 5
    image = torch.arange(3 * side * side).reshape(3, side, side)
    transform = replica.RandomCropAndFlip(size)
    torch.manual_seed(0)
    seen = {}
    for _ in range(1800):
        crop = transform(image).permute(1, 2, 0).numpy()
        flip = bool(crop[0, 0, 0] > crop[0, 1, 0])
        top, left = divmod(int(crop[0, -1 if flip else 0, 0]), side)
        place = {"top": top, "left": left, "size": size, "flip": flip}
        expected = oracles.crop(image.permute(1, 2, 0).numpy(), **place)
        np.testing.assert_array_equal(crop, expected)
        seen[top, left, flip] = seen.get((top, left, flip), 0) + 1
    # 18 outcomes, each of 100 +- 10; seven deviations.
    assert len(seen) == 18
    assert min(seen.values()) > 30
    assert max(seen.values()) < 170


def test_the_crops_of_the_test_are_the_oracles():
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    square = image[:, :9]
    data = {"mean_image": np.zeros((9, 9, 3), np.float32)}
    for transform, ten in ((replica.TenCrop(6), True), (replica.CenterCrop(6), False)):
        views = transform(torch.from_numpy(square).permute(2, 0, 1)).reshape(-1, 3, 6, 6)
        expected = oracles.views_of(data, square[None], crop_size=6, ten=ten)[0]
        np.testing.assert_array_equal(views.numpy(), expected)
        assert views.dtype == torch.uint8
    assert replica.TenCrop(6)(torch.from_numpy(image).permute(2, 0, 1)).shape == (10, 3, 6, 6)
    with pytest.raises(ValueError, match=r"at least 10 x 10 pixels, got \(3, 9, 9\)"):
        replica.CenterCrop(10)(torch.from_numpy(square).permute(2, 0, 1))


def test_color_noise_is_the_formula():
    rng = np.random.default_rng(2)
    eigenvalues, eigenvectors = rng.uniform(0.1, 1, 3), rng.normal(size=(3, 3))
    noise = replica.ColorNoise(torch.from_numpy(eigenvalues), torch.from_numpy(eigenvectors))
    image = torch.from_numpy(rng.integers(0, 256, (3, 4, 5), np.uint8))
    torch.manual_seed(5)
    got = noise(image)
    torch.manual_seed(5)
    alphas = 0.1 * torch.randn(3, dtype=torch.float64).numpy()
    for channel in range(3):
        shift = 255 * sum(eigenvectors[channel, i] * alphas[i] * eigenvalues[i] for i in range(3))
        expected = image[channel].numpy() + np.float32(shift)
        np.testing.assert_allclose(got[channel].numpy(), expected, rtol=1e-6)
    assert not torch.equal(noise(image), noise(image))


def test_the_mean_is_subtracted_before_the_crop(tiny_shards):
    data = replica.ShardDataset(tiny_shards)
    image, _ = data[0]
    centered = replica.SubtractMean(data.mean_image)(image)
    np.testing.assert_array_equal(centered.numpy(), image.numpy() - data.mean_image.numpy())
    assert centered.dtype == torch.float32
    with pytest.raises(ValueError, match="subtract before the crop"):
        replica.SubtractMean(data.mean_image)(image[:, :96, :96])


@pytest.fixture
def compose(torchvision):
    return torchvision.transforms.Compose


def test_torchvisions_compose_takes_the_transforms(compose, tiny_shards):
    data = replica.ShardDataset(tiny_shards)
    data.transform = compose(
        [
            replica.SubtractMean(data.mean_image),
            replica.RandomCropAndFlip(CROP_SIZE),
            replica.ColorNoise(data.eigenvalues, data.eigenvectors),
        ]
    )
    assert data[0][0].shape == (3, CROP_SIZE, CROP_SIZE)


# --- The update as an optimizer


def descend(optimizer, w, gradients, scheduler=None):
    for gradient in gradients:
        w.grad = torch.tensor(gradient)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def test_the_optimizer_is_the_papers_update_under_a_scheduler():
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=6), rng.normal(size=(8, 6))
    w = torch.nn.Parameter(torch.tensor(start))
    optimizer = replica.PaperSGD([w], lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4], gamma=0.1)
    descend(optimizer, w, gradients, scheduler)
    expected, velocity = oracles.sgd(start, gradients, [0.1] * 4 + [0.01] * 4, **UPDATE)
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(optimizer.state[w]["velocity"].numpy(), velocity, rtol=1e-12)


def test_an_optimizer_goes_on_from_its_state():
    rng = np.random.default_rng(3)
    start, gradients = rng.normal(size=6), rng.normal(size=(6, 6))
    w = torch.nn.Parameter(torch.tensor(start))
    first = replica.PaperSGD([w], lr=0.1)
    descend(first, w, gradients[:3])
    second = replica.PaperSGD([w], lr=123.0)
    second.load_state_dict(first.state_dict())
    descend(second, w, gradients[3:])
    expected, _ = oracles.sgd(start, gradients, [0.1] * 6, **UPDATE)
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-12)


def test_groups_have_rates_and_decay_of_their_own():
    w, bias = (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    idle = torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [w, idle]}, {"params": [bias], "lr": 0.2, "weight_decay": 0.0}]
    optimizer = replica.PaperSGD(groups)

    def closure():
        optimizer.zero_grad()
        loss = 0.0 * (w.sum() + bias.sum()) + bias.sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 2
    np.testing.assert_allclose(w.detach().numpy(), 1 - 0.0005 * 0.01, rtol=1e-15)
    np.testing.assert_allclose(bias.detach().numpy(), 1 - 0.2, rtol=1e-15)
    assert torch.equal(idle, torch.ones(2))
    with pytest.raises(ValueError, match="expected lr of at least 0, got -1"):
        replica.PaperSGD([w], lr=-1)


# --- The package


def test_every_public_name_is_there_and_documented():
    for name in replica.__all__:
        assert name in dir(replica)
        assert name == "RECIPES" or getattr(replica, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        replica.lod  # noqa: B018


def test_importing_the_package_does_not_wait_for_pytorch():
    result = run("-c", "import replica, sys; sys.exit('torch' in sys.modules)")
    assert result.returncode == 0, result.stderr
