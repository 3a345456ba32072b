"""Tests of `cortex.spec.quantities`."""

import math
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortex.spec.quantities import (
    Cpu,
    Duration,
    DurationError,
    Memory,
    QuantityError,
    Size,
    parse_bytes,
    parse_cpu_millis,
    parse_duration,
    parse_quantity,
)

# Machines may be busy; the timeout of pytest ends what hangs.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NUMBERS = st.from_regex(r"[+-]?([0-9]{1,12}(\.[0-9]{0,9})?|\.[0-9]{1,9})", fullmatch=True)
DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def refused(parse, value) -> QuantityError | None:
    """The error by which `parse` refuses a value, None if it accepts it."""
    try:
        parse(value)
    except QuantityError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("0.2", Fraction(1, 5)),
        ("200m", Fraction(1, 5)),
        ("128974848", 128974848),
        ("129e6", 129_000_000),
        ("129E6", 129_000_000),
        ("129M", 129_000_000),
        ("123Mi", 123 * 1024**2),
        ("128974848000m", 128974848),
        ("1E", 10**18),
        ("1E3", 1000),
        ("1e-3", Fraction(1, 1000)),
        ("1e+3", 1000),
        ("1.", 1),
        (".5", Fraction(1, 2)),
        ("+1", 1),
        ("-1.5Gi", -Fraction(3, 2) * 1024**3),
        ("0", 0),
        ("0.1", Fraction(1, 10)),
        (5, 5),
        (0.1, Fraction(1, 10)),
        (1e22, 10**22),
        (1e-7, Fraction(1, 10**7)),
    ],
)
def test_a_quantity_is_the_exact_number_that_kubernetes_documents(text, exact):
    assert parse_quantity(text) == exact


@unhurried
@given(NUMBERS, st.sampled_from(sorted(DECIMAL)))
def test_a_decimal_suffix_equals_its_exponent(number, suffix):
    assert parse_quantity(number + suffix) == parse_quantity(f"{number}e{DECIMAL[suffix]}")


@unhurried
@given(NUMBERS, st.sampled_from(sorted(BINARY)))
def test_a_binary_suffix_is_a_power_of_two(number, suffix):
    assert parse_quantity(number + suffix) == parse_quantity(number) * 2 ** BINARY[suffix]


@unhurried
@given(NUMBERS)
def test_a_capital_k_is_a_small_k(number):
    assert parse_quantity(f"{number}K") == parse_quantity(f"{number}k")


@unhurried
@given(st.floats(min_value=1e-90, max_value=1e18))
def test_a_float_is_the_number_that_was_written(number):
    assert parse_quantity(number) == Fraction(repr(number))


@unhurried
@given(st.integers(min_value=-(10**18), max_value=10**18))
def test_an_integer_is_itself_quoted_or_not(number):
    assert parse_quantity(number) == parse_quantity(str(number)) == number


@unhurried
@given(NUMBERS, st.sampled_from(["", "n", "u", "m", "k", "Ki"]))
def test_bytes_are_rounded_up_to_whole_ones(number, suffix):
    exact = parse_quantity(number + suffix)
    assert 0 <= parse_bytes(number + suffix) - exact < 1


@unhurried
@given(NUMBERS, st.sampled_from(["", "n", "u", "m"]))
def test_cpu_is_rounded_up_to_whole_thousandths(number, suffix):
    exact = parse_quantity(number + suffix)
    assert 0 <= Fraction(parse_cpu_millis(number + suffix), 1000) - exact < Fraction(1, 1000)


@unhurried
@given(st.text() | st.from_regex(r"[0-9.eE+-]{1,12}[a-zA-Z]{0,3}", fullmatch=True))
def test_any_text_is_a_quantity_or_a_quantity_error(text):
    error = refused(parse_quantity, text)
    assert error is None or (type(error) is QuantityError and error.value == text and error.hint)


