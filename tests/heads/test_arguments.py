"""Checks of arguments: what passes, and what is said of the rest."""

import math

import numpy as np
import pytest

from attnzoo.heads.arguments import (
    check_bool,
    check_choice,
    check_int,
    check_ints,
    check_keys,
    check_number,
    check_text,
)


def test_what_fits_passes():
    assert check_int("n", 3, 3, 3) == 3
    assert type(check_int("n", np.int64(3))) is int
    assert check_ints("n", [1, 2]) == (1, 2)
    assert check_number("x", 1, 0) == 1.0
    assert check_number("x", np.float32(0.5), 0, 1) == 0.5
    assert check_bool("b", False) is False
    assert check_text("t", "a") == "a"
    check_choice("c", "a", ("a", "b"))
    options = {"a": 1}
    copy = check_keys("k", options, ("a", "b"))
    assert copy == options and copy is not options


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: check_int("n", 2, 3), ValueError, "n=2: must be 3 or more"),
        (lambda: check_int("n", 9, 0, 3), ValueError, "n=9: must be from 0 to 3"),
        (lambda: check_int("n", 9, most=3), ValueError, "n=9: must be 3 or less"),
        (lambda: check_int("n", True), TypeError, "n=True: must be a whole number, got bool"),
        (lambda: check_int("n", 3.0), TypeError, "n=3.0: must be a whole number, got float"),
        (lambda: check_ints("n", (1, "2")), TypeError, "n[1]='2': must be a whole number, got str"),
        (lambda: check_ints("n", {1, 2}), TypeError, "n={1, 2}: must be a sequence of whole numbers, got set"),
        (lambda: check_number("x", "1", 0), TypeError, "x='1': must be a number, got str"),
        (lambda: check_number("x", math.inf, 0), ValueError, "x=inf: must be 0 or more"),
        (lambda: check_number("x", math.nan, -math.inf), ValueError, "x=nan: must be finite"),
        (lambda: check_number("x", 0, 0, above=True), ValueError, "x=0: must be above 0"),
        (lambda: check_number("x", 0, 0, 1, above=True), ValueError, "x=0: must be above 0 and up to 1"),
        (lambda: check_number("x", 10**400, 0), ValueError, f"x={10**400}: must be 0 or more"),
        (lambda: check_bool("b", 1), TypeError, "b=1: must be True or False, got int"),
        (lambda: check_text("t", b"a"), TypeError, "t=b'a': must be a string, got bytes"),
        (lambda: check_choice("c", "z", ("a", "b")), ValueError, "c='z': allowed are 'a', 'b'"),
        (lambda: check_keys("k", [1], ("a",)), TypeError, "k=[1]: must be a dict, got list"),
        (lambda: check_keys("k", {"z": 1}, ("a", "b")), ValueError, "k: has no 'z'; allowed are a, b"),
    ],
)
def test_what_does_not_is_named(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
