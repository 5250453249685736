"""Presets as lists of terms."""

from typing import get_args

from attention_transfer.config.presets import PRESETS, Preset
from attention_transfer.errors import InputError
from attention_transfer.transfer.pairing import Pairs
from attention_transfer.transfer.terms import (
    ActivationAttention,
    CrossEntropy,
    Term,
    distillation_terms,
)
from attention_transfer.transfer.terms.base import check_choice

__all__ = ["preset"]


def preset(name: Preset, pairs: Pairs = "auto", kd: bool = False) -> list[Term]:
    r"""Return the terms of a loss that a paper or a well-known code names, with its weights.

    With q the normalized map of sum A^2 over channels, d = q_S - q_T at a layer pair of H x W
    positions, the sum over pairs, the mean E over the batch, CE the cross-entropy of the labels and
    KL that of the softmax at temperature T = 4 over K classes:

    - ``"authors-code"``: CE + 1000 sum E ||d||^2 / (H W), the authors' published code; with
      ``kd``, 0.1 CE + 0.9 T^2 KL in place of CE.
    - ``"paper-eq2"``: CE + sum 10^3 / (H W) E ||d|| / 2, Eq. 2 with the paper's beta, which is
      10^3 over the elements of the map and the batch size.
    - ``"authors-kd-2017"``: 0.1 CE + 2 * 0.9 T^2 KL / K, the authors' distillation until July
      2018, without attention.
    - ``"repdistiller"``: CE + 1000 sum E ||d||^2 / (H W), as ``authors-code``, but where sizes
      differ features are pooled, not maps (RepDistiller with -r 1 -a 0 -b 1000).
    - ``"torchdistill-paper"``: CE + 1000 sum E ||d||, torchdistill's ATLoss in mode 'paper': no
      1/2, no H W. Its configurations give the weight 1000 for mode 'code' only.

    Args:
        name: see above.
        pairs: the layer pairs, as of :class:`attention_transfer.ActivationAttention`; each source
            has its own.
        kd: with knowledge distillation, which ``"authors-code"`` has as an option.

    Raises:
        InputError: an unknown name, or kd with another preset.

    Example:
        >>> {term.name: round(term.weight, 6) for term in preset("authors-code", kd=True)}
        {'cross_entropy': 0.1, 'knowledge_distillation': 0.9, 'activation_attention': 1000.0}
    """
    check_choice("preset", name, get_args(Preset))
    if kd and name != "authors-code":
        raise InputError(
            f"the preset {name} has no knowledge distillation to switch on; add the terms of "
            "at.distillation_terms in place of its CrossEntropy, or leave kd out"
        )
    settings = dict(PRESETS[name])
    if kd:
        settings |= {"kd_alpha": 0.9, "temperature": 4.0}
    labels: tuple[Term, ...] = (CrossEntropy(),)
    if "kd_alpha" in settings:
        form = settings.pop("kd_form", "alpha")
        labels = distillation_terms(settings.pop("kd_alpha"), settings.pop("temperature"), form)
    if settings.pop("attention") == "none":
        return [*labels]
    return [*labels, ActivationAttention(**settings, pairs=pairs)]
