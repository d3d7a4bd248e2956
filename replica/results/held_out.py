"""What a network says of images that training did not see, some of a data set's held-out part."""

from pathlib import Path

import numpy as np

from data_prep.errors import UserError
from data_prep.shards import DataSet
from replica.results.nearest_images import check_side, evenly
from replica.results.prediction import TrainedNetwork
from replica.results.prediction_figure import Predicted
from replica.training.checkpoint import check_fits_classes


def predicted_images(
    network: TrainedNetwork, names: list[str], data: DataSet, count: int, *, path: Path, top: int
) -> list[Predicted]:
    """Predicts images of the classes that network and data have in common, evenly over all.

    Args:
        network: that predicts, averaged over ten crops.
        names: one for each of its classes, which no other has.
        data: whose held-out part is taken.
        count: how many images, at most.
        path: of the checkpoint, for messages.
        top: how many classes of each.

    Raises:
        UserError: they have no class in common, the images have another side than the network's,
            or the output is no number.
    """
    part = data.part(data.held_out)
    check_side(network, part)
    label_of = {wnid: label for label, wnid in enumerate(network.wnids)}
    of_data = np.array([label_of.get(wnid, -1) for wnid in data.wnids])
    rows = np.flatnonzero(of_data[part.labels] >= 0)
    if not len(rows):  # a message with the first difference
        check_fits_classes(path, network.wnids, data.wnids, data.directory)
    predicted = []
    for row in rows[evenly(len(rows), count)]:
        image = part.image(int(row))
        probabilities = network.probabilities(image)
        if not np.isfinite(probabilities).all():
            raise UserError(f"{path}: its output is no number: use another checkpoint")
        order = np.argsort(-probabilities, kind="stable")[:top]
        name = names[of_data[part.labels[row]]]
        best = [(names[label], float(probabilities[label])) for label in order]
        predicted.append(Predicted(image, name, best, name))
    return predicted
