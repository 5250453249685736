"""Find every attention point of a network in one forward pass that costs nothing.

The pass runs on fake tensors, which have shapes and no values.
"""

import copy
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from attention_transfer.errors import InputError, first_line
from attention_transfer.taps.fused_layers import counting_flops
from attention_transfer.taps.inputs import Inputs, call_network, main_input, map_inputs
from attention_transfer.taps.layout import Layout, LayoutReader
from attention_transfer.taps.modules import (
    declared_points,
    evaluating,
    module_of,
    outputs_of,
    structure_copy,
    unwrapped,
)
from attention_transfer.taps.points import AttentionPoint, PointTable, Unreadable
from attention_transfer.taps.programs import refuse_program
from attention_transfer.taps.recommendation import ModuleRun, Tree, named_best, recommended
from attention_transfer.taps.sequences import PartsRun, is_sequence, parts_of

__all__ = ["attention_points"]

BATCH = 3
"""Images in the pass: a number of windows or heads that few networks have."""

_BY_LAST_AXIS = (nn.Linear, nn.LayerNorm)
_BY_AXES = (
    *_BY_LAST_AXIS,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
)
"""Types of modules that fix which axis holds the channels."""

_LAST = {"NHWC", "NDHWC", "NLC"}
"""Orders of the axes with the channels last."""

REORDERING = ("Unroll",)
"""Types of modules that change the order of the tokens (Hiera's)."""


def attention_points(
    model: nn.Module, input_size: tuple[int, ...], *, inputs: Inputs | None = None
) -> PointTable:
    """Return every module of a network where attention can be read, in the order of execution.

    The network runs once, in eval mode, on fake tensors: it costs neither memory nor time, and
    neither the network nor its hooks notice. (A network that cannot run on them, because its
    forward pass depends on values, runs on three black images instead.)

    Args:
        model: any network. Points it declares itself, as names in an attribute
            ``attention_points``, are the recommended ones.
        input_size: channels and spatial axes of its input: (3, height, width) of images, (C, L) of
            signals, (C, D, H, W) of volumes and videos.
        inputs: example inputs of a network that takes several tensors; ``input_size`` is then that
            of the main one.

    Returns:
        The table of points; what cannot be read is in its ``unreadable``, with the reason.

    Raises:
        InputError: the network does not run on such images.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(),
        ...                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        >>> for point in attention_points(network, (3, 32, 32)):
        ...     print(point.name, point.channels, point.height, point.width, point.stride)
        0 8 16 16 (2.0, 2.0)
        1 8 16 16 (2.0, 2.0)
    """
    if len(input_size) < 2:
        raise InputError(
            "attention maps have the spatial axes of an input (N, C, H, W), (N, C, L) or "
            f"(N, C, D, H, W), and this one has none: {tuple(input_size)} without N; token "
            "numbers, say, have no attention map"
        )
    network = unwrapped(model)
    refuse_program(network)
    try:
        record = _Recorder(structure_copy(network), input_size, inputs).run(fake=True)
    except InputError:
        raise
    except Exception:
        record = _Recorder(_copy_or_itself(network), input_size, inputs).run(fake=False)
    return _table(record)


def _copy_or_itself(network: nn.Module) -> nn.Module:
    try:
        return structure_copy(network)
    except Exception:
        return network


class _Output:
    """One output of one module; it keeps the tensor, so that no other gets its identity."""

    def __init__(
        self,
        name: str,
        value: object,
        layout: Layout | str,
        other_layout: Layout | None,
        flops: int,
    ) -> None:
        self.name, self.value, self.layout, self.flops = name, value, layout, flops
        self.other_layout = other_layout
        version = value._version if isinstance(value, Tensor) else 0
        self.identity = id(value), version


