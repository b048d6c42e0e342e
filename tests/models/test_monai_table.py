"""docs/models.md says what MONAI's networks do: found out again here, one network at a time."""

import pytest

from tests.models.monai_table import CANDIDATES, DOCUMENT, document, row
from tests.models.refusals import REFUSED, refusal

COMMITTED = DOCUMENT.read_text() if DOCUMENT.exists() else ""
ROWS = [line for line in COMMITTED.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.name)
def test_the_committed_table_has_what_the_network_does(candidate, dims):
    assert row(candidate, dims, draws=1) in ROWS


@pytest.mark.parametrize("name", REFUSED)
def test_the_committed_table_says_what_is_refused_in_todays_words(name):
    assert refusal(name) in ROWS


def test_the_committed_document_is_what_the_module_writes():
    rows = [line for line in ROWS if "-D | " in line]
    assert len(rows) == 2 * len(CANDIDATES)
    assert document(rows) == COMMITTED


def test_the_table_covers_every_network_that_the_documents_promise():
    promised = "UNet BasicUNet AttentionUnet SegResNet DynUNet VNet DenseNet ResNet SEResNet "
    promised += "EfficientNet ViT UNETR SwinUNETR"
    assert set(promised.split()) <= {candidate.name for candidate in CANDIDATES}
