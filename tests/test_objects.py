"""Whole runs whose networks, data and terms are given as Python objects, and terms by name."""

import re
import threading
from inspect import isabstract
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.config import RunConfig
from attention_transfer.data import DataSet
from attention_transfer.errors import InputError
from attention_transfer.report.command_line import command_line
from attention_transfer.training import RunProgress
from attention_transfer.training.objects import check_objects, named
from attention_transfer.transfer import TERMS
from conftest import SMALL, CrashAfter, CrashError, rectified

SHORT = {**SMALL, "epochs": 2}


class ScaledMean(at.PairTerm):
    """A term with a parameter: the difference of mean activations, scaled."""

    name = "scaled_mean"

    def __init__(self, weight: float = 1.0, pairs: str = "auto") -> None:
        super().__init__(weight, pairs)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def loss(self, pair: at.PairInputs) -> Tensor:
        means = pair.student_features.mean() - self.scale * pair.teacher_features.mean()
        return means.square()


def no_term() -> nn.Module:
    return nn.Identity()


class WrongShapes(at.PairTerm):
    """A term whose author took the features' axes for others."""

    name = "wrong_shapes"

    def loss(self, pair: at.PairInputs) -> Tensor:
        return (pair.student_features @ pair.teacher_features[..., :2, :]).mean()


class WrongLabels(at.Term):
    """A term that takes the labels for one-hot rows."""

    name = "wrong_labels"
    needs_logits = True

    def forward(self, inputs: at.TermInputs) -> Tensor:
        return (inputs.logits * inputs.labels).sum(dim=2).mean()


INSTANCE = ScaledMean()


def two_terms() -> list[at.Term]:
    terms = [ScaledMean(), ScaledMean()]
    for term, name in zip(terms, ("one", "two"), strict=True):
        term.name = name
    return list(terms)


