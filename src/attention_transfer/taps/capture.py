"""Taps: read the outputs of a network's named modules without touching the network.

A tap is a forward hook that lives as long as a ``with`` block.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attention_transfer.errors import InputError, nearest
from attention_transfer.taps.fused_layers import unfused_attention
from attention_transfer.taps.inputs import Inputs, main_input
from attention_transfer.taps.layout import ALL_TOKENS, Layout, channels_first, surely_channels_first
from attention_transfer.taps.modules import module_of, outputs_of, unwrapped
from attention_transfer.taps.programs import refuse_program
from attention_transfer.taps.sequences import PartsRun, is_sequence, parts_of
from attention_transfer.taps.survey import attention_points

__all__ = ["Taps"]

Reader = Callable[[str, Tensor], None]
Watcher = Callable[[str, Tensor, Tensor], None]


class _AllPointsRead(BaseException):
    """Ends a forward pass after the last point that is needed."""


@dataclass
class _Captured:
    """What was captured at a point in one pass."""

    output: Tensor
    """The module's own; another layer may overwrite it."""
    version: int
    at_end: bool
    """Whether it is the output of the sequence's last module, not its own."""
    detached: bool
    """Whether gradients were switched off just then, as inside a reentrant checkpoint."""
    runs: int = 1


class Taps:
    """Capture the outputs of named modules while a ``with`` block is open.

    A layer that overwrites a tapped feature map in place (an in-place ReLU after it, a residual
    ``+=``) is recognised by the tensor's version. A tap hands out its module's own output: the
    first pass copies every feature map and finds which of them are overwritten later; the following
    passes copy those alone. A sequence that runs module by module, as activation checkpointing
    runs it, is read at its last module.

    Args:
        network: any module, also wrapped by DataParallel, DDP or ``torch.compile``.
        points: names of its modules; a wrapper's prefix is left out. ``name#key`` is one of several
            outputs: of a tuple, a list or a dictionary. ``name#all-tokens`` is an output as it is.
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
        self._ends = {name: _end(module) for name, module in self._modules.items()}
        packed = [name for name, one in modules.items() if isinstance(one, nn.TransformerEncoder)]
        self._packed = any(_inside(point, name) for point in self.points for name in packed)
        """Whether a point is where torch may pack tokens into nested tensors."""
        self._copied: set[str] = set(self.points)
        self._at_end: dict[str, bool] = {}
        """Whether each module's output, in the last pass, was that of its last module."""
        self._settled: set[tuple[bool, bool]] = set()
        """The modes, and whether with gradients, of passes since it is known where to read."""
        self._features: dict[str, Tensor] = {}
        self._captured: dict[str, _Captured] = {}
        self._parts: dict[str, PartsRun] = {}
        self._handles: list[RemovableHandle] = []
        self._kernels = ExitStack()
        self._gradients = False
        self.watcher: Watcher | None = None
        """Called with a point, its module's output, and a tensor of the same values from which the
        point's features are read, so that gradients of both can be told apart.
        """

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

        handles = self._watch_known(see, see)
        try:
            with unfused_attention() if self._packed else nullcontext():
                yield
        except _AllPointsRead:
            pass
        finally:
            for handle in handles:
                handle.remove()
        self._refuse_silent(left)

    def watch(self, see: Reader, see_end: Reader) -> list[RemovableHandle]:
        """Call functions with the outputs of the points, as they are, until the hooks are removed.

        Args:
            see: called with a point and the output of its module.
            see_end: called with a point and the output of its last module, if it is a sequence;
                ``see`` follows if the sequence itself runs.
        """
        return self._watch(see, self._modules) + self._watch_ends(see_end, self._modules)

    def _watch_known(self, see: Reader, see_end: Reader) -> list[RemovableHandle]:
        """Watch each point where the last pass read it."""
        own = [name for name in self._modules if not self._at_end.get(name)]
        ends = [name for name in self._modules if self._at_end.get(name)]
        return self._watch(see, own) + self._watch_ends(see_end, ends)

    def _watch(self, see: Reader, names: Iterable[str]) -> list[RemovableHandle]:
        return [self._modules[name].register_forward_hook(self._hook(name, see)) for name in names]

    def _watch_ends(self, see: Reader, names: Iterable[str]) -> list[RemovableHandle]:
        ends = [(name, end) for name in names if (end := self._ends[name]) is not None]
        return [end.register_forward_hook(self._hook(name, see)) for name, end in ends]

    def _hook(self, name: str, see: Reader) -> Callable[[nn.Module, object, object], None]:
        points = [point for point in self.points if module_of(point) == name]

        def show(module: nn.Module, _: object, output: object) -> None:
            outputs = dict(outputs_of(name, output))
            for point in points:
                see(point, _tensor(point, module, outputs))

        return show

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
            point: Layout("as it is", ()) if whole else channels_first(tuple(output.shape[2:]))
            for point, output in outputs.items()
            if (whole := point.endswith(ALL_TOKENS))
            or surely_channels_first(tuple(output.shape), size)
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
        self._gradients = torch.is_grad_enabled()
        if self._state in self._settled:
            self._handles = self._watch_known(self._capture, self._capture_end)
        else:
            self._handles = self.watch(self._capture, self._capture_end)
        for name in self._modules.keys() - self._at_end.keys():
            self._parts[name] = PartsRun(self._modules[name])
            self._handles += self._parts[name].watch()
        if self._packed:
            self._kernels.enter_context(unfused_attention())
        return self._features

    @property
    def _state(self) -> tuple[bool, bool]:
        """Training mode, and whether gradients are recorded: checkpointing may depend on both."""
        return self._network.training, self._gradients

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._packed:
            self._kernels.close()
        try:
            if error is None:
                self._check()
        finally:
            self._captured.clear()
            self._parts.clear()
            self._features = {}  # whoever opened the taps has them

    def _capture(self, point: str, output: Tensor) -> None:
        before = self._captured.get(point)
        if before is not None and not before.at_end:
            raise InputError(
                f"point {point!r} ran more than once in one pass, so its attention is not "
                "one map; choose a point that runs once"
            )
        self._keep(point, output, at_end=False)

    def _capture_end(self, point: str, output: Tensor) -> None:
        before = self._captured.get(point)
        if before is None:
            self._keep(point, output, at_end=True)
        else:
            before.runs += before.at_end

    def _keep(self, point: str, output: Tensor, at_end: bool) -> None:
        # Inside a reentrant checkpoint a copy would have no gradient: the output itself may get one
        # when the checkpoint ends.
        detached = self._gradients and not torch.is_grad_enabled()
        # Tensors of inference mode have no version that would tell of a change: always copied.
        inference = output.is_inference()
        copied = (point in self._copied or inference) and not detached
        features = output.clone() if copied else output
        if self.watcher is not None and output.requires_grad and not detached:
            features = features if copied else output.view_as(output)
            self.watcher(point, output, features)
        self._features[point] = features
        version = 0 if inference else output._version
        self._captured[point] = _Captured(output, version, at_end, detached)

    def _check(self) -> None:
        """Check that every tap fired and that no uncopied output was overwritten."""
        silent = {point for point in self.points if not self._has_run(point)}
        if silent and self._state in self._settled:
            self._settled.clear()
            raise RuntimeError(
                f"point {min(silent)!r} gave no output where it did before, as when checkpointing "
                "was switched on or off; run the pass again: it is then read where it runs"
            )
        self._refuse_silent(silent)
        at_end = {module_of(point): captured.at_end for point, captured in self._captured.items()}
        if at_end != self._at_end:
            self._at_end, self._settled = at_end, set()
        self._settled.add(self._state)
        for point, captured in self._captured.items():
            output = captured.output
            if output.is_inference():
                continue
            overwritten = output._version != captured.version
            if captured.detached and (overwritten or not output.requires_grad):
                raise InputError(_WITHOUT_GRADIENTS.format(point=point))
            if captured.detached and self.watcher is not None:  # it has its graph only now
                self._features[point] = output.view_as(output)
                self.watcher(point, output, self._features[point])
            if overwritten and point not in self._copied:
                self._copied.add(point)
                raise RuntimeError(
                    f"the output of point {point!r} was overwritten in place, which it was not in "
                    "the first pass; run the pass again: from now on it is copied"
                )
            if not overwritten:
                self._copied.discard(point)

    def _has_run(self, point: str) -> bool:
        """Return whether the output of a point, or of its last module instead, was captured."""
        captured = self._captured.get(point)
        if captured is None or not captured.at_end:
            return captured is not None
        parts = self._parts.get(module_of(point))
        return captured.runs == 1 and (parts is None or parts.is_sequence)

    def _refuse_silent(self, silent: set[str]) -> None:
        """Raise an InputError if a point's module returned nothing."""
        for point in self.points:
            if point in silent:
                name = module_of(point)
                parts = [f"{name}.{part}" for part, _ in parts_of(self._modules[name])]
                ran = name in self._parts and self._parts[name].any
                reason = _WITHOUT_ITSELF.format(part=parts[-1]) if ran else _SILENT
                raise InputError(f"point {point!r} gave no output: {reason}")


