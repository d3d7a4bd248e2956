"""A user's own network, `--model my_net.py:build`, trained and tested as a recipe's is.

The file is a Python program, so it runs only where somebody names it; checkpoints and records hold
its text and SHA-256 to compare with. The recipe says all but the network: crops, pixels, batches,
rates. N images, C channels, K classes.
"""

import copy
import hashlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from data_prep.errors import UserError
from data_prep.files import read_plain_file
from replica.network.alexnet import AlexNet
from replica.network.layers import Input, Masks
from replica.network.placement import Placement
from replica.recipes import Recipe
from replica.recipes.geometry import IMAGE_CHANNELS

EXAMPLE = "my_net.py:build"
MOST_BYTES = 1 << 18
# Under which the file is imported, so that its classes know where they are from.
_MODULE = "replica_own_network"
_GIVE_FILE = ": give that file with --model"


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """The file of a user's network.

    Attributes:
        name: of the file, without its folder.
        function: that returns the network; a class will do.
        text, sha256: of the file.
    """

    name: str
    function: str
    text: str
    sha256: str

    @classmethod
    def read(cls, source: str) -> Self:
        """Reads the file of `FILE:FUNCTION`; runs nothing.

        Raises:
            UserError: the words are no such pair, or the file cannot be read.
        """
        name, _, function = source.rpartition(":")
        if not name.strip() or not function.isidentifier():
            raise UserError(f"--model {source}: expected FILE:FUNCTION such as {EXAMPLE}")
        path = Path(name)
        if not path.is_file():
            raise UserError(f"--model {source}: expected a Python file at {path}, found none")
        try:
            content = read_plain_file(path, at_most=MOST_BYTES)
            text = content.decode()
        except UnicodeDecodeError:
            raise UserError(f"--model {source}: expected UTF-8, got other bytes") from None
        digest = hashlib.sha256(content).hexdigest()
        return cls(name=path.name, function=function, text=text, sha256=digest)

    @classmethod
    def from_record(cls, record: Any) -> Self | None:
        """The file that `record()` wrote down; None of None.

        Raises:
            ValueError: it is another record.
        """
        if record is None:
            return None
        if not isinstance(record, dict) or not all(isinstance(x, str) for x in record.values()):
            raise ValueError(f"expected the record of a model file, got {record!r:.60}")
        try:
            return cls(**record)
        except TypeError:
            raise ValueError(f"expected the record of a model file, got {[*record]}") from None

    def record(self) -> dict[str, str]:
        """As plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name}:{self.function}"


class NoModelFileError(UserError):
    """A checkpoint's network is of a file, and none was given."""


@contextmanager
def without_model(program: str) -> Iterator[None]:
    """A block of a command that has no --model: it says so where it meets a user's network."""
    try:
        yield
    except NoModelFileError as error:
        found = str(error).removesuffix(_GIVE_FILE)
        raise UserError(f"{found}: {program} runs no file: expected a recipe's network") from None


def same_model_file(
    path: Path, began_with: ModelFile | None, given: ModelFile | None
) -> ModelFile | None:
    """The file that a checkpoint's network is of, if it is the one that was given.

    Raises:
        UserError: it is not; or one was given for a network of a recipe.
    """
    if began_with is None:
        if given is not None:
            raise UserError(f"--model {given}: expected none, as {path} has its recipe's network")
        return None
    begun = f"{path}: has the network of a file, {began_with} with SHA-256 {began_with.sha256}"
    if given is None:
        raise NoModelFileError(begun + _GIVE_FILE)
    if (given.function, given.sha256) != (began_with.function, began_with.sha256):
        raise UserError(f"{begun}: --model {given} is another: its text is in the run's run.json")
    return given


class OwnNetwork(AlexNet):
    """A user's network in the place of a recipe's: all of it in one process.

    Its parameters are named as in the user's module, behind `own.`. Dropout and whatever else draws
    from PyTorch's generator is a function of the run's seed and the step, as it is seeded anew
    before each. It sees contiguous images, N x C x H x W in memory, whatever those given are.
    """

    def __init__(
        self, recipe: Recipe, own: nn.Module, model_file: ModelFile, *, num_classes: int
    ) -> None:
        nn.Module.__init__(self)  # without the recipe's layers
        self.fused = False
        self.recipe = recipe
        self.num_classes = num_classes
        self.placement = Placement(1)
        if recipe.pixel_divisor or recipe.channels != "rgb":
            self.input = Input(divisor=recipe.pixel_divisor, channels=recipe.channels)
        self.own = own
        self.model_file = model_file

    def dropout_masks(self, rows: Tensor, *, seed: int, step: int | Tensor) -> Masks:
        """None of a recipe's; seeds PyTorch's generator for this step."""
        torch.manual_seed(_generator_seed(seed, 1 + int(step)))
        return {}

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        """The logits (N, K) of crops (N, C, crop_size, crop_size), as of a recipe's network.

        Raises:
            UserError: the user's module raises, or gives anything else.
        """
        if "input" in self._modules:
            x = self.input(x)
        images, channels, height, width = x.shape
        given = f" given {images} images of {channels} x {height} x {width}"
        try:
            # The feed's images are channels last, of which a user's `view` would fail.
            logits: Any = self.own(x.contiguous())
        except (Exception, SystemExit) as error:
            raise _raised(self.model_file, error, doing=given) from None
        expected = (images, self.num_classes)
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if got != expected or not logits.is_floating_point():
            raise UserError(
                f"--model {self.model_file}: expected logits {expected}{given}, got {got}: a "
                "function with a parameter num_classes is given their number"
            )
        logits_NK: Tensor = logits
        return logits_NK


