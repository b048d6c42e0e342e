"""What the benchmark says of its figures; it is carried out by ``make bench-federation`` alone."""

import pytest

from tests.benchmarks import bench_federation, soak_federation


def row(**seconds):
    return {
        "parameters": "0.1 M",
        "in_process_s": 0.1,
        "network_s": 0.5,
        "training_s": 0.5,
        "stock_s": 5.0,
        **seconds,
    }


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ({}, ("MET", "MET")),
        ({"network_s": 0.51}, ("MISSED", "MET")),
        ({"training_s": 0.51}, ("MET", "MISSED")),
        ({"stock_s": 4.9}, ("MET", "MISSED")),
    ],
)
def test_half_a_second_and_ten_times_are_the_aims(seconds, said):
    section = bench_federation.shown([row(**seconds)])
    assert tuple(note.rpartition(" ")[2] for note in section.notes[1:]) == said


def test_the_weights_have_the_size_that_is_stated():
    found = bench_federation.weights_of(100_000)
    assert sum(array.size for array in found.values()) == 100_002  # and a bias, which sites need


def test_growth_is_counted_from_where_memory_had_settled():
    looks = [
        {"at_s": float(n), "run": 100.0 + n, "superlink": 50.0, "sites": 900.0 - n}
        for n in range(21)
    ]
    told = {
        "sites": 2,
        "rounds": 20,
        "whole_rounds": 19,
        "looks": looks,
        "processes": {"before": 0, "during": 5, "after": 1},
    }
    section = soak_federation.shown(told)
    assert section.notes[0] == "1.0 s a round; every site's update was in 19 rounds."
    assert section.notes[1].endswith("run +10 MiB, superlink +0 MiB, sites -10 MiB")
    assert section.notes[2].endswith("5 during, 1 after")
