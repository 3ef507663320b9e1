"""Whether labels mean the same classes, as far as names can tell."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm.data.readers.reader_image_folder import natural_key

from dearkd.specs.class_order import natural_order, other_order, parted_orders, sorted_by, uncertain_order

TWELVE = [str(label) for label in range(12)]


@given(st.lists(st.text(alphabet="aBc019_ ", min_size=1, max_size=6), unique=True))
def test_natural_order_is_timms(names: list[str]) -> None:
    assert natural_order(names) == sorted(sorted(names), key=natural_key)


@pytest.mark.parametrize(
    ("names", "certain"),
    [
        (TWELVE, True),  # each is named by its own label
        (sorted(TWELVE), False),
        ([str(number) for number in range(1, 13)], False),
        (TWELVE[:10], True),
        ([f"{number:02}" for number in range(12)], True),
        (["class1", "class10", "class2"], False),
        (["class1", "class2", "class10"], False),
        (["Zebra", "apple"], False),
        (["cat", "dog", "emu"], True),
        (["n01440764", "n01443537", "n02102040"], True),
        (["plane", "car", "bird 10", "bird 9"], True),  # sorted by nobody: a list, as of CIFAR's classes
    ],
)
def test_which_orders_need_a_word(names: list[str], certain: bool) -> None:
    found = uncertain_order(names)
    assert (found is None) == certain
    if found is not None:
        assert all(repr(order[0]) in found for order in (parted_orders(names) or ())[:2])


@pytest.mark.parametrize(
    ("theirs", "ours", "says"),
    [
        (sorted(TWELVE), TWELVE, "label 2 is '10' there and '2' here"),
        (["cat", "dog"], ["dog", "cat"], "label 0 is 'cat' there and 'dog' here"),
        ([str(n) for n in range(1, 11)], TWELVE[:10], "label 0 is '1' there and '0' here"),  # counted from 1
        (["a", "b", "C"], ["c", "A", "b"], "label 0 is 'a'"),
        (["hot_dog", "ice cream"], ["Ice-Cream", "Hot Dog"], "label 0 is 'hot_dog'"),
        (["bird", "cat", "dog"], ["cat", "dog"], "label 1 is 'cat' there and 'dog' here"),
        (["x", "dog"], ["dog"], "label 1 is 'dog' there and label 0 here"),
        ([unicodedata.normalize("NFD", "café"), "bar"], ["bar", "café"], "label 0"),
    ],
)
def test_a_class_that_both_name_has_one_label(theirs: list[str], ours: list[str], says: str) -> None:
    found = other_order(theirs, ours)
    assert found is not None
    assert found.startswith(says)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (None, ["a"]),
        (["a"], None),
        (TWELVE, list(TWELVE)),
        (["zero", "one"], ["0", "1"]),
        (["Hot Dog", "cat"], ["hot_dog", "Cat "]),
        ([unicodedata.normalize("NFD", "café")], ["café"]),
        (["crane", "Crane"], ["crane", "Crane"]),  # two classes that differ in case alone
        (["automobile", "cat"], ["car", "cat"]),
    ],
)
def test_of_what_is_the_same_or_cannot_be_compared_nothing_is_said(
    theirs: list[str] | None, ours: list[str] | None
) -> None:
    assert other_order(theirs, ours) is None


def test_orders_by_name() -> None:
    names = ["10", "2", "1"]
    assert sorted_by("name", names) == ["1", "10", "2"]
    assert sorted_by("natural", names) == sorted_by("number", names) == ["1", "2", "10"]
    assert sorted_by("given", names) == names
    with pytest.raises(ValueError, match="invalid literal"):
        sorted_by("number", ["1", "two"])