@dataclass
class _Recorder:
    """Hooks that record, in order, every module's outputs."""

    network: nn.Module
    input_size: tuple[int, ...]
    inputs: Inputs | None
    outputs: list[_Output] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    reordered: str | None = None
    """The type of a module that changed the order of the tokens."""
    flops: int = 0

    def run(self, fake: bool) -> "_Recorder":
        """Run the forward pass and return this recorder."""
        self.reader = LayoutReader(BATCH, self.input_size[1:])
        like = next(
            (value for value in self.network.parameters() if value.is_floating_point()),
            torch.empty(0),
        )
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.network))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            if fake:
                stack.enter_context(_quiet("torch._subclasses.fake_tensor"))
                stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            self.counter = stack.enter_context(counting_flops())
            for name, module in self.network.named_modules():
                if name:
                    stack.callback(module.register_forward_pre_hook(self._before(name)).remove)
                    stack.callback(module.register_forward_hook(self._after(name)).remove)
            parts_runs = self._watch_sequences(stack)
            inputs = self._example(like, fake)
            try:
                call_network(self.network, inputs)
            except InputError:
                raise
            except Exception as error:
                if fake:
                    raise
                reason = first_line(error)
                raise InputError(
                    f"{type(self.network).__name__} does not run on an input of shape "
                    f"{tuple(main_input(inputs).shape)}: {reason}; give the input size it takes"
                ) from error
            self.flops = self.counter.get_total_flops()
        for name, run in parts_runs.items():
            if name not in self.calls and run.is_sequence:
                self._add_sequence(name)
        return self

    def _watch_sequences(self, stack: ExitStack) -> dict[str, PartsRun]:
        """Watch the parts of each sequence, innermost sequences first."""
        sequences = [
            (name, module)
            for name, module in self.network.named_modules()
            if name and is_sequence(module)
        ]
        runs = {name: PartsRun(module) for name, module in reversed(sequences)}
        for run in runs.values():
            for handle in run.watch():
                stack.callback(handle.remove)
        return runs

    def _add_sequence(self, name: str) -> None:
        """Record the outputs of a sequence that ran module by module: those of its last module."""
        names = {module: own for own, module in self.network.named_modules()}
        parts = [names[part] for _, part in parts_of(self.network.get_submodule(name))]
        last = parts[-1]
        if self.calls.get(last) != 1:
            return
        self.calls[name] = 1
        self.shares[name] = sum(self.shares[part] for part in dict.fromkeys(parts))
        for output in [one for one in self.outputs if module_of(one.name) == last]:
            own = copy.copy(output)
            own.name = name + output.name.removeprefix(last)
            self.outputs.insert(self.outputs.index(output) + 1, own)

    def _example(self, like: Tensor, fake: bool) -> Inputs:
        """Return the inputs of the pass: zeros, or the example's first sample three times."""
        if self.inputs is None:
            return torch.zeros(BATCH, *self.input_size, dtype=like.dtype, device=like.device)

        def repeated(value: Tensor) -> Tensor:
            dtype = like.dtype if value.is_floating_point() else value.dtype
            shape = (BATCH, *value.shape[1:])
            if fake:
                return torch.zeros(shape, dtype=dtype, device=like.device)
            return value[:1].detach().to(like.device, dtype).expand(shape).clone()

        return map_inputs(repeated, self.inputs)

    def _before(self, name: str) -> Any:
        def hook(*_: object) -> None:
            self.shares[name] = self.shares.get(name, 0) - self.counter.get_total_flops()

        return hook

    def _after(self, name: str) -> Any:
        def hook(module: nn.Module, given: tuple[object, ...], output: object) -> None:
            flops = self.counter.get_total_flops()
            self.shares[name] += flops
            self.calls[name] = self.calls.get(name, 0) + 1
            if type(module).__name__ in REORDERING:
                self.reordered = type(module).__name__
            for point, value in outputs_of(name, output) if self.calls[name] == 1 else ():
                keeps_shape = _keeps_shape(module, given, value)
                layout = self._layout(module, value, keeps_shape)
                other = None
                if isinstance(layout, Layout) and layout.kind == "feature map":
                    assert isinstance(value, Tensor)
                    _, *others = self.reader.maps(tuple(value.shape), keeps_shape)
                    other = others[0] if others else None
                self.outputs.append(_Output(point, value, layout, other, flops))

        return hook

    def _layout(self, module: nn.Module, value: object, keeps_shape: bool) -> Layout | str:
        if not isinstance(value, Tensor):
            return f"it returns a {type(value).__name__}"
        if not value.is_floating_point():
            return f"it holds {value.dtype} numbers"
        channels_first = isinstance(module, _BY_AXES) and not isinstance(module, _BY_LAST_AXIS)
        layout = self.reader.layout(tuple(value.shape), keeps_shape, channels_first)
        if self.reordered and isinstance(layout, Layout) and layout.kind == "tokens":
            return f"{self.reordered} put its tokens into an order other than the image's"
        return layout


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Silence a logger inside the block; the failures it reports are handled."""
    disabled = logging.getLogger(logger).disabled
    logging.getLogger(logger).disabled = True
    try:
        yield
    finally:
        logging.getLogger(logger).disabled = disabled


def _keeps_shape(module: nn.Module, given: tuple[object, ...], value: object) -> bool:
    """Return whether a module without parameters returns a tensor of its input's shape."""
    first = given[0] if given else None
    return (
        isinstance(first, Tensor)
        and isinstance(value, Tensor)
        and first.shape == value.shape
        and not any(True for _ in module.parameters())
    )


