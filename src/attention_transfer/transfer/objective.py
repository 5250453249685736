"""The objective: the weighted sum of terms, over taps of student and frozen teacher."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from attention_transfer.errors import InputError
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import Taps, evaluating, structure_copy, unwrapped
from attention_transfer.transfer.compiled_forward import CompiledPass
from attention_transfer.transfer.differentiability import (
    check_twice_differentiable,
    is_compiled,
    refuse_sharded,
)
from attention_transfer.transfer.input_gradients import InputGradients
from attention_transfer.transfer.output import PairDescription, TransferOutput, describe
from attention_transfer.transfer.pairing import Pairing, PairingSide, resolve_pairs
from attention_transfer.transfer.targets import TargetField, Targets, TargetSpec
from attention_transfer.transfer.teacher import (
    ForwardResult,
    input_size,
    tapped_forward,
)
from attention_transfer.transfer.teacher_ensemble import (
    MeanAndDeviation,
    as_normalization,
    frozen_teacher,
    given_teachers,
)
from attention_transfer.transfer.terms.base import Observation, PairedMaps, PairFeatures, Term

__all__ = ["Transfer"]


class Transfer(nn.Module):
    """Trains a student to look where a teacher looks: any terms, in any training loop.

    ``transfer(images, labels)`` runs the frozen teacher and the student on the same images and
    sums the terms. Its ``parameters()`` are the student's and those of the terms (the 1x1
    convolutions of ``FullActivation``); the teacher moves with it between devices and is
    otherwise untouchable. The student's train or eval mode is never changed.

    Args:
        student: the network that learns.
        teacher: the network that shows, or None if no term needs one. Of a sequence of networks
            the normalised maps, and the logits, are averaged.
        terms: what to sum; ``name`` makes each one's key in the output (a second term of the same
            kind gets ``_2``).
        example_input: images (N, C, H, W) to try both networks on, in eval mode, when the
            Transfer is built: pairs that do not fit are found then, and not at the first step.
            ``FullActivation`` needs it to make its convolutions, and networks that declare no
            points of their own need it for ``pairs="auto"`` and for patterns.
        student_normalization, teacher_normalization: (means, standard deviations) by channel, if
            the images given are not normalised yet for that network; a :class:`Preprocessing`
            also brings them to the network's own size. Several teachers share one, or a list has
            one for each.

    Raises:
        InputError: no terms; a term that needs a teacher without one; unknown points; pairs that
            do not fit or whose term could only be zero. Without ``example_input`` the last two are
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
        example_input: Tensor | None = None,
        student_normalization: MeanAndDeviation | None = None,
        teacher_normalization: MeanAndDeviation | list[MeanAndDeviation | None] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.student_normalization = as_normalization(student_normalization)
        self.terms = _named(terms)
        teachers = given_teachers(teacher, teacher_normalization)
        if any(network is student for network, _ in teachers):
            raise InputError(
                "student and teacher are one network, which could only stay as it is; give two, "
                "such as copy.deepcopy(student)"
            )
        self.pairings = self._resolve(teachers, example_input)
        both = [pair for pairing in self.pairings.values() for pair in pairing.pairs]
        self._taps = Taps(student, [pair.student for pair in both])
        points = [point for pair in both for point in pair.teacher_points]
        self.teacher = frozen_teacher(teachers, points)
        self.wanted = self._wanted_of_teacher()
        self.term_modules = nn.ModuleDict()
        self.pair_descriptions: list[PairDescription] = []
        self._twice_differentiable = False
        self._compiled: CompiledPass | None = None
        if example_input is not None:
            self._try(example_input)

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        progress: float = 0.0,
        targets: Targets | None = None,
    ) -> TransferOutput:
        """The terms of one batch.

        Args:
            images: (N, C, H, W), given to both networks (each normalises for itself if told to).
            labels: (N,) class indices, where a term needs them.
            progress: the share of training that is done, 0 to 1, for weights with a schedule.
            targets: the teacher's answers for these images, if they are known: of :meth:`targets`,
                or from a cache. Then the teacher is not run.
        """
        if targets is None:
            targets = self.targets(images, labels)
        if self._needs_gradients:
            compiling = torch.compiler.is_compiling()
            out: TransferOutput = self._with_gradients(images, labels, progress, targets, compiling)
            return out
        student = self._observe_student(images)
        with torch.autocast(images.device.type, enabled=False):
            return self._sum(student, targets, labels, None, progress)

    def optimize_teacher_for_inference(
        self, example: Tensor, dtype: torch.dtype | None = None
    ) -> None:
        """Has the teacher answer from a cheaper copy: its batch norms folded into convolutions, its
        weights in the dtype of autocast, under which alone it then runs. The teacher itself stays
        as it is, and what is done to it later is not seen.

        Args:
            example: images (N, C, H, W) on which copy and teacher must agree, or else the copy is
                plain.
            dtype: such as ``torch.bfloat16``; None: as they are.
        """
        if self.teacher is not None:
            self.teacher.optimize_for_inference(example, dtype)

    def compile_passes(self) -> None:
        """Compiles the student's and the teacher's passes from the next batch on, with their taps;
        batches of another size than that are run as before. With gradient terms the student's is
        left as it is: a compiled graph has no second derivative. Hooks stay on both networks until
        :meth:`remove_compiled_passes`.
        """
        self.remove_compiled_passes()
        if not self._needs_gradients:
            self._compiled = CompiledPass(
                self.student, self._taps, lambda output, features: (output, features)
            )
        if self.teacher is not None:
            self.teacher.compile_passes()

    def remove_compiled_passes(self) -> None:
        """Takes them off both networks, with their hooks: a network with hooks cannot be pickled
        whole, as ``torch.save(student)`` would.
        """
        if self._compiled is not None:
            self._compiled.remove()
            self._compiled = None
        if self.teacher is not None:
            self.teacher.remove_compiled_passes()

    def _observe_student(self, images: Tensor) -> ForwardResult:
        compiled = self._compiled
        if compiled is None or not torch.is_grad_enabled() or not compiled.takes(images):
            return tapped_forward(self.student, self._taps, images, self.student_normalization)
        own = self.student_normalization
        return ForwardResult(*compiled(images if own is None else own(images)))

    def targets(self, images: Tensor, labels: Tensor | None = None) -> Targets:
        """What the teacher answers for a batch, as far as the terms need it; without such terms it
        is not run.

        Example:
            >>> student, teacher = (nn.Sequential(nn.Conv2d(3, width, 1), nn.Flatten())
            ...                     for width in (4, 8))
            >>> transfer = at.Transfer(student, teacher, [at.ActivationAttention(pairs="0:0")])
            >>> images = torch.rand(2, 3, 8, 8)
            >>> targets = transfer.targets(images)
            >>> [tuple(reading.shape) for reading in targets.readings.values()]
            [(2, 8, 8)]
            >>> out = transfer(images, targets=targets)  # the teacher does not run
        """
        if self.teacher is None or not self.wanted:
            return Targets()
        return self.teacher.targets(images, labels, self.wanted)

    # torch.compiler.disable, but that importing the compiler waits for the first call.
    @_disable_dynamo
    def _with_gradients(
        self,
        images: Tensor,
        labels: Tensor | None,
        progress: float,
        targets: Targets,
        compiling: bool,
    ) -> TransferOutput:
        """The same with gradients at the images; eager: a compiled graph has no second one."""
        self._check_gradients(images, compiling)
        gradients = InputGradients(self.student, self.student_normalization, images, labels)
        student = gradients.observe(self._taps)
        with torch.autocast(images.device.type, enabled=False):
            return self._sum(student, targets, labels, gradients, progress)

    @property
    def _needs_gradients(self) -> bool:
        return any(term.needs_input_gradient for term in self.terms.values())

    def _check_gradients(self, images: Tensor, compiling: bool = False) -> None:
        """Once, before the first double backward."""
        if self._twice_differentiable:
            return
        refuse_sharded(self)
        check_twice_differentiable(self.student, images, self.student_normalization)
        if compiling or is_compiled(self.student):
            warnings.warn(
                "the student is compiled, and a compiled graph has no second derivative: with "
                "gradient terms it runs eagerly",
                stacklevel=2,
            )
        self._twice_differentiable = True

    def _sum(
        self,
        student: ForwardResult,
        targets: Targets,
        labels: Tensor | None,
        gradients: InputGradients | None,
        progress: float,
    ) -> TransferOutput:
        raw: dict[str, Tensor] = {}
        weighted: dict[str, Tensor] = {}
        maps: dict[str, dict[str, PairedMaps]] = {}
        for name, term in self.terms.items():
            observation = self._observation(name, student, targets, labels, gradients)
            term.check(observation)
            raw[name] = term.value(observation)
            weighted[name] = raw[name] * term.weight_at(progress)
            if observation.maps:
                maps[name] = observation.maps
        return TransferOutput(
            loss=sum(weighted.values(), start=student.logits.new_zeros((), dtype=torch.float32)),
            terms={name: value.detach() for name, value in weighted.items()},
            raw_terms={name: value.detach() for name, value in raw.items()},
            logits=student.logits,
            maps=maps,
            teacher_logits=targets.logits,
        )

    def _resolve(
        self, teachers: list[tuple[nn.Module, Preprocessing | None]], example: Tensor | None
    ) -> dict[str, Pairing]:
        """The pairs of each term that compares layers."""
        wanted = {name: term.wanted_pairs for name, term in self.terms.items()}
        for name, term in self.terms.items():
            if term.needs_teacher and not teachers:
                raise InputError(f"the term {name} needs a teacher, got none; pass teacher=")
        if not teachers:
            return {}
        sides = [
            PairingSide(network, None if example is None else input_size(example, own))
            for network, own in [(self.student, self.student_normalization), *teachers]
        ]
        return {
            name: resolve_pairs(pairs, *sides)
            for name, pairs in wanted.items()
            if pairs is not None
        }

    def _wanted_of_teacher(self) -> TargetSpec:
        """What the terms need of the teacher, each thing once."""
        readings = {
            TargetField(point, self.terms[name].teacher_map): None
            for name, pairing in self.pairings.items()
            for pair in pairing.pairs
            for point in pair.teacher_points
        }
        learning = [term for term in self.terms.values() if term.needs_teacher]
        return TargetSpec(
            tuple(readings),
            any(term.needs_teacher_logits for term in learning),
            any(term.needs_teacher_gradient for term in learning),
        )

    def _observation(
        self,
        name: str,
        student: ForwardResult,
        targets: Targets,
        labels: Tensor | None = None,
        gradients: InputGradients | None = None,
        whole: bool = False,
    ) -> Observation:
        """What a term sees; of the teacher whole features, if asked for, instead of maps."""
        observation = Observation(
            student.logits,
            labels,
            targets.logits,
            input_gradients=gradients,
            teacher_gradient=targets.gradient,
        )
        map_function = None if whole else self.terms[name].teacher_map
        for pair in self.pairings[name].pairs if name in self.pairings else []:
            theirs = tuple(
                targets.read(TargetField(point, map_function)) for point in pair.teacher_points
            )
            observation.pairs.append(PairFeatures(pair, student.features[pair.student], theirs))
        if name in self.term_modules:
            modules = self.term_modules[name]
            assert isinstance(modules, nn.ModuleList)
            observation.modules = modules
        return observation

    @torch.no_grad()
    def _try(self, example: Tensor) -> None:
        """One pass of both networks on an example: makes the terms' modules, describes pairs."""
        if self._needs_gradients:
            self._check_gradients(example)
        with evaluating(self.student):
            student = tapped_forward(self.student, self._taps, example, self.student_normalization)
        self._check_learnable(example)
        targets = Targets()
        if self.teacher is not None:
            seen = self.teacher(example)
            features = {TargetField(point): value for point, value in seen.features.items()}
            targets = Targets(features, seen.output if isinstance(seen.output, Tensor) else None)
        for name, term in self.terms.items():
            observation = self._observation(name, student, targets, whole=True)
            term.check(observation)
            modules = term.make_modules(observation.pairs)
            if len(modules):
                self.term_modules[name] = modules.to(example.device)
            self.pair_descriptions += [describe(name, term, seen) for seen in observation.pairs]

    def _check_learnable(self, example: Tensor) -> None:
        """Points in a frozen part of the student could never attend otherwise."""
        learns = {parameter.requires_grad for parameter in self.student.parameters()}
        if learns == {False}:
            raise InputError(
                "no parameter of the student asks for a gradient, so it could not learn; "
                "student.requires_grad_() lets it"
            )
        if learns != {True, False}:
            return
        network = structure_copy(unwrapped(self.student), frozen=False)
        taps = Taps(network, self._taps.points)
        with evaluating(network), torch.enable_grad():
            features = tapped_forward(network, taps, example, self.student_normalization).features
        fixed = [name for name, feature in features.items() if not feature.requires_grad]
        if fixed:
            raise InputError(
                f"the student's point {fixed[0]!r} is in a part that is frozen, so its attention "
                "cannot change; choose later points (pairs='auto-2'), or freeze less"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves the teacher along with ``.to()``, ``.cuda()`` and so on."""
        if self.teacher is not None:
            self.teacher.network._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def _named(terms: Sequence[Term]) -> dict[str, Term]:
    if not terms:
        raise InputError("got no terms, expected at least one, such as CrossEntropy()")
    named: dict[str, Term] = {}
    seen: Counter[str] = Counter()
    for term in terms:
        seen[term.name] += 1
        count = seen[term.name]
        named[term.name if count == 1 else f"{term.name}_{count}"] = term
    return named
