from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.algorithms.fedavg import average_step, client_step, server_step

finite = st.floats(-(2.0**100), 2.0**100, width=32)


def as_weights(values):
    return {"w": np.array(values, dtype=np.float32)}


def test_sites_count_equally():
    updates = {"a": as_weights([3.0]), "b": as_weights([6.0]), "c": as_weights([0.0])}
    assert server_step(as_weights([1.0]), updates)["w"] == np.float32(4.0)


def test_one_site_that_trained_alone_gets_its_own_weights_back():
    start, trained = as_weights([1.0, -2.0]), as_weights([1.5, 8.0])
    stepped = server_step(start, {"a": client_step(start, trained)})
    np.testing.assert_array_equal(stepped["w"], trained["w"])


@given(st.lists(finite, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_permuted_arrival_gives_identical_bits(values, random):
    arrived = [(f"site-{i}", as_weights([value, -value / 3])) for i, value in enumerate(values)]
    shuffled = random.sample(arrived, len(arrived))
    start = as_weights([0.1, 0.2])
    first, second = server_step(start, dict(arrived)), server_step(start, dict(shuffled))
    assert first["w"].tobytes() == second["w"].tobytes()


@pytest.mark.parametrize("order", list(permutations("abc")))
def test_the_order_of_sites_decides_where_even_float64_rounds(order):
    values = {"a": 2.0**80, "b": -(2.0**80), "c": 1.0}
    updates = {site: as_weights([values[site]]) for site in order}
    assert server_step(as_weights([0.0]), updates)["w"] == np.float32(1 / 3)


def test_the_sum_is_taken_in_float64():
    updates = {"a": as_weights([2.0**24]), "b": as_weights([1.0]), "c": as_weights([-(2.0**24)])}
    # In float32, 2**24 + 1 is 2**24 and the 1 would be lost.
    assert server_step(as_weights([0.0]), updates)["w"] == np.float32(1 / 3)


@given(st.lists(finite, min_size=1, max_size=5))
def test_the_mean_lies_between_the_updates(values):
    updates = {str(i): as_weights([value]) for i, value in enumerate(values)}
    stepped = server_step(as_weights([0.0]), updates)["w"][0]
    assert np.float32(min(values)) <= stepped <= np.float32(max(values))


def test_names_shapes_order_and_type_are_kept():
    start = {"z": np.zeros((2, 0), np.float32), "a": np.float32(1).reshape(())}
    stepped = server_step(start, {"s": start})
    assert list(stepped) == ["z", "a"]
    assert [(w.shape, w.dtype) for w in stepped.values()] == [
        ((2, 0), np.float32),
        ((), np.float32),
    ]


def test_no_update_is_an_error_not_a_round():
    with pytest.raises(ValueError, match="no update to average"):
        server_step(as_weights([0.0]), {})


def averaged(models, decay):
    average = {}
    for number, model in enumerate(models):
        average = average_step(average, model, decay=decay, num_averaged=number)
    return average


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=12),
    st.floats(0, 0.99),
)
def test_the_average_weighs_each_older_model_by_one_more_decay(values, decay):
    found = averaged([as_weights([value]) for value in values], decay)["w"][0]
    ages = decay ** np.arange(len(values))[::-1]
    # It is kept in float32 from round to round.
    allowed = 1e-6 * max(1e-30, *map(abs, values), 0.0)
    assert abs(found - np.average(values, weights=ages)) <= allowed


def test_without_decay_the_average_is_the_newest_model_bit_for_bit():
    newest = as_weights([0.1, -0.0, 1e-40])
    found = averaged([as_weights([1e30, 5.0, 7.0]), newest], 0.0)
    assert found["w"].tobytes() == newest["w"].tobytes()


def test_the_first_model_is_its_own_average():
    first = as_weights([3.0, 4.0])
    assert averaged([first], 0.9)["w"].tobytes() == first["w"].tobytes()


def test_an_average_of_equal_models_is_that_model():
    same = as_weights([0.1, 7.3])
    np.testing.assert_allclose(averaged([same] * 30, 0.9)["w"], same["w"], rtol=1e-6)


def test_averaging_leaves_what_it_was_given():
    one, two = as_weights([1.0]), as_weights([3.0])
    average_step(one, two, decay=0.5, num_averaged=1)
    assert (one["w"][0], two["w"][0]) == (1.0, 3.0)
