"""Every doctest of the measures runs, and every public function has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

from avalanche_ntk import measures

MODULES = sorted(info.name for info in pkgutil.walk_packages(measures.__path__, "avalanche_ntk.measures."))


@pytest.mark.parametrize("name", MODULES)
def test_doctests_of_module_pass(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_function_has_a_doctest():
    finder = doctest.DocTestFinder(recurse=False)
    without = [
        name
        for name in measures.__all__
        if inspect.isfunction(function := getattr(measures, name))
        and not any(test.examples for test in finder.find(function))
    ]
    assert without == []