class Locked(ScaledMean):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Pictures:
    """Map-style: what a user's own dataset is."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], int]:
        generator = np.random.default_rng(index)
        return generator.integers(0, 255, (16, 16, 3), dtype=np.uint8), index % 3


def wide_resnet(width: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return at.models.build(f"wrn-10-{width}", classes=3)


def test_modules_data_and_terms_as_objects(data: DataSet) -> None:
    student, teacher = wide_resnet(1), wide_resnet(2, seed=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    run = at.distill(
        teacher=teacher,
        student=student,
        data=data,
        terms=[ScaledMean(weight=2.0)],
        out="objects",
        **SHORT,
    )
    assert set(run.metrics[-1].terms) == {"cross_entropy", "activation_attention", "scaled_mean"}
    kind = "object:attention_transfer.models.wide_resnet.WideResNet"
    assert (run.config.student, run.config.teacher) == (kind, kind)
    assert run.config.data == "object:attention_transfer.data.images.DataSet"
    (term,) = run.config.terms
    assert term.startswith("object:test_objects.ScaledMean(weight=2.0")
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    trained = student.state_dict()
    assert not torch.equal(trained["stem.weight"], wide_resnet(1).state_dict()["stem.weight"])
    assert "which a command line cannot name" in command_line(run.config.model_dump(mode="json"))
    with pytest.raises(InputError, match="given as a Python object"):
        run.load()


def test_a_run_of_objects_is_the_run_of_their_names(small_runs: None, data: DataSet) -> None:
    teacher = at.train("wrn-10-1", out="teacher", **SHORT)
    named = at.distill(teacher="teacher", student="wrn-10-1", out="named", **SHORT)
    by_object = at.distill(
        teacher=teacher,
        student=at.models.load("wrn-10-1", 3, trained=False, seed=0).network,
        data=data,
        out="by-object",
        **SHORT,
    )
    assert [row.terms for row in by_object.metrics] == [row.terms for row in named.metrics]
    assert by_object.config.teacher == "teacher"


def test_an_interrupted_run_of_objects_goes_on_with_them_and_ends_the_same(
    data: DataSet,
) -> None:
    def arguments() -> dict[str, Any]:
        return {
            "teacher": wide_resnet(2, seed=1),
            "student": wide_resnet(1),
            "data": data,
            "terms": [ScaledMean()],
        }

    whole = at.distill(**arguments(), out="whole", **SHORT)

    class Broken(RunProgress):
        def epoch(self, *_: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        at.distill(**arguments(), out="broken", progress=Broken(), **SHORT)
    with pytest.raises(InputError, match=r"the run's student is .* got no object"):
        at.resume("broken")
    with pytest.raises(InputError, match="the terms that the run began with"):
        at.resume("broken", **{**arguments(), "terms": []})
    with pytest.raises(InputError, match="the run's teacher is"):
        at.resume("broken", **{**arguments(), "teacher": rectified()})
    resumed = at.resume("broken", **arguments())
    assert [row.terms for row in resumed.metrics] == [row.terms for row in whole.metrics]
    weights = [(run.folder / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]


def test_own_datasets_one_network_alone_and_several_teachers() -> None:
    pictures = {"train": Pictures(48), "test": Pictures(12)}
    alone = at.train(rectified(), data=pictures, out="alone", **SHORT)
    assert alone.config.data == "object:builtins.dict"
    assert set(alone.metrics[-1].terms) == {"cross_entropy"}
    run = at.distill(
        teacher=[wide_resnet(1), "wrn-10-2@random"],
        student="wrn-10-1",
        data=(Pictures(48), Pictures(12)),
        terms=at.CrossEntropy(weight=0.5),
        out="several",
        **SHORT,
    )
    assert run.config.teacher is not None
    assert run.config.teacher.endswith("WideResNet,wrn-10-2@random")
    assert set(run.metrics[-1].terms) == {"activation_attention", "cross_entropy"}


def test_a_term_by_name_is_recorded_resumable_and_in_the_metrics(small_runs: None) -> None:
    text = "test_objects:ScaledMean(weight=3.0)"
    common = {"teacher": "wrn-10-2@random", "student": "wrn-10-1", **SHORT}
    run = at.distill(**common, terms=[text], out="named")
    assert run.config.terms == (text,)
    assert run.metrics[-1].terms["scaled_mean"] > 0
    assert f"--term '{text}'" in command_line(run.config.model_dump(mode="json"))
    only = at.distill(**common, terms=text, attention="none", out="only")
    assert set(only.metrics[-1].terms) == {"cross_entropy", "scaled_mean"}


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("test_objects:no_term", "made a Identity, expected an attention_transfer.Term"),
        ("test_objects:ScaledMeen", "did you mean ScaledMean"),
        ("dits", r"unknown term 'dits'; did you mean dist\?"),
        ("dist(beta=-1)", "beta must be a finite number of at least 0"),
        ("nowhere:Term", "cannot import 'nowhere'"),
        ("test_objects:ScaledMean(weight=-1)", "weight must be a finite number of at least 0"),
        ("test_objects:ScaledMean(wieght=1)", "unexpected keyword argument 'wieght'"),
        ("test_objects:ScaledMean(weight=open('x'))", "expected Python literals"),
        ("test_objects:ScaledMean(", "expected Python literals"),
        ("test_objects:INSTANCE", "INSTANCE is a term already, expected a class of terms"),
        ("test_objects:WrongShapes", "the term wrong_shapes failed on the example: RuntimeError"),
        ("test_objects:WrongLabels", "RuntimeError: The size of tensor .*in the term wrong_labels"),
    ],
)
def test_terms_that_are_none_are_refused_in_a_line(
    small_runs: None, term: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["distill", "--teacher", "wrn-10-2@random", "--student", "wrn-10-1", "--term", term]
    assert main([*command, "--out", "refused"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not Path("refused").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"student": 3}, "student must be a name, a run or a torch.nn.Module, got a int"),
        ({"teacher": [nn.Identity(), 2.5]}, "teacher must be a name"),
        ({"teacher": nn.Flatten()}, "teacher|logits|attention"),
        ({"data": 7}, "data"),
        ({"teacher": []}, "got no teachers in the sequence"),
        ({"terms": None}, "terms must be a list of terms .* got None"),
        ({"terms": 3}, "terms must be a list of terms .* got 3"),
        ({"terms": ScaledMean}, r"ScaledMean is not a term, .* did you mean ScaledMean\(\)"),
        ({"terms": [ScaledMean]}, r"ScaledMean is not a term, .* did you mean ScaledMean\(\)"),
        ({"terms": [nn.Identity()]}, "Identity is not a term"),
        ({"terms": [Locked()]}, "a run copies its terms, and Locked cannot be .*pickle"),
    ],
)
def test_objects_that_are_none_are_refused(arguments: dict[str, Any], message: str) -> None:
    common: dict[str, Any] = {"teacher": "wrn-10-2@random", "student": "wrn-10-1", **SHORT}
    with pytest.raises(InputError, match=message):
        at.distill(**{**common, **arguments}, out="refused")
    assert not Path("refused").exists()


def test_terms_from_a_generator_and_a_factory_of_several(small_runs: None) -> None:
    common = {"teacher": "wrn-10-2@random", "student": "wrn-10-1", "attention": "none", **SHORT}
    run = at.distill(**common, terms=(term for term in two_terms()), out="generator")
    other = at.distill(**common, terms=["test_objects:two_terms"], out="factory")
    assert set(run.metrics[-1].terms) == {"cross_entropy", "one", "two"}
    assert run.metrics[-1].terms == other.metrics[-1].terms
    teachers = (wide_resnet(width) for width in (1, 2))
    assert len(named(student="wrn-10-1", teacher=teachers)[1].teachers) == 2


def test_terms_of_a_resumed_run_are_compared_by_their_settings() -> None:
    settings, objects = named(student=nn.Identity(), terms=[ScaledMean(2.0, "group1:group1")])
    config = RunConfig.checked({**settings, "data": "cluttered-digits"})
    check_objects(config, objects)
    _, others = named(student=nn.Identity(), terms=[ScaledMean(3.0, "group1:group1")])
    with pytest.raises(InputError, match=r"began with object:.*weight=2.0.*got object:.*weight=3"):
        check_objects(config, others)


def test_a_term_of_any_settings_has_a_short_text_without_addresses() -> None:
    class Wide(ScaledMean):
        def __init__(self) -> None:
            super().__init__()
            self.table = list(range(100_000))
            self.function = lambda: None

    texts = [named(student=nn.Identity(), terms=[Wide()])[0]["terms"] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(texts[0][0]) < 1000
    assert " at 0x" not in texts[0][0]


def test_a_run_copies_its_terms(data: DataSet) -> None:
    term = at.FullActivation(beta=0.1, name="activations")
    figures = [
        at.distill(teacher=wide_resnet(2), student=wide_resnet(1), data=data, terms=[term], **SHORT)
        .metrics[-1]
        .terms
        for _ in range(2)
    ]
    assert figures[0] == figures[1]
    assert not list(term.parameters())


def test_terms_of_the_package_have_short_names(small_runs: None) -> None:
    common = {"teacher": "wrn-10-2@random", "student": "wrn-10-1", "attention": "none", **SHORT}
    texts = ("dist(temperature=4.0)", "dkd", "cross_entropy(weight=0.5)")
    run = at.distill(**common, terms=texts, out="short")
    assert run.config.terms == texts
    assert set(run.metrics[-1].terms) == {"cross_entropy", "dist", "dkd"}
    assert "--term 'dist(temperature=4.0)'" in command_line(run.config.model_dump(mode="json"))
    terms = [at.DIST(temperature=4.0), at.DKD(), at.CrossEntropy(weight=0.5)]
    objects = at.distill(**common, terms=terms, out="objects")
    assert objects.metrics[-1].terms == run.metrics[-1].terms
    with pytest.raises(CrashError):
        at.distill(**common, terms=texts, out="crashed", progress=CrashAfter(7), checkpoint_steps=2)
    resumed = at.resume("crashed")  # a name of the package needs no trust
    assert resumed.metrics[-1].terms == run.metrics[-1].terms


def test_every_term_of_the_package_has_a_short_name() -> None:
    public = {getattr(at, name) for name in at.__all__ if isinstance(getattr(at, name), type)}
    terms = {kind for kind in public if issubclass(kind, at.Term) and not isabstract(kind)}
    assert set(TERMS.values()) == terms
    assert all(name == kind.name for name, kind in TERMS.items())
