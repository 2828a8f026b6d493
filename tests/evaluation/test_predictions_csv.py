"""Tables of more than two classes, and those that other tools write."""

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation import Predictions, choose_operating_point, read_csv


def test_several_classes_round_trip_exactly(several, tmp_path):
    table = choose_operating_point(several(1, tag="v")).apply(several(0))
    table.write_csv(tmp_path / "p.csv")
    header = (tmp_path / "p.csv").read_text().splitlines()[0].split(",")
    assert "probability_adenosis" in header and "calibrated_lobular_carcinoma" in header
    assert "threshold" not in header and "probability" not in header
    for names in (None, table.class_names):
        again = read_csv(tmp_path / "p.csv", names)
        assert again.class_names == table.class_names
        assert np.array_equal(again.probability, table.probability)
        assert np.array_equal(again.calibrated, table.calibrated)
        assert np.array_equal(again.label, table.label)
    # The order of the classes is the reader's to choose.
    turned = read_csv(tmp_path / "p.csv", table.class_names[::-1])
    assert np.array_equal(turned.probability, table.probability[:, ::-1])
    with pytest.raises(InputError, match="probability_lobular_carcinoma belongs to no class"):
        read_csv(tmp_path / "p.csv", table.class_names[:3])
    with pytest.raises(InputError, match="no column probability_x"):
        read_csv(tmp_path / "p.csv", (*table.class_names, "x"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,p,40,x,0.2,0.3,0.5,z", "row 1 predicts 'z', but the likeliest class is y"),
        ("a,p,40,x,0.2,0.3,0.6,y", "adds up to 1.1"),
        ("a,p,40,w,0.2,0.3,0.5,y", "label 'w'; expected x or z or y"),
        ("a,p,40,x,0.2,?,0.5,y", "probability_z '[?]'"),
    ],
)
def test_an_invalid_row_is_named(tmp_path, row, message):
    path = tmp_path / "p.csv"
    head = "file,patient,magnification,label,probability_x,probability_z,probability_y,prediction"
    path.write_text(f"{head}\n{row}\n")
    with pytest.raises(InputError, match=message) as error:
        read_csv(path)
    assert str(path) in str(error.value)


def test_two_columns_of_two_classes(tmp_path):
    """As a network returns them, and as another tool may write them."""
    head = "file,patient,magnification,label,probability_x,probability_y"
    (tmp_path / "p.csv").write_text(f"{head}\na,p,40,x,0.25,0.75\nb,q,40,y,0.5,0.5\n")
    table = read_csv(tmp_path / "p.csv")
    assert table.class_names == ("x", "y") and table.probability.tolist() == [0.75, 0.5]
    columns = {name: getattr(table, name) for name in table.__dataclass_fields__}
    again = Predictions(**{**columns, "probability": [[0.25, 0.75], [0.5, 0.5]]})
    assert np.array_equal(again.probability, table.probability)
