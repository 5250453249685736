"""The name that the paper gives to the weight of an attention term."""

__all__ = ["WeightNamedBeta"]


class WeightNamedBeta:
    """A term whose weight is the paper's beta."""

    weight: float

    @property
    def beta(self) -> float:
        """The term's weight, under the paper's name."""
        return self.weight

    @beta.setter
    def beta(self, beta: float) -> None:
        self.weight = beta
