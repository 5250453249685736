"""A loss term of your own: similarity-preserving distillation (Tung & Mori, ICCV 2019).

Images that are alike to the teacher shall be alike to the student: the rows of both networks' Gram
matrices over the batch are compared. The command line takes the term as

    attention-transfer distill --teacher ... --student ... --term own_term:SimilarityPreserving
"""

import torch
from torch import Tensor
from torch.nn import functional

import attention_transfer as at


def similarity(features: Tensor) -> Tensor:
    """Return the rows of the Gram matrix of features (N, ...), each of length 1: (N, N)."""
    flat = at.maps.to_float32(features).flatten(1)
    return functional.normalize(flat @ flat.T, dim=1)


class SimilarityPreserving(at.PairTerm):
    """weight * the mean squared difference of the similarities of both networks."""

    name = "similarity_preserving"

    def loss(self, pair: at.PairInputs) -> Tensor:
        """Return the loss of one layer pair."""
        return functional.mse_loss(
            similarity(pair.student_features), similarity(pair.teacher_features)
        )


def main(steps: int = 3) -> float:
    """Train a small student with it for a few steps, and return the last loss."""
    student = at.models.build("wrn-10-1", classes=10)
    teacher = at.models.build("wrn-10-2", classes=10)  # with trained weights, of course
    images, labels = torch.rand(16, 3, 32, 32), torch.randint(10, (16,))
    transfer = at.Transfer(
        student,
        teacher,
        terms=[
            at.CrossEntropy(),
            at.ActivationAttention(beta=1000.0),
            SimilarityPreserving(weight=3000.0, pairs="auto-1", schedule="linear"),
        ],
    )
    optimizer = torch.optim.SGD(transfer.parameters(), lr=0.05)
    for step in range(steps):
        out = transfer(images, labels, progress=step / steps)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    print({name: round(float(value), 4) for name, value in out.terms.items()})
    return out.loss.item()


if __name__ == "__main__":
    main()