_SILENT = (
    "the network did not run it, or activation checkpointing ran its modules without it, or it was "
    "compiled before it was tapped; choose a point that runs, or pass the network as it was before "
    "torch.compile"
)
_WITHOUT_ITSELF = (
    "its modules ran without it, as they do in a ModuleList or where activation checkpointing "
    "calls them, and it is not known how they make its output; choose a point inside, such as "
    "{part!r}, checkpoint the module itself (checkpoint(module, x), not its forward), or switch "
    "checkpointing off, in timm by set_grad_checkpointing(False)"
)
_WITHOUT_GRADIENTS = (
    "point {point!r} depends on no parameter that is trained, as it ran without gradients: under "
    "torch.no_grad, or in the middle of a part that is checkpointed with use_reentrant=True; use "
    "use_reentrant=False, in timm by timm.layers.set_reentrant_ckpt(False), or choose the last "
    "point of a checkpointed part"
)


def _end(module: nn.Module) -> nn.Module | None:
    """Return the last module of a sequence; None of another module."""
    return list(parts_of(module))[-1][1] if is_sequence(module) else None


def _inside(point: str, outer: str) -> bool:
    """Return whether a point is a module or inside it."""
    return not outer or f"{module_of(point)}.".startswith(f"{outer}.")


def _tensor(point: str, module: nn.Module, outputs: dict[str, object]) -> Tensor:
    """Return the output of a point.

    Raises:
        InputError: it is no tensor.
    """
    output = outputs.get(point.removesuffix(ALL_TOKENS))
    if isinstance(output, Tensor):
        return output
    tensors = [name for name, part in outputs.items() if isinstance(part, Tensor)]
    raise InputError(
        f"point {point!r} ({type(module).__name__}) returns "
        f"{'no tensor' if point in outputs else 'several values'}, expected one tensor; "
        + (f"choose one of {', '.join(tensors)}" if tensors else "choose another point")
    )
