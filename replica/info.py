"""The layer table of a recipe beside the paper's figures: `python -m replica.info --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import dataclasses
import json
import sys

from data_prep.arguments import nonempty_name, whole_number
from data_prep.errors import OneLineParser, UserError, command_for, print_line, run_command
from replica import paper
from replica.recipes import PAPER, Recipe, find_recipe, with_changes
from replica.recipes.changes import is_of_layers
from replica.recipes.geometry import IMAGE_CHANNELS, LayerGeometry, geometry
from replica.recipes.recipe import shown

COLUMNS = ("layer", "output", "kernel", "stride", "sees", "reads", "parameters", "neurons", "macs")
OPERATOR_COLUMNS = ("layer", "operator", "forward", "weight gradient", "why")
COUNTS = ("parameters", "neurons", "macs")
# More than satellites' pictures have.
MOST_CHANNELS = 1_000
# The fields that say what a network is shown in training.
IMAGE_FIELDS = (
    *("image_order", "block_images", "random_crops", "random_flips", "shared_crops"),
    *("color_noise", "color_scale", "color_division", "mean"),
    *("pixel_mean", "pixel_divisor", "channels"),
)


def kernel_of(layer: LayerGeometry) -> str:
    """`11 x 11`, or nothing for a fully connected layer."""
    return f"{layer.kernel_size} x {layer.kernel_size}" if layer.kernel_size else ""


def totals(layers: list[LayerGeometry]) -> dict[str, int]:
    """Sums over the layers."""
    return {f"total_{name}": sum(getattr(layer, name) for layer in layers) for name in COUNTS}


def as_text(recipe: Recipe, layers: list[LayerGeometry]) -> str:
    """The table, the totals and, for the paper's network, what the paper says of each."""
    channels = layers[0].input_shape[0]
    # As it is: a changed one is no longer the paper's.
    is_papers = recipe == PAPER and channels == IMAGE_CHANNELS
    rows = [[*COLUMNS, *(["paper's neurons"] if is_papers else [])]]
    for layer in layers:
        row = [
            layer.name,
            " x ".join(map(str, layer.output_shape)),
            kernel_of(layer),
            str(layer.stride or ""),
            str(layer.receptive_field),
            layer.reads,
            *(f"{getattr(layer, name):,}" for name in COUNTS),
        ]
        if is_papers:
            claimed = paper.CLAIMED_LAYER_NEURONS[layer.name]
            row.append(f"{claimed:,}" + ("" if claimed == layer.neurons else " (*)"))
        rows.append(row)
    sums = totals(layers)
    total_row = ["total", *[""] * 5, *(f"{value:,}" for value in sums.values())]
    rows.append(total_row + (["622,312"] if is_papers else []))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers_from = COLUMNS.index("parameters")
    lines = [
        f"recipe {recipe.name}: a {_size(recipe, channels)} crop, {recipe.towers} "
        f"tower{'s' if recipe.towers > 1 else ''}; outputs are before pooling; an output sees "
        "so many pixels of the crop in each direction; macs are multiply-adds for one image"
    ]
    for row in rows:
        cells = [
            cell.rjust(width) if i >= numbers_from else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    of_images = (f"{name}={shown(getattr(recipe, name))}" for name in IMAGE_FIELDS)
    lines += [f"images: {', '.join(of_images)}", recipe.claim]
    if is_papers:
        lines += _against_the_paper(sums)
    return "\n".join(lines)


def _size(recipe: Recipe, channels: int) -> str:
    """Of a crop, with its channels where they are not red, green and blue."""
    of_channels = "" if channels == IMAGE_CHANNELS else f"{channels} x "
    return f"{of_channels}{recipe.crop_size} x {recipe.crop_size}"


def _against_the_paper(sums: dict[str, int]) -> list[str]:
    """Claims of the paper that its own network does not meet, and why."""
    parameters, neurons = sums["total_parameters"], sums["total_neurons"]
    return [
        f"parameters: here {parameters:,}, paper {paper.CLAIMED_PARAMETERS:,}: the paper rounds",
        f"neurons: here {neurons:,}, paper {paper.CLAIMED_NEURONS:,}: the paper rounds; its list "
        "in Figure 2 adds up to 622,312, since conv1's is wrong",
        f"input: here {3 * paper.CROP_SIZE**2:,}, paper {paper.CLAIMED_INPUT:,}: 224 * 224 * 3",
        "(*) conv1: 253,440 = 55 * 55 * 96 with 48, the kernels of one GPU, in place of one 55; "
        "right is 290,400, as 224 x 224 crops give 55 x 55 positions only with three more pixels",
        "share of the parameters, paper: no convolutional layer has more than 1 %; here conv3 has "
        "1.45 % and conv4 1.09 %",
        "crops: 33 * 33 places * 2 = 2178 of a 256 x 256 image, paper 2048 = 32 * 32 * 2",
    ]


def as_json(recipe: Recipe, layers: list[LayerGeometry]) -> str:
    """The same as one JSON object."""
    rows = [
        {
            "name": layer.name,
            "output_shape": layer.output_shape,
            "kernel": kernel_of(layer),
            "stride": layer.stride,
            "receptive_field": layer.receptive_field,
            "reads": layer.reads,
            **{name: getattr(layer, name) for name in COUNTS},
        }
        for layer in layers
    ]
    images = {name: getattr(recipe, name) for name in IMAGE_FIELDS}
    content = {
        "recipe": recipe.name,
        "crop_size": recipe.crop_size,
        "channels": layers[0].input_shape[0],
        "images": images,
        "layers": rows,
    }
    return json.dumps({**content, **totals(layers)}, indent=1)


def operators(recipe: Recipe, layers: list[LayerGeometry]) -> list[dict[str, str]]:
    """Which operator computes each layer on this kind of processor, which way it goes, and why."""
    # Here, as the table of layers needs no operators.
    from cuda_ext.convolution_ways import way_of

    rows = []
    for layer in layers:
        towers = recipe.towers if layer.reads == "own tower" else 1
        row = {"layer": layer.name, "operator": "PyTorch's linear"}
        if len(layer.weight_shape) == 6:
            row["operator"] = "PyTorch's unfold and einsum"
        elif layer.kernel_size:
            way = way_of(channels=layer.input_shape[0], stride=layer.stride, towers=towers)
            row["operator"] = f"split_conv2d, towers={towers}"
            row |= {"forward": way.forward, "weight gradient": way.weight_gradient, "why": way.why}
        rows.append({name: row.get(name, "") for name in OPERATOR_COLUMNS})
    return rows


def operators_as_text(recipe: Recipe, rows: list[dict[str, str]]) -> str:
    """A line for each layer."""
    from cuda_ext.convolution_ways import processor_family

    lines = [
        f"recipe {recipe.name} on a CPU of the kind {processor_family()}; on CUDA every "
        "convolution is the library's (--convolution own of replica.train: this project's)"
    ]
    table = [OPERATOR_COLUMNS, *(tuple(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for("replica.info"),
        description="The layers of a recipe's network: shapes, parameters, neurons, multiply-adds.",
    )
    parser.add_argument(
        "--recipe", type=nonempty_name, metavar="NAME", default="paper", help="default: %(default)s"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe, such as conv3.num_kernels=192 or without=conv4",
    )
    parser.add_argument(
        "--classes",
        metavar="K",
        help="how many logits, the same as --set num_classes=K (default: the recipe's)",
    )
    parser.add_argument(
        "--channels",
        type=whole_number(1, MOST_CHANNELS),
        default=IMAGE_CHANNELS,
        metavar="C",
        help="of the images; training has red, green and blue (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        type=nonempty_name,
        metavar="FILE:FUNCTION",
        help="your own network in the place of the recipe's, as of replica.train: the file is run",
    )
    parser.add_argument(
        "--operators",
        action="store_true",
        help="instead: what computes each layer on this kind of processor, and why",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def show(arguments: argparse.Namespace) -> None:
    """Prints the table."""
    changes = arguments.set
    if arguments.classes is not None:
        changes = [*changes, f"num_classes={arguments.classes}"]
    recipe = with_changes(find_recipe(arguments.recipe), changes)
    if arguments.model is not None:
        if arguments.operators:
            raise UserError("--operators: expected the network of a recipe, got --model")
        of_layers = [change for change in arguments.set if is_of_layers(change)]
        if of_layers:
            raise UserError(
                f"--model {arguments.model}: expected none of --set {', '.join(of_layers)} beside "
                "it, which are of the layers of a recipe"
            )
        _show_own(arguments, recipe)
        return
    layers = geometry(recipe, channels=arguments.channels)
    if arguments.operators:
        rows = operators(recipe, layers)
        content = json.dumps({"recipe": recipe.name, "operators": rows}, indent=1)
        print(content if arguments.json else operators_as_text(recipe, rows))
        return
    print(as_json(recipe, layers) if arguments.json else as_text(recipe, layers))


def _show_own(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Prints the table of a user's own network."""
    # Here, as the table of a recipe needs no PyTorch.
    from replica.network.own_network import ModelFile, build_own, check_own, own_layers

    model_file, channels = ModelFile.read(arguments.model), arguments.channels
    if channels != IMAGE_CHANNELS:  # red, green and blue are what the recipe divides and turns
        recipe = dataclasses.replace(recipe, pixel_divisor=(), channels="rgb")
    num_classes = recipe.num_classes or recipe.fully_connected[-1].num_units
    network = build_own(model_file, recipe, num_classes=num_classes, channels=channels)
    check_own(network, model_file, channels=channels)
    layers = own_layers(network, channels=channels)
    total = sum(x.numel() for x in network.parameters())
    if arguments.json:
        content = {
            "model": str(model_file),
            "sha256": model_file.sha256,
            "recipe": recipe.name,
            "crop_size": recipe.crop_size,
            "channels": channels,
            "layers": [dataclasses.asdict(layer) for layer in layers],
            "total_parameters": total,
        }
        print(json.dumps(content, indent=1))
        return
    rows = [("layer", "kind", "output", "parameters")]
    for layer in layers:
        shape = (
            "not run" if layer.output_shape is None else " x ".join(map(str, layer.output_shape))
        )
        rows.append((layer.name, layer.kind, shape, f"{layer.parameters:,}"))
    rows.append(("total", "", "", f"{total:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print_line(f"model {model_file}: {num_classes} classes, a {_size(recipe, channels)} crop")
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        print_line("  ".join([*cells, row[-1].rjust(widths[-1])]))


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command("replica.info", lambda: show(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
