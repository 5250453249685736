"""Taps: read the outputs of a network's named modules without touching the network.

A tap is a forward hook that lives as long as a ``with`` block.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attention_transfer.errors import InputError, nearest
from attention_transfer.taps.inputs import Inputs, main_input
from attention_transfer.taps.layout import Layout, channels_first, surely_channels_first
from attention_transfer.taps.modules import module_of, outputs_of, unwrapped
from attention_transfer.taps.programs import refuse_program
from attention_transfer.taps.survey import attention_points

__all__ = ["Taps"]

Reader = Callable[[str, Tensor], None]


class _AllPointsRead(BaseException):
    """Ends a forward pass after the last point that is needed."""


class Taps:
    """Capture the outputs of named modules while a ``with`` block is open.

    A layer that overwrites a tapped feature map in place (an in-place ReLU after it, a residual
    ``+=``) is recognised by the tensor's version. A tap hands out its module's own output: the
    first pass copies every feature map and finds which of them are overwritten later; the following
    passes copy those alone.

    Args:
        network: any module, also wrapped by DataParallel, DDP or ``torch.compile``.
        points: names of its modules; a wrapper's prefix is left out. ``name#key`` is one of several
            outputs: of a tuple, a list or a dictionary.
        role: of the network, for errors, such as ``"the student"``.

    Raises:
        InputError: a point is not a module of the network; the nearest names are offered.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
        >>> taps = Taps(network, ["0"])
        >>> with taps as features:
        ...     _ = network(torch.zeros(2, 3, 8, 8))
        >>> features["0"].shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, network: nn.Module, points: Iterable[str], role: str = "") -> None:
        self.points = list(dict.fromkeys(points))
        self._network = unwrapped(network)
        if self.points:
            refuse_program(self._network)
        self._layouts: dict[tuple[int, ...], dict[str, Layout]] = {}
        modules = dict(self._network.named_modules(remove_duplicate=False))
        for point in self.points:
            if not point or module_of(point) not in modules:
                known = [name for name in modules if name]
                raise InputError(
                    f"{role} {type(self._network).__name__} has no point {point!r}; ".lstrip()
                    + nearest(point, known)
                )
        self._modules = {name: modules[name] for name in map(module_of, self.points)}
        self._copied: set[str] = set(self.points)
        self._features: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._handles: list[RemovableHandle] = []

    def knows(self, input_size: tuple[int, ...]) -> bool:
        """Return whether inputs (C, *S) were passed before, which :meth:`reading` needs."""
        return input_size in self._layouts

    @contextmanager
    def reading(self, images: Tensor, read: Reader, *, to_the_end: bool) -> Iterator[None]:
        """Pass each feature map on as soon as its module has returned it, and keep none.

        Args:
            images: the main input (N, C, *S) of the network's call in the block, of a known size.
            read: called with a point and its features (N, C, *S), which may be overwritten later
                in the pass.
            to_the_end: whether the pass goes on after the last point; if not, whatever follows
                the network's call in the block does not run either.
        """
        layouts = self._layouts[tuple(images.shape[1:])]
        left = set(self.points)

        def see(point: str, output: Tensor) -> None:
            read(point, layouts[point].read(output))
            left.discard(point)
            if not left and not to_the_end:
                raise _AllPointsRead

        handles = self.watch(see)
        try:
            yield
        except _AllPointsRead:
            pass
        finally:
            for handle in handles:
                handle.remove()
        self._refuse_silent(left)

    def watch(self, see: Reader) -> list[RemovableHandle]:
        """Call a function with every output of a point, as it is, until the hooks are removed."""

        def hook(name: str) -> Callable[[nn.Module, object, object], None]:
            points = [point for point in self.points if module_of(point) == name]

            def show(module: nn.Module, _: object, output: object) -> None:
                outputs = dict(outputs_of(name, output))
                for point in points:
                    see(point, _tensor(point, module, outputs))

            return show

        return [module.register_forward_hook(hook(name)) for name, module in self._modules.items()]

    def overwritten(self, point: str) -> bool:
        """Return whether a point's features must be copied to be kept."""
        return point in self._copied

    def feature_maps(self, outputs: dict[str, Tensor], inputs: Inputs) -> dict[str, Tensor]:
        """Return captured outputs as feature maps (N, C, *S), channels last and tokens included.

        Args:
            outputs: of one forward pass.
            inputs: of the same forward pass.

        Raises:
            InputError: a point's output is no feature map; says why.
        """
        size = tuple(main_input(inputs).shape[1:])
        if size not in self._layouts:
            self._layouts[size] = self._recognised(outputs, inputs)
        layouts = self._layouts[size]
        return {point: layouts[point].read(output) for point, output in outputs.items()}

    def _recognised(self, outputs: dict[str, Tensor], inputs: Inputs) -> dict[str, Layout]:
        """Return each point's layout; where a shape alone leaves it open, survey the network."""
        channels, *size = main_input(inputs).shape[1:]
        layouts = {
            point: channels_first(tuple(output.shape[2:]))
            for point, output in outputs.items()
            if surely_channels_first(tuple(output.shape), size)
        }
        if len(layouts) < len(outputs):
            several = None if isinstance(inputs, Tensor) else inputs
            table = attention_points(self._network, (channels, *size), inputs=several)
            layouts |= {point: table[point].layout for point in outputs if point not in layouts}
        return layouts

    def __enter__(self) -> dict[str, Tensor]:
        """Start capturing; the dictionary fills as the network runs."""
        if self._handles:
            raise RuntimeError("these taps are already open")
        self._features = {}
        self._handles = self.watch(self._capture)
        return self._features

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        try:
            if error is None:
                self._check()
        finally:
            self._outputs.clear()
            self._versions.clear()
            self._features = {}  # whoever opened the taps has them

    def _capture(self, point: str, output: Tensor) -> None:
        if point in self._features:
            raise InputError(
                f"point {point!r} ran more than once in one pass, so its attention is not "
                "one map; choose a point that runs once"
            )
        # Tensors of inference mode have no version that would tell of a change: always copied.
        copied = point in self._copied or output.is_inference()
        self._features[point] = output.clone() if copied else output
        self._outputs[point] = output
        self._versions[point] = 0 if output.is_inference() else output._version

    def _check(self) -> None:
        """Check that every tap fired and that no uncopied output was overwritten."""
        self._refuse_silent(set(self.points) - set(self._features))
        for point, output in self._outputs.items():
            if output.is_inference():
                continue
            overwritten = output._version != self._versions[point]
            if overwritten and point not in self._copied:
                self._copied.add(point)
                raise RuntimeError(
                    f"the output of point {point!r} was overwritten in place, which it was not in "
                    "the first pass; run the pass again: from now on it is copied"
                )
            if not overwritten:
                self._copied.discard(point)

    def _refuse_silent(self, silent: set[str]) -> None:
        """Raise an InputError if a point's module returned nothing."""
        for point in self.points:
            if point in silent:
                raise InputError(
                    f"point {point!r} gave no output: the network did not run it, or was "
                    "compiled before it was tapped; choose a point that runs, or pass the network "
                    "as it was before torch.compile"
                )


def _tensor(point: str, module: nn.Module, outputs: dict[str, object]) -> Tensor:
    """Return the output of a point.

    Raises:
        InputError: it is no tensor.
    """
    output = outputs.get(point)
    if isinstance(output, Tensor):
        return output
    tensors = [name for name, part in outputs.items() if isinstance(part, Tensor)]
    raise InputError(
        f"point {point!r} ({type(module).__name__}) returns "
        f"{'no tensor' if point in outputs else 'several values'}, expected one tensor; "
        + (f"choose one of {', '.join(tensors)}" if tensors else "choose another point")
    )