def _generator_seed(seed: int, number: int) -> int:
    """For a seed of a run, below 2^32, and a number below 2^31: of each pair another one."""
    return seed << 31 | number


def build_own(
    model_file: ModelFile,
    recipe: Recipe,
    *,
    num_classes: int,
    channels: int = IMAGE_CHANNELS,
    seed: int = 0,
) -> OwnNetwork:
    """Runs the file and calls its function, which gets `num_classes` and `in_channels` by name.

    Each only where it has a parameter of that name. First weights are what the function draws from
    PyTorch's generator, seeded with `seed`.

    Raises:
        UserError: the file or the function raises, or it returns no `nn.Module` with parameters
            that have their shapes.
    """
    module = ModuleType(_MODULE)
    module.__file__ = model_file.name
    sys.modules[_MODULE] = module
    known = {"num_classes": num_classes, "in_channels": channels}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_generator_seed(seed, 0))
        try:
            exec(compile(model_file.text, model_file.name, "exec"), module.__dict__)
            function = getattr(module, model_file.function, None)
            if not callable(function):
                raise UserError(
                    f"--model {model_file}: expected a function or a class {model_file.function} "
                    f"in the file, found {'none' if function is None else 'another thing'}"
                )
            takes = inspect.signature(function).parameters
            own = function(**{name: value for name, value in known.items() if name in takes})
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise _raised(model_file, error) from None
    if not isinstance(own, nn.Module):
        raise UserError(
            f"--model {model_file}: expected it to return a torch.nn.Module, got "
            f"{type(own).__name__}"
        )
    if not any(True for _ in own.parameters()):
        raise UserError(f"--model {model_file}: expected a network with parameters, got none")
    named = [*own.named_parameters(), *own.named_buffers()]
    if lazy := [name for name, tensor in named if is_lazy(tensor)]:
        raise UserError(
            f"--model {model_file}: expected parameters with shapes, got none yet for "
            f"{_some(lazy)}: give nn.Linear and its like their input's size, not nn.LazyLinear"
        )
    return OwnNetwork(recipe, own, model_file, num_classes=num_classes)


def _some(names: list[str]) -> str:
    """The first three of names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _raised(model_file: ModelFile, error: BaseException, *, doing: str = "") -> UserError:
    """What the user's code raised, with the line of the file that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == model_file.name]
    lines += [error.lineno] if isinstance(error, SyntaxError) else []
    where = f" in line {lines[-1]}" if lines else ""
    words = " ".join(str(error).split())
    return UserError(
        f"--model {model_file}: raised {type(error).__name__}{where}{doing}: {words[:300]}: "
        "mend the file"
    )


def check_own(
    network: OwnNetwork,
    model_file: ModelFile,
    *,
    num_images: int = 2,
    channels: int = IMAGE_CHANNELS,
) -> None:
    """Tries a copy of the network on images of zeros: forward in both modes, and backward.

    Args:
        network: as `build_own` made it.
        model_file: it came from.
        num_images: of the smallest batch of the run.
        channels: of the images.

    Raises:
        UserError: it raises, does not give logits (N, K), or not all parameters are trained.
    """
    side = network.recipe.crop_size
    images = torch.zeros(num_images, channels, side, side)
    with torch.random.fork_rng(devices=[]):
        try:
            trial = copy.deepcopy(network)
            for is_training in (False, True):
                logits = trial.train(is_training)(images)
            if logits.requires_grad:
                F.cross_entropy(logits, torch.zeros(num_images, dtype=torch.int64)).backward()
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise _raised(model_file, error, doing=" when it was tried backward") from None
    if not logits.requires_grad:
        raise UserError(
            f"--model {model_file}: expected logits with gradients, got none: compute them without "
            "detach() and torch.no_grad()"
        )
    if idle := [name for name, _ in network.own.named_parameters() if not _is_trained(trial, name)]:
        raise UserError(
            f"--model {model_file}: expected a gradient of the logits for every parameter, got "
            f"none for {_some(idle)}: make what is not trained a buffer"
        )


def _is_trained(trial: OwnNetwork, name: str) -> bool:
    return trial.own.get_parameter(name).grad is not None


@dataclass(frozen=True, kw_only=True)
class OwnLayer:
    """A module of a user's network that has parameters of its own or no modules in it.

    Attributes:
        name: in the network.
        kind: of its class.
        output_shape: for one image; None where it is not run, or gives no tensor.
        parameters: its own.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] | None
    parameters: int


def own_layers(network: OwnNetwork, *, channels: int = IMAGE_CHANNELS) -> list[OwnLayer]:
    """The modules in the order in which they are run on one image, then those that are not."""
    names: dict[nn.Module, str] = {}
    for name, module in network.own.named_modules():
        if not list(module.children()) or list(module.parameters(recurse=False)):
            names[module] = name or "(itself)"
    shapes: dict[nn.Module, tuple[int, ...] | None] = {}

    def record(module: nn.Module, _: Any, output: Any) -> None:
        shapes.setdefault(module, tuple(output.shape[1:]) if isinstance(output, Tensor) else None)

    hooks = [module.register_forward_hook(record) for module in names]
    side = network.recipe.crop_size
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, channels, side, side))
    finally:
        for hook in hooks:
            hook.remove()
    return [
        OwnLayer(
            name=names[module],
            kind=type(module).__name__,
            output_shape=shapes.get(module),
            parameters=sum(x.numel() for x in module.parameters(recurse=False)),
        )
        for module in [*shapes, *(x for x in names if x not in shapes)]
    ]
