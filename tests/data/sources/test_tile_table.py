import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.sources.folder import list_tiles


def list_folder(root, table, **changes):
    return list_tiles(root, DataConfig(name="folder", csv=str(table), **changes))[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_encodings_and_separators(root, encoding, delimiter, write_table):
    text = "File, Label ,patient\r\nn0_0.png,grün,Müller\r\n\r\ntumour\\t0_0.png,rot,Özil\r\n"
    table = write_table(text.replace(",", delimiter), encoding)
    tiles, provenance = list_tiles(root, DataConfig(name="folder", csv=str(table)))
    assert [(tile.file, tile.label, tile.known["patient"]) for tile in tiles] == [
        ("normal/n0_0.png", "grün", "Müller"),
        ("tumour/t0_0.png", "rot", "Özil"),
    ]
    assert tiles[0].known.keys() == {"patient"}
    assert list(provenance.left_out.values()) == ["not in the table"] * 18


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'file', only nothing"),
        ("file,klasse\na,b", "has no column 'label', only file, klasse"),
        ("file,label,label\n", "a column appears twice"),
        ("file,label\n", "a header and no rows"),
        ("file,label\ngone.png,normal", r"row 2: gone\.png is not an image in"),
        (
            "file,label\n../tiles.csv,normal",
            r"row 2: \.\./tiles\.csv is a file, but not an image in",
        ),
        ("file,label\nn0_0.png,", "row 2: no label"),
        ("file,label,patient\nn0_0.png,a,", "row 2: no patient"),
        ("file,label\nn0_0.png,a,b", "row 2: has 3 cells where the header has 2"),
        ("file,label\nn0_0.png,a\nnormal/n0_0.png,b", "row 3: normal/n0_0.png is in row 2 already"),
        ("file,label\nsame.png,a", "same.png is the name of normal/same.png and of tumour/same"),
        ("file,label,split\nn0_0.png,a,later", "row 2: split 'later'"),
    ],
)
def test_invalid_tables(root, text, message, write_table):
    for label in ("normal", "tumour"):
        Image.new("RGB", (9, 9)).save(root / label / "same.png")
    with pytest.raises(InputError, match=message) as caught:
        list_folder(root, write_table(text))
    assert "tiles.csv: " in str(caught.value) and "\n" not in str(caught.value)


def test_other_encodings_are_rejected(root, write_table):
    text = "file,label\nn0_0.png,normal\nn0_1.png,grün"
    with pytest.raises(InputError, match=r"tiles\.csv: row 3 is not UTF-8 \(byte 0xfc\)"):
        list_folder(root, write_table(text, "latin-1"))
    with pytest.raises(InputError, match="not a text file"):
        list_folder(root, write_table("file,label", "utf-16-le"))
    with pytest.raises(InputError, match=r"nowhere\.csv: cannot be read"):
        list_folder(root, root / "nowhere.csv")
