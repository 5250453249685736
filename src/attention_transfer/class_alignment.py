"""One order of the classes for a data set and the trained networks that know its classes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from attention_transfer.data import DataSet
from attention_transfer.data.classes import abridged, normal_form, order_notices, with_classes
from attention_transfer.errors import InputError
from attention_transfer.models import LoadedModel, ModelCard

__all__ = ["aligned", "class_names_of"]


def class_names_of(model: str, loaded: LoadedModel) -> tuple[str, ...] | None:
    """Return the classes that a network was trained on, by the card of its run; None: unknown.

    Args:
        model: the MODEL: a run's folder, or NAME@FILE with the weights in one.
        loaded: the network.
    """
    if loaded.card is not None:
        return loaded.card.class_names
    file = Path(model.partition("@")[2].partition("#")[0])
    card = file.with_name("model.json") if file.name == "model.safetensors" else None
    if card is None or not card.is_file():
        return None
    return ModelCard.read(card).class_names


def aligned(
    data: DataSet, networks: Sequence[tuple[str, LoadedModel]], compared: Sequence[str] = ()
) -> DataSet:
    """Return a data set whose labels are in the order of classes of the networks, and say so.

    Args:
        data: the data set.
        networks: trained ones, each with its MODEL.
        compared: the MODELs whose logits are compared with the student's, class by class.

    Raises:
        InputError: two networks have the same classes in different orders; or one whose logits are
            compared has as many classes as the data, some of them the same.
    """
    orders: dict[tuple[str, ...], str] = {}
    notices = []
    own = [normal_form(name) for name in data.class_names]
    for model, loaded in networks:
        names = class_names_of(model, loaded)
        normal = [normal_form(name) for name in names or ()]
        if names is not None and sorted(normal) == sorted(own):
            orders.setdefault(tuple(normal), model)
        elif names is not None and model in compared and len(names) == len(own):
            notices += _check_others(data, model, names, set(normal) & set(own))
    if len(orders) > 1:
        (first, one), (second, other) = list(orders.items())[:2]
        raise InputError(
            f"{one} has the classes in the order {abridged(first)}, {other} in the order "
            f"{abridged(second)}, and labels can follow one of them; train one of the two again "
            "with the other's (--class-order FILE, with a class in each line)"
        )
    for order, model in orders.items():
        if list(order) != own:
            notices.append(
                f"{model} was trained with the classes in another order ({abridged(order)}; "
                f"{data.name} has {abridged(own)}): labels are brought into the network's order"
            )
            by_form = {normal_form(name): name for name in data.class_names}
            moot = order_notices(data.class_names)
            kept = tuple(notice for notice in data.notices if notice not in moot)
            data = with_classes(replace(data, notices=kept), [by_form[name] for name in order])
    return replace(data, notices=(*data.notices, *notices)) if notices else data


def _check_others(data: DataSet, model: str, names: Sequence[str], shared: set[str]) -> list[str]:
    """Return the notice that a network with as many classes was trained on others.

    Raises:
        InputError: it has some of the data's.
    """
    if shared:
        raise InputError(
            f"{model} was trained on the classes {abridged(names)}, {data.name} has "
            f"{abridged(data.class_names)}, of which {len(shared)} are the same: their logits "
            "cannot be compared class by class; give data with its classes, or another network"
        )
    return [
        f"{model} was trained on the classes {abridged(names)}, and {data.name} has others "
        f"({abridged(data.class_names)}): they are taken for the same, in this order"
    ]
