"""An operator is a folder with all that belongs to it: what is missing is named, and all of it says the same."""

import ast
import importlib
import inspect
from pathlib import Path

import operator_definitions
import pytest
import torch
from kernel_helpers import CASES, assert_near, cases

from attnzoo import kernels
from attnzoo.kernels import _measured
from attnzoo.tools.measuring import operators as measured

FOLDER = Path(kernels.__file__).parent
OPERATORS = sorted(path.parent.name for path in FOLDER.glob("*/__init__.py"))
# Public functions and the folders they are of.
FUNCTIONS = {
    name: operator for operator in OPERATORS for name in importlib.import_module(f"attnzoo.kernels.{operator}").__all__
}
# Where Triton has kernels there are forms to compare.
MEASURED = [
    operator
    for operator in OPERATORS
    if any(
        of == operator and "backend" in inspect.signature(getattr(kernels, name)).parameters
        for name, of in FUNCTIONS.items()
    )
]


def definition(name):
    return getattr(importlib.import_module(f"attnzoo.kernels.{FUNCTIONS[name]}.naive"), name)


@pytest.mark.parametrize("operator", OPERATORS)
def test_folder_is_whole(operator):
    for name in ("naive.py", "README.md"):
        assert (FOLDER / operator / name).is_file(), f"kernels/{operator} lacks {name}"
    if (FOLDER / operator / "triton.py").is_file():
        assert (FOLDER / operator / "operator.py").is_file(), f"kernels/{operator} lacks operator.py, for its triton.py"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_public(name):
    assert name in kernels.__all__, f"kernels/__init__.py lacks {name}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_definition_takes_what_the_operator_takes(name):
    """The same arguments, in the same order and with the same defaults, but for the backend."""
    naive = importlib.import_module(f"attnzoo.kernels.{FUNCTIONS[name]}.naive")
    assert hasattr(naive, name), f"kernels/{FUNCTIONS[name]}/naive.py lacks {name}"
    ours, theirs = (
        inspect.signature(function).parameters for function in (getattr(kernels, name), getattr(naive, name))
    )
    wanted = [(key, x.default) for key, x in ours.items() if key != "backend"]
    assert [(key, x.default) for key, x in theirs.items()] == wanted


@pytest.mark.parametrize("operator", OPERATORS)
def test_definition_depends_on_nothing_of_ours(operator):
    modules = set()
    for node in ast.walk(ast.parse((FOLDER / operator / "naive.py").read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add("." * node.level + (node.module or ""))
    left = {module for module in modules if module.partition(".")[0] not in ("__future__", "collections", "torch")}
    assert modules and not left, f"{operator}/naive.py imports {', '.join(left)}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_has_a_case(name):
    assert name in {case.name for case in cases().values()}, f"tests/kernel_helpers.py has no case of {name}"
    assert hasattr(operator_definitions, name), f"tests/operator_definitions.py lacks {name}"


@pytest.mark.parametrize("operator", MEASURED)
def test_operator_is_measured(operator):
    assert operator in measured.OPERATORS, f"OPERATORS of tools/measuring/operators lacks {operator}"
    file = importlib.import_module(f"attnzoo.tools.measuring.operators.{operator}")
    for name in ("cases", "static_cases"):
        assert hasattr(file, name), f"tools/measuring/operators/{operator}.py lacks {name}()"
    found = list(file.cases((64, 64), 1, lambda function: function))
    assert found, f"tools/measuring/operators/{operator}.py: cases() gives none"
    folder = importlib.import_module(f"attnzoo.kernels.{operator}")
    assert {case.operator for case in found} <= set(folder.__all__)


def test_all_of_the_table_of_measurements_is_measured():
    found = set()
    for operator in MEASURED:
        cases = importlib.import_module(f"attnzoo.tools.measuring.operators.{operator}").cases
        found |= {case.operator for case in cases((64, 64), 1, lambda function: function)}
    assert set(_measured.OPERATORS) <= found


def test_nothing_else_is_measured():
    assert sorted(measured.OPERATORS) == MEASURED


@pytest.mark.parametrize("name", CASES)
def test_all_forms_are_one_function(name):
    """The operator in plain PyTorch, its definition and the dense one: result and every gradient in float64."""
    case = cases()[name]
    backend = {"backend": "torch"} if case.has_kernels else {}
    results = []
    for function in (
        lambda **given: getattr(kernels, case.name)(**given, **backend),
        definition(case.name),
        getattr(operator_definitions, case.name),
    ):
        tensors = {key: x.clone().requires_grad_() for key, x in case.tensors.items()}
        out = function(**tensors, **case.settings)
        shares = torch.linspace(-3, 3, out.numel(), dtype=out.dtype).sin().view(out.shape)
        results.append(
            {"out": out, **dict(zip(tensors, torch.autograd.grad(out, [*tensors.values()], shares), strict=True))}
        )
    twin, naive, dense = results
    for key in dense:
        assert_near(f"{key} of the definition", naive[key], dense[key], 1e-10)
        assert_near(f"{key} of the twin", twin[key], naive[key], 1e-10)