def _table(record: _Recorder) -> PointTable:
    network, input_size = record.network, record.input_size
    modules = dict(network.named_modules(remove_duplicate=False))
    other_names = _other_names(modules)
    total = max(record.flops, 1)
    _settle_axes(record.outputs, modules)
    once = [output for output in record.outputs if record.calls[module_of(output.name)] == 1]
    points = [
        AttentionPoint(
            name=names[0],
            module="",
            layout=first.layout,
            channels=first.value.shape[first.layout.axes.index("C")],
            stride=tuple(
                whole / length
                for whole, length in zip(input_size[1:], first.layout.grid, strict=True)
            ),
            depth=first.flops / total,
            aliases=names[1:],
        )
        for first, names in _by_tensor(once, other_names)
        if isinstance(first.layout, Layout) and isinstance(first.value, Tensor)
    ]
    stages = {name: point.stage for point in points for name in (point.name, *point.aliases)}
    known = {
        name: ModuleRun(modules[name], stages.get(name), share / total)
        for first, share in record.shares.items()
        for name in (first, *other_names.get(first, ()))
    }
    tree = Tree(known, points)
    points = [_named(point, modules, tree) for point in points]
    chosen = set(declared_points(network)) or recommended(points, tree)
    points = [
        replace(point, recommended=not chosen.isdisjoint((point.name, *point.aliases)))
        for point in points
    ]
    unreadable = [
        Unreadable(name, type(modules[module_of(name)]).__name__, reason)
        for name, reason in _reasons(record, modules, other_names)
    ]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return PointTable(
        tuple(points), tuple(unreadable), input_size, parameters, record.flops // BATCH
    )


def _settle_axes(outputs: list[_Output], modules: dict[str, nn.Module]) -> None:
    """Decide the order of the axes where a shape fits both (96 channels on 96x96).

    It is that of the network's other outputs, or of its modules of the same type if it has both.
    """
    kinds: dict[str, set[str]] = defaultdict(set)
    for output in outputs:
        module = modules[module_of(output.name)]
        if output.other_layout is not None and isinstance(module, _BY_AXES):
            if isinstance(module, _BY_LAST_AXIS):
                output.layout = output.other_layout
            output.other_layout = None
        if isinstance(output.layout, Layout) and output.other_layout is None:
            kinds[type(module).__name__].add(output.layout.axes)
    mixed = any(last in axes for axes in kinds.values() for last in _LAST)
    for output in outputs:
        if output.other_layout is None or not mixed:
            continue
        known = kinds[type(modules[module_of(output.name)]).__name__]
        if known and known <= _LAST:
            output.layout = output.other_layout
        elif not known or known & _LAST:
            output.layout = (
                "channels first and channels last both fit its shape; give another input size"
            )


def _other_names(modules: dict[str, nn.Module]) -> dict[str, list[str]]:
    """Return the other names of modules that have several, by the first one."""
    first: dict[int, str] = {}
    others: dict[str, list[str]] = defaultdict(list)
    for name, module in modules.items():
        known = first.setdefault(id(module), name)
        if known != name:
            others[known].append(name)
    return others


def _by_tensor(
    outputs: list[_Output], other_names: dict[str, list[str]]
) -> Iterator[tuple[_Output, tuple[str, ...]]]:
    """Group outputs that are the same, unchanged tensor: yield the first, and all names."""
    groups: dict[tuple[int, int], list[_Output]] = {}
    for output in outputs:
        groups.setdefault(output.identity, []).append(output)
    for group in groups.values():
        names = [output.name for output in group]
        for name in list(names):
            module, mark, key = name.partition("#")
            names += [f"{other}{mark}{key}" for other in other_names.get(module, ())]
        yield group[0], tuple(names)


def _named(point: AttentionPoint, modules: dict[str, nn.Module], tree: Tree) -> AttentionPoint:
    name, *aliases = named_best((point.name, *point.aliases), tree)
    kind = type(modules[module_of(name)]).__name__
    return replace(point, name=name, module=kind, aliases=tuple(aliases))


def _reasons(
    record: _Recorder, modules: dict[str, nn.Module], other_names: dict[str, list[str]]
) -> Iterator[tuple[str, str]]:
    for output in record.outputs:
        calls = record.calls[module_of(output.name)]
        if calls > 1:
            yield output.name, f"it runs {calls} times in one forward pass"
        elif isinstance(output.layout, str):
            yield output.name, output.layout
    others = {name for names in other_names.values() for name in names}
    for name, module in modules.items():
        holder = isinstance(module, nn.ModuleList | nn.ModuleDict)
        if name and name not in record.calls and name not in others and not holder:
            yield name, "it did not run"
