import json

import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.sources.folder import list_tiles
from densenet_flax.data.sources.tile_table import ColumnSettings


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
        # The quote would swallow the rows behind it.
        ('file,label\nn0_0.png,a\nn0_1.png,"a\nn0_2.png,b', "row 3 is not CSV .*close each quote"),
        (f"file,label,note\nn0_0.png,a,{'x' * 200_000}", "row 2 is not CSV .*field limit"),
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


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("Image Name,Majority Vote Label,Partition\nn0_0,x,train", {"split": "train"}),
        ("filepath;class;Patient_ID\nnormal\\n0_0.png;x;7", {"patient": "7"}),
        ("images,labels,fold\n./normal/n0_0.png,x,2", {"split": "fold_2"}),
        ("id,label,Split\nN0_0.PNG,x,VALID", {"split": "validation"}),
        ("file,label,id,image\ntiles/normal/n0_0.png,x,1,2", {}),
        (",file,label\n0,C:\\data\\tiles\\normal\\n0_0.png,x", {}),
        ("sep=;\nfile;label\nnormal//n0_0.png;x", {}),
        ("# tiles\rfile,label\rtumour/../normal/n0_0.png,x", {}),
        ('"file";"label";"note, a, b"\n"n0_0.png";"x";"n"', {}),
        ("file,label,\nn0_0.png,x,\n", {}),
        ("file,label\nn0_0.png,x,,\n", {}),
    ],
)
def test_spellings_of_columns_and_paths(root, text, known, write_table):
    (tile,) = list_folder(root, write_table(text))
    assert (tile.file, tile.label, tile.known) == ("normal/n0_0.png", "x", known)


def test_absolute_paths_and_paths_from_the_table(root, write_table):
    for cell in (root / "normal" / "n0_0.png", "tiles/normal/n0_0.png"):
        (tile,) = list_folder(root, write_table(f"file,label\n{cell},x"))
        assert tile.file == "normal/n0_0.png"
    # Another file of the same name is not taken for it.
    other = root.parent / "others" / "n0_0.png"
    other.parent.mkdir()
    other.touch()
    with pytest.raises(InputError, match="is a file, but not an image in"):
        list_folder(root, write_table(f"file,label\n{other},x"))
    with pytest.raises(InputError, match=r"elsewhere/n0_0\.png is not an image in"):
        list_folder(root, write_table("file,label\nelsewhere/n0_0.png,x"))
    with pytest.raises(
        InputError, match=r"n0_0\.jpg is not an image in .*there is normal/n0_0\.png"
    ):
        list_folder(root, write_table("file,label\nn0_0.jpg,x"))


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("filename,image,label\n", {}, "'filename' and 'image' may both be the file; set data.col"),
        ("file,label_2,label_8\n", {}, "set data.columns.label to the column that has it"),
        ("file,label\n", {"site": "clinic"}, r"no column 'clinic' \(data\.columns\.site\)"),
        ("fold,mag,grp,filename\n", {}, "list of BreakHis's folds: .*configs/breakhis.py:fold=1"),
        ("file,label\nn0_0.png,NaN", {}, r"row 2: no label \(NaN\); fill it in"),
        ("file,label\nn0_0.png,a\nn0_1.png,A", {}, "classes that differ only in spelling: 'A' and"),
        ("file,label\nn0_0.png,0\nn0_1.png,0.0", {}, "classes .* spelling: '0' and '0.0'"),
        ("file,label,patient\nn0_0.png,a,P3\nt0_0.png,b,p3", {}, "patients .* 'P3' and 'p3'"),
    ],
)
def test_what_may_be_meant_is_an_error(root, text, columns, message, write_table):
    with pytest.raises(InputError, match=message):
        list_folder(root, write_table(text), columns=ColumnSettings(**columns))


def test_columns_can_be_stated(root, write_table):
    text = "filepath,class_type,label_2,split\nn0_0.png,benign,0,train\n"
    columns = ColumnSettings(label="Class_Type", split="none")
    (tile,) = list_folder(root, write_table(text), columns=columns)
    assert (tile.label, tile.known) == ("benign", {})


def test_names_that_differ_in_spelling_can_be_merged(root, write_table):
    text = "file,label,patient\nn0_0.png,Tumor,P03\nn0_1.png,tumor,p3\nt0_0.png,tumor,p4"
    table = write_table(text)
    merged = list_folder(root, table, similar_names="merge")
    assert [(tile.label, tile.known["patient"]) for tile in merged] == [
        ("tumor", "p3"),
        ("tumor", "p3"),
        ("tumor", "p4"),
    ]
    kept = list_folder(root, table, similar_names="keep")
    assert [tile.label for tile in kept] == ["Tumor", "tumor", "tumor"]


def test_lists_in_json(root):
    lists = {"train": [{"name": "n0_0.png", "label": 1, "votes": [1, 2]}], "test": []}
    lists["test"] = [{"name": "t0_0.png", "label": 2, "note": None}]
    for subset, entries in lists.items():
        (root.parent / f"{subset}.json").write_text(json.dumps(entries))
    (one,) = list_folder(root, root.parent / "train.json")
    assert (one.file, one.label, one.known) == ("normal/n0_0.png", "1", {})
    both = list_folder(root, f"{root.parent}/train.json,{root.parent}/test.json")
    assert [(tile.label, tile.known) for tile in both] == [
        ("1", {"split": "train"}),
        ("2", {"split": "test"}),
    ]
    with pytest.raises(InputError, match=r"train\.json: normal/n0_0\.png is in .* already"):
        list_folder(root, f"{root.parent}/train.json,{root.parent}/train.json")
    for text, message in (("{}", "expected a list of objects"), ("[", "is not JSON")):
        (root.parent / "train.json").write_text(text)
        with pytest.raises(InputError, match=message):
            list_folder(root, root.parent / "train.json")


def test_a_table_that_does_not_say_leaves_the_subset_to_folders(root):
    for subset in ("train", "test"):
        Image.new("RGB", (9, 9)).save(root / f"{subset}.png")
        (root / subset / "x").mkdir(parents=True)
        (root / f"{subset}.png").rename(root / subset / "x" / f"{subset}.png")
    (root.parent / "t.csv").write_text("file,label\ntrain.png,a\ntest.png,b")
    tiles = list_folder(root, root.parent / "t.csv")
    assert [tile.known for tile in tiles] == [{"split": "test"}, {"split": "train"}]
