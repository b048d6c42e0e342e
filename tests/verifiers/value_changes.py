"""Any key, value, number or order becomes another: mostly nothing is known but that both agree."""

from tests.verifiers.byte_changes import CONTRADICTED
from tests.verifiers.forging import change, leaves_of, put, recounted
from tests.verifiers.writer import canonical


@change(CONTRADICTED)
def odd_key(forger):
    body = forger.rng.choice(forger.at().records)["body"]
    if forger.rng.random() < 0.5:
        body["comment"] = "nothing to see here"
    else:
        del body[forger.rng.choice(list(body))]
    return forger.said(renumber=False)


@change(CONTRADICTED)
def odd_kind(forger):
    record = forger.at().some("refusal", "closing", "release", "charge")
    record["kind"] = forger.rng.choice(("refund", "", "Charge", "record", "event", "protected"))
    return forger.said(renumber=False)


ODD = (None, True, False, 0, 1, -1, 2, 1.0, 0.0, 0.5, 1e-300, 1e300, 10**9, 10**9 + 1, 2**70, "")
ODD += ("x", "x" * 200, "x" * 201, "a\tb", "a\u2028b", "\x7f", "é", "𝔘", [], {}, [[]], {"": ""})
ODD += ({"kind": "unprotected"}, {"kind": "poisson_gaussian"}, "sha256:" + "A" * 64, "0" * 64)
ODD += ("sha256:" + "0" * 64, ["x"] * 33, [1, 2], {"a": "b"}, {"a": "sha256:" + "1" * 64})


@change(None)
def odd_value(forger):
    """Any value anywhere in a body becomes another; both verifiers say the same of it."""
    record = forger.rng.choice(forger.at().records)
    put(record["body"], forger.rng.choice(list(leaves_of(record["body"]))), forger.rng.choice(ODD))
    return forger.said(renumber=False)


@change(None)
def other_number(forger):
    record = forger.at().some("approval", "charge", "genesis", "reservation", "recovery", "merge")
    paths = [path for path in leaves_of(record["body"]) if not isinstance(path[-1], int)]
    numbers = [path for path in paths if isinstance(_value(record["body"], path), int | float)]
    path = forger.rng.choice(numbers)
    value = _value(record["body"], path)
    nearby = (
        value + 1,
        value - 1,
        min(value * 2, 1e308),
        value / 2,
        float(value),
        int(value),
        -value,
    )
    put(record["body"], path, forger.rng.choice(nearby))
    records = recounted_or_not(forger)
    return forger.said(records)


def recounted_or_not(forger):
    try:
        records = recounted(forger.records)
        canonical(records)
        return records
    except (ValueError, TypeError, KeyError, ArithmeticError):
        return forger.records


def _value(value, path):
    for key in path:
        value = value[key]
    return value


@change(None)
def reordered(forger):
    records = forger.at().records
    place = forger.rng.randrange(1, len(records) - 1)
    records[place], records[place + 1] = records[place + 1], records[place]
    return forger.said(recounted(records))


@change(None)
def record_left_out(forger):
    records = forger.at().records
    del records[forger.rng.randrange(1, len(records))]
    return forger.said(recounted(records))


@change(None)
def record_of_another_site(forger):
    other = forger.at("north").scenario.books["south"]
    record = forger.fresh(forger.rng.choice(other.records[1:]))
    forger.records.insert(forger.rng.randrange(1, len(forger.records)), record | {"seq": -1})
    return forger.said(recounted(forger.records))
