"""Ingest from a PACS: what of the source's settings makes a study be read again."""

import pytest

from data_adapters.sources import Select
from tests.data_adapters.dicomweb.fake_pacs import FakePacs, change, running

EARLY = ("20200101", "20200102")


@pytest.mark.parametrize(
    "wider",
    [
        {"study_dates": ("20200101", "20211231")},
        {"study_dates": None, "study_description": "BRAIN*"},
        {"study_dates": None, "limit": 5},
        {"study_dates": None, "connections": 1},
        {"study_dates": None, "modality": None},
    ],
)
def test_a_wider_query_reads_only_the_studies_that_it_adds(pacs, source, take_in, wider):
    first = take_in(change(source, study_dates=EARLY))
    report = take_in(change(source, **wider))
    assert (len(first.manifest.scans), len(report.manifest.scans)) == (2, 3)
    assert (first.num_read, report.num_read) == (2, 1)


def test_another_address_of_the_same_archive_reads_nothing_anew(pacs, exports, source, take_in):
    first = take_in(source).manifest
    with running(FakePacs()) as moved:
        moved.store(exports)
        report = take_in(change(source, url=moved.url))
    assert (report.manifest, report.num_read) == (first, 0)


def test_what_decides_on_what_is_read_does_read_anew(pacs, source, take_in):
    take_in(source)
    assert take_in(change(source, select=Select(description="*"))).num_read == 3
