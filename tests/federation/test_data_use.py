import pytest

from federation.data_use import (
    DS,
    FOR_PEOPLE,
    GRU,
    HMB,
    NRES,
    POA,
    PUBLIC_TERMS,
    DataUse,
    parse_terms,
    public_terms,
)
from federation.documents import parse_document
from federation.errors import FederationError
from tests.experiments import demo_values, tiny_experiment

ALZHEIMER, PARKINSON = "MONDO:0004975", "MONDO:0005180"
USES = {
    GRU: DataUse(methods_development=False),
    HMB: DataUse(purpose=HMB, methods_development=False),
    DS: DataUse(purpose=DS, disease=ALZHEIMER, methods_development=False),
    POA: DataUse(purpose=POA, methods_development=False),
}
# Rows: what data permit. Columns: what is asked for, in the order of USES.
TABLE = {
    NRES: (True, True, True, True),
    GRU: (True, True, True, True),
    HMB: (False, True, True, False),
    f"{DS} {ALZHEIMER}": (False, False, True, False),
    f"{DS} {PARKINSON}": (False, False, False, False),
    POA: (False, False, False, True),
}


@pytest.mark.parametrize("permission", TABLE)
def test_which_purpose_is_within_which_permission(permission):
    terms = parse_terms([permission])
    assert tuple(terms.permit(use) for use in USES.values()) == TABLE[permission]


def test_one_of_several_permissions_is_enough():
    terms = parse_terms([POA, f"{DS} {PARKINSON}", f"{DS} {ALZHEIMER}"])
    assert terms.permit(USES[DS]) and terms.permit(USES[POA])
    assert not terms.permit(USES[HMB])


@pytest.mark.parametrize("code", ["DUO:0000018", "DUO:0000045", "DUO:0000046"])
def test_not_for_profit_has_to_be_declared(code):
    terms = parse_terms([HMB, code])
    assert not terms.permit(DataUse(purpose=HMB))
    assert terms.permit(DataUse(purpose=HMB, non_profit=True))


def test_no_methods_development():
    terms = parse_terms([HMB, "DUO:0000015"])
    assert not terms.permit(DataUse(purpose=HMB))
    assert terms.permit(USES[HMB])


def test_ancestry_prohibited_excludes_general_research_which_contains_it():
    terms = parse_terms([NRES, "DUO:0000044"])
    assert [terms.permit(use) for use in USES.values()] == [False, True, True, False]


def test_every_modifier_has_to_hold():
    terms = parse_terms([GRU, "DUO:0000015", "DUO:0000018", "DUO:0000044"])
    assert len(terms.objections(DataUse())) == 3


@pytest.mark.parametrize("code", FOR_PEOPLE)
def test_what_no_program_can_check_needs_somebodys_word(code):
    with pytest.raises(ValueError, match=f"{code}: Dr A. Example"):
        parse_terms([HMB, code])
    assert parse_terms([HMB, code], acknowledged=[code]).permit(USES[HMB])


@pytest.mark.parametrize(
    ("codes", "why"),
    [
        ([], "no permission"),
        (["DUO:0000018"], "no permission"),
        (["DUO:9999999"], "no code of the Data Use Ontology"),
        (["general"], "no code of the Data Use Ontology"),
        ([DS], "needs its disease"),
        ([f"{HMB} {ALZHEIMER}"], "stands alone"),
    ],
)
def test_terms_that_mean_nothing_are_refused(codes, why):
    with pytest.raises(ValueError, match=why):
        parse_terms(codes)


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ([], "not stated"),
        ([GRU], GRU),
        (
            [f"{DS} {ALZHEIMER}", "DUO:0000021 vote 12/3 of Dr Doe"],
            f"{DS} {ALZHEIMER}; DUO:0000021",
        ),
        ([f" {DS}  {PARKINSON} "], f"{DS} {PARKINSON}"),
        ([f"{DS} Mrs Doe's illness"], DS),
    ],
)
def test_what_a_site_tells_is_codes_and_diseases_and_no_other_words(codes, told):
    assert public_terms(codes) == told
    assert PUBLIC_TERMS.fullmatch(told)


def test_an_experiment_that_declares_nothing_claims_as_little_as_possible():
    use = tiny_experiment().data_use
    assert (use.purpose, use.non_profit, use.methods_development) == (GRU, False, True)
    assert not parse_terms([HMB]).permit(use)


@pytest.mark.parametrize("use", [{"purpose": DS}, {"purpose": HMB, "disease": ALZHEIMER}])
def test_a_disease_goes_with_the_purpose_of_a_disease(use):
    with pytest.raises(FederationError, match="goes with a 'disease'"):
        parse_document(use, DataUse, "experiment")


def test_what_is_declared_is_part_of_the_experiments_digest():
    values = demo_values() | {"data_use": {"purpose": HMB}}
    declared = type(tiny_experiment()).model_validate(values)
    undeclared = type(tiny_experiment()).model_validate(demo_values())
    assert declared.digest() != undeclared.digest()