@unhurried
@given(st.text() | st.from_regex(r"([0-9.]{1,6}(ms|[smhd])){1,4}", fullmatch=True))
def test_any_text_is_a_duration_or_a_duration_error(text):
    error = refused(parse_duration, text)
    assert error is None or (type(error) is DurationError and error.value == text and error.hint)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", '"" is not a quantity'),
        (" 1", '" 1" is not a quantity'),
        ("1e", '"1e" is not a quantity'),
        ("1e1.5", '"1e1.5" is not a quantity'),
        ("1ki", '"1ki" is not a quantity'),
        ("1_000", '"1_000" is not a quantity'),
        ("0x10", '"0x10" is not a quantity'),
        ("inf", '"inf" is not a quantity'),
        ("1\n", '"1\\n" is not a quantity'),
        ("\u0661", '"\u0661" is not a quantity'),
        ("1e999999999", '"1e999999999" is out of range'),
        ("1e-101", '"1e-101" is out of range'),
        ("9" * 65, "expected at most 64 characters, found 65"),
        (10**100, "the number is out of range"),
        (math.inf, "expected a finite number, found inf"),
        (math.nan, "expected a finite number, found nan"),
        (True, "expected a quantity, found true"),
        (None, "expected a quantity, found nothing"),
        ([1], "expected a quantity, found a list"),
    ],
)
def test_what_is_no_quantity_is_named(value, message):
    with pytest.raises(QuantityError) as caught:
        parse_quantity(value)
    assert str(caught.value) == message
    assert caught.value.reference == "bad-quantity"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("512MB", "512M"),
        ("512mb", "512M"),
        ("512 Mi", "512Mi"),
        ("512MiB", "512Mi"),
        ("1gb", "1G"),
        ("1gi", "1Gi"),
        ("1g", "1G"),
        ("1t", "1T"),
        ("64KB", "64k"),
        ("64kib", "64Ki"),
        ("100B", "100"),
    ],
)
def test_a_suffix_of_another_habit_is_offered_in_kubernetes_spelling(text, meant):
    with pytest.raises(QuantityError) as caught:
        parse_quantity(text)
    assert caught.value.hint == f'did you mean "{meant}"?'


@pytest.mark.parametrize("text", ["9223372036854775808", "8Ei", "-8.1Ei", "1e30"])
def test_bytes_beyond_63_bits_are_out_of_range(text):
    with pytest.raises(QuantityError, match="out of range"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("10m", 600),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("1h0m0.5s", 3600.5),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("30", 30),
        ("0.25", 0.25),
        ("0s", 0),
        (30, 30),
        (1.5, 1.5),
        (1e-07, 1e-07),
    ],
)
def test_a_duration_is_in_seconds(text, seconds):
    assert parse_duration(text) == seconds


@unhurried
@given(st.integers(0, 500), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_the_parts_of_a_duration_add_up(hours, minutes, seconds, millis):
    whole = (hours * 3600 + minutes * 60 + seconds) * 1000 + millis
    assert parse_duration(f"{hours}h{minutes}m{seconds}s{millis}ms") == whole / 1000


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", '"" is not a duration'),
        ("soon", '"soon" is not a duration'),
        ("30m1h", '"30m1h" is not a duration'),
        ("1s1s", '"1s1s" is not a duration'),
        ("-5s", '"-5s" is not a duration'),
        (-5, '"-5" is not a duration'),
        ("1e3", '"1e3" is not a duration'),
        ("1:30", '"1:30" is not a duration'),
        ("1s ", '"1s " is not a duration'),
        ("1" * 65, "expected at most 64 characters, found 65"),
        (math.nan, "expected a finite number, found nan"),
        (False, "expected a duration, found false"),
    ],
)
def test_what_is_no_duration_is_named(value, message):
    with pytest.raises(DurationError) as caught:
        parse_duration(value)
    assert str(caught.value) == message
    assert caught.value.reference == "bad-duration"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("5 min", "5m"),
        ("5 minutes", "5m"),
        ("1 hour 30 minutes", "1h30m"),
        ("30S", "30s"),
        ("30sec", "30s"),
        ("2d", "48h"),
        ("1 day", "24h"),
        ("100msec", "100ms"),
    ],
)
def test_a_unit_of_another_habit_is_offered_in_our_spelling(text, meant):
    with pytest.raises(DurationError) as caught:
        parse_duration(text)
    assert caught.value.hint == f'did you mean "{meant}"?'


