"""A site answers what its own hub has signed for it, now, and nothing else."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.errors import Refused
from federation.ledger.keys import SiteKey
from federation.messages import CloseRequest, DescribeRequest, EvaluateRequest, TrainRequest
from federation.signed_requests import CLOCK_TOLERANCE_S, MAX_VALID_S, Gate, sign_request

HUB, OTHER = (SiteKey(Ed25519PrivateKey.generate()) for _ in range(2))
EXPERIMENT, RUN, NOW = "sha256:" + "e" * 64, "0123456789abcdef", 1_800_000_000
REQUEST = DescribeRequest(EXPERIMENT, RUN)


def gate(now=NOW, site="ward-a", key=HUB):
    return Gate(site, key.public_bytes.hex(), lambda: now)


def signed(request=REQUEST, key=HUB, kind="describe", site="ward-a", valid_s=60, now=NOW):
    return sign_request(
        key, kind=kind, digest=request.digest(), site=site, valid_s=valid_s, now=now
    )


def refused(gate, signature, kind="describe", request=REQUEST):
    with pytest.raises(Refused) as refusal:
        gate.check(kind, request, signature)
    return refusal.value.code


def test_what_the_hub_signed_passes():
    gate().check("describe", REQUEST, signed())


def test_nothing_passes_unsigned():
    assert refused(gate(), None) == "not_from_hub"


@pytest.mark.parametrize(
    "signature",
    [
        signed(key=OTHER),
        replace(signed(key=OTHER), hub_key=HUB.public_bytes.hex()),
        signed(site="ward-b"),
        signed(kind="close"),
        signed(request=DescribeRequest(EXPERIMENT, "f" * 16)),
        signed(request=DescribeRequest("sha256:" + "0" * 64, RUN)),
        replace(signed(), expires=NOW + 9_999),
        replace(signed(), issued=NOW - 1),
        replace(signed(), signature="00" * 64),
        replace(signed(), signature="no hex"),
    ],
    ids=[
        "another hub",
        "another hub under this one's name",
        "for another site",
        "for another kind",
        "for another run",
        "for another experiment",
        "made to last longer",
        "made older",
        "zeros",
        "no hex",
    ],
)
def test_what_was_signed_otherwise_is_refused(signature):
    assert refused(gate(), signature) == "not_from_hub"


@pytest.mark.parametrize(
    ("now", "valid_s"),
    [(NOW + 61, 60), (NOW - CLOCK_TOLERANCE_S - 1, 60)],
    ids=["too late", "from the future"],
)
def test_a_time_that_does_not_fit_is_told_apart(now, valid_s):
    assert refused(gate(now), signed(valid_s=valid_s)) == "expired"


@pytest.mark.parametrize("now", [NOW + 60, NOW - CLOCK_TOLERANCE_S])
def test_clocks_may_differ_a_little(now):
    gate(now).check("describe", REQUEST, signed())


def test_no_request_stays_open_for_ever():
    assert signed(valid_s=1e9).expires == NOW + MAX_VALID_S


def test_a_round_is_bound_to_its_number_its_weights_and_the_heads(weights):
    request = TrainRequest(EXPERIMENT, RUN, 1, 1, weights, {"ward-b": EXPERIMENT})
    signature = signed(request, kind="train")
    gate().check("train", request, signature)
    changed = {name: array + 1 for name, array in weights.items()}
    for other in (
        replace(request, round=2),
        replace(request, attempt=2),
        replace(request, weights=changed),
        replace(request, heads={}),
    ):
        assert refused(gate(), signature, "train", other) == "not_from_hub"


def test_scores_and_the_end_are_bound_to_the_model(weights):
    evaluate = EvaluateRequest(EXPERIMENT, RUN, 1, weights)
    end = CloseRequest(EXPERIMENT, RUN, {}, EXPERIMENT)
    other = {name: array + 1 for name, array in weights.items()}
    for kind, request, changed in (
        ("evaluate", evaluate, replace(evaluate, weights=other)),
        ("evaluate", evaluate, replace(evaluate, round=2)),
        ("close", end, replace(end, model_digest="sha256:" + "0" * 64)),
        ("close", end, replace(end, heads={"ward-b": EXPERIMENT})),
    ):
        assert refused(gate(), signed(request, kind=kind), kind, changed) == "not_from_hub"


@pytest.fixture
def weights():
    import numpy as np

    return {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
