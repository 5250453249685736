"""The objective: the weighted sum of terms, over taps of student and frozen teacher."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from attention_transfer.errors import InputError, input_errors
from attention_transfer.taps import Inputs, Taps, evaluating, main_input
from attention_transfer.transfer.compiled_forward import CompiledForward
from attention_transfer.transfer.differentiability import (
    check_twice_differentiable,
    refuse_sharded,
    warn_if_compiled,
)
from attention_transfer.transfer.forward import (
    FindLogits,
    ForwardResult,
    check_result_learns,
    check_student_learns,
    check_trainable,
    find_logits,
    logits_in,
    preprocess,
    tapped_forward,
)
from attention_transfer.transfer.gradient_balance import GradientBalance, Measurement
from attention_transfer.transfer.input_gradients import InputGradients
from attention_transfer.transfer.output import PairDescription, TransferOutput, describe_pair
from attention_transfer.transfer.pairing import Pair
from attention_transfer.transfer.targets import Targets
from attention_transfer.transfer.teacher_ensemble import (
    MeanAndDeviation,
    as_preprocessing,
    check_network,
    check_separate,
    frozen_teacher,
    teachers_with_preprocessing,
)
from attention_transfer.transfer.term_inputs import (
    build_modules,
    check_built,
    check_inputs,
    check_teacher,
    claim_modules,
    gradient_labels,
    modules_dtype,
    named_terms,
    needed_of_teacher,
    pairings_of,
    read_fields,
    term_inputs,
)
from attention_transfer.transfer.term_values import TermValue, balance_of, term_value, watch_loss
from attention_transfer.transfer.terms.base import Term
from attention_transfer.transfer.terms.inputs import PairedMaps
from attention_transfer.transfer.trial import try_losses

__all__ = ["Transfer"]


class Transfer(nn.Module):
    """Train a student to look where a teacher looks: any terms, in any training loop.

    ``transfer(inputs, labels)`` runs the frozen teacher and the student on the same inputs and
    sums the terms. Its ``parameters()`` are the student's and those of the terms (such as the 1x1
    convolutions of ``FullActivation``); the teacher moves with it between devices and is
    otherwise untouchable. The student's train or eval mode is never changed.

    Args:
        student: the network that learns; it may return anything.
        teacher: the network to learn from, or None if no term needs one. Of a sequence of networks
            the normalized maps, and the logits, are averaged.
        terms: what to sum; each term's ``name`` is its key in the output.
        example_input: inputs to try both networks on, in eval mode, when the Transfer is built:
            pairs that do not fit are found then, and not at the first step. Terms with modules of
            their own (``FullActivation``) need it to make them, and networks that declare no
            points need it for ``pairs="auto"`` and for patterns.
        student_normalization: (means, standard deviations) by channel of the main input, if it is
            not normalized yet; a :class:`attention_transfer.Preprocessing` also resizes it.
        teacher_normalization: the same for the teacher; of several teachers one for all, or a list.
        logits: a function from either network's output to the logits in it, or None. By default
            they are the output if it is a tensor, its ``.logits``, or its item ``"logits"`` or
            ``"out"``.

    Raises:
        InputError: networks that are none; a frozen student; no terms, a term without a name, or
            two of one name; a term that needs a teacher without one; unknown points; pairs that do
            not fit or whose term could only be zero. Without ``example_input`` the last two are
            raised by the first call.

    Example:
        >>> def network(width):
        ...     return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(),
        ...                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
        >>> transfer = at.Transfer(network(4), network(16), terms=[
        ...     *at.distillation_terms(alpha=0.9),
        ...     at.ActivationAttention(beta=1000.0, pairs="1:1")])
        >>> out = transfer(torch.rand(2, 3, 8, 8), torch.tensor([3, 7]))
        >>> out.loss.backward()
        >>> sorted(out.terms)
        ['activation_attention', 'cross_entropy', 'knowledge_distillation']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Sequence[nn.Module] | None = None,
        terms: Sequence[Term] = (),
        *,
        example_input: Inputs | None = None,
        student_normalization: MeanAndDeviation | None = None,
        teacher_normalization: MeanAndDeviation | list[MeanAndDeviation | None] | None = None,
        logits: FindLogits = find_logits,
    ) -> None:
        super().__init__()
        check_network("student", student)
        check_trainable(student)
        self.student = student
        self.student_normalization = as_preprocessing(student_normalization)
        self.terms = nn.ModuleDict(named_terms(terms))
        if not callable(logits):
            raise InputError(
                f"logits must be a function from a network's output to its logits, got {logits!r}; "
                "such as logits=lambda output: output['classes']"
            )
        self.find_logits = logits
        teachers = teachers_with_preprocessing(teacher, teacher_normalization)
        check_separate(student, [network for network, _ in teachers])
        check_teacher(self.named_terms, bool(teachers))
        networks = [(student, self.student_normalization), *teachers]
        self.pairings = pairings_of(self.named_terms, networks, example_input)
        pairs = [pair for pairing in self.pairings.values() for pair in pairing.pairs]
        self._taps = Taps(student, [pair.student for pair in pairs], "the student")
        points = [point for pair in pairs for point in pair.teacher_points]
        self.teacher = frozen_teacher(teachers, points, logits)
        self.gradient_balance: GradientBalance | None = balance_of(
            self.named_terms, self.pairings, constant=False
        )
        self.target_spec = needed_of_teacher(self.named_terms, self.pairings)
        self.pair_descriptions: list[PairDescription] = []
        self._twice_differentiable = self._built = False
        self._learns = not list(student.parameters())  # without any it is not meant to
        self._checked: set[object] = set()
        """The shapes of features and logits that the terms have checked."""
        self._compiled: CompiledForward | None = None
        if example_input is not None:
            self._try(example_input)

    def forward(
        self,
        inputs: Inputs,
        labels: Any = None,
        progress: float = 0.0,
        targets: Targets | None = None,
    ) -> TransferOutput:
        """Return the terms of one batch.

        Args:
            inputs: what both networks are called with, preprocessed and in the dtype of each one's
                weights: a tensor, a tuple of tensors (positional arguments) or a dictionary of
                tensors (keyword arguments), each with the batch first.
            labels: class indices (N,) or whatever the terms take.
            progress: the share of training that is done, 0 to 1, for weights with a schedule.
            targets: the teacher's answers for these inputs, if they are known: of :meth:`targets`,
                or from a cache. The teacher is then not run.
        """
        if targets is None:
            targets = self.targets(inputs, labels)
        else:
            targets.check_samples(len(main_input(inputs)))
        measurement = None if self.gradient_balance is None else self._measurement(inputs)
        if self._needs_gradients or measurement is not None:
            out: TransferOutput = self._eagerly(
                inputs, labels, progress, targets, measurement, torch.compiler.is_compiling()
            )
            return out
        student = self._run_student(inputs)
        with torch.autocast(main_input(inputs).device.type, enabled=False):
            return self._sum(student, targets, labels, progress)

    def optimize_teacher_for_inference(
        self, example: Inputs, dtype: torch.dtype | None = None
    ) -> None:
        """Let the teacher answer from a cheaper copy.

        The copy's batch norms are folded into its convolutions and its weights kept in the dtype
        of autocast, under which alone it then runs. The teacher itself stays as it is; changes made
        to it later have no effect on the copy.

        Args:
            example: inputs on which copy and teacher must agree, or else the copy is a plain one.
            dtype: such as ``torch.bfloat16``; None: as they are.
        """
        if self.teacher is not None:
            self.teacher.optimize_for_inference(example, dtype)

    def compile_passes(self) -> None:
        """Compile the student's and the teacher's forward passes, taps included.

        It is done at the next batch; batches of another size than that run as before. With gradient
        terms the student's pass stays as it is: a compiled graph has no second derivative. Hooks
        stay on both networks until :meth:`remove_compiled_passes`.
        """
        self.remove_compiled_passes()
        if not self._needs_gradients:
            self._compiled = CompiledForward(
                self.student, self._taps, lambda output, features: (output, features)
            )
        if self.teacher is not None:
            self.teacher.compile_passes()

    def remove_compiled_passes(self) -> None:
        """Remove the compiled passes, with their hooks, from both networks.

        A network with hooks cannot be pickled whole, as ``torch.save(student)`` would.
        """
        if self._compiled is not None:
            self._compiled.remove()
            self._compiled = None
        if self.teacher is not None:
            self.teacher.remove_compiled_passes()

    def targets(self, inputs: Inputs, labels: Any = None) -> Targets:
        """Return the teacher's answers for a batch, as far as the terms need them.

        Without terms that need it the teacher is not run.

        Example:
            >>> student, teacher = (nn.Sequential(nn.Conv2d(3, width, 1), nn.Flatten())
            ...                     for width in (4, 8))
            >>> transfer = at.Transfer(student, teacher, [at.ActivationAttention(pairs="0:0")])
            >>> images = torch.rand(2, 3, 8, 8)
            >>> targets = transfer.targets(images)
            >>> [tuple(value.shape) for value in targets.fields.values()]
            [(2, 8, 8)]
            >>> out = transfer(images, targets=targets)  # the teacher does not run
        """
        if self.teacher is None or not self.target_spec:
            return Targets()
        labels = gradient_labels(labels, self.named_terms)
        return self.teacher.targets(inputs, labels, self.target_spec)

    @property
    def named_terms(self) -> dict[str, Term]:
        """The terms by name."""
        return dict(self.terms.items())  # type: ignore[arg-type]

    def _pairs(self, name: str) -> list[Pair]:
        return self.pairings[name].pairs if name in self.pairings else []

    @property
    def _needs_gradients(self) -> bool:
        return any(term.needs_input_gradient for term in self.named_terms.values())

    def _run_student(self, inputs: Inputs) -> ForwardResult:
        compiled = self._compiled
        if compiled is None or not torch.is_grad_enabled() or not compiled.takes(inputs):
            return self._run_tapped(inputs)
        own_inputs = preprocess(self.student, inputs, self.student_normalization)
        return ForwardResult(*compiled(own_inputs))

    def _run_tapped(self, inputs: Inputs) -> ForwardResult:
        return tapped_forward(self.student, self._taps, inputs, self.student_normalization)

    def measure_gradients(self) -> None:
        """Let ``gradient_balance`` measure terms of constant weight as well."""
        self.gradient_balance = balance_of(self.named_terms, self.pairings, constant=True)

    # torch.compiler.disable, except that the compiler is imported at the first call only.
    @_disable_dynamo
    def _measurement(self, inputs: Inputs) -> Measurement | None:
        if self.gradient_balance is None or not torch.is_grad_enabled():
            return None
        return self.gradient_balance.begin(len(main_input(inputs)))

    @_disable_dynamo
    def _eagerly(
        self,
        inputs: Inputs,
        labels: Any,
        progress: float,
        targets: Targets,
        measurement: Measurement | None,
        compiling: bool,
    ) -> TransferOutput:
        """Return the terms, with gradients that a compiled graph does not have or show."""
        gradients = None
        self._taps.watcher = None if measurement is None else measurement.watch_point
        try:
            if self._needs_gradients:
                self._check_gradients(inputs, compiling)
                labels_left = gradient_labels(labels, self.named_terms)
                gradients = InputGradients(
                    self.student, self.student_normalization, inputs, labels_left, self.find_logits
                )
                student = gradients.forward(self._taps)
            else:
                student = self._run_tapped(inputs)
        finally:
            self._taps.watcher = None
        with torch.autocast(main_input(inputs).device.type, enabled=False):
            return self._sum(student, targets, labels, progress, gradients, measurement)

    def _check_gradients(self, inputs: Inputs, compiling: bool = False) -> None:
        """Check, once, that the student can be differentiated twice."""
        if not self._twice_differentiable:
            refuse_sharded(self)
            check_twice_differentiable(
                self.student, inputs, self.student_normalization, self.find_logits
            )
            warn_if_compiled(self.student, compiling)
            self._twice_differentiable = True

    def _sum(
        self,
        student: ForwardResult,
        targets: Targets,
        labels: Any,
        progress: float,
        gradients: InputGradients | None = None,
        measurement: Measurement | None = None,
    ) -> TransferOutput:
        logits = logits_in(student.output, self.find_logits)
        if torch.is_grad_enabled() and not self._learns:
            self._learns = check_result_learns(self.student, student, logits)
        shapes = tuple(features.shape[1:] for features in student.features.values())
        checked = shapes, logits is None or logits.shape[1:], labels is None
        values: dict[str, TermValue] = {}
        maps: dict[str, dict[str, PairedMaps]] = {}
        for name, term in self.named_terms.items():
            inputs = term_inputs(
                term, student, logits, targets, self._pairs(name), labels, progress, gradients
            )
            check_built(term, self._built)
            if checked not in self._checked:
                check_inputs(term, inputs)
            values[name] = term_value(name, term, inputs, self.gradient_balance, measurement)
            if inputs.maps:
                maps[name] = inputs.maps
        self._checked.add(checked)
        weighted = [value.weighted for value in values.values()]
        loss = sum(weighted, start=weighted[0].new_zeros((), dtype=torch.float32))
        if measurement is not None:
            watch_loss(loss, values, self.named_terms, measurement, self.student)
        return TransferOutput(
            loss=loss,
            terms={name: value.weighted.detach() for name, value in values.items()},
            raw_terms={name: value.raw.detach() for name, value in values.items()},
            betas={name: value.betas for name, value in values.items() if value.betas},
            output=student.output,
            logits=logits,
            maps=maps,
            teacher_logits=targets.logits,
        )

    @torch.no_grad()
    def _try(self, example: Inputs) -> None:
        """Run both networks on an example: build the terms' modules, describe the pairs."""
        if self._needs_gradients:
            self._check_gradients(example)
        shape = tuple(main_input(example).shape)
        with input_errors(f"the student fails on {shape}"), evaluating(self.student):
            student = self._run_tapped(example)
        check_student_learns(
            self.student, self._taps, example, self.student_normalization, self.find_logits
        )
        targets, teacher_features = Targets(), dict[str, Tensor]()
        if self.teacher is not None:
            with input_errors(f"the teacher fails on {shape}"):
                teacher = self.teacher(example)
            teacher_features = teacher.features
            targets = Targets(
                read_fields(self.target_spec, teacher_features, self.named_terms),
                logits_in(teacher.output, self.teacher.find_logits),
                main_input(example) if self.target_spec.gradient else None,  # of the same shape
            )
        self._built = True
        logits = logits_in(student.output, self.find_logits)
        for name, term in self.named_terms.items():
            inputs = term_inputs(term, student, logits, targets, self._pairs(name))
            check_inputs(term, inputs)
            pairs = inputs.pairs if name in self.pairings else ()
            build_modules(term, pairs)
            term.to(main_input(example).device, modules_dtype(student, logits))
            if pairs:
                try_losses(term, inputs)
            self.pair_descriptions += [
                describe_pair(term, pair, teacher_features) for pair in pairs
            ]
        claim_modules(self.named_terms)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the teacher along with ``.to()``, ``.cuda()`` and so on."""
        if self.teacher is not None:
            self.teacher.network._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
