"""A flag for the first of the two backward passes."""

__all__ = ["FirstPass"]


class FirstPass:
    """True while the gradient at the input is computed, which needs no weight's gradient.

    The functions of this package answer a differentiable backward pass with the input's gradient
    alone; any other differentiable pass would miss the weights' and must be refused.

    Example:
        >>> first_pass = FirstPass()
        >>> with first_pass:
        ...     first_pass.check()
    """

    def __init__(self) -> None:
        self._going_on = False

    def __enter__(self) -> None:
        self._going_on = True

    def __exit__(self, *_: object) -> None:
        self._going_on = False

    def check(self) -> None:
        """Raise a RuntimeError outside the first pass."""
        if not self._going_on:
            raise RuntimeError(
                "only the gradient at the input can be differentiated again here: call "
                "DoubleBackward.gradient, or leave out create_graph=True"
            )
