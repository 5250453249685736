"""The name that the paper gives to the weight of an attention term."""

from attention_transfer.transfer.terms.base import Weight

__all__ = ["WeightNamedBeta"]


class WeightNamedBeta:
    """A term whose weight is the paper's beta."""

    weight: Weight

    @property
    def beta(self) -> Weight:
        """The term's weight, under the paper's name."""
        return self.weight

    @beta.setter
    def beta(self, beta: Weight) -> None:
        self.weight = beta
