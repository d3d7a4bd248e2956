import numpy as np
import oracles
import pytest
import torch

from replica.network.draws import (
    high_low,
    key_of,
    normal_entries,
    permutation,
    philox,
    places_in_order,
)

# Counter, key and result of Philox4x32-10, from the known-answer file of its authors' library.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(make, counter, key, expected):
    words = philox(key, tuple(make([word]) for word in counter))
    assert tuple(int(word[0]) for word in words) == expected


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_so_does_the_oracles(counter, key, expected):
    assert tuple(int(word) for word in oracles.philox(*key, counter)) == expected


def test_any_part_of_a_tensor_gets_the_same_numbers():
    whole = normal_entries(seed=3, parameter=2, first=0, count=600_000)
    for first, count in ((0, 1), (1, 7), (262_143, 5), (300_002, 100_000), (123_457, 300_001)):
        part = normal_entries(seed=3, parameter=2, first=first, count=count)
        assert np.array_equal(part, whole[first : first + count])


def test_initial_numbers_are_standard_normal():
    numbers = normal_entries(seed=1, parameter=0, first=0, count=1_000_000).astype(np.float64)
    assert abs(numbers.mean()) < 0.005
    assert abs(numbers.std() - 1) < 0.005
    assert abs((numbers**4).mean() - 3) < 0.05
    neighbors = np.corrcoef(numbers[:-1], numbers[1:])[0, 1]
    assert abs(neighbors) < 0.005


@pytest.mark.fault(19)
def test_parameters_and_seeds_draw_differently():
    first = normal_entries(seed=1, parameter=0, first=0, count=100)
    assert not np.array_equal(first, normal_entries(seed=1, parameter=1, first=0, count=100))
    assert not np.array_equal(first, normal_entries(seed=2, parameter=0, first=0, count=100))


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_the_cycle_visits_every_image_once(size):
    order = permutation(2012, size)
    assert sorted(order.tolist()) == list(range(size))
    assert np.array_equal(order, permutation(2012, size))


def test_equal_words_stay_in_the_order_of_their_places():
    words = np.array([7, 2**32 - 1, 0, 7, 2**31, 0, 2**32 - 1])
    assert places_in_order(words).tolist() == sorted(range(7), key=lambda i: (words[i], i))


def test_the_cycle_is_not_the_stored_order():
    order = permutation(2012, 1000)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    assert not np.array_equal(order, permutation(2013, 1000))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_outside_32_bits_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed: expected 0 to 4294967295, got {seed}"):
        key_of(seed, "crop")


def test_an_index_is_cut_into_two_words_of_32_bits():
    for index in (0, 1, 2**32 - 1, 2**32, 2**33 + 5):
        high, low = high_low(np.int64(index))
        assert (int(high), int(low)) == divmod(index, 2**32)
