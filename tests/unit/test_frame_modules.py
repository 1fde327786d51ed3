"""The module of a frame: what inspect finds, without its calls on the file system."""

import inspect
import os
import sys
import types

import pytest

from mgpt4_hpc import frame_modules


def _frame() -> types.FrameType:
    return sys._getframe()


def frame_of(name: str, file: str) -> types.FrameType:
    """A frame that says it is of the module ``name`` from ``file``."""
    code = _frame.__code__.replace(co_filename=file)
    frame: types.FrameType = types.FunctionType(code, {"__name__": name, "sys": sys})()
    return frame


def test_a_frame_of_an_imported_module_costs_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("asked the file system")

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, refuse)
    assert inspect.getmodule(sys._getframe()) is sys.modules[__name__]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("json", os.__file__),  # another module's source under a wrong name
        ("no_such_module", os.__file__),
        ("json", "<string>"),
        ("builtins", "/nowhere.py"),
    ],
)
def test_a_frame_that_bears_another_name_is_searched_for(name: str, file: str) -> None:
    frame = frame_of(name, file)
    assert inspect.getmodule(frame) is frame_modules._search(frame)


def test_what_is_no_frame_is_searched_for() -> None:
    for thing in (types.ModuleType("x"), frame_of, frame_of.__code__, 1, pytest.raises):
        assert inspect.getmodule(thing) is frame_modules._search(thing)
