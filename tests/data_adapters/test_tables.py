"""CSV and Parquet tables, and labels from them."""

import pytest

from data_adapters.errors import DataError
from data_adapters.reasons import Unusable
from data_adapters.sources import Targets
from data_adapters.tables import read_table
from data_adapters.targets import load_targets

ROWS = [("A1", "yes"), ("B2", "no")]


def csv(path, text="who,finding,more\nA1, yes ,x\n\nB2,no,\n", encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


def parquet(path):
    import pyarrow
    from pyarrow.parquet import write_table

    table = {"finding": ["yes", "no", None], "who": ["A1", "B2", "C3"], "n": [1, 2, 3]}
    write_table(pyarrow.table(table), path)
    return path


def test_named_columns_come_back_as_text(tmp_path):
    assert read_table(csv(tmp_path / "t.csv"), ("who", "finding")) == ROWS
    assert read_table(csv(tmp_path / "t.csv", encoding="utf-8-sig"), ("who",)) == [("A1",), ("B2",)]
    found = read_table(parquet(tmp_path / "t.parquet"), ("who", "finding", "n"))
    assert found == [("A1", "yes", "1"), ("B2", "no", "2"), ("C3", "", "3")]


def test_a_bids_table_has_tabs(tmp_path):
    path = csv(tmp_path / "participants.tsv", "participant_id\tage\nsub-01\t31, or so\n")
    assert read_table(path, ("participant_id", "age")) == [("sub-01", "31, or so")]


def test_a_missing_column_is_named_and_no_value_of_a_table_without_header_is(tmp_path):
    with pytest.raises(DataError, match=r"no column 'age' among its 3"):
        read_table(csv(tmp_path / "t.csv"), ("who", "age"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("absent.csv", None),
        ("latin.csv", "who\nJos\u00e9\n".encode("latin-1")),
        ("ragged.csv", b"who,finding\nA1\n"),
        ("quote.csv", b'who\n"A1\n'),
        ("t.parquet", b"not parquet"),
    ],
)
def test_what_is_no_table_is_named_and_quotes_nothing(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read") as caught:
        read_table(tmp_path / name, ("who",))
    assert "A1" not in str(caught.value).replace(str(tmp_path), "")


def table(tmp_path, text, **changes):
    path = csv(tmp_path / "t.csv", text)
    arguments = {"key": "subject", "id_column": "who", "column": "value"}
    return load_targets(Targets(path=path, **(arguments | changes)))


def code(found, key):
    with pytest.raises(Unusable) as refused:
        found.target_of(key)
    return refused.value.code


def test_classes_become_their_index_and_values_stay(tmp_path):
    found = table(tmp_path, "who,value\nA,1\nB,0\nC,7\n", classes={"1": "pneumonia", "0": "normal"})
    assert (found.target_of("A"), found.target_of(" B ")) == (1.0, 0.0)
    assert code(found, "C") == "UNMAPPED_TARGET"
    assert table(tmp_path, "who,value\nA,41.5\n").target_of("A") == 41.5


def test_what_is_in_no_class_names_the_nearest(tmp_path):
    classes = {"Pneumonia": "pneumonia", "normal": "normal"}
    found = table(tmp_path, "who,value\nA,pneumona\nB,7\n", classes=classes)
    sentences = []
    for key in "AB":
        with pytest.raises(Unusable) as refused:
            found.target_of(key)
        sentences.append(refused.value.at("").sentence)
    assert "'pneumona' (nearest: 'Pneumonia')" in sentences[0]
    assert sentences[1].endswith("'7'.")


def test_a_key_twice_must_say_the_same(tmp_path):
    found = table(tmp_path, "who,value\nA,1\nA,1\nB,1\nB,2\nC,x\nD,nan\n")
    assert found.target_of("A") == 1.0
    codes = [code(found, key) for key in "BCDE"]
    assert codes == ["AMBIGUOUS_TARGET", "UNMAPPED_TARGET", "UNMAPPED_TARGET", "NO_TARGET"]


def test_a_table_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no rows"):
        table(tmp_path, "who,value\n")