def test_amounts_are_equal_however_they_are_spelled():
    assert Cpu.parse("1") == Cpu.parse("1000m") == Cpu.parse(1.0)
    assert Size.parse("1Ki") == Size.parse(1024)
    assert Duration.parse("90s") == Duration.parse("1m30s")
    assert len({Cpu.parse("1"), Cpu.parse("1000m")}) == 1


def test_amounts_keep_the_spelling_of_the_user():
    assert Cpu.parse("1000m").text == "1000m"
    assert Size.parse(1024).text == "1024"
    assert Duration.parse("1h30m").text == "1h30m"


@pytest.mark.parametrize("value", ["0", 0, "-1", "0.0", "0e5"])
def test_cpu_and_sizes_have_to_be_above_zero(value):
    with pytest.raises(QuantityError, match="has to be above 0"):
        Cpu.parse(value)
    with pytest.raises(QuantityError, match="has to be above 0"):
        Size.parse(value)


def test_the_smallest_cpu_is_rounded_up_to_a_thousandth():
    assert Cpu.parse("1n").millis == 1


@pytest.mark.parametrize("value", ["0.5", "512m", "1u"])
def test_a_size_below_one_byte_is_refused(value):
    with pytest.raises(QuantityError, match="less than one byte"):
        Size.parse(value)


@pytest.mark.parametrize("value", ["0s", "0.0005s", "577h", 1e9])
def test_a_duration_outside_of_what_the_ingress_can_count_is_refused(value):
    with pytest.raises(DurationError, match="from 1ms to 576h"):
        Duration.parse(value)


def test_quantities_and_problems_are_light_to_import():
    program = (
        "import sys, cortex.spec.quantities, cortex.spec.problems, cortex.spec.locations;"
        "print([name for name in ('pydantic', 'ruamel', 'ruamel.yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("value", "meant"), [("500M", '"500m"'), ("2G", '"2"'), ("4Gi", '"4"'), (200_000_000, "a fifth of a cpu")]
)
def test_more_cpu_than_any_machine_has_is_a_slip(value, meant):
    with pytest.raises(QuantityError) as caught:
        Cpu.parse(value)
    assert meant in caught.value.hint
    assert "cpus" in str(caught.value)


# ---- memory ---------------------------------------------------------------------------------------------------------

PLAIN = "is a number of bytes, and nothing runs in less than a mebibyte"


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        (512, f"512 {PLAIN}", 'did you mean "512Mi"?'),
        ("512", f"512 {PLAIN}", 'did you mean "512Mi"?'),
        (2, f"2 {PLAIN}", 'did you mean "2Gi"?'),
        (0.5, f"0.5 {PLAIN}", 'did you mean "0.5Gi"?'),
        (524288, f"524288 {PLAIN}", 'did you mean "524288Ki"?'),
        ("1Ki", "1Ki is 1024 bytes, and nothing runs in less than a mebibyte", "such as 512Mi or 2Gi"),
        ("512Ki", "512Ki is 524288 bytes, and nothing runs in less than a mebibyte", 'did you mean "512Mi"?'),
        ("512k", "512k is 512000 bytes, and nothing runs in less than a mebibyte", 'did you mean "512M"?'),
        ("1e3", "1e3 is 1000 bytes, and nothing runs in less than a mebibyte", "such as 512Mi or 2Gi"),
        ("512m", "512m is less than one byte: the suffix m stands for thousandths", 'did you mean "512M" or "512Mi"?'),
    ],
)
def test_memory_in_which_nothing_runs_is_refused_with_what_was_meant(value, message, hint):
    with pytest.raises(QuantityError) as caught:
        Memory.parse(value)
    assert (str(caught.value), caught.value.hint) == (message, hint)


@pytest.mark.parametrize("value", [2**20, "1Mi", "1024Ki", "129e6", 128974848, "0.001Gi"])
def test_memory_may_be_a_number_of_bytes_if_there_are_enough(value):
    assert Memory.parse(value).bytes == Size.parse(value).bytes


@given(st.integers(1, 2**20 - 1))
def test_what_is_meant_instead_of_too_little_memory_is_enough(count):
    with pytest.raises(QuantityError) as caught:
        Memory.parse(count)
    meant = caught.value.hint.removeprefix('did you mean "').removesuffix('"?')
    assert Memory.parse(meant).bytes >= 2**24
