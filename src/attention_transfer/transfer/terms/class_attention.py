"""Class attention transfer, CAT-KD."""

from collections.abc import Sequence
from copy import deepcopy

from torch import Tensor, nn

from attention_transfer.errors import InputError
from attention_transfer.functional import losses
from attention_transfer.taps import Inputs
from attention_transfer.transfer.classifiers import Classifier, pooled_classifier
from attention_transfer.transfer.schedule import Schedule
from attention_transfer.transfer.targets import Reduction
from attention_transfer.transfer.terms.base import PairTerm, Weight, one_teacher, refuse_another
from attention_transfer.transfer.terms.inputs import PairInputs, TermInputs

__all__ = ["ClassAttention"]


class ClassAttention(PairTerm):
    """weight * class attention transfer, CAT-KD (Guo et al., CVPR 2023). See
    :func:`attention_transfer.functional.losses.class_attention`.

    Both networks end in global average pooling and a linear classifier, of the same classes: the
    term finds the features and the weights by itself, from ``example_input``, and trains the
    student's classifier too. Of the teacher it keeps the pooled class maps, so that a cache can
    hold them. Weight 400 and size 2 are the defaults of the authors' code, beside the
    cross-entropy of weight 1. A term belongs to one Transfer.

    Args:
        weight: finite, at least 0; or ``"auto"``, as of :class:`attention_transfer.PairTerm`.
        size: of each axis of the pooled class maps.
        schedule: of the weight, as of :class:`attention_transfer.Term`.
        name: the key in the output.

    Example:
        >>> ClassAttention(size=4).weight
        400.0
    """

    name = "class_attention"

    def __init__(
        self,
        weight: Weight = 400.0,
        size: int = 2,
        schedule: Schedule = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(weight, None, schedule, name)
        if not isinstance(size, int) or isinstance(size, bool) or size < 2:
            raise InputError(
                f"size must be an integer of at least 2, got {size!r}: a normalized map of one "
                "position is its sign alone"
            )
        self.size = size
        # In a tuple: the layer is the student's, and no module of the term.
        self._student: tuple[Classifier, ...] = ()

    def bind(self, networks: Sequence[tuple[nn.Module, Inputs | None]]) -> None:
        """Find both networks' classifiers, and the features whose mean these read."""
        classifiers = []
        for network, inputs in one_teacher(self, networks):
            if inputs is None:
                raise InputError(
                    f"the term {self.name} finds the networks' classifiers by an example; pass "
                    "example_input=images[:1] to Transfer"
                )
            classifiers.append(pooled_classifier(network, inputs))
        student, teacher = classifiers
        refuse_another(self, [one.layer for one in self._student], student.layer)
        self._student = (student,)
        self.pairs = [(student.point, teacher.point)]
        maps = _TeacherMaps(teacher, self.size)
        self.teacher_reduction = Reduction(
            f"class maps of {teacher.name}, {self.size} by {self.size}", maps
        )

    def check(self, inputs: TermInputs) -> None:
        for pair in inputs.pairs:
            student, teacher = self._student_maps(pair), pair.teacher_target
            if student.shape != teacher.shape:
                raise InputError(
                    f"{self.name} compares maps of the same classes, got {student.shape[1]} of the "
                    f"student and {teacher.shape[1]} of the teacher, of {student.dim() - 2} and "
                    f"{teacher.dim() - 2} axes; use a teacher of the same classes, or drop this "
                    "term"
                )

    def loss(self, pair: PairInputs) -> Tensor:
        return losses.class_attention(self._student_maps(pair), pair.teacher_target)

    def _student_maps(self, pair: PairInputs) -> Tensor:
        (classifier,) = self._student
        features = pair.student_features
        weight = None if classifier.layer is None else classifier.layer.weight
        return losses.class_maps(
            features.relu() if classifier.rectified else features, weight, self.size
        )


class _TeacherMaps:
    """The teacher's class maps of its features, with its weights as a constant."""

    def __init__(self, classifier: Classifier, size: int) -> None:
        layer = classifier.layer
        self.weight = None if layer is None else deepcopy(layer.weight.detach())
        self.rectified, self.size = classifier.rectified, size

    def __call__(self, features: Tensor) -> Tensor:
        if self.weight is not None and self.weight.device != features.device:
            self.weight = self.weight.to(features.device)
        return losses.class_maps(
            features.relu() if self.rectified else features, self.weight, self.size
        )
